"""What a camera is: `Frame`, the `Camera` Protocol, and the one place that turns a source text into a camera.

In: a `Source` (name, text of the source, its timeline and range). Out: a camera whose `read` gives frames with UTC wall time and
monotonic time. Films and folders live in `film.py` and `folder.py`, devices in `live.py`, addresses in `stream.py`, GStreamer in
`gstreamer.py`, rendered scenes in `synthetic.py`. Threads, pace and dropping are not here (`capture/worker.py`).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable
from urllib.parse import parse_qsl

from bowerbird_agent.errors import SourceError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SYNTHETIC = "synthetic:"
# What is there already when the agent comes, and the same each time: start of its timeline unless the configuration says else.
DEFAULT_START_AT_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
_CSI, _GST = "csi:", "gst:"
_DEVICE = re.compile(r"\d+|/dev/.+")
_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+)://", re.IGNORECASE)
# Up to the last @ of the word: a password may hold an @ or a slash that nobody encoded, and hiding too much is no fault.
_PASSWORD = re.compile(r"(?<=://)\S+@")
# `?user=me&pwd=x` of web cameras, `user=me_password=x_` of recorders, `user-pw=x` of rtspsrc.
_SECRET = re.compile(r"((?:pass|passwd|password|pwd|pw|token|secret|key|auth)=)[^&\s]+", re.IGNORECASE)
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


@runtime_checkable
class GrabbingCamera(Camera, Protocol):
    """A live camera whose frames can be passed over without the cost of making a picture of them."""

    def grab(self) -> None:
        """Wait for the next frame and hold it; the one held before is gone.

        Raises:
            CameraError: the camera has died.
        """
        ...

    def retrieve(self) -> Frame | None:
        """The frame held, with the time at which it was grabbed; None when no picture can be made of it.

        Raises:
            CameraError: that was the case several times in a row.
        """
        ...


@dataclass(frozen=True)
class DeviceFormat:
    """A V4L2 device and what to ask of it: `/dev/video0?width=1280&height=720&fps=30&fourcc=MJPG`; None leaves it to the driver."""

    device: str
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    fourcc: str | None = None

    @classmethod
    def parse(cls, text: str) -> DeviceFormat:
        """From a source text.

        Raises:
            ValueError: an unknown key, or a value out of range.
        """
        device, options = split_options(text, known=("width", "height", "fps", "fourcc"))
        fourcc = options.pop("fourcc", None)
        if fourcc is not None and len(fourcc) != 4:
            raise ValueError(f"fourcc is {fourcc!r}; it is four letters such as MJPG or YUYV")
        numbers = {key: positive_number(key, value) for key, value in options.items()}
        width, height = (None if key not in numbers else int(numbers[key]) for key in ("width", "height"))
        return cls(device, width, height, numbers.get("fps"), fourcc)


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
        stall_s: how long a live camera may give no picture, seconds.
        region: x, y, width, height in shares of the picture: what is cut out of it; None for all.
        masks: privacy masks, polygons of (x, y) in shares of the whole picture.
        masks_wh: the size of the pictures that they were drawn on; None for not known.
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
    stall_s: float = 10.0
    region: tuple[float, float, float, float] | None = None
    masks: tuple[tuple[tuple[float, ...], ...], ...] = ()
    masks_wh: tuple[int, int] | None = None

    def wants(self, index: int, fps: float) -> bool:
        """Whether frame `index` of a timeline at `fps` is in the range and in this agent's segments."""
        if index < self.first_frame or (self.last_frame is not None and index > self.last_frame):
            return False
        return self.take is None or self.take.takes(index / fps)


def kind_of(text: str) -> str:
    """ "synthetic", "csi", "gst", "device", "url", or "path" (a film or a folder)."""
    for prefix in (SYNTHETIC, _CSI, _GST):
        if text.startswith(prefix):
            return prefix[:-1]
    if _DEVICE.fullmatch(text):
        return "device"
    found = _URL.match(text)
    return "url" if found and found["scheme"].lower() != "file" else "path"


def is_live(text: str) -> bool:
    """Whether the source runs by itself (a device, an address, a pipeline), as opposed to something with a fixed timeline."""
    return kind_of(text) in {"device", "url", "csi", "gst"}


def without_password(text: str) -> str:
    """A source's text for messages: users, passwords and keys in it are left out."""
    return _SECRET.sub(r"\1***", _PASSWORD.sub("***@", text))


def split_options(text: str, *, known: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """What stands before the `?` of a source text, and the `key=value` pairs behind it.

    Raises:
        ValueError: a key that is not known, or no pairs.
    """
    head, mark, query = text.partition("?")
    try:
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(mark)))
    except ValueError as error:
        raise ValueError(f"{text!r}: behind the ? stand pairs such as width=1280&height=720") from error
    for key in options:
        if key not in known:
            raise ValueError(f"unknown key {key!r} in {text!r}; known are {', '.join(known)}")
    return head, options


def positive_number(key: str, text: str) -> float:
    """The value of an option.

    Raises:
        ValueError: no number, or not in 0 < number <= 100000.
    """
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 100_000:
        raise ValueError(f"{key} is {text!r}; it must be a number above 0")
    return number


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
    """The camera of a source, opened; its frames are masked and cropped already, so nobody can forget to.

    Raises:
        SourceError: the text, the file or the folder cannot be used; trying again is useless.
        CameraError: a device or an address does not answer now.
    """
    camera = _open_bare(source)
    if source.region is None and not source.masks:
        return camera
    from bowerbird_agent.capture.framing import framed

    return framed(camera, source)


def _open_bare(source: Source) -> Camera:
    kind = kind_of(source.text)
    if kind == "synthetic":
        from bowerbird_agent.capture.synthetic import SyntheticCamera

        return SyntheticCamera(source)
    if kind == "device":
        from bowerbird_agent.capture.live import open_device

        return open_device(source)
    if kind == "url":
        from bowerbird_agent.capture.stream import open_stream

        return open_stream(source)
    if kind in {"csi", "gst"}:
        from bowerbird_agent.capture.gstreamer import open_pipeline

        return open_pipeline(source)
    path = Path(source.text.removeprefix("file://"))
    if path.is_dir():
        from bowerbird_agent.capture.folder import FolderCamera

        return FolderCamera(source, path)
    if not path.exists():
        raise SourceError(f"camera {source.name}: {path} does not exist; check `source` of this camera")
    from bowerbird_agent.capture.film import FilmCamera

    return FilmCamera(source, path)
