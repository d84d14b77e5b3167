"""Synthetic fixed cameras with exact ground truth: the demo's default cameras, and the tests' film.

In: a seed, a camera number, a frame number. Out: the frame (BGR uint8) and what is in it. Frame `n` depends on nothing but
these numbers, so any frame can be rendered without those before it, on the device and again on the server. The stream is a
sequence of short scenes, as from a motion-triggered camera: inside a scene frames are near-duplicates, about three scenes in
ten are empty, classes have a long tail, and at `night_from` the light changes and foxes, never seen by day, appear.
It does not imitate the real world: figures obtained here say that the loop works, not how well it works on your street.

Needs OpenCV (`pip install 'bowerbird[opencv]'`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np

from bowerbird_models.scene_backdrop import add_glow, add_noise, build_backdrop
from bowerbird_models.scene_shapes import CAR, CLASS_NAMES, CYCLIST, FOX, NOMINAL_SIZE, PERSON, TRUCK, Thing

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CLASS_NAMES", "DAY", "NIGHT", "SceneStream", "Truth"]

DAY = "day"
NIGHT = "night"

_EMPTY_SHARE = 0.3
# Share of each class among the objects: a long tail. Foxes come out at night only.
_DAY_SHARE = (0.44, 0.30, 0.16, 0.10, 0.0)
_NIGHT_SHARE = (0.38, 0.27, 0.14, 0.09, 0.12)
# Hue (0 to 179), saturation and value of body or clothes: cars blue to red, coats warm, vests yellow, trucks pale. Colour helps
# a small model to learn a class from few boxes, as it does on a real street with its own buses and uniforms.
_PAINT = (
    ((100, 190), (120, 230), (90, 220)),
    ((168, 192), (110, 220), (150, 240)),
    ((24, 44), (150, 230), (180, 250)),
    ((0, 180), (8, 50), (190, 245)),
)
# An object counts as visible with at least this share of its box inside the picture and not behind nearer boxes.
_VISIBLE_SHARE = 0.3
_SMALLEST_SIDE_PX = 4.0
# Words that keep the random streams of backdrop, scene and frame apart.
_BACKDROP_STREAM, _SCENE_STREAM, _FRAME_STREAM = 1, 2, 3


@dataclass(frozen=True)
class Truth:
    """What is really in a frame.

    Args:
        boxes_xyxy: (n, 4) float32, tight around each visible object, clipped to the picture, in pixels.
        class_ids: (n,) int32, index into CLASS_NAMES.
        condition: "day" or "night".
        actors: (n,) number of each object within its scene; the same object has the same number in all frames of the scene.
    """

    boxes_xyxy: NDArray[np.float32]
    class_ids: NDArray[np.int32]
    condition: str
    actors: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.class_ids)


@dataclass(frozen=True)
class _Actor:
    """A thing at the first frame of its scene, and how far it goes each frame (pixels)."""

    start: Thing
    step_px: float
    phase_step: float

    def at(self, frame_in_scene: int) -> Thing:
        was = self.start
        return Thing(
            was.class_id,
            was.x + self.step_px * frame_in_scene,
            was.ground_y,
            was.width,
            was.height,
            was.colour,
            was.faces_right,
            was.phase + self.phase_step * frame_in_scene,
        )


class SceneStream:
    """One synthetic camera; frames are numbered from 0 without end.

    Args:
        seed: non-negative; another seed is another world.
        camera: non-negative; cameras of one seed differ in street and traffic.
        width, height: pixels.
        night_from: first frame of the first night; None for eternal day, 0 to begin by night.
        night_frames: length of a night; days of the same length follow and alternate. None for a night without end.
        scene_frames: frames of one scene, near-duplicates of each other.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        seed: int,
        camera: int = 0,
        *,
        width: int = 320,
        height: int = 240,
        night_from: int | None = None,
        night_frames: int | None = None,
        scene_frames: int = 10,
    ) -> None:
        if seed < 0 or camera < 0:
            raise ValueError(f"seed {seed} and camera {camera} must not be negative")
        if width < 64 or height < 64:
            raise ValueError(f"a synthetic camera needs at least 64x64 pixels, not {width}x{height}")
        if scene_frames < 1 or (night_frames is not None and night_frames < 1):
            raise ValueError("scene_frames and night_frames must be at least 1")
        self.width, self.height = width, height
        self.scene_frames = scene_frames
        self._seed, self._camera = seed, camera
        self._night_from, self._night_frames = night_from, night_frames
        self._backdrop = build_backdrop(self._rng(_BACKDROP_STREAM, 0), width, height)
        # A scene is asked for once per frame and again by the annotator; a few are enough.
        self._scene_actors = lru_cache(maxsize=64)(self._cast_scene)

    def condition(self, index: int) -> str:
        """ "day" or "night" at frame `index`."""
        if self._night_from is None or index < self._night_from:
            return DAY
        if self._night_frames is None:
            return NIGHT
        return NIGHT if ((index - self._night_from) // self._night_frames) % 2 == 0 else DAY

    def scene(self, index: int) -> int:
        """Number of the scene that frame `index` belongs to: the unit for splits."""
        return index // self.scene_frames

    def truth(self, index: int) -> Truth:
        """What is in frame `index`, without rendering it.

        Raises:
            ValueError: the index is negative.
        """
        return self._truth_of(self._things(index), self.condition(index))

    def render(self, index: int) -> tuple[NDArray[np.uint8], Truth]:
        """Frame `index` as (H, W, 3) uint8 BGR, fresh and writable, and what is in it.

        Raises:
            ValueError: the index is negative.
        """
        things, condition = self._things(index), self.condition(index)
        picture = self._backdrop.picture.copy()
        for thing in things:
            thing.paint(picture)
        rng = self._rng(_FRAME_STREAM, index)
        scene_light = self._rng(_SCENE_STREAM, self.scene(index), 1).uniform(0.82, 1.12)
        if condition == DAY:
            picture = np.asarray(cv2.convertScaleAbs(picture, alpha=float(scene_light)), np.uint8)
        else:
            dark = cv2.multiply(picture, self._backdrop.night_gain, scale=float(scene_light), dtype=cv2.CV_8U)
            picture = np.asarray(dark, np.uint8)
            for thing in things:
                _switch_on(picture, thing)
        return add_noise(picture, self._backdrop, condition, rng), self._truth_of(things, condition)

    def _rng(self, *words: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, self._camera, *words))

    def _things(self, index: int) -> list[Thing]:
        if index < 0:
            raise ValueError(f"frame numbers start at 0, not {index}")
        actors = self._scene_actors(self.scene(index), self.condition(index))
        return [actor.at(index % self.scene_frames) for actor in actors]

    def _cast_scene(self, scene: int, condition: str) -> tuple[_Actor, ...]:
        """The objects of a scene, farthest first (that is also the drawing order)."""
        rng = self._rng(_SCENE_STREAM, scene)
        if rng.random() < _EMPTY_SHARE:
            return ()
        shares = _DAY_SHARE if condition == DAY else _NIGHT_SHARE
        classes = rng.choice(len(CLASS_NAMES), size=int(rng.integers(2, 6)), p=shares)
        actors = [self._cast(rng, int(class_id)) for class_id in classes]
        return tuple(sorted(actors, key=lambda actor: actor.start.ground_y))

    def _cast(self, rng: np.random.Generator, class_id: int) -> _Actor:
        view = self._backdrop
        if class_id in (CAR, TRUCK):
            ground = rng.uniform(view.kerb_y + 0.3 * (view.verge_y - view.kerb_y), view.verge_y)
            speed = rng.uniform(1.0, 5.0)
        elif class_id == CYCLIST:
            ground = rng.uniform(view.kerb_y, view.verge_y)
            speed = rng.uniform(0.8, 3.0)
        else:
            near = self.height * 0.98
            ground = rng.uniform(view.horizon_y + 4, near)
            speed = rng.uniform(0.3, 1.4)
        unit = self.height / 240.0
        depth = (ground - view.horizon_y) / (self.height - view.horizon_y)
        scale = unit * (0.66 + 0.42 * depth) * rng.uniform(0.92, 1.08)
        nominal_width, nominal_height = NOMINAL_SIZE[class_id]
        width, height = nominal_width * scale * rng.uniform(0.92, 1.08), nominal_height * scale
        faces_right = bool(rng.random() < 0.5)
        step = speed * unit * (1.0 if faces_right else -1.0)
        # Centred on the middle of its walk, so that most objects stay in the picture for the whole scene.
        middle = rng.uniform(-0.05, 1.05) * self.width
        x = middle - width / 2 - step * self.scene_frames / 2
        thing = Thing(class_id, x, ground, width, height, _colour(rng, class_id), faces_right, rng.uniform(0.0, 2 * np.pi))
        return _Actor(thing, step, 0.5 if class_id in (PERSON, FOX, CYCLIST) else 0.0)

    def _truth_of(self, things: list[Thing], condition: str) -> Truth:
        boxes, class_ids, actors = [], [], []
        whole = np.array([thing.box_xyxy() for thing in things], np.float32).reshape(-1, 4)
        clipped = np.clip(whole, 0.0, [self.width, self.height, self.width, self.height]).astype(np.float32)
        for i, thing in enumerate(things):
            left, top, right, bottom = clipped[i]
            if right - left < _SMALLEST_SIDE_PX or bottom - top < _SMALLEST_SIDE_PX:
                continue
            if _uncovered_area(clipped[i], clipped[i + 1 :]) < _VISIBLE_SHARE * _area(whole[i]):
                continue
            boxes.append(clipped[i])
            class_ids.append(thing.class_id)
            actors.append(i)
        return Truth(np.array(boxes, np.float32).reshape(-1, 4), np.array(class_ids, np.int32), condition, tuple(actors))


