"""The last seconds of each camera in memory, as JPEG at a low rate: what happened around a frame that somebody asks about.

In: pictures, already masked. Out: those around a moment. Bounded in bytes for each camera; the oldest go first. Nothing is written
here: `fetching.py` writes what is asked for, or what a rule keeps.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from bowerbird_wire.messages import EraseWish, Redaction


@dataclass(frozen=True)
class Moment:
    """A picture of a camera: when (UTC, ms), which frame of its source, and its JPEG with its size, that of the source, and
    what is covered in it."""

    captured_at_ms: int
    sequence: int
    monotonic_ns: int
    jpeg: bytes
    width: int
    height: int
    source_width: int
    source_height: int
    redacted: tuple[Redaction, ...] = ()


class Surroundings:
    """A ring for each camera. Thread-safe.

    Args:
        fps: pictures a second that are worth keeping.
        max_bytes: of the JPEGs of one camera; 0 keeps none.
    """

    def __init__(self, *, fps: float, max_bytes: int) -> None:
        self._gap_ms = 1000.0 / fps
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._rings: dict[str, deque[Moment]] = {}
        self._sizes: dict[str, int] = {}
        self._newest_ms: dict[str, int] = {}

    def wants(self, camera: str, captured_at_ms: int) -> bool:
        """Whether a picture of this moment is worth encoding; a clock that was set back does not end it."""
        if self._max_bytes == 0:
            return False
        newest_ms = self._newest_ms.get(camera)
        if newest_ms is not None and abs(captured_at_ms - newest_ms) < self._gap_ms:
            return False
        self._newest_ms[camera] = captured_at_ms
        return True

    def add(self, camera: str, moment: Moment) -> None:
        """Keep a picture, and let go of the oldest above the cap."""
        with self._lock:
            ring = self._rings.setdefault(camera, deque())
            ring.append(moment)
            size = self._sizes.get(camera, 0) + len(moment.jpeg)
            while size > self._max_bytes and ring:
                size -= len(ring.popleft().jpeg)
            self._sizes[camera] = size

    def around(self, camera: str, captured_at_ms: int, seconds: float) -> list[Moment]:
        """What is there of a camera within so many seconds of a moment, oldest first, without the moment itself."""
        with self._lock:
            return [
                moment
                for moment in self._rings.get(camera, ())
                if 0 < abs(moment.captured_at_ms - captured_at_ms) <= seconds * 1000.0
            ]

    def forget(self, camera: str) -> None:
        """Let go of a camera's pictures, e.g. since its masks have changed."""
        with self._lock:
            self._rings.pop(camera, None)
            self._sizes.pop(camera, None)

    def erase(self, wish: EraseWish) -> int:
        """Let go of the pictures that a wish covers by camera and time; returns how many."""
        with self._lock:
            count = 0
            for camera, ring in self._rings.items():
                kept = deque(moment for moment in ring if not wish.covers("", camera, moment.captured_at_ms))
                count += len(ring) - len(kept)
                self._rings[camera] = kept
                self._sizes[camera] = sum(len(moment.jpeg) for moment in kept)
            return count

    @property
    def bytes_used(self) -> int:
        """Bytes of all JPEGs that are held."""
        with self._lock:
            return sum(self._sizes.values())
