"""One camera's section of `agent.toml`: where frames come from, how many, which part of the picture, and what nobody may see.

In: plain values. Out: `CameraConfig`, which checks itself and turns into a `Source`. It opens nothing and needs no OpenCV, so that
`--check-config` stays quick. The other sections are in `config.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

from bowerbird_agent.capture.capture import Segments, Source, is_live, kind_of, without_password
from bowerbird_agent.structuring import require
from bowerbird_wire.errors import TopicError
from bowerbird_wire.topics import check_name

# A polygon covers at least this share of the picture; a thinner one is a slip of the keyboard, not a mask.
_LEAST_MASK_SHARE = 1e-5
REDACTION_METHODS = ("fill", "pixelate", "blur")


@dataclass(frozen=True)
class Region:
    """The region of interest, in shares of the picture: `x`, `y` are its left upper corner, 0 to 1.

    Shares and not pixels, so that the region still fits after somebody changes the camera's resolution.
    """

    x: float
    y: float
    width: float
    height: float

    def __post_init__(self) -> None:
        for name in ("x", "y"):
            require(0 <= getattr(self, name) < 1, f"{name} is {getattr(self, name)}; it is a share of the picture, 0 to 1")
        for name in ("width", "height"):
            require(
                0.01 <= getattr(self, name) <= 1, f"{name} is {getattr(self, name)}; it is a share of the picture, 0.01 to 1"
            )
        require(
            self.x + self.width <= 1 + 1e-6 and self.y + self.height <= 1 + 1e-6,
            "the region reaches beyond the picture: x + width and y + height must be at most 1",
        )


@dataclass(frozen=True)
class RedactConfig:
    """What is made unrecognisable before a frame of this camera is stored or sent.

    Args:
        classes: names of the model's classes; a model that does not know one of them has no frame kept.
        method: "fill" (one gray), "pixelate" (a coarse mosaic) or "blur" (that mosaic, blurred).
        margin: each box is larger by this share of its width and height on each side, in [0, 1].
        confidence: a detection counts from this score on, in (0, 1); low, since a miss is seen and a false alarm is not.
    """

    classes: tuple[str, ...]
    method: str = "fill"
    margin: float = 0.1
    confidence: float = 0.05

    def __post_init__(self) -> None:
        require(bool(self.classes) and all(self.classes), 'classes is empty; name the model\'s classes, like ["person"]')
        require(
            self.method in REDACTION_METHODS, f"method is {self.method!r}; it must be one of {', '.join(REDACTION_METHODS)}"
        )
        require(0 <= self.margin <= 1, f"margin is {self.margin}; it must be 0 to 1")
        require(0.001 <= self.confidence <= 0.9, f"confidence is {self.confidence}; it must be 0.001 to 0.9")


@dataclass(frozen=True)
class CameraConfig:
    """One camera.

    Args:
        name: a-z, 0-9 and hyphens.
        source: file, folder, `rtsp://...`, `http://...`, `/dev/video0`, `0`, `csi:0`, `gst:...! appsink`, or `synthetic:?seed=1`.
        pace: "realtime" (the newest frame wins) or "fast" (every frame; files, folders and synthetic only).
        fps: live: frames taken a second at most, None for all. Files: their pace at realtime, and the timeline of those without one.
        start_at_utc: time of frame 0, like "2026-11-22T12:00:00Z"; None for the file's time.
        first_frame, last_frame: range of frames, both inclusive.
        loop: begin again at the end.
        take: the part of the timeline to take when agents share a film, like "10s/20s+0s".
        region: only this part of the picture is looked at, stored and sent; None for all of it.
        masks: polygons of at least three (x, y) points in shares of the whole picture, filled before anything looks at a frame.
        masks_size: width and height of the pictures that the masks were drawn on; pictures of another shape stop the camera.
        redact: objects that are made unrecognisable before a frame is kept; None for none.
        stall_s: a live camera that gives no picture for so long is left and connected to again.
        enabled: false switches the camera off: it is not opened.
    """

    name: str
    source: str
    pace: str = "realtime"
    fps: float | None = None
    start_at_utc: str | None = None
    first_frame: int = 0
    last_frame: int | None = None
    loop: bool = False
    take: str | None = None
    region: Region | None = None
    masks: tuple[tuple[tuple[float, ...], ...], ...] = ()
    masks_size: tuple[int, ...] | None = None
    redact: RedactConfig | None = None
    stall_s: float = 10.0
    enabled: bool = True

    def __post_init__(self) -> None:
        try:
            check_name(self.name, "name")
        except TopicError as error:
            raise ValueError(str(error)) from error
        require(bool(self.source), "source is empty; name a file, a folder, an address, a device or synthetic:")
        require(self.pace in {"realtime", "fast"}, f'pace is {self.pace!r}; it must be "realtime" or "fast"')
        require(
            self.pace == "realtime" or not is_live(self.source),
            f'pace = "fast" is for files; {without_password(self.source)} is a live camera',
        )
        require(self.fps is None or 0 < self.fps <= 1000, f"fps is {self.fps}; it must be above 0 and at most 1000")
        require(self.first_frame >= 0, f"first_frame is {self.first_frame}; frames are numbered from 0")
        require(
            self.last_frame is None or self.last_frame >= self.first_frame,
            f"last_frame {self.last_frame} is before first_frame {self.first_frame}",
        )
        require(1 <= self.stall_s <= 600, f"stall_s is {self.stall_s}; it must be 1 to 600")
        for i, polygon in enumerate(self.masks):
            _check_polygon(i, polygon)
        require(
            self.masks_size is None or (len(self.masks_size) == 2 and min(self.masks_size) >= 1),
            f"masks_size is {list(self.masks_size or ())}; it must be [width, height] in pixels",
        )
        require(self.masks_size is None or bool(self.masks), "masks_size is given without masks; add them, or leave it out")
        if self.take is not None:
            Segments.parse(self.take)
        if self.start_at_utc is not None:
            _utc_ms(self.start_at_utc)
        _check_source(self.source)

    def to_source(self, resume_after: int = -1) -> Source:
        """What `open_camera` needs; `resume_after` is the highest sequence handed out before."""
        return Source(
            name=self.name,
            text=self.source,
            fps=self.fps,
            start_at_ms=None if self.start_at_utc is None else _utc_ms(self.start_at_utc),
            first_frame=self.first_frame,
            last_frame=self.last_frame,
            loop=self.loop,
            take=None if self.take is None else Segments.parse(self.take),
            resume_after=resume_after,
            stall_s=self.stall_s,
            region=None if self.region is None else (self.region.x, self.region.y, self.region.width, self.region.height),
            masks=self.masks,
            masks_wh=None if self.masks_size is None else (self.masks_size[0], self.masks_size[1]),
        )


def _check_source(text: str) -> None:
    """Parse the texts that have a grammar of their own."""
    kind = kind_of(text)
    if kind == "synthetic":
        from bowerbird_agent.capture.synthetic import SyntheticScene

        SyntheticScene.parse(text)
    elif kind in {"csi", "gst"}:
        from bowerbird_agent.capture.gstreamer import pipeline_of

        pipeline_of(text)
    elif kind == "device":
        from bowerbird_agent.capture.capture import DeviceFormat

        DeviceFormat.parse(text)


def _check_polygon(index: int, polygon: tuple[tuple[float, ...], ...]) -> None:
    where = f"masks[{index}]"
    require(len(polygon) >= 3, f"{where} has {len(polygon)} points; a polygon has at least three")
    for point in polygon:
        require(len(point) == 2, f"{where} has the point {list(point)}; a point is [x, y]")
        require(
            all(0 <= share <= 1 for share in point),
            f"{where} has the point {list(point)}; x and y are shares of the picture, 0 to 1",
        )
    turned = (*polygon[1:], polygon[0])
    doubled = sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(polygon, turned, strict=True))
    # Twice the signed area; a polygon that crosses itself may cancel to nothing and is as wrong as a line.
    require(abs(doubled) / 2 >= _LEAST_MASK_SHARE, f"{where} covers nothing: its points lie on a line or it crosses itself")


def _utc_ms(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        raise ValueError(f'start_at_utc is {text!r}; write it like "2026-11-22T12:00:00Z"') from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return int(moment.timestamp() * 1000)