def _area(box_xyxy: NDArray[np.float32]) -> float:
    return float((box_xyxy[2] - box_xyxy[0]) * (box_xyxy[3] - box_xyxy[1]))


def _uncovered_area(box_xyxy: NDArray[np.float32], nearer: NDArray[np.float32]) -> float:
    """Pixels of a box that no nearer box covers, counted on a grid of 24 x 24 points."""
    steps = (np.arange(24, dtype=np.float32) + 0.5) / 24.0
    xs = box_xyxy[0] + steps * (box_xyxy[2] - box_xyxy[0])
    ys = box_xyxy[1] + steps * (box_xyxy[3] - box_xyxy[1])
    free = np.ones((24, 24), bool)
    for other in nearer:
        free &= ~(((ys >= other[1]) & (ys < other[3]))[:, None] & ((xs >= other[0]) & (xs < other[2]))[None, :])
    return float(free.mean()) * _area(box_xyxy)


def _colour(rng: np.random.Generator, class_id: int) -> tuple[int, int, int]:
    if class_id == FOX:
        shift = int(rng.integers(-18, 18))
        return 52 + shift, 104 + shift, 190 + shift
    (hue_from, hue_to), (saturation_from, saturation_to), (value_from, value_to) = _PAINT[class_id]
    hue = int(rng.integers(hue_from, hue_to)) % 180
    saturation, value = int(rng.integers(saturation_from, saturation_to)), int(rng.integers(value_from, value_to))
    blue, green, red = cv2.cvtColor(np.array([[[hue, saturation, value]]], np.uint8), cv2.COLOR_HSV2BGR)[0, 0]
    return int(blue), int(green), int(red)


def _switch_on(picture: NDArray[np.uint8], thing: Thing) -> None:
    """The lights an object carries by night: they hide more of it than they show."""
    if thing.class_id in (CAR, TRUCK):
        front_y = 0.60 if thing.class_id == CAR else 0.69
        add_glow(picture, *thing.to_pixels(1.0, front_y), 0.55 * thing.height + 12.0, (200, 240, 255))
        add_glow(picture, *thing.to_pixels(0.0, front_y), 0.20 * thing.height + 4.0, (20, 20, 200))
    elif thing.class_id == CYCLIST:
        add_glow(picture, *thing.to_pixels(0.86, 0.45), 0.25 * thing.height, (180, 210, 220))
    elif thing.class_id == FOX:
        add_glow(picture, *thing.to_pixels(0.88, 0.32), 4.0, (120, 220, 200))
