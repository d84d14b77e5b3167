"""Rows of the fault table that need the LD_PRELOAD library: power cuts, disks that refuse to be written, clocks that are wrong."""

from __future__ import annotations

import errno
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bowerbird_agent.spool.spool import MIN_SPOOL_BYTES, Spool
from bowerbird_server.catalogue import Catalogue
from bowerbird_testing.fault_device import write_order
from bowerbird_testing.fault_rows import row
from bowerbird_testing.fault_site import Discrepancy, FaultSite, run_checker
from bowerbird_testing.mqtt_device import wait_until
from bowerbird_testing.power_cut import DISKS, Control, Disk, after_the_cut, compiled_shim, shim_environment


@pytest.fixture
def memory_disk() -> Iterator[Path]:
    """Hundreds of copies of a spool, of which none has to survive a real power cut."""
    place = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=place if place.is_dir() else None) as folder:
        yield Path(folder)


def power_cuts(memory_disk: Path, library: Path, dice: random.Random, *, first: int = 1, every: int = 1, weak: str = "") -> int:
    """Cut the power at each change, start the spool from what the disk may hold then, and have all of it checked.

    The strict disk is looked at each time, and one of the others.

    Returns:
        How many states of a disk were looked at.
    """
    options = memory_disk / "options.json"
    options.write_text(json.dumps({"base": str(memory_disk), "first": first, "every": every, "weak": weak}))
    environment = shim_environment(
        library, control=Control(memory_disk / "control").path, root=memory_disk / "none", shadow=memory_disk / "none-shadow"
    )
    argv = [sys.executable, "-m", "bowerbird_testing.power_cut", str(options)]
    cases: list[dict[str, Any]] = []
    most: Counter[str] = Counter()
    looked_at = 0

    def check() -> None:
        nonlocal looked_at
        for numbers in run_checker(cases, memory_disk / "check"):
            looked_at += 1
            for key in ("evicted", "committed"):
                most[key] = max(most[key], numbers[key])
        for case in cases:
            shutil.rmtree(case["devices"][0]["spool"])
        cases.clear()

    with subprocess.Popen(argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in process.stdout:
            beside = memory_disk / line.strip()
            for disk in (DISKS[0], dice.choice(DISKS[1:])):
                spool = after_the_cut(beside / "spool", beside / "shadow", beside / disk, disk, dice)
                Spool(spool, max_bytes=MIN_SPOOL_BYTES).close()  # the next boot
                cases.append(power_case(beside, disk))
            shutil.rmtree(beside / "spool")
            shutil.rmtree(beside / "shadow")
            if len(cases) >= 60:
                check()
            process.stdin.write("\n")
            process.stdin.flush()
        check()
    assert process.returncode == 0
    assert (most["evicted"] >= 1, most["committed"]) == (True, 2), "the work of the child includes an eviction and two receipts"
    return looked_at


def power_case(beside: Path, disk: Disk) -> dict[str, Any]:
    """One disk for the checker: what was promised and what had a receipt stands beside it."""
    server = beside / "server"
    device = {
        "device": "cam-01",
        "spool": str(beside / disk),
        "accepted": str(beside / "accepted"),
        "may_drop": {"not_chosen": None},
    }
    return {
        "name": f"change {beside.name}, {disk}",
        "devices": [device],
        "server_has": server.read_text().split() if server.exists() else [],
    }


@row("agent_power_cut_at_each_spool_step")
def test_agent_power_cut_at_each_spool_step(tmp_path: Path, memory_disk: Path, dice: random.Random) -> None:
    assert power_cuts(memory_disk, compiled_shim(tmp_path), dice) > 600


@pytest.mark.parametrize(
    ("weak", "said"), [("no fsync of the file", "has 0 bytes"), ("no fsync of the folder", "frames are lost")]
)
def test_the_checker_notices(weak: str, said: str, tmp_path: Path, memory_disk: Path, dice: random.Random) -> None:
    """A spool that does not wait for its disk loses frames that it has accepted."""
    with pytest.raises(Discrepancy, match=said):
        power_cuts(memory_disk, compiled_shim(tmp_path), dice, first=20, every=15, weak=weak)


class Shimmed:
    """A device process under the shim, whose disk and clock the test holds."""

    def __init__(self, site: FaultSite, folder: Path) -> None:
        self.site, self.folder = site, folder
        self.library = compiled_shim(folder)
        self.control = Control(folder / "control")
        self.lives = 0

    @contextmanager
    def running(self, *, at: int = 0, **order: Any) -> Iterator[subprocess.Popen[bytes]]:
        """One life."""
        self.lives += 1
        root = self.site.spools["cam-01"]
        environment = shim_environment(self.library, control=self.control.path, root=root, shadow=self.shadow, at=at)
        options = write_order(self.folder / "order.json", self.site.order(life=self.lives, **order))
        argv = [sys.executable, "-m", "bowerbird_testing.fault_device", str(options)]
        with (self.folder / "device.log").open("ab") as log:
            process = subprocess.Popen(argv, env=environment, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait(20)

    @property
    def shadow(self) -> Path:
        """What has become durable in this life."""
        return self.site.root / "shadows" / str(self.lives)

    def promised(self) -> int:
        """Frames that were accepted so far."""
        path = self.site.promises()
        return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.broker
@row("agent_power_cut_in_mid_upload")
def test_agent_power_cut_in_mid_upload(site: FaultSite, tmp_path: Path, dice: random.Random) -> None:
    device = Shimmed(site, tmp_path)
    spool = site.spools["cam-01"]
    with site.serving():
        for disk in (*DISKS, *DISKS[1:]):
            with device.running(at=dice.randrange(150, 1200), every_s=0.01) as process:
                assert process.wait(60) == -signal.SIGKILL
            found = after_the_cut(spool, device.shadow, site.root / "next", disk, dice)
            shutil.rmtree(spool)
            found.rename(spool)
            Spool(spool, max_bytes=200_000_000).close()
            site.check(name=f"life {device.lives}, {disk}", drained=False)
        with device.running(frames=0, end_when_empty=True) as process:
            assert process.wait(60) == 0
    numbers = site.check()
    assert numbers["rows"] >= numbers["accepted"] > 50


@pytest.mark.broker
@row("device_disk_turns_read_only")
def test_device_disk_turns_read_only(site: FaultSite, tmp_path: Path) -> None:
    """Nothing is accepted and no receipt is recorded meanwhile; the process goes on, and so does the upload afterwards."""
    device = Shimmed(site, tmp_path)
    with site.serving(), device.running(frames=400, end_when_empty=True) as process:
        wait_until(lambda: device.promised() >= 100, "a hundred frames", timeout_s=120)
        device.control.set(error=errno.EROFS)
        time.sleep(0.3)
        before = device.promised()
        time.sleep(1.0)
        assert device.promised() == before
        device.control.set(error=0)
        assert process.wait(60) == 0
        # A file may have been written whose row could not be, nor could it be deleted: the next start takes it in.
        with device.running(frames=0, end_when_empty=True) as again:
            assert again.wait(60) == 0
    numbers = site.check()
    assert numbers["accepted"] < 400
    assert numbers["rows"] >= numbers["accepted"]


_YEAR_S = 366 * 24 * 3600


def captured_years(site: FaultSite) -> set[str]:
    with Catalogue(site.folder.catalogue) as cat:
        return {str(found["captured_at"])[:4] for found in cat.rows("SELECT captured_at FROM frame")}


def with_a_wrong_clock(site: FaultSite, folder: Path, offset_s: int) -> set[str]:
    device = Shimmed(site, folder)
    device.control.set(clock_offset_s=offset_s)
    with site.serving(), device.running(frames=60, end_when_empty=True) as process:
        assert process.wait(60) == 0
    assert site.check()["rows"] == 60
    return captured_years(site)


@pytest.mark.broker
@row("clock_at_1970")
def test_clock_at_1970(site: FaultSite, tmp_path: Path) -> None:
    assert with_a_wrong_clock(site, tmp_path, 60 - int(time.time())) == {"1970"}


@pytest.mark.broker
@row("clock_ten_years_ahead")
def test_clock_ten_years_ahead(site: FaultSite, tmp_path: Path) -> None:
    (year,) = with_a_wrong_clock(site, tmp_path, 10 * _YEAR_S)
    assert int(year) >= 2036


@pytest.mark.broker
@row("clock_steps_in_mid_flight")
def test_clock_steps_in_mid_flight(site: FaultSite, tmp_path: Path, dice: random.Random) -> None:
    device = Shimmed(site, tmp_path)
    with site.serving(), device.running(frames=200, end_when_empty=True) as process:
        for step in (0, 10 * _YEAR_S, 60 - int(time.time()), -3600, 0, dice.randrange(-_YEAR_S, _YEAR_S)):
            device.control.set(clock_offset_s=step)
            wanted = device.promised() + 20
            wait_until(lambda wanted=wanted: device.promised() >= wanted or process.poll() is not None, "frames")  # type: ignore[misc]
        assert process.wait(60) == 0
    assert site.check()["rows"] == 200
    assert len(captured_years(site)) >= 3
