"""Pictures kept on disk beside the spool in case somebody asks: originals of kept frames, and frames around them.

In: frame messages that belong to a frame. Out: those of a frame. A file per message under a byte cap of its own; when it is full, the
lowest score per byte goes first. Nothing here is promised to anybody: a damaged or missing file is a picture that is gone. Names tell
all that is needed at a start: `<frame>.<kind>.<number>.<score>.kept`. It neither encodes nor sends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bowerbird_agent.spool.files import on_disk_bytes
from bowerbird_wire import codec
from bowerbird_wire.errors import WireError
from bowerbird_wire.linked import KINDS
from bowerbird_wire.messages import EraseWish, FrameMessage

log = logging.getLogger(__name__)

_SUFFIX = "kept"


@dataclass(frozen=True)
class Kept:
    """A file: which frame it belongs to, as what, its number among those, the frame's score, and what it takes on disk."""

    of: str
    kind: str
    number: int
    score: float
    disk_bytes: int

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.of}.{self.kind}.{self.number}.{round(self.score * 10_000)}.{_SUFFIX}"

    @property
    def density(self) -> float:
        """Score per byte."""
        return self.score / max(self.disk_bytes, 1)


class Originals:
    """The folder. Thread-safe: one thread fills it, and another may erase.

    Args:
        folder: of its own; made when missing.
        max_bytes: cap; 0 keeps nothing, and what an earlier start has kept is removed.
        min_free_bytes: nothing is added while the disk has less free than this.
    """

    def __init__(self, folder: Path, *, max_bytes: int, min_free_bytes: int = 0) -> None:
        self._folder, self._max_bytes, self._min_free_bytes = folder, max_bytes, min_free_bytes
        self._kept: dict[str, Kept] = {}  # by name
        self._used = 0
        self.evicted = 0
        self._lock = threading.RLock()
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            for entry in list(os.scandir(folder)):
                kept = _parse(entry.name, entry.stat().st_size)
                if kept is None or max_bytes == 0:
                    Path(entry.path).unlink()
                else:
                    self._note(kept)

    @property
    def keeps(self) -> bool:
        """Whether anything is kept at all."""
        return self._max_bytes > 0

    @property
    def bytes_used(self) -> int:
        """Bytes on disk."""
        return self._used

    def put(self, message: FrameMessage, *, of: str, kind: str, number: int = 0) -> bool:
        """Keep a picture of frame `of`; False when there is no room for one that is worth so little, or the disk refuses."""
        payload = codec.encode_frame(message)
        with self._lock:
            return self._put(payload, message, of, kind, number)

    def _put(self, payload: bytes, message: FrameMessage, of: str, kind: str, number: int) -> bool:
        kept = Kept(of, kind, number, message.header.score, on_disk_bytes(len(payload)))
        if not self.keeps or not self._make_room(kept):
            return False
        part = self._folder / f"{kept.name}.part"
        try:
            if self._free_bytes() - kept.disk_bytes < self._min_free_bytes:
                return False
            part.write_bytes(payload)
            part.replace(self._folder / kept.name)
        except OSError as error:
            log.debug("frame %s: its %s cannot be kept: %s", of[:12], kind, error)
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            return False
        self._note(kept)
        return True

    def of(self, frame_id: str, kind: str) -> list[FrameMessage]:
        """What is kept of a frame, in order of time; files that cannot be read are let go."""
        found: list[FrameMessage] = []
        with self._lock:
            for kept in [kept for kept in self._kept.values() if (kept.of, kept.kind) == (frame_id, kind)]:
                message = self._read(kept)
                if message is not None:
                    found.append(message)
        return sorted(found, key=lambda message: message.header.captured_at_ms)

    def discard(self, frame_ids: Iterable[str]) -> int:
        """Let go of all that belongs to these frames; returns how many files went."""
        gone = set(frame_ids)
        with self._lock:
            going = [kept for kept in self._kept.values() if kept.of in gone]
            for kept in going:
                self._delete(kept)
        return len(going)

    def erase(self, wish: EraseWish) -> int:
        """Delete what belongs to frames that a wish covers, and pictures of its camera and time; returns how many.

        Raises:
            OSError: one of them cannot be deleted; doing it again goes on.
        """
        with self._lock:
            count = 0
            for kept in list(self._kept.values()):
                message = self._read(kept)
                if message is None:
                    continue
                header = message.header
                if kept.of in wish.frames or wish.covers(header.frame_id, header.camera, header.captured_at_ms):
                    (self._folder / kept.name).unlink(missing_ok=True)
                    self._delete(kept)
                    count += 1
            return count

    def _read(self, kept: Kept) -> FrameMessage | None:
        """A file's message; one that cannot be read is let go."""
        try:
            return codec.decode_frame((self._folder / kept.name).read_bytes())
        except (OSError, WireError) as error:
            log.debug("frame %s: its kept %s is gone: %s", kept.of[:12], kept.kind, error)
            self._delete(kept)
            return None

    def _make_room(self, new: Kept) -> bool:
        if new.disk_bytes > self._max_bytes:
            return False
        victims: list[Kept] = []
        freed = 0
        for kept in sorted(self._kept.values(), key=lambda kept: (kept.density, kept.name)):
            if self._used + new.disk_bytes - freed <= self._max_bytes:
                break
            if kept.density >= new.density:
                return False
            victims.append(kept)
            freed += kept.disk_bytes
        for kept in victims:
            self._delete(kept)
            self.evicted += 1
        return True

    def _note(self, kept: Kept) -> None:
        before = self._kept.pop(kept.name, None)
        self._used += kept.disk_bytes - (0 if before is None else before.disk_bytes)
        self._kept[kept.name] = kept

    def _delete(self, kept: Kept) -> None:
        with contextlib.suppress(OSError):
            (self._folder / kept.name).unlink(missing_ok=True)
        if self._kept.pop(kept.name, None) is not None:
            self._used -= kept.disk_bytes

    def _free_bytes(self) -> int:
        disk = os.statvfs(self._folder)
        return disk.f_bavail * disk.f_frsize


def _parse(name: str, size_bytes: int) -> Kept | None:
    parts = name.split(".")
    if len(parts) != 5 or parts[4] != _SUFFIX or parts[1] not in KINDS or not (parts[2].isdigit() and parts[3].isdigit()):
        return None
    return Kept(parts[0], parts[1], int(parts[2]), int(parts[3]) / 10_000, on_disk_bytes(size_bytes))
