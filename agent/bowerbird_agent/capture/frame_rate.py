"""The pace of a camera: films spread over real time, and live cameras thinned to the frames a second that are wanted.

In: frames per second, and for the thinning the time of each frame. Out: how long to wait, or whether to take a frame.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import threading

# A realtime film that fell this far behind goes on from now instead of hurrying after its clock.
_FORGIVE_S = 1.0


class Pacer:
    """Spreads the frames of a file over real time.

    Args:
        fps: frames per second, above 0.
    """

    def __init__(self, fps: float) -> None:
        self._period_s = 1.0 / fps
        self._due_s: float | None = None

    def wait(self, stop: threading.Event) -> bool:
        """Wait until the next frame is due; False when stopped meanwhile."""
        now_s = time.monotonic()
        if self._due_s is None or now_s - self._due_s > _FORGIVE_S:
            self._due_s = now_s
        wait_s = self._due_s - now_s
        self._due_s += self._period_s
        return not (stop.wait(wait_s) if wait_s > 0 else stop.is_set())


class FrameRate:
    """Thins a live camera: at most so many frames a second, evenly, without waiting and without a clock of its own.

    Args:
        fps: frames per second wanted, above 0; a camera that gives fewer gives all of them.
    """

    def __init__(self, fps: float) -> None:
        self._period_s = 1.0 / fps
        self._due_s: float | None = None

    def takes(self, at_s: float) -> bool:
        """Whether to take the frame that came at `at_s` on a monotonic clock."""
        if self._due_s is not None and at_s < self._due_s:
            return False
        if self._due_s is None or at_s - self._due_s >= self._period_s:
            self._due_s = at_s
        # The next one is due by the plan and not by when this one came: late frames would otherwise lower the rate for good.
        self._due_s += self._period_s
        return True
