"""The synthetic camera: `bowerbird_models.scenes.SceneStream` rendered as if it were a street.

In: a source text such as `synthetic:?seed=1&camera=0&night_from=600&frames=1200&fps=10`. Out: frames whose sequence is the scene
stream's frame number, so that ground truth can be asked for by sequence. It goes on where it stopped after a restart.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from urllib.parse import parse_qsl

from bowerbird_agent.capture.capture import DEFAULT_START_AT_MS, SYNTHETIC, Frame, Source
from bowerbird_agent.errors import SourceError

_DEFAULT_FPS = 10.0
_MAX_SKIPPED = 1_000_000
_SIZES = ("width", "height", "scene_frames")
_OPTIONAL = ("night_from", "night_frames", "frames")


@dataclass(frozen=True)
class SyntheticScene:
    """The parameters of a synthetic source; `frames` None for a stream without end. See `SceneStream` for the others."""

    seed: int = 0
    camera: int = 0
    width: int = 320
    height: int = 240
    scene_frames: int = 10
    night_from: int | None = None
    night_frames: int | None = None
    frames: int | None = None
    fps: float | None = None

    @classmethod
    def parse(cls, text: str) -> SyntheticScene:
        """From `synthetic:?key=value&...`.

        Raises:
            ValueError: an unknown key, or a value that is no number in range.
        """
        query = text.removeprefix(SYNTHETIC).removeprefix("?")
        known = ("seed", "camera", *_SIZES, *_OPTIONAL, "fps")
        values: dict[str, int] = {}
        fps: float | None = None
        for key, value in parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)):
            if key not in known:
                raise ValueError(f"unknown key {key!r} in {text!r}; known are {', '.join(known)}")
            try:
                if key == "fps":
                    fps = float(value)
                else:
                    values[key] = int(value)
            except ValueError as error:
                raise ValueError(f"{key} is {value!r} in {text!r}; it must be a number") from error
        if (
            any(number < 0 for number in values.values())
            or values.get("frames") == 0
            or (fps is not None and not 0 < fps <= 1000)
        ):
            raise ValueError(f"a number in {text!r} is out of range")
        return cls(**values, fps=fps)


class SyntheticCamera:
    """Rendered scenes; implements `Camera`.

    Raises:
        SourceError: the source text is wrong.
    """

    addressable = True
    live = False
    trouble = ""

    def __init__(self, source: Source) -> None:
        from bowerbird_models.scenes import SceneStream

        self._source = source
        try:
            scene = SyntheticScene.parse(source.text)
            self._stream = SceneStream(
                scene.seed,
                scene.camera,
                width=scene.width,
                height=scene.height,
                night_from=scene.night_from,
                night_frames=scene.night_frames,
                scene_frames=scene.scene_frames,
            )
        except ValueError as error:
            raise SourceError(f"camera {source.name}: {error}") from error
        self._fps = scene.fps or source.fps or _DEFAULT_FPS
        ends = [end for end in (None if scene.frames is None else scene.frames - 1, source.last_frame) if end is not None]
        self._last = min(ends) if ends else None
        self._start_at_ms = source.start_at_ms if source.start_at_ms is not None else DEFAULT_START_AT_MS
        self._first = source.first_frame
        self._next = self._first
        if source.resume_after >= self._next and not (source.loop and self._last is not None):
            self._next = source.resume_after + 1

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self._source.name

    @property
    def fps(self) -> float:
        """Frames per second of the timeline."""
        return self._fps

    def read(self) -> Frame | None:
        """The next frame of the stream, or None behind the last one of a stream with an end.

        Raises:
            SourceError: range and segments leave no frame.
        """
        for _ in range(_MAX_SKIPPED):
            if self._last is not None and self._next > self._last:
                if not self._source.loop:
                    return None
                self._next = self._first
            index = self._next
            self._next += 1
            if self._source.wants(index, self._fps):
                image, _ = self._stream.render(index)
                at_ms = self._start_at_ms + round(index * 1000 / self._fps)
                return Frame(image, self.name, index, at_ms, time.monotonic_ns())
        raise SourceError(f"camera {self.name}: no frame is in the range and segments asked for; check last_frame and take")

    def close(self) -> None:
        """Nothing is held open."""
