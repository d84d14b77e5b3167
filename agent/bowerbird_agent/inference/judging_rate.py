"""How many frames a second are judged, and the rests in between while the guard asks for fewer.

In: when frames were judged and how long each took, the share that the guard allows. Out: a rate, and moments in which no frame is to be
taken. Nothing is taken instead of being thrown away: live cameras replace their frame, which is counted, and files wait. How long a
rest must be is `guard.rest_s`'s word.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from bowerbird_agent.inference.detecting import RECENT
from bowerbird_agent.inference.guard import rest_s

if TYPE_CHECKING:
    from collections.abc import Callable

_STALE_S = 10.0


class JudgingRate:
    """The inference thread owns it; the guard sets `share`, and the properties may be read by others.

    Args:
        wait: lets so many seconds pass, or less when the agent ends.
    """

    def __init__(self, wait: Callable[[float], object]) -> None:
        self._wait = wait
        self.share = 1.0  # allowed share of the frame rate, in (0, 1]
        self._rest_until_s = 0.0
        self._is_resting = False
        self._times_s: deque[float] = deque(maxlen=RECENT)

    @property
    def fps(self) -> float:
        """Frames judged per second over the last frames."""
        times = list(self._times_s)
        if len(times) < 2 or time.monotonic() - times[-1] > _STALE_S:
            return 0.0
        return (len(times) - 1) / max(1e-6, times[-1] - times[0])

    @property
    def is_resting(self) -> bool:
        """Whether the guard lets a moment pass without taking a frame; what live cameras replace meanwhile, it has skipped."""
        return self._is_resting

    def judged(self) -> None:
        """A frame was judged now."""
        self._times_s.append(time.monotonic())

    def worked(self, started_s: float, *, arrival_s: float | None) -> None:
        """A frame is done that was begun at `started_s` (monotonic); `arrival_s` as in `guard.rest_s`."""
        work_s = time.monotonic() - started_s
        self._rest_until_s = started_s + work_s + rest_s(self.share, work_s=work_s, arrival_s=arrival_s)

    def rests(self, timeout_s: float) -> bool:
        """Let time pass, at most `timeout_s` seconds, while a rest lasts; whether one does."""
        left_s = self._rest_until_s - time.monotonic() if self.share < 1.0 else 0.0
        self._is_resting = left_s > 0
        if self._is_resting:
            self._wait(min(timeout_s, left_s))
        return self._is_resting
