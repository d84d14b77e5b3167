"""One camera's thread: opens it, reads at its pace, hands frames over, and comes back when a live camera dies or hangs.

In: a camera's configuration and an exchange. Out: frames into the exchange, and a line of state for health ("ok" or what is wrong). It
decides nothing about frames. An error of a camera never ends the agent; an error of ours in this thread does (`stages.py`).

A call into a driver may never return. A live camera is therefore read in a thread of its own (`Attempt`) that this one watches: when no
picture comes for `stall_s` it is left behind, and whatever it still brings is thrown away.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import TYPE_CHECKING

from bowerbird_agent.capture.attempt import Attempt, start_reader
from bowerbird_agent.capture.camera_health import ADVICE, LOOK_EVERY_S, OK, CameraWatch, look_at
from bowerbird_agent.capture.capture import (
    Camera,
    Frame,
    GrabbingCamera,
    Source,
    is_live,
    kind_of,
    open_camera,
    without_password,
)
from bowerbird_agent.capture.frame_rate import FrameRate, Pacer
from bowerbird_agent.capture.framing import Framing
from bowerbird_agent.errors import CameraError, SourceError
from bowerbird_agent.health.heartbeat import no_pulse
from bowerbird_agent.link.reconnect import ReconnectDelay

if TYPE_CHECKING:
    from collections.abc import Callable

    from bowerbird_agent.capture.camera_config import CameraConfig
    from bowerbird_agent.capture.exchange import Mailbox
    from bowerbird_agent.health.heartbeat import Pulse

logger = logging.getLogger(__name__)

STARTING = "starting"
FINISHED = "finished"
_LONGEST_DELAY_S = 30.0
# A camera that gave pictures for so long was well; the next attempt comes at once.
_WELL_S = 30.0
# To open takes longer than to read: negotiation, and FFmpeg looks at a second of pictures to know what they are.
_OPENING_S = 20.0
_POLL_S = 0.2
_LEAVE_S = 0.5
_MOST_LEFT_BEHIND = 4


class CaptureWorker:
    """The loop of one camera; `run` belongs to a thread of its own.

    Args:
        config: the camera's section.
        exchange: where frames go.
        resume_after: highest sequence handed out before this process; -1 for none.
        open_: opens a source; tests put a camera of theirs here.
        delay: how long to wait before a live camera is tried again.
        pulse: this thread's heartbeat: it works while it opens and reads, and waits in between.
    """

    def __init__(
        self,
        config: CameraConfig,
        exchange: Mailbox,
        *,
        resume_after: int = -1,
        open_: Callable[[Source], Camera] = open_camera,
        delay: ReconnectDelay | None = None,
        pulse: Pulse | None = None,
    ) -> None:
        self._pulse = pulse or no_pulse()
        self.name = config.name
        self._config = config
        self._exchange = exchange
        self._resume_after = resume_after
        self._open = open_
        # Jitter only keeps many agents from knocking at one recorder at once; it protects nothing.
        self._delay = delay or ReconnectDelay(random.Random().random, max_s=_LONGEST_DELAY_S)  # noqa: S311
        self._framing = Framing(config.to_source())
        self._watch = CameraWatch()
        self._look_due_s = 0.0
        self._stop = threading.Event()
        self._left_behind: list[threading.Thread] = []
        self._state = STARTING
        self._is_done = False

    @property
    def state(self) -> str:
        """ "ok", "starting", "finished", "frozen", "dark", "blurred", "moved", or what is wrong, in words."""
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
        failures = 0
        while not self._stop.is_set():
            self._pulse.beat()
            attempt = Attempt(time.monotonic())
            try:
                if self._attempt(attempt):
                    break
            except SourceError as error:
                self._state = str(error)
                logger.error("%s", error)
                break
            except CameraError as error:
                self._state = str(error)
                was_well = attempt.well_s >= _WELL_S
                failures = 1 if was_well else failures + 1
                wait_s = self._delay.after(progress=was_well)
                level = logging.WARNING if failures == 1 else logging.DEBUG
                self._pulse.wait()
                logger.log(level, "%s; trying again in %.1f s and from then on", error, wait_s)
                self._stop.wait(wait_s)
        self._is_done = True

    # --- this thread: one attempt after the other ----------------------------------------------------------------------

    def _attempt(self, attempt: Attempt) -> bool:
        """Open and read until the source ends (True) or fails (raises)."""
        if not is_live(self._config.source):
            return self._read_all(attempt)
        self._left_behind = [thread for thread in self._left_behind if thread.is_alive()]
        if len(self._left_behind) >= _MOST_LEFT_BEHIND:
            raise CameraError(
                f"camera {self.name}: {len(self._left_behind)} attempts to read it hang in the driver; restart camera or device"
            )
        thread = start_reader(self.name, attempt, lambda: self._read_all(attempt))
        while not attempt.ended.wait(_POLL_S):
            self._pulse.beat()
            if self._stop.is_set():
                thread.join(_LEAVE_S)
                return True
            if self._is_stalled(attempt) and attempt.leave():
                self._left_behind.append(thread)
                raise CameraError(self._silence(attempt))
        return attempt.result()

    def _is_stalled(self, attempt: Attempt) -> bool:
        return time.monotonic() - attempt.alive_at_s > self._limit_s(attempt)

    def _limit_s(self, attempt: Attempt) -> float:
        return self._config.stall_s if attempt.is_open else max(_OPENING_S, self._config.stall_s)

    def _silence(self, attempt: Attempt) -> str:
        text = self._config.source
        advice = "check its power and its cable or network"
        if kind_of(text) in {"csi", "gst"} and not attempt.is_open:
            # OpenCV waits without end for a pipeline with a part that is not installed.
            from bowerbird_agent.capture.gstreamer import by_hand

            advice = by_hand(text)
        return f"camera {self.name}: {without_password(text)} gave no picture for {self._limit_s(attempt):g} s; {advice}"

    # --- the reader's thread: this one for films, the attempt's own for live cameras ------------------------------------

    def _read_all(self, attempt: Attempt) -> bool:
        # Of a live camera the watching thread beats: a reader that hangs is left behind, and the other cameras go on.
        pulse = no_pulse() if is_live(self._config.source) else self._pulse
        camera = self._open(self._config.to_source(self._resume_after))
        try:
            self._watch.interrupted()
            if isinstance(camera, GrabbingCamera):
                return self._follow(camera, attempt)
            pacer = None if self._config.pace == "fast" or camera.live else Pacer(self._config.fps or camera.fps)
            while not self._stop.is_set():
                pulse.wait()
                if pacer is not None and not pacer.wait(self._stop):
                    return True
                pulse.beat()
                frame = camera.read()
                pulse.wait()
                if frame is None:
                    self._state = f"{FINISHED}; {camera.trouble}" if camera.trouble else FINISHED
                    logger.info("camera %s: %s", self.name, self._state)
                    return True
                if not self._deliver(frame, camera, attempt):
                    return True
        finally:
            camera.close()
        return True

    def _follow(self, camera: GrabbingCamera, attempt: Attempt) -> bool:
        """Read a live camera: frames that are not wanted are passed over without making a picture of them."""
        rate = None if self._config.fps is None else FrameRate(self._config.fps)
        while not self._stop.is_set():
            camera.grab()
            now_s = time.monotonic()
            # Before the first picture only the time limit of opening holds.
            if attempt.is_open:
                attempt.alive(now_s)
            if rate is not None and not rate.takes(now_s):
                continue
            frame = camera.retrieve()
            if frame is not None and not self._deliver(frame, camera, attempt):
                return True
        return True

    def _deliver(self, frame: Frame, camera: Camera, attempt: Attempt) -> bool:
        """Hand a frame over; False when nobody wants it any more."""
        if self._config.pace == "fast":
            self._arrived(frame, camera, attempt)
            return self._exchange.put_waiting(frame)
        with attempt.current() as is_current:
            if not is_current:
                return False
            self._arrived(frame, camera, attempt)
            self._exchange.put_newest(frame)
        return True

    def _arrived(self, frame: Frame, camera: Camera, attempt: Attempt) -> None:
        if not attempt.is_open:
            height, width = frame.image_bgr.shape[:2]
            logger.info("camera %s: frames of %dx%d pixels come", self.name, width, height)
        now_s = time.monotonic()
        attempt.alive(now_s)
        self._resume_after = max(self._resume_after, frame.sequence)
        if camera.live and now_s >= self._look_due_s:
            self._look_due_s = now_s + LOOK_EVERY_S
            self._look(frame, now_s)
        self._state = camera.trouble or self._watch.state

    def _look(self, frame: Frame, now_s: float) -> None:
        before = self._watch.state
        state = self._watch.observe(look_at(frame.image_bgr, self._framing.visible), now_s)
        if state == before:
            return
        if state == OK:
            logger.info("camera %s: no longer %s", self.name, before)
        else:
            logger.warning("camera %s: %s; %s", self.name, state, ADVICE[state])
