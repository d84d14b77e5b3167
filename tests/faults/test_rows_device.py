"""Rows of the fault table: the device's process and its disk."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from bowerbird_agent.errors import SpoolFull
from bowerbird_testing.broker import Mosquitto
from bowerbird_testing.fault_device import Promises, captured
from bowerbird_testing.fault_rows import row
from bowerbird_testing.fault_site import FaultSite
from bowerbird_testing.small_disk import fill_with_other_data, small_disk
from bowerbird_testing.uploading_device import drain

pytestmark = pytest.mark.broker


@row("agent_killed_at_random")
def test_agent_killed_at_random(site: FaultSite, dice: random.Random) -> None:
    """The account is checked after each life, and once more when all is through."""
    with site.serving():
        for life in range(1, 9):
            with site.device_process(life=life, every_s=0.004) as device:
                device.join(dice.uniform(0.2, 0.8))
            site.check(name=f"life {life}", drained=False)
        with site.device_process(life=9, frames=0, end_when_empty=True) as device:
            device.join(60)
            assert device.exitcode == 0
    numbers = site.check()
    assert numbers["rows"] >= numbers["accepted"] > 50


@row("spool_index_corrupted")
def test_spool_index_corrupted(site: FaultSite, dice: random.Random) -> None:
    site.fill(40)
    index = site.spools["cam-01"] / "index.db"
    pages = bytearray(index.read_bytes())
    for _ in range(6):
        at = dice.randrange(100, len(pages) - 500)
        pages[at : at + 500] = dice.randbytes(500)
    index.write_bytes(pages)
    with site.serving(), site.device() as device:
        drain(device)
    assert site.check()["rows"] == 40


def damaged(site: FaultSite, dice: random.Random, damage: Callable[[Path], None]) -> None:
    """Five of forty frame files are damaged: each is dropped and counted, and no damaged picture reaches the server."""
    site.fill(40)
    for path in dice.sample(sorted((site.spools["cam-01"] / "frames").iterdir()), 5):
        damage(path)
    with site.serving(), site.device() as device:
        drain(device)
    numbers = site.check(may_drop={"file_damaged": 5})
    assert (numbers["rows"], numbers["committed"]) == (35, 35)


@row("spool_file_truncated")
def test_spool_file_truncated(site: FaultSite, dice: random.Random) -> None:
    def cut_short(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: dice.randrange(len(data))])

    damaged(site, dice, cut_short)


@row("spool_file_bit_flipped")
def test_spool_file_bit_flipped(site: FaultSite, dice: random.Random) -> None:
    """Behind the header's length, where a bit may also be in a header field that nothing verifies but the frame's id."""

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[dice.randrange(len(data) - 1800, len(data))] ^= 1 << dice.randrange(8)
        path.write_bytes(data)

    damaged(site, dice, flip)


@row("device_disk_full")
def test_device_disk_full(tmp_path: Path, broker: Mosquitto) -> None:
    """Receipts still empty the spool, frames that do not fit are refused and were never accepted."""
    with small_disk(tmp_path / "site" / "spools", "4m"):
        site = FaultSite(tmp_path / "site", broker)
        promises = Promises(site.promises())
        with site.device() as device:
            for number in range(40):
                assert promises.put(device.spool, *captured(number, size=20_000))
            other = fill_with_other_data(tmp_path / "site" / "spools")
            for number in range(40, 60):
                with pytest.raises(SpoolFull):
                    promises.put(device.spool, *captured(number, size=20_000))
            with site.serving():
                drain(device)
                assert promises.put(device.spool, *captured(100, size=20_000)), "the receipts have made room"
                drain(device)
            other.unlink()
        promises.close()
        assert site.check()["rows"] == 41
