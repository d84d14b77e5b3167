"""Live cameras through OpenCV: what they have in common, and V4L2 devices (`/dev/video0`, `0`).

In: an open `cv2.VideoCapture`. Out: frames with this machine's clock. A camera that does not answer or stops raises `CameraError`;
trying again, back-off, and leaving a call that never returns are the capture worker's work. Addresses are opened in `stream.py`,
pipelines in `gstreamer.py`. Passwords never reach a message.
"""

from __future__ import annotations

import contextlib
import sys
import time

import cv2
import numpy as np

from bowerbird_agent.capture.capture import DeviceFormat, Frame, Source, without_password
from bowerbird_agent.errors import CameraError, SourceError

_MAX_FAILURES = 5


class LiveCamera:
    """A camera that runs by itself; implements `GrabbingCamera`.

    Args:
        source: name, text and the highest sequence handed out before.
        capture: open; this camera's from now on.
    """

    addressable = False
    live = True
    trouble = ""

    def __init__(self, source: Source, capture: cv2.VideoCapture) -> None:
        self._source, self._capture = source, capture
        self._shown = without_password(source.text)
        fps = capture.get(cv2.CAP_PROP_FPS)
        self._fps = fps if 0 < fps <= 1000 else 0.0
        self._next = source.resume_after + 1
        self._grabbed_at_ms = self._grabbed_at_ns = 0
        self._failures = 0

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self._source.name

    @property
    def fps(self) -> float:
        """What the camera says it gives; 0 when it does not say."""
        return self._fps

    def grab(self) -> None:
        """Wait for the next frame and hold it. FFmpeg decodes here, because later frames need it; V4L2 and GStreamer later.

        Raises:
            CameraError: it stopped giving frames.
        """
        # One failed grab is no proof: a damaged packet fails too, and costs nothing but itself.
        for _ in range(_MAX_FAILURES):
            if self._capture.grab():
                self._grabbed_at_ms, self._grabbed_at_ns = int(time.time() * 1000), time.monotonic_ns()
                return
        raise CameraError(
            f"camera {self.name}: {self._shown} stopped giving pictures; check its power and its cable or network"
        )

    def retrieve(self) -> Frame | None:
        """The frame held; None when no picture can be made of it.

        Raises:
            CameraError: several frames in a row could not be decoded.
        """
        try:
            decoded, image = self._capture.retrieve()
        except cv2.error:  # a JPEG that a USB camera cut short
            decoded, image = False, np.empty((0, 0, 3), np.uint8)
        if not decoded or image.size == 0:
            self._failures += 1
            if self._failures >= _MAX_FAILURES:
                raise CameraError(
                    f"camera {self.name}: what {self._shown} gives cannot be decoded; check cable and network, and its codec"
                )
            return None
        self._failures = 0
        sequence, self._next = self._next, self._next + 1
        if image.ndim == 2:
            image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
        return Frame(np.asarray(image, np.uint8), self.name, sequence, self._grabbed_at_ms, self._grabbed_at_ns)

    def read(self) -> Frame | None:
        """The next frame; a live camera never finishes.

        Raises:
            CameraError: it stopped giving frames.
        """
        while True:
            self.grab()
            frame = self.retrieve()
            if frame is not None:
                return frame

    def close(self) -> None:
        """Let go of the device or the connection."""
        self._capture.release()


def open_device(source: Source) -> LiveCamera:
    """A V4L2 device by number or path.

    Raises:
        SourceError: the text is wrong.
        CameraError: there is no such camera, or somebody else has it.
    """
    try:
        wanted = DeviceFormat.parse(source.text)
    except ValueError as error:
        raise SourceError(f"camera {source.name}: {error}") from error
    capture = cv2.VideoCapture()
    with contextlib.suppress(cv2.error):
        capture.open(int(wanted.device) if wanted.device.isdigit() else wanted.device, _device_backend())
    if not capture.isOpened():
        capture.release()
        raise CameraError(
            f"camera {source.name}: there is no camera at {wanted.device}; check the cable, `ls /dev/video*`, that no other program "
            "uses it, and that this user is in the group `video`"
        )
    # The format before the size: drivers offer large pictures at a good rate only as MJPG. A deep queue in the driver would make
    # the newest frame an old one. A driver that refuses a wish gives what it can.
    settings = (
        (cv2.CAP_PROP_FOURCC, None if wanted.fourcc is None else cv2.VideoWriter.fourcc(*wanted.fourcc)),
        (cv2.CAP_PROP_FRAME_WIDTH, wanted.width),
        (cv2.CAP_PROP_FRAME_HEIGHT, wanted.height),
        (cv2.CAP_PROP_FPS, wanted.fps),
        (cv2.CAP_PROP_BUFFERSIZE, 1),
    )
    for setting, value in settings:
        if value is not None:
            with contextlib.suppress(cv2.error):
                capture.set(setting, value)
    return LiveCamera(source, capture)


def _device_backend() -> int:
    """V4L2 by name where there is one: left to itself OpenCV also tries FFmpeg and GStreamer, which ignore buffer and format."""
    has_v4l2 = sys.platform == "linux" and cv2.CAP_V4L2 in cv2.videoio_registry.getCameraBackends()
    return cv2.CAP_V4L2 if has_v4l2 else cv2.CAP_ANY
