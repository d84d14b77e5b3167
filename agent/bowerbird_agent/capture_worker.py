"""One camera's thread: opens it, reads at its pace, hands frames over, and comes back when a live camera dies.

In: a camera's configuration and an exchange. Out: frames into the exchange and a line of state for health ("ok" or what is wrong). It
decides nothing about frames. An error of a camera never ends the agent; an error of ours in this thread does (`stages.py`).
"""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import TYPE_CHECKING

from bowerbird_agent.capture import Camera, Frame, Source, open_camera
from bowerbird_agent.errors import CameraError, SourceError
from bowerbird_agent.heartbeat import no_pulse

if TYPE_CHECKING:
    from collections.abc import Callable

    from bowerbird_agent.config import CameraConfig
    from bowerbird_agent.exchange import Mailbox
    from bowerbird_agent.heartbeat import Pulse

logger = logging.getLogger(__name__)

OK = "ok"
STARTING = "starting"
FINISHED = "finished"
_FIRST_BACKOFF_S = 1.0
_LONGEST_BACKOFF_S = 30.0
# A realtime film that fell this far behind goes on from now instead of hurrying after its clock.
_FORGIVE_S = 1.0


class CaptureWorker:
    """The loop of one camera; `run` belongs to a thread of its own.

    Args:
        config: the camera's section.
        exchange: where frames go.
        resume_after: highest sequence handed out before this process; -1 for none.
        open_: opens a source; tests put a camera of theirs here.
        first_backoff_s: wait before the first attempt to reconnect a live camera; doubles up to 30 s.
        pulse: this thread's heartbeat: it works while it opens and reads, and waits in between.
    """

    def __init__(
        self,
        config: CameraConfig,
        exchange: Mailbox,
        *,
        resume_after: int = -1,
        open_: Callable[[Source], Camera] = open_camera,
        first_backoff_s: float = _FIRST_BACKOFF_S,
        pulse: Pulse | None = None,
    ) -> None:
        self._pulse = pulse or no_pulse()
        self.name = config.name
        self._config = config
        self._exchange = exchange
        self._resume_after = resume_after
        self._open = open_
        self._first_backoff_s = first_backoff_s
        self._stop = threading.Event()
        self._state = STARTING
        self._is_done = False

    @property
    def state(self) -> str:
        """ "ok", "starting", "finished", or what is wrong, in words."""
        return self._state

    @property
    def is_done(self) -> bool:
        """Whether no further frame will ever come."""
        return self._is_done

    def stop(self) -> None:
        """Ask `run` to return; a thread that waits for the exchange returns when that is closed."""
        self._stop.set()

    def run(self) -> None:
        """Read until the source ends or `stop` is called."""
        backoff_s = self._first_backoff_s
        failures = 0
        while not self._stop.is_set():
            started_s = time.monotonic()
            self._pulse.beat()
            try:
                if self._read_all():
                    break
            except SourceError as error:
                self._state = str(error)
                logger.error("%s", error)
                break
            except CameraError as error:
                self._state = str(error)
                if time.monotonic() - started_s > _LONGEST_BACKOFF_S:
                    failures, backoff_s = 0, self._first_backoff_s
                failures += 1
                level = logging.WARNING if failures == 1 else logging.DEBUG
                # Jitter only keeps many agents from knocking at one recorder at once; it protects nothing.
                wait_s = backoff_s * random.uniform(0.75, 1.25)  # noqa: S311
                logger.log(level, "%s; trying again in %.0f s and from then on", error, wait_s)
                backoff_s = min(backoff_s * 2, _LONGEST_BACKOFF_S)
                self._pulse.wait()
                self._stop.wait(wait_s)
        self._is_done = True

    def _read_all(self) -> bool:
        """Open and read to the end; True when the source is finished."""
        camera = self._open(self._config.to_source(self._resume_after))
        try:
            pacer = None if self._config.pace == "fast" or camera.live else Pacer(self._config.fps or camera.fps)
            first = True
            while not self._stop.is_set():
                self._pulse.wait()
                if pacer is not None and not pacer.wait(self._stop):
                    return True
                self._pulse.beat()
                frame = camera.read()
                self._pulse.wait()
                if frame is None:
                    self._state = f"{FINISHED}; {camera.trouble}" if camera.trouble else FINISHED
                    logger.info("camera %s: %s", self.name, self._state)
                    return True
                self._state = camera.trouble or OK
                if first:
                    first = False
                    height, width = frame.image_bgr.shape[:2]
                    logger.info("camera %s: frames of %dx%d pixels come", self.name, width, height)
                if not self._hand_over(frame):
                    return True
        finally:
            camera.close()
        return True

    def _hand_over(self, frame: Frame) -> bool:
        self._resume_after = max(self._resume_after, frame.sequence)
        if self._config.pace == "fast":
            return self._exchange.put_waiting(frame)
        self._exchange.put_newest(frame)
        return True


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
