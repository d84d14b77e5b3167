"""The launcher, with real processes: which version runs after which fate of the one on trial, whenever power fails."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bowerbird_testing.launched import Launched


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Launched]:
    made = Launched.make(tmp_path)
    yield made
    made.end()


def test_without_versions_over_the_air_the_installed_one_runs_as_the_same_process(device: Launched) -> None:
    child = device.start()
    device.wait_for(1)
    assert device.ran() == ["base"]
    assert child.poll() is None  # exec: systemd watches the agent itself
    assert b"bowerbird-agent" in Path(f"/proc/{child.pid}/cmdline").read_bytes()


def test_a_version_that_confirms_itself_stays_and_is_counted_no_more(device: Launched) -> None:
    new = device.install("new", "good")
    device.try_out(new)
    for _ in range(6):
        child = device.start()
        device.wait_for(len(device.children))
        device.kill(child)
    assert device.ran() == ["new"] * 6
    assert device.current() == new


def test_a_version_that_crashes_at_import_is_taken_back_after_three_starts(device: Launched) -> None:
    new = device.install("new", "crashes_at_import")
    device.try_out(new)
    device.start_until_quiet()
    assert device.ran() == ["new"] * 3 + ["base"]
    assert device.current() == ""
    assert (device.home / "failed").read_text() == f"{new} crash_loop\n"
    assert not (device.home / "trial").exists()
    assert f"version {new} is taken back: crash_loop" in device.said()


def test_it_gives_way_to_the_version_before_it_not_to_the_installed_one(device: Launched) -> None:
    old, new = device.install("old", "good"), device.install("new", "crashes_at_import")
    device.point("current", old)
    device.try_out(new)
    device.start_until_quiet()
    assert device.ran() == ["new"] * 3 + ["old"]
    assert device.current() == old


def test_a_version_that_hangs_and_is_killed_by_the_watchdog_is_taken_back(device: Launched) -> None:
    device.try_out(device.install("new", "hangs"))
    for number in range(1, 4):
        child = device.start()
        device.wait_for(number)
        device.kill(child)
    device.start()
    device.wait_for(4)
    assert device.ran() == ["new"] * 3 + ["base"]


def test_a_version_that_looks_well_and_never_confirms_itself_is_ended_by_the_launcher(device: Launched) -> None:
    new = device.install("new", "runs_without_confirming")
    device.try_out(new, seconds=1)
    child = device.start()
    assert child.wait(20) == -signal.SIGTERM
    device.start()
    device.wait_for(2)
    assert device.ran() == ["new", "base"]
    assert (device.home / "failed").read_text() == f"{new} no_confirmation\n"


def test_one_that_ignores_the_polite_signal_is_ended_all_the_same(device: Launched) -> None:
    device.try_out(device.install("new", "hangs"), seconds=1)
    assert device.start().wait(30) == -signal.SIGKILL


def test_the_watch_ends_with_a_version_that_ended_itself(device: Launched) -> None:
    device.try_out(device.install("new", "ends"), seconds=3600)
    child = device.start()
    child.wait(10)
    deadline_s = time.monotonic() + 10
    while any(group == child.pid for group in _process_groups()):
        assert time.monotonic() < deadline_s, "the launcher's watch outlives the version by far"
        time.sleep(0.1)


def test_two_power_cuts_are_not_held_against_a_good_version(device: Launched) -> None:
    new = device.install("new", "runs_without_confirming")
    device.try_out(new)
    for number in range(1, 3):
        device.boot_id = f"boot-{number}"
        child = device.start()
        device.wait_for(number)
        device.kill(child)
    device.boot_id = "boot-3"
    for _ in range(2):  # and a crash or two in the last boot
        child = device.start()
        device.wait_for(len(device.children))
        device.kill(child)
    device._write(device.home / "versions" / new, "new", "good")
    device.start()
    device.wait_for(5)
    assert device.ran() == ["new"] * 5
    assert device.current() == new


def test_more_than_ten_power_cuts_in_one_trial_end_it(device: Launched) -> None:
    device.try_out(device.install("new", "ends"))
    for number in range(1, 11):
        device.boot_id = f"boot-{number}"
        device.start().wait(10)
    device.boot_id = "boot-11"
    device.start()
    device.wait_for(11)
    assert device.ran() == ["new"] * 10 + ["base"]


def test_a_version_that_is_not_whole_is_not_started(device: Launched) -> None:
    new = device.install("new", "good")
    (device.home / "versions" / new / ".complete").unlink()
    device.point("current", new)
    device.start_until_quiet()
    assert device.ran() == ["base"]
    assert (device.home / "failed").read_text() == f"{new} incomplete\n"


def test_a_trial_that_cannot_be_read_counts_as_lost(device: Launched) -> None:
    new = device.install("new", "good")
    device.try_out(new)
    (device.home / "trial").write_text(f"digest {new}\nstarts many\nboot boot-1\nboots 0\nseconds 60\n")
    device.start_until_quiet()
    assert device.ran() == ["base"]


def test_where_the_count_cannot_be_written_the_version_before_runs_and_nothing_is_changed(device: Launched) -> None:
    new = device.install("new", "good")
    device.try_out(new)
    (device.home / ".trial.new").mkdir()  # stands for a full disk: the new count has nowhere to go
    device.start()
    device.wait_for(1)
    assert device.ran() == ["base"]
    assert device.current() == new
    assert not (device.home / "failed").exists()
    (device.home / ".trial.new").rmdir()
    device.start()
    device.wait_for(2)
    assert device.ran()[-1] == "new"


@pytest.mark.parametrize("written", ["failed", "failed and current"])
def test_taking_back_that_was_cut_short_is_finished_at_the_next_start(device: Launched, written: str) -> None:
    new = device.install("new", "runs_without_confirming")
    device.try_out(new)
    (device.home / "failed").write_text(f"{new} crash_loop\n")
    if written == "failed and current":
        (device.home / "current").unlink()
    device.start_until_quiet()
    assert device.ran() == ["base"]
    assert (device.home / "failed").read_text() == f"{new} crash_loop\n"


def _process_groups() -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            yield int(fields[2])
