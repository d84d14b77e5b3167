"""How much room the spool has, what must go for a new frame, and what is set aside for the moment when the disk is full.

In: the index, the disk's free space. Out: the frames to evict for a new one, by the rule of `spool/eviction.py`. It evicts nothing
itself.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from bowerbird_agent.errors import SpoolFull
from bowerbird_agent.spool.eviction import Row, Victim, choose
from bowerbird_agent.spool.index import SpooledFrame, SpoolIndex, disk_fault

# Kept free of frames for the index, its WAL and the ballast: index writes must succeed when the frames have taken everything.
INDEX_RESERVE_BYTES = 1024 * 1024
MIN_SPOOL_BYTES = 2 * INDEX_RESERVE_BYTES
# Given up for a moment when the disk is full, so that receipts can still be recorded and thereby free space.
_BALLAST_BYTES = 256 * 1024


def index_bytes(index: SpoolIndex) -> int:
    """What index and ballast take of the spool's bytes."""
    return max(INDEX_RESERVE_BYTES, index.size_bytes() + _BALLAST_BYTES)


class SpoolRoom:
    """The bounds.

    Args:
        root: the spool's folder.
        max_bytes: hard cap of frames, index and all.
        min_free_bytes: the spool does not grow while the disk has less free than this.
        floors: group -> the share of the room that is its own.
    """

    def __init__(self, root: Path, *, max_bytes: int, min_free_bytes: int, floors: Mapping[str, float]) -> None:
        self._root, self._max_bytes, self._min_free_bytes, self._floors = root, max_bytes, min_free_bytes, dict(floors)

    def victims(self, index: SpoolIndex, frame: SpooledFrame, disk_bytes: int, writing_bytes: int) -> tuple[list[Victim], str]:
        """The frames to evict for `frame`, and why there must be any: `spool_full` or `disk_floor`.

        Args:
            disk_bytes: what the frame takes on disk.
            writing_bytes: the same of frames that are being written.

        Raises:
            SpoolFull: all that waits is worth more.
            SpoolFault: the disk does not answer.
        """
        used = index.disk_bytes()
        room = self._max_bytes - index_bytes(index)
        over_cap = sum(used.values()) + writing_bytes + disk_bytes - room
        under_floor = self._free_bytes() - writing_bytes - disk_bytes < self._min_free_bytes
        # Below the floor the spool may change, but not grow: another program may be what fills the disk.
        to_free = max(over_cap, disk_bytes if under_floor else 0)
        why = "spool_full" if over_cap > 0 else "disk_floor"
        if to_free <= 0:
            return [], why
        group = frame.group or frame.arm
        new = Row(frame.frame_id, group, frame.score, frame.score / max(frame.message_bytes, 1), disk_bytes)
        floors = {name: int(share * room) for name, share in self._floors.items()}
        explore, others = index.evictable(explore=True), index.evictable(explore=False)
        chosen, freed = choose(new, explore, others, used=used, floors=floors, to_free=to_free)
        if freed < to_free:
            what = "spool.max_bytes is reached" if why == "spool_full" else "the disk is full down to spool.min_free_bytes"
            raise SpoolFull(
                f"frame {frame.frame_id[:12]}: {what} and all that waits is worth more; raise the limit or free space"
            )
        return chosen, why

    def refill(self) -> None:
        """Set space aside for the moment when the disk is full; without it a receipt could not be recorded."""
        with contextlib.suppress(OSError):
            if self._ballast.exists():
                return
            with self._ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, _BALLAST_BYTES)

    def give_way(self) -> None:
        """That moment has come."""
        self._ballast.unlink(missing_ok=True)

    @property
    def _ballast(self) -> Path:
        return self._root / "ballast"

    def _free_bytes(self) -> int:
        try:
            disk = os.statvfs(self._root)
        except OSError as error:
            raise disk_fault(error, self._root) from error
        return disk.f_bavail * disk.f_frsize
