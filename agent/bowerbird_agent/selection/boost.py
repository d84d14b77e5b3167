"""More exploration and a higher target rate of a camera for a day, when the server says that what it shows has changed or is new.

In: the wish's `Boost`, two clocks. Out: by how much each camera is boosted now. Caps stay what they are: of bytes, and of frames that
the server wants in all. It ends by itself, also on a device that is offline. What is left of it is kept over a restart, so that a
device without a link goes on with it; the server's next word replaces it. What a factor does is `select.py`'s.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from bowerbird_agent.selection.campaign import Lifetime
from bowerbird_models.durable import write_durably
from bowerbird_wire import codec
from bowerbird_wire.errors import WireError
from bowerbird_wire.messages import Boost

logger = logging.getLogger(__name__)

MAX_FACTOR = 4.0
MAX_S = 7 * 86_400.0  # whatever a server says, it ends after a week
MOST_CAMERAS = 256
_ALL = ""
_FILE = "boost.json"
_KEEP_EVERY_S = 300.0


class BoostWatch:
    """Which cameras are boosted. `take` may be called from any thread; one thread calls `step`.

    Args:
        folder: where it is kept over a restart; None keeps nothing.
        now_s: the clock of `step`, monotonic.
    """

    def __init__(self, folder: Path | None = None, now_s: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._path = None if folder is None else folder / _FILE
        self._now_s = now_s
        self._kept_s = now_s()
        self._wished: Boost | None = None
        self._lives: dict[
            str, tuple[Lifetime, float]
        ] = {}  # camera, or all of them -> its end, and when it began (NaN: not yet)
        self._running: frozenset[str] = frozenset()
        self._factor = 1.0
        self._until_ms = 0  # the last end of those that run
        self._load()

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
            self._keep()

    def step(self, now_s: float, wall_ms: int, *, clock_ok: bool, allowed: bool) -> bool:
        """Look at the clocks; True when a camera's factor has changed.

        Args:
            allowed: whether agent.toml lets the selection be set from afar.
        """
        with self._lock:
            running = set()
            has_begun = False
            for camera, (life, at_s) in list(self._lives.items()):
                began_s = now_s if math.isnan(at_s) else at_s
                self._lives[camera] = life, began_s
                has_begun |= math.isnan(at_s) or (life.left_s is None and clock_ok)
                if life.runs(now_s, wall_ms, clock_ok=clock_ok) and now_s - began_s < MAX_S and allowed:
                    running.add(camera)
            wished = 1.0 if self._wished is None else min(MAX_FACTOR, max(1.0, self._wished.factor))
            factor = wished if running and math.isfinite(wished) else 1.0
            now = frozenset(running) if factor > 1.0 else frozenset()
            changed = (now, factor) != (self._running, self._factor)
            self._running, self._factor = now, factor
            self._until_ms = max((self._lives[camera][0].until_ms for camera in now), default=0)
            if has_begun or (running and now_s - self._kept_s >= _KEEP_EVERY_S):
                self._keep()
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

    def _load(self) -> None:
        """Go on with what was kept. What may have passed since it was written is taken off, so that restarts make nothing last."""
        if self._path is None:
            return
        now_s = self._now_s()
        try:
            plain = json.loads(self._path.read_text("utf-8"))
            lives: dict[str, tuple[Lifetime, float]] = {}
            for camera, (until_ms, left_s, ran_s) in plain["lives"].items():
                left = None if left_s is None else float(left_s) - _KEEP_EVERY_S
                began_s = math.nan if ran_s is None else now_s - float(ran_s) - _KEEP_EVERY_S
                lives[str(camera)] = Lifetime(int(until_ms), left, now_s), began_s
            self._wished, self._lives = codec.decode(Boost, bytes.fromhex(plain["boost"])), lives
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, WireError) as error:
            logger.warning("%s cannot be read (%s); a boost waits for the server", self._path, error)
            return
        self._keep()

    def _keep(self) -> None:
        self._kept_s = now_s = self._now_s()
        if self._path is None:
            return
        lives = {
            camera: [life.until_ms, life.left_at(now_s), None if math.isnan(began_s) else now_s - began_s]
            for camera, (life, began_s) in self._lives.items()
        }
        try:
            if self._wished is None:
                self._path.unlink(missing_ok=True)
                return
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(self._path, json.dumps({"boost": codec.encode(self._wished).hex(), "lives": lives}).encode(), 0o600)
        except OSError as error:
            logger.warning("%s cannot be written (%s); a boost is forgotten at a restart", self._path, error)
