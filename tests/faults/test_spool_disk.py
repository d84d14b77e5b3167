"""A disk that is full or turns read-only under the spool: clear errors, nothing lost, and receipts still make room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bowerbird_agent.errors import SpoolError, SpoolFault, SpoolFull
from bowerbird_agent.spool.spool import FrameState, Spool
from bowerbird_testing.frames import make_frame
from bowerbird_testing.small_disk import fill_with_other_data
from bowerbird_testing.small_disk import small_disk as mounted
from bowerbird_wire.messages import Receipt


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB of its own."""
    with mounted(tmp_path / "disk", "4m") as folder:
        yield folder


def put_until_full(spool: Spool, *, first: int = 0) -> list[str]:
    ids: list[str] = []
    with pytest.raises(SpoolFull):  # noqa: PT012 - the loop is the point
        for number in range(first, first + 1000):
            header, image = make_frame(number, image_bytes=50_000)
            spool.put(header, image, "new")
            ids.append(header.frame_id)
    return ids


def test_a_full_disk_refuses_frames_keeps_the_old_ones_and_recovers_by_receipts(small_disk: Path) -> None:
    spool = Spool(small_disk / "spool", max_bytes=500_000_000)
    ids = put_until_full(spool)
    fill_with_other_data(small_disk)
    with pytest.raises(SpoolFull, match="is full"):
        spool.put(*make_frame(5000, image_bytes=50_000))
    assert all(spool.message(frame_id) is not None for frame_id in ids)
    for frame_id in ids[:8]:
        assert spool.mark_sent(frame_id), "the upload goes on"
    assert spool.receipt(Receipt(committed=tuple(ids[:8]))).committed == 8
    assert spool.put(*make_frame(6000, image_bytes=50_000)), "the receipts have made room"
    assert spool.ledger().balanced
    spool.close()
    again = Spool(small_disk / "spool", max_bytes=500_000_000)
    assert again.ledger().committed == 8
    assert again.ledger().balanced
    again.close()


def test_the_free_space_floor_keeps_the_disk_usable_for_others(small_disk: Path) -> None:
    spool = Spool(small_disk / "spool", max_bytes=500_000_000, min_free_bytes=1_000_000)
    put_until_full(spool)
    disk = os.statvfs(small_disk)
    assert disk.f_bavail * disk.f_frsize >= 1_000_000
    spool.close()


def test_a_disk_that_turns_read_only_is_named_and_nothing_is_lost(small_disk: Path) -> None:
    spool = Spool(small_disk / "spool", max_bytes=500_000_000)
    header, image = make_frame(1)
    spool.put(header, image, "new")
    spool.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(SpoolFault, match="check the mount"):
        Spool(small_disk / "spool", max_bytes=500_000_000)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    spool = Spool(small_disk / "spool", max_bytes=500_000_000)
    assert spool.read(header.frame_id) == (header, image)
    spool.close()


def test_a_folder_that_may_not_be_written_stops_puts_and_receipts_not_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without root: the index turns read-only under an open spool, as on a remounted file system."""
    spool = Spool(tmp_path / "spool", max_bytes=500_000_000)
    header, image = make_frame(1)
    spool.put(header, image, "new")
    spool._index._db.execute("PRAGMA query_only = ON")
    with pytest.raises(SpoolError):
        spool.put(*make_frame(2))
    with pytest.raises(SpoolError):
        spool.receipt(Receipt(committed=(header.frame_id,)))
    assert spool.read(header.frame_id) == (header, image)
    spool._index._db.execute("PRAGMA query_only = OFF")
    assert spool.put(*make_frame(2))
    assert spool.receipt(Receipt(committed=(header.frame_id,))).committed == 1
    assert len(spool.frames(FrameState.CANDIDATE)) == 1
    assert spool.ledger().balanced
    spool.close()
