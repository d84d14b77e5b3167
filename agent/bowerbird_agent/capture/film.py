"""Films: every frame has a fixed place on the film's timeline, so a second run gives the same sequences, times and frame ids.

In: a video file that OpenCV can open, a range, segments. Out: frames in order. Broken frames are counted and told, and do not end
the film as long as others decode. Frames that are not wanted are skipped without being converted.
"""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING

import cv2
import numpy as np

from bowerbird_agent.capture.capture import Frame, Source
from bowerbird_agent.errors import SourceError

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

_FALLBACK_FPS = 25.0
# A container's frame count is sometimes an estimate; a larger gap means that the film is cut off or that FFmpeg skipped frames
# that it could not decode (it does so silently).
_COUNT_SLACK = 1
_MAX_BROKEN_IN_A_ROW = 250


class FilmCamera:
    """A video file; implements `Camera`.

    Raises:
        SourceError: not a film, or no frame in it decodes.
    """

    addressable = True
    live = False

    def __init__(self, source: Source, path: Path) -> None:
        self._source, self._path = source, path
        self._film = self._open()
        own_fps = self._film.get(cv2.CAP_PROP_FPS)
        self._fps = own_fps if math.isfinite(own_fps) and 0 < own_fps <= 1000 else source.fps or _FALLBACK_FPS
        self._announced = max(0, int(self._film.get(cv2.CAP_PROP_FRAME_COUNT)))
        self._start_at_ms = source.start_at_ms if source.start_at_ms is not None else int(path.stat().st_mtime * 1000)
        self._next = 0
        self._decoded = self._broken = self._given = 0
        self._truncated = ""

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self._source.name

    @property
    def fps(self) -> float:
        """The film's own frames per second."""
        return self._fps

    @property
    def trouble(self) -> str:
        """Broken frames and a missing end, in words."""
        broken = f"{self._broken} frames do not decode" if self._broken else ""
        return "; ".join(part for part in (broken, self._truncated) if part)

    def read(self) -> Frame | None:
        """The next wanted frame, or None behind the last one.

        Raises:
            SourceError: the film ended without a single frame.
        """
        broken_in_a_row = 0
        while True:
            index = self._next
            past_range = self._source.last_frame is not None and index > self._source.last_frame
            if past_range or not self._film.grab():
                if not past_range and self._hole(index, broken_in_a_row):
                    broken_in_a_row += 1
                    continue
                self._broken -= broken_in_a_row  # not holes after all, but frames behind the end
                if not self._begin_again(index - broken_in_a_row, cut=not past_range):
                    return None
                broken_in_a_row = 0
                continue
            self._next += 1
            if not self._source.wants(index, self._fps):
                self._decoded += 1
                continue
            decoded, image = self._film.retrieve()
            if not decoded or image.size == 0:
                self._count_broken(index)
                continue
            broken_in_a_row = 0
            self._decoded += 1
            self._given += 1
            if image.ndim == 2:
                image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
            at_ms = self._start_at_ms + round(index * 1000 / self._fps)
            return Frame(np.asarray(image, np.uint8), self.name, index, at_ms, time.monotonic_ns())

    def close(self) -> None:
        """Close the file."""
        self._film.release()

    def _open(self) -> cv2.VideoCapture:
        if self._path.stat().st_size == 0:
            raise SourceError(f"camera {self._source.name}: {self._path} is empty (0 bytes); copy the film again")
        try:
            film = cv2.VideoCapture(str(self._path))
        except cv2.error as error:
            raise SourceError(f"camera {self._source.name}: OpenCV cannot read {self._path} ({error.err})") from error
        if not film.isOpened():
            raise SourceError(
                f"camera {self._source.name}: {self._path} is no film that OpenCV can read; check the file, or convert it "
                "(for example to MP4 with H.264)"
            )
        return film

    def _hole(self, index: int, broken_in_a_row: int) -> bool:
        """Whether a failed grab is a broken frame inside the film rather than its end; if so it is counted."""
        if index >= self._announced - _COUNT_SLACK or broken_in_a_row >= _MAX_BROKEN_IN_A_ROW:
            return False
        self._next += 1
        self._count_broken(index)
        return True

    def _count_broken(self, index: int) -> None:
        self._broken += 1
        level = logging.WARNING if self._broken == 1 else logging.DEBUG
        logger.log(level, "camera %s: frame %d of %s does not decode; skipped", self.name, index, self._path)

    def _begin_again(self, ended_at: int, *, cut: bool) -> bool:
        """At the end: say what was missing, and start over when the film loops."""
        if self._decoded == 0:
            raise SourceError(
                f"camera {self.name}: {self._path} has no frame that decodes; the file is damaged or of an unknown codec"
            )
        if self._given == 0:
            raise SourceError(
                f"camera {self.name}: none of the {self._decoded} frames of {self._path} is in the range and segments asked "
                "for; check first_frame, last_frame and take"
            )
        if cut and ended_at < self._announced - _COUNT_SLACK:
            if not self._truncated:
                logger.warning(
                    "camera %s: %s gave %d of the %d frames that it announces; the file is damaged or cut off",
                    self.name,
                    self._path,
                    ended_at,
                    self._announced,
                )
            self._truncated = f"the film gave {ended_at} of the {self._announced} frames that it announces"
        if not self._source.loop:
            return False
        self._film.release()
        self._film = self._open()
        self._next = self._broken = 0
        return True
