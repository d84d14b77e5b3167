"""What a camera is: `Frame`, the `Camera` Protocol, and the one place that turns a source text into a camera.

In: a `Source` (name, text of the source, its timeline and range). Out: a camera whose `read` gives frames with UTC wall time and
monotonic time. Films and folders live in `film.py`, rtsp and devices in `live.py`, rendered scenes in `synthetic.py`. Threads,
pace and dropping are not here (`capture_worker.py`).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bowerbird_agent.errors import SourceError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SYNTHETIC = "synthetic:"
# What is there already when the agent comes, and the same each time: start of its timeline unless the configuration says else.
DEFAULT_START_AT_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
_DEVICE = re.compile(r"\d+|/dev/.+")
_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_PASSWORD = re.compile(r"(?<=://)[^/@\s]+@")
_TAKE = re.compile(r"\s*(?P<take>\d+(?:\.\d+)?)s\s*/\s*(?P<period>\d+(?:\.\d+)?)s\s*(?:\+\s*(?P<offset>\d+(?:\.\d+)?)s\s*)?")
PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


@dataclass(frozen=True)
class Frame:
    """One picture of one camera.

    Args:
        image_bgr: (H, W, 3) uint8.
        camera: the camera's name.
        sequence: 0-based number of the frame in its source; the capture count of a live camera.
        captured_at_ms: UTC since the epoch; for films, folders and scenes the time on the source's own timeline, so that the
            same picture has the same time, and therefore the same frame id, whenever it runs again.
        monotonic_ns: this machine's monotonic clock when the frame was taken.
        repeat: this picture was seen before (a film run again); it does not count as a frame seen.
    """

    image_bgr: NDArray[np.uint8]
    camera: str
    sequence: int
    captured_at_ms: int
    monotonic_ns: int
    repeat: bool = False


class Camera(Protocol):
    """A source of frames. One thread owns it."""

    @property
    def name(self) -> str:
        """The name in the configuration."""
        ...

    @property
    def addressable(self) -> bool:
        """Whether `sequence` is a place in a fixed timeline (film, folder, synthetic) rather than a capture count."""
        ...

    @property
    def live(self) -> bool:
        """Whether frames are lost unless they are taken now; a live camera is also worth connecting to again."""
        ...

    @property
    def fps(self) -> float:
        """Frames per second of the source's own timeline; 0 when it has none."""
        ...

    @property
    def trouble(self) -> str:
        """What is wrong although frames come, e.g. broken frames in a film; "" when nothing is."""
        ...

    def read(self) -> Frame | None:
        """The next frame, or None when there are no more.

        Raises:
            CameraError: the camera has died; `SourceError` when trying again is useless.
        """
        ...

    def close(self) -> None:
        """Let go of file or device; calling it again does nothing."""
        ...


@dataclass(frozen=True)
class Segments:
    """Which part of a timeline one agent takes when several share a source: `take_s` of each `period_s`, from `offset_s` on."""

    take_s: float
    period_s: float
    offset_s: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Segments:
        """From text such as "10s/20s+10s": ten seconds of every twenty, beginning ten seconds in.

        Raises:
            ValueError: the text is none.
        """
        found = _TAKE.fullmatch(text)
        if found is None:
            raise ValueError(f'take is {text!r}; write it like "10s/20s+0s": ten seconds of every twenty, from second 0')
        take, period, offset = (float(found[name] or 0) for name in ("take", "period", "offset"))
        if not 0 < take <= period or offset + take > period:
            raise ValueError(f"take is {text!r}; the part taken must lie inside the period")
        return cls(take, period, offset)

    def takes(self, at_s: float) -> bool:
        """Whether the moment `at_s` seconds into the timeline is in this agent's part."""
        return 0 <= at_s % self.period_s - self.offset_s < self.take_s


@dataclass(frozen=True)
class Source:
    """Where frames come from and which of them are wanted.

    Args:
        name: the camera's name.
        text: file, folder, URL, device or "synthetic:?...".
        fps: frames per second of the timeline of sources without one of their own; None for 10 (a folder: 1).
        start_at_ms: UTC of frame 0; None for the file's modification time.
        first_frame, last_frame: the range wanted, both inclusive; `last_frame` None for the end.
        loop: begin again at the end of a film or folder.
        take: the segments of the timeline that this agent takes.
        resume_after: highest sequence handed out before; endless sources and capture counts go on behind it. -1 for none.
    """

    name: str
    text: str
    fps: float | None = None
    start_at_ms: int | None = None
    first_frame: int = 0
    last_frame: int | None = None
    loop: bool = False
    take: Segments | None = None
    resume_after: int = -1

    def wants(self, index: int, fps: float) -> bool:
        """Whether frame `index` of a timeline at `fps` is in the range and in this agent's segments."""
        if index < self.first_frame or (self.last_frame is not None and index > self.last_frame):
            return False
        return self.take is None or self.take.takes(index / fps)


def kind_of(text: str) -> str:
    """ "synthetic", "device", "url", or "path" (a film or a folder)."""
    if text.startswith(SYNTHETIC):
        return "synthetic"
    if _DEVICE.fullmatch(text):
        return "device"
    found = _URL.match(text)
    return "url" if found and found["scheme"].lower() != "file" else "path"


def is_live(text: str) -> bool:
    """Whether the source is a device or an address, as opposed to something with a fixed timeline."""
    return kind_of(text) in {"device", "url"}


def without_password(text: str) -> str:
    """A source's text for messages: user and password of an address are left out."""
    return _PASSWORD.sub("***@", text)


def source_key(text: str) -> str:
    """Eight hex digits that change when the source is another one (other text, or a file of other size or time)."""
    parts = [text]
    if kind_of(text) == "path":
        path = Path(text)
        if path.is_file():
            status = path.stat()
            parts += [str(status.st_size), str(status.st_mtime_ns)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]


def open_camera(source: Source) -> Camera:
    """The camera of a source, opened.

    Raises:
        SourceError: the text, the file or the folder cannot be used; trying again is useless.
        CameraError: a device or an address does not answer now.
    """
    kind = kind_of(source.text)
    if kind == "synthetic":
        from bowerbird_agent.synthetic import SyntheticCamera

        return SyntheticCamera(source)
    if kind in {"device", "url"}:
        from bowerbird_agent.live import LiveCamera

        return LiveCamera(source)
    path = Path(source.text.removeprefix("file://"))
    if path.is_dir():
        from bowerbird_agent.folder import FolderCamera

        return FolderCamera(source, path)
    if not path.exists():
        raise SourceError(f"camera {source.name}: {path} does not exist; check `source` of this camera")
    from bowerbird_agent.film import FilmCamera

    return FilmCamera(source, path)
