"""More exploration and a higher target rate of a camera for a day, when the server says that what it shows has changed or is new.

In: the wish's `Boost`, two clocks. Out: by how much each camera is boosted now. Caps stay what they are: of bytes, and of frames that
the server wants in all. It ends by itself, also on a device that is offline; after a restart it waits for the server to say it again.
What a factor does is `select.py`'s.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from bowerbird_agent.campaign import Lifetime

if TYPE_CHECKING:
    from bowerbird_wire.messages import Boost

MAX_FACTOR = 4.0
MAX_S = 7 * 86_400.0  # whatever a server says, it ends after a week
MOST_CAMERAS = 256
_ALL = ""


class BoostWatch:
    """Which cameras are boosted. `take` may be called from any thread; one thread calls `step`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wished: Boost | None = None
        self._lives: dict[
            str, tuple[Lifetime, float]
        ] = {}  # camera, or all of them -> its end, and when it began (NaN: not yet)
        self._running: frozenset[str] = frozenset()
        self._factor = 1.0
        self._until_ms = 0  # the last end of those that run

    def take(self, boost: Boost | None) -> None:
        """What the server wants now; the same again changes nothing."""
        with self._lock:
            if boost == self._wished:
                return
            self._wished = boost
            ends = {} if boost is None else dict(list(boost.cameras.items())[:MOST_CAMERAS]) or {_ALL: boost.until_ms}
            before = self._lives
            self._lives = {
                camera: before[camera]
                if camera in before and before[camera][0].until_ms == until_ms
                else (Lifetime(until_ms), math.nan)
                for camera, until_ms in ends.items()
            }

    def step(self, now_s: float, wall_ms: int, *, clock_ok: bool, allowed: bool) -> bool:
        """Look at the clocks; True when a camera's factor has changed.

        Args:
            allowed: whether agent.toml lets the selection be set from afar.
        """
        with self._lock:
            running = set()
            for camera, (life, at_s) in list(self._lives.items()):
                began_s = now_s if math.isnan(at_s) else at_s
                self._lives[camera] = life, began_s
                if life.runs(now_s, wall_ms, clock_ok=clock_ok) and now_s - began_s < MAX_S and allowed:
                    running.add(camera)
            wished = 1.0 if self._wished is None else min(MAX_FACTOR, max(1.0, self._wished.factor))
            factor = wished if running and math.isfinite(wished) else 1.0
            now = frozenset(running) if factor > 1.0 else frozenset()
            changed = (now, factor) != (self._running, self._factor)
            self._running, self._factor = now, factor
            self._until_ms = max((self._lives[camera][0].until_ms for camera in now), default=0)
            return changed

    def factors(self, cameras: Iterable[str]) -> dict[str, float]:
        """Of these cameras the ones that are boosted, with their factor, above 1."""
        running = self._running
        return {camera: self._factor for camera in cameras if camera in running or _ALL in running}

    def facts(self) -> dict[str, object]:
        """For health; {} while nothing is boosted. `cameras` are those that were named, none for all."""
        with self._lock:
            if not self._running:
                return {}
            return {"factor": self._factor, "until_ms": self._until_ms, "cameras": sorted(self._running - {_ALL})}
