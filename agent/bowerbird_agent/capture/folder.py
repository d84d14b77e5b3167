"""A folder of pictures as a camera, and the list of pictures that the folder commands read.

In: a folder. Out: frames in the order of the file names, one per picture. Files that do not decode are counted and told. It does
not watch the folder for new files.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import cv2
import numpy as np

from bowerbird_agent.capture.capture import DEFAULT_START_AT_MS, PICTURE_SUFFIXES, Frame, Source
from bowerbird_agent.errors import SourceError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_FOLDER_FPS = 1.0


def pictures_in(folder: Path) -> list[Path]:
    """The pictures below a folder, sorted by path; hidden files and folders are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in PICTURE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def read_picture(path: Path) -> NDArray[np.uint8] | None:
    """A picture as (H, W, 3) uint8 BGR, or None when the file is unreadable or no picture."""
    try:
        content = np.frombuffer(path.read_bytes(), np.uint8)
        image = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    except (OSError, cv2.error):
        return None
    return None if image is None else np.asarray(image, np.uint8)


class FolderCamera:
    """A folder of pictures; implements `Camera`.

    Raises:
        SourceError: there is no picture in it.
    """

    addressable = True
    live = False

    def __init__(self, source: Source, folder: Path) -> None:
        self._source, self._folder = source, folder
        self._paths = pictures_in(folder)
        if not self._paths:
            raise SourceError(
                f"camera {source.name}: {folder} holds no picture ({', '.join(sorted(PICTURE_SUFFIXES))}); check the folder"
            )
        self._fps = source.fps or _FOLDER_FPS
        # A copied folder has new file times; a fixed start keeps the frame ids the same.
        self._start_at_ms = source.start_at_ms if source.start_at_ms is not None else DEFAULT_START_AT_MS
        self._next = self._broken = self._given = 0

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self._source.name

    @property
    def fps(self) -> float:
        """Pictures per second on the timeline."""
        return self._fps

    @property
    def trouble(self) -> str:
        """How many pictures do not decode."""
        return f"{self._broken} pictures do not decode" if self._broken else ""

    def read(self) -> Frame | None:
        """The next picture that decodes, or None behind the last one.

        Raises:
            SourceError: none of the pictures decodes or is in the range asked for.
        """
        while True:
            if self._next >= len(self._paths):
                if self._given == 0:
                    raise SourceError(
                        f"camera {self.name}: no picture in {self._folder} decodes and is in the range asked for; check the "
                        "files, first_frame, last_frame and take"
                    )
                if not self._source.loop:
                    return None
                self._next = 0
            index, path = self._next, self._paths[self._next]
            self._next += 1
            if not self._source.wants(index, self._fps):
                continue
            image = read_picture(path)
            if image is None:
                self._broken += 1
                logger.log(
                    logging.WARNING if self._broken == 1 else logging.DEBUG,
                    "camera %s: %s does not decode; skipped",
                    self.name,
                    path,
                )
                continue
            self._given += 1
            at_ms = self._start_at_ms + round(index * 1000 / self._fps)
            return Frame(image, self.name, index, at_ms, time.monotonic_ns())

    def close(self) -> None:
        """Nothing is held open."""
