"""Live cameras through OpenCV: a device (`/dev/video0`, `0`) or an address (`rtsp://...`).

In: the source's text. Out: frames with this machine's clock. A camera that does not answer or stops raises `CameraError`; trying
again with back-off is the capture worker's work. Passwords in addresses never reach a message.
"""

from __future__ import annotations

import contextlib
import time

import cv2
import numpy as np

from bowerbird_agent.capture import Frame, Source, kind_of, without_password
from bowerbird_agent.errors import CameraError

OPEN_TIMEOUT_MS = 8000
READ_TIMEOUT_MS = 8000
_MAX_FAILED_READS = 5


class LiveCamera:
    """A camera that runs by itself; implements `Camera`.

    Raises:
        CameraError: it does not answer.
    """

    addressable = False
    live = True
    trouble = ""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._shown = without_password(source.text)
        self._capture = self._open()
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self._fps = fps if 0 < fps <= 1000 else 0.0
        self._next = source.resume_after + 1

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self._source.name

    @property
    def fps(self) -> float:
        """What the camera says it gives; 0 when it does not say."""
        return self._fps

    def read(self) -> Frame | None:
        """The next frame; a live camera never finishes.

        Raises:
            CameraError: it stopped giving frames.
        """
        for _ in range(_MAX_FAILED_READS):
            decoded, image = self._capture.read()
            if decoded and image.size:
                sequence, self._next = self._next, self._next + 1
                if image.ndim == 2:
                    image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
                return Frame(np.asarray(image, np.uint8), self.name, sequence, int(time.time() * 1000), time.monotonic_ns())
        raise CameraError(
            f"camera {self.name}: {self._shown} stopped giving pictures; check its power and its cable or network"
        )

    def close(self) -> None:
        """Let go of the device or the connection."""
        self._capture.release()

    def _open(self) -> cv2.VideoCapture:
        text = self._source.text
        capture: cv2.VideoCapture
        try:
            if kind_of(text) == "device":
                capture = cv2.VideoCapture(int(text) if text.isdigit() else text)
                # A deep queue in the driver would make the newest frame an old one.
                with contextlib.suppress(cv2.error):
                    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
            else:
                timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_TIMEOUT_MS]
                capture = cv2.VideoCapture(text, cv2.CAP_FFMPEG, timeouts)
        except cv2.error as error:
            raise CameraError(f"camera {self._source.name}: OpenCV cannot open {self._shown} ({error.err})") from error
        if not capture.isOpened():
            capture.release()
            raise CameraError(self._absent())
        return capture

    def _absent(self) -> str:
        if kind_of(self._source.text) == "device":
            return (
                f"camera {self._source.name}: there is no camera at {self._shown}; check the cable, `ls /dev/video*`, and that "
                "this user is in the group `video`"
            )
        return (
            f"camera {self._source.name}: {self._shown} does not answer; check the address, the password and that the camera "
            "is reachable from this device"
        )
