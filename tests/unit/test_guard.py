"""The guard as a table of readings, steps and shares; sensors from a folder of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from bowerbird_agent.inference.guard import (
    STEPS,
    TRANSITIONS,
    GuardConfig,
    GuardState,
    Reading,
    Strain,
    advance,
    rest_s,
    strain_of,
)
from bowerbird_agent.inference.machine_sensors import MachineSensors

CONFIG = GuardConfig()  # warm 80, hot 88, pressure 90


@pytest.mark.parametrize(
    ("reading", "strain", "says"),
    [
        (Reading(), Strain.COOL, ""),
        (Reading(60.0), Strain.COOL, ""),
        (Reading(75.0), Strain.COOL, ""),
        (Reading(76.0, "cpu"), Strain.STEADY, "76 °C at cpu"),
        (Reading(80.0, "cpu"), Strain.WARM, "warm: 80 °C"),
        (Reading(88.0, "cpu"), Strain.HOT, "hot: 88 °C"),
        (Reading(cpu_pressure=99.0, own_share=0.5), Strain.WARM, "wait for a CPU 99 %"),
        (Reading(cpu_pressure=80.0, own_share=0.5), Strain.STEADY, "80 %"),
        (Reading(cpu_pressure=60.0, own_share=0.5), Strain.COOL, ""),
        (Reading(cpu_pressure=99.0, own_share=0.05), Strain.COOL, ""),  # not our doing
        (Reading(90.0, "cpu", 99.0, 0.5), Strain.HOT, "hot"),
        (Reading(60.0, "cpu", 99.0, 0.5), Strain.WARM, "wait"),
    ],
)
def test_the_worst_sensor_says_how_strained_the_machine_is(reading: Reading, strain: Strain, says: str) -> None:
    found, reasons = strain_of(reading, CONFIG)
    assert found is strain
    assert says in "; ".join(reasons)
    assert bool(reasons) == bool(says)


def test_what_we_would_take_counts_not_what_the_guard_has_left_us() -> None:
    reading = Reading(cpu_pressure=99.0, own_share=0.05)
    assert strain_of(reading, CONFIG, share=0.2)[0] is Strain.WARM


def test_every_strain_has_a_move() -> None:
    assert set(TRANSITIONS) == set(Strain)


@pytest.mark.parametrize(
    ("step", "waited_s", "degrees", "after"),
    [
        (0, 100, 60.0, 0),  # cool at the top: nothing
        (0, 100, 82.0, 1),  # warm: one step
        (0, 9, 82.0, 0),  # not so soon after the last move
        (0, 100, 95.0, 2),  # hot: two
        (0, 6, 95.0, 2),  # and sooner
        (2, 100, 78.0, 2),  # the band between warm and cool: nothing moves
        (2, 100, 60.0, 1),  # cool: one step back
        (2, 29, 60.0, 2),  # patience
        (4, 100, 95.0, 4),  # min_share is the floor
    ],
)
def test_each_reading_moves_the_guard_as_the_table_says(step: int, waited_s: float, degrees: float, after: int) -> None:
    state = GuardState(step, 0.0, STEPS[step], ("hot",) if step else ())
    found = advance(state, Reading(degrees, "cpu"), CONFIG, waited_s)
    assert found.step == after
    assert found.share == STEPS[after]
    assert bool(found.reasons) == (after > 0), "a lowered rate always has a reason"


def test_a_board_that_heats_up_and_cools_down_goes_down_the_ladder_and_back_without_flapping() -> None:
    state, shares, now_s = GuardState(), [1.0], 0.0
    for degrees in [70.0] * 10 + [84.0] * 30 + [77.0] * 60 + [65.0] * 100:
        now_s += 2.0
        state = advance(state, Reading(degrees, "cpu"), CONFIG, now_s)
        if state.share != shares[-1]:
            shares.append(state.share)
    assert shares == [1.0, 0.75, 0.5, 0.35, 0.2, 0.35, 0.5, 0.75, 1.0]
    assert state.reasons == ()


def test_a_floor_between_two_steps_is_the_lowest_share() -> None:
    config = GuardConfig(min_share=0.6)
    state = GuardState()
    for minute in range(5):
        state = advance(state, Reading(99.0, "cpu"), config, minute * 60.0)
    assert state.share == 0.6


def test_a_guard_that_is_switched_off_lets_go_at_once() -> None:
    state = advance(GuardState(3, 0.0, 0.35, ("hot",)), Reading(99.0), GuardConfig(enabled=False), 1.0)
    assert state.share == 1.0


@pytest.mark.parametrize(
    "values", [{"warm_c": 90.0}, {"hot_c": 200.0}, {"min_share": 0.0}, {"min_share": 1.1}, {"cpu_pressure": 5.0}]
)
def test_numbers_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        GuardConfig(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("share", "work_s", "arrival_s", "rest"),
    [
        (1.0, 0.2, 0.04, 0.0),
        (0.5, 0.2, None, 0.2),  # a file: as long as the work
        (0.5, 0.2, 0.04, 0.2),  # the model is the slow part
        (0.5, 0.01, 0.04, 0.07),  # the camera is: every second frame
        (0.25, 0.1, None, 0.3),
    ],
)
def test_the_rest_makes_the_rate_the_wanted_share_of_the_natural_one(
    share: float, work_s: float, arrival_s: float | None, rest: float
) -> None:
    assert rest_s(share, work_s=work_s, arrival_s=arrival_s) == pytest.approx(rest)
    natural_s = max(work_s, arrival_s or 0.0)
    if share < 1:
        assert natural_s / (work_s + rest) == pytest.approx(share)


def sensors(folder: Path, files: dict[str, str]) -> MachineSensors:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return MachineSensors(folder / "thermal", folder / "hwmon", folder / "pressure", folder / "loadavg", cpus=4)


def test_the_hottest_sensible_sensor_is_taken_with_its_name(tmp_path: Path) -> None:
    files = {
        "thermal/thermal_zone0/temp": "61000\n",
        "thermal/thermal_zone0/type": "cpu-thermal\n",
        "thermal/thermal_zone1/temp": "-274000\n",
        "thermal/thermal_zone2/temp": "",
        "hwmon/hwmon0/name": "nvme\n",
        "hwmon/hwmon0/temp1_input": "71850\n",
        "hwmon/hwmon0/temp2_input": "127000\n",
        "hwmon/hwmon1/temp1_input": "no number\n",
    }
    assert sensors(tmp_path, files).hottest() == (71.85, "nvme")


def test_a_machine_without_sensors_has_no_temperature_and_no_pressure(tmp_path: Path) -> None:
    machine = sensors(tmp_path, {})
    assert machine.hottest() == (None, "")
    assert machine.cpu_pressure() is None


def test_pressure_is_what_the_kernel_says(tmp_path: Path) -> None:
    text = "some avg10=45.61 avg60=21.92 avg300=13.15 total=69611315\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
    assert sensors(tmp_path, {"pressure": text, "loadavg": "9.0 1 1 1/2 3"}).cpu_pressure() == 45.61


@pytest.mark.parametrize(("load", "pressure"), [("2.00", 0.0), ("4.0", 0.0), ("8.0", 50.0), ("40", 90.0)])
def test_without_it_the_load_average_says_how_many_tasks_have_no_cpu(tmp_path: Path, load: str, pressure: float) -> None:
    assert sensors(tmp_path, {"loadavg": f"{load} 1.0 1.0 1/100 5\n"}).cpu_pressure() == pytest.approx(pressure)
