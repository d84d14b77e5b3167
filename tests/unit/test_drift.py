"""Drift: the statistics are those of scipy, a change is found and told apart from a bad camera, an ordinary week raises no alarm."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bowerbird_server.catalogue import Catalogue, drift_rows, fleet
from bowerbird_server.drift.verdicts import DriftSettings, Hour, Verdict, episode, judge, ks_matrix, psi_matrix, together
from bowerbird_server.drift.watch import DriftWatch
from bowerbird_server.fleet.wishes import wanted_of
from bowerbird_testing.drifting_camera import BEGIN_MS, MODEL, DriftingCamera
from bowerbird_wire.errors import WireError
from bowerbird_wire.histograms import HOUR_MS, CameraHour, Histograms
from bowerbird_wire.messages import Boost, Desired

pairs = st.integers(2, 12).flatmap(
    lambda bins: st.tuples(*[st.lists(st.integers(0, 40), min_size=bins, max_size=bins).filter(any)] * 2)
)
NOW_MS = 1_790_000_000_000
DAY_MS = 86_400_000
SETTINGS = DriftSettings()


@given(pairs)
def test_the_ks_distance_is_that_of_scipy_on_the_same_bins(pair: tuple[list[int], list[int]]) -> None:
    samples = [np.repeat(np.arange(len(counts)), counts) for counts in pair]
    assert ks_matrix(np.array(pair, float))[0, 1] == pytest.approx(stats.ks_2samp(*samples).statistic)


@given(pairs)
def test_the_stability_index_is_the_symmetrised_divergence_of_scipy(pair: tuple[list[int], list[int]]) -> None:
    kept = np.array(pair)[:, np.sum(pair, axis=0) > 0] + 0.5
    expected = stats.entropy(kept[0], kept[1]) + stats.entropy(kept[1], kept[0])
    assert psi_matrix(np.array(pair, float))[0, 1] == pytest.approx(expected, abs=1e-12)


@given(pairs)
def test_both_are_symmetric_and_zero_for_the_same(pair: tuple[list[int], list[int]]) -> None:
    for matrix in (psi_matrix(np.array([*pair, pair[0]], float)), ks_matrix(np.array([*pair, pair[0]], float))):
        assert matrix == pytest.approx(matrix.T)
        assert matrix[0, 2] == pytest.approx(0.0, abs=1e-12)
        assert matrix.min() >= 0.0


class Watched:
    """A catalogue with one device, and a watch whose clock stands."""

    def __init__(self, folder: Path, settings: DriftSettings = SETTINGS, *, new_camera: bool = False) -> None:
        self.cat = Catalogue(folder / "catalogue.db")
        fleet.add_device(self.cat, "cam-01", "demo", "test")
        if not new_camera:
            drift_rows.note_new_camera(self.cat, fleet.touch_camera(self.cat, "cam-01", "gate"), boost_until_ms=0, factor=1.0)
        self.watch = DriftWatch(self.cat, settings, lambda: NOW_MS)
        self.camera = DriftingCamera()

    def show(self, numbers: range, **how: Any) -> None:
        for number in numbers:
            self.watch.take("cam-01", Histograms((self.camera.hour(number, **how),)))

    def states(self) -> list[str]:
        return [row["state"] for row in reversed(drift_rows.verdicts(self.cat, "cam-01/gate", 1000))]


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    made = Watched(tmp_path)
    yield made
    made.cat.close()


@pytest.mark.parametrize("seed", range(3))
def test_a_week_of_ordinary_days_and_nights_raises_no_alarm(watched: Watched, seed: int) -> None:
    watched.camera = DriftingCamera(seed)
    watched.show(range(24 * 7))
    assert drift_rows.episodes(watched.cat) == []
    states = watched.states()
    assert states[:24] == ["learning"] * 24
    assert states.count("drifted") <= 8, "single hours of a hundred and forty may be odd"


@pytest.mark.parametrize(
    ("change", "cause", "where"),
    [
        ({"score_shift": -0.35}, "content", "scores"),
        ({"rate": 6.0}, "content", "counts"),
        ({"class_id": 7}, "content", "classes"),
        ({"light": 110.0}, "light", "brightness"),
    ],
)
def test_a_change_is_found_in_its_second_hour_with_its_cause(
    watched: Watched, change: dict[str, Any], cause: str, where: str
) -> None:
    watched.show(range(96))
    watched.show(range(96, 97), **change)
    assert drift_rows.episodes(watched.cat) == []
    watched.show(range(97, 100), **change)
    (found,) = drift_rows.episodes(watched.cat)
    assert (found["camera"], found["cause"], found["closed_at"]) == ("cam-01/gate", cause, None)
    far = found["distances"][where]
    assert far["psi"] > far["psi_limit"] >= 0.25
    assert drift_rows.boosts(watched.cat, NOW_MS) == {"cam-01": Boost(NOW_MS + DAY_MS, 2.0, {"gate": NOW_MS + DAY_MS})}


def test_a_covered_lens_is_a_fault_of_the_camera_and_not_of_its_model(watched: Watched) -> None:
    watched.show(range(48))
    watched.show(range(48, 60), fault="dark")
    assert drift_rows.episodes(watched.cat) == []
    assert drift_rows.boosts(watched.cat, NOW_MS) == {}
    newest = drift_rows.newest_of_cameras(watched.cat)
    assert [(row["state"], row["cause"]) for row in newest] == [("camera_fault", "dark")]
    watched.show(range(60, 62))
    assert watched.states()[-2:] == ["stable", "stable"], "the reference knows nothing of the dark hours"


def test_an_episode_ends_with_stable_hours_and_its_frames_are_a_slice(watched: Watched) -> None:
    watched.show(range(72))
    watched.show(range(72, 78), score_shift=-0.35)
    watched.show(range(78, 86))
    (found,) = drift_rows.episodes(watched.cat)
    assert found["why_closed"] == "stable"
    assert found["since"] == drift_rows.utc_text(BEGIN_MS + 72 * HOUR_MS)
    assert found["until"] >= drift_rows.utc_text(BEGIN_MS + 77 * HOUR_MS)
    marks = drift_rows.marks(watched.cat)
    for number, inside in ((71, False), (72, True), (77, True), (82, False)):
        minute = drift_rows.utc_text(BEGIN_MS + number * HOUR_MS + 59 * 60_000)[:16]
        assert drift_rows.slices_of(f"cam-01/gate@{minute}", marks) == ((found["slice"],) if inside else ())
        assert drift_rows.slices_of(f"cam-01/yard@{minute}", marks) == ()


def test_a_drift_that_lasts_does_not_become_the_new_normal_and_is_boosted_once(watched: Watched) -> None:
    watched.show(range(48))
    watched.show(range(48, 96), score_shift=-0.35)
    assert len(drift_rows.episodes(watched.cat)) == 1
    assert set(watched.states()[50:]) == {"drifted"}
    begun = [row for row in watched.cat.rows("SELECT kind FROM event") if row["kind"] == "drift found"]
    assert len(begun) == 1


def test_a_new_model_ends_the_episode_and_learns_its_own_reference(watched: Watched) -> None:
    watched.show(range(48))
    watched.show(range(48, 52), score_shift=-0.35)
    watched.show(range(52, 80), score_shift=-0.35, model=bytes(8))
    (found,) = drift_rows.episodes(watched.cat)
    assert found["why_closed"] == "new_model"
    assert watched.states()[-1] == "stable"


def test_an_hour_in_two_parts_counts_whole_and_a_repeated_message_changes_nothing(watched: Watched) -> None:
    whole = watched.camera.hour(0)
    later = dataclasses.replace(whole, from_ms=whole.from_ms + 1_000_000)
    for message in (whole, whole, later, dataclasses.replace(whole, frames=1)):
        watched.watch.take("cam-01", Histograms((message,)))
    series = drift_rows.Series("cam-01/gate", MODEL.hex(), 5)
    assert drift_rows.hour_of(watched.cat, series, BEGIN_MS).frames == 2 * whole.frames


def test_hours_that_come_late_and_together_are_judged_in_their_order(watched: Watched) -> None:
    watched.show(range(72))
    hours = [watched.camera.hour(number, score_shift=-0.35 if number < 75 else 0.0) for number in range(72, 80)]
    watched.watch.take("cam-01", Histograms(tuple(reversed(hours))))
    (found,) = drift_rows.episodes(watched.cat)
    assert found["why_closed"] == "stable"


def test_an_hour_whose_clock_was_not_set_counts_as_one_of_now(watched: Watched) -> None:
    watched.watch.take("cam-01", Histograms((dataclasses.replace(watched.camera.hour(0), clock_ok=False),)))
    (row,) = drift_rows.verdicts(watched.cat, "cam-01/gate")
    assert row["hour"] > "2026-11"


@pytest.mark.parametrize(
    "hour",
    [
        CameraHour("../x", BEGIN_MS, BEGIN_MS, 1),
        CameraHour("gate", BEGIN_MS, BEGIN_MS, 1, scores=b"\x80"),
        CameraHour("gate", BEGIN_MS, BEGIN_MS, 1, classes=b"\x01\x00"),
    ],
)
def test_hours_that_are_none_leave_no_row(watched: Watched, hour: CameraHour) -> None:
    with pytest.raises(WireError):
        watched.watch.take("cam-01", Histograms((hour,)))
    assert watched.cat.value("SELECT count(*) FROM camera_hour") == 0


def test_numbers_beyond_reason_are_kept_within_it(watched: Watched) -> None:
    odd = CameraHour("gate", -(2**60), 2**60, -5, floor=-3, unwell={f"x{i}" * 50: -1 for i in range(40)})
    watched.watch.take("cam-01", Histograms((odd, CameraHour("gate", 2**62, 0, 1))))
    assert watched.cat.value("SELECT count(*) FROM camera_hour") == 2


def test_the_wish_holds_the_boost_until_it_ends_or_is_stopped(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    watched.show(range(48))
    watched.show(range(48, 51), score_shift=-0.35)
    monkeypatch.setattr("bowerbird_server.fleet.wishes.time.time", lambda: NOW_MS / 1000)
    assert wanted_of(watched.cat, ["cam-01"])["cam-01"].boost == Boost(NOW_MS + DAY_MS, 2.0, {"gate": NOW_MS + DAY_MS})
    monkeypatch.setattr("bowerbird_server.fleet.wishes.time.time", lambda: (NOW_MS + DAY_MS) / 1000)
    assert wanted_of(watched.cat, ["cam-01"]) == {"cam-01": Desired(0)}, "what is retained must say that it is over"
    monkeypatch.undo()
    assert drift_rows.stop_boost(watched.cat, "cam-01", "ada") == int(time.time() * 1000 < NOW_MS + DAY_MS)


def test_a_camera_that_was_never_heard_of_is_explored_more_for_a_day(tmp_path: Path) -> None:
    there = Watched(tmp_path, new_camera=True)
    hour = there.camera.hour(0)
    there.watch.take("cam-01", Histograms((hour, dataclasses.replace(hour, camera="yard"))))
    ends = {"gate": NOW_MS + DAY_MS, "yard": NOW_MS + DAY_MS}
    assert drift_rows.boosts(there.cat, NOW_MS) == {"cam-01": Boost(NOW_MS + DAY_MS, 2.0, ends)}
    there.watch = DriftWatch(there.cat, SETTINGS, lambda: NOW_MS + DAY_MS)
    there.show(range(1, 4))
    assert drift_rows.boosts(there.cat, NOW_MS + DAY_MS) == {}, "it is new once"
    assert drift_rows.episodes(there.cat) == [], "and that is no drift"
    said = [row["subject"] for row in there.cat.rows("SELECT kind, subject FROM event") if row["kind"] == "new camera"]
    assert said == ["cam-01", "cam-01"]
    there.cat.close()


def test_a_board_that_replaces_another_brings_no_new_camera(watched: Watched) -> None:
    cat = watched.cat
    watched.show(range(2))
    fleet.add_device(cat, "cam-02", "demo", "test")
    cat.execute("UPDATE device SET replaces = 'cam-01' WHERE id = 'cam-02'")
    watched.watch.take("cam-02", Histograms((watched.camera.hour(2),)))
    assert drift_rows.boosts(cat, NOW_MS) == {}


def test_a_camera_that_drifts_is_boosted_and_the_one_beside_it_is_not(watched: Watched) -> None:
    drift_rows.note_new_camera(watched.cat, fleet.touch_camera(watched.cat, "cam-01", "yard"), boost_until_ms=0, factor=1.0)
    for number in range(51):
        hour = watched.camera.hour(number, score_shift=-0.35 if number >= 48 else 0.0)
        well = dataclasses.replace(watched.camera.hour(number), camera="yard")
        watched.watch.take("cam-01", Histograms((hour, well)))
    assert drift_rows.boosts(watched.cat, NOW_MS)["cam-01"].cameras == {"gate": NOW_MS + DAY_MS}


def test_without_a_boost_in_the_settings_drift_is_only_said(tmp_path: Path) -> None:
    quiet = Watched(tmp_path, DriftSettings(boost_factor=1.0), new_camera=True)
    quiet.show(range(48))
    quiet.show(range(48, 51), score_shift=-0.35)
    assert len(drift_rows.episodes(quiet.cat)) == 1
    assert drift_rows.boosts(quiet.cat, NOW_MS) == {}
    quiet.cat.close()


def test_old_hours_go_and_the_reference_of_the_newest_model_stays(watched: Watched) -> None:
    watched.show(range(3))
    watched.show(range(3, 6), model=bytes(8))
    watched.cat.execute("UPDATE camera_hour SET received_at = '2026-01-01T00:00:00.000Z'")
    watched.cat.execute("UPDATE drift_hour SET is_reference = 0 WHERE hour = ?", drift_rows.utc_text(BEGIN_MS + 4 * HOUR_MS))
    assert drift_rows.thin(watched.cat) == 4
    assert [row["hour"] for row in watched.cat.rows("SELECT hour FROM drift_hour ORDER BY hour")] == [
        drift_rows.utc_text(BEGIN_MS + number * HOUR_MS) for number in (3, 5)
    ]


def test_few_frames_say_nothing() -> None:
    assert judge(Hour(0, 100), [], SETTINGS) == Verdict("too_few")


@given(st.lists(st.sampled_from(["stable", "drifted", "too_few", "camera_fault", "learning"]), max_size=8))
def test_an_episode_opens_only_on_drift_in_a_row_and_closes_only_on_stable(states: list[str]) -> None:
    judged = [state for state in states if state in ("stable", "drifted")]
    assert (episode(states, is_open=False, settings=SETTINGS) == "opens") == (judged[-2:] == ["drifted"] * 2)
    assert (episode(states, is_open=True, settings=SETTINGS) == "closes") == (judged[-3:] == ["stable"] * 3)


def test_nothing_together_is_an_empty_hour() -> None:
    assert together([]).frames == 0
