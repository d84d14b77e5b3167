"""What the demo's cameras look at: rendered scenes, or somebody's film; with ground truth where there is any.

In: a seed, or a film with MOT ground truth. Out: the first labelled frames, the held-out frames, the cameras' settings, and the
truth about any frame. The first frames, the live stream and the held-out frames never share a scene.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from bowerbird_models.scenes import CLASS_NAMES, SceneStream, Truth
from bowerbird_server.demo.recipes import Recipe
from bowerbird_server.errors import BadInput
from bowerbird_server.labelling.boxes import Xyxy
from bowerbird_server.labelling.ground_truth import MotTruth, TruthBox

JPEG_QUALITY = 90
# Frame numbers of the held-out scenes: far behind anything that the live stream reaches in a demo.
_HELD_OUT_FROM = 1_000_000

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class StreamFrame:
    """A frame that a camera of the demo can show: its camera (`device/name`) and its number in the source."""

    camera: str
    sequence: int


@dataclass(frozen=True)
class LabelledPicture:
    """A picture with what is truly in it, for the first data set, the held-out set and the random control."""

    name: str
    image_bgr: NDArray[np.uint8]
    boxes: tuple[TruthBox, ...]
    split: str  # train | test
    scene: str
    slices: tuple[str, ...]


class World(Protocol):
    """A thing to look at."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """By class id."""
        ...

    @property
    def recipe(self) -> Recipe:
        """The numbers of this demo."""
        ...

    def cameras(self) -> dict[str, dict[str, Any]]:
        """Device id -> its one `[[cameras]]` table of agent.toml."""
        ...

    def selection(self) -> dict[str, Any]:
        """The `[selection]` table of agent.toml."""
        ...

    def first_and_held_out(self) -> Iterator[LabelledPicture]:
        """The first labelled frames (`train`) and the evaluation set (`test`)."""
        ...

    def count_first_and_held_out(self) -> int:
        """How many pictures that is."""
        ...

    def truth(self, camera: str, sequence: int) -> list[TruthBox] | None:
        """What is in a frame of the live stream; None where nobody knows."""
        ...

    def pictures(self, frames: Iterable[StreamFrame]) -> Iterator[LabelledPicture]:
        """Frames of the live stream with their truth, for the random control."""
        ...

    def stream(self, seen: dict[str, int]) -> list[StreamFrame]:
        """Every frame that the cameras have shown so far, given how many frames each device has seen."""
        ...


def write_yolo(
    pictures: Iterable[LabelledPicture], class_names: tuple[str, ...], folder: Path, on_done: Callable[[], None]
) -> Path:
    """Write pictures as a YOLO data set with a `groups.csv` of scenes and slices; returns the path of `data.yaml`."""
    class_id = {name: i for i, name in enumerate(class_names)}
    rows = []
    for picture in pictures:
        images, labels = folder / "images" / picture.split, folder / "labels" / picture.split
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(images / f"{picture.name}.jpg"), picture.image_bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        height, width = picture.image_bgr.shape[:2]
        (labels / f"{picture.name}.txt").write_text(
            "".join(_yolo_line(class_id[name], box, width, height) for name, box in picture.boxes)
        )
        rows.append({"image": f"{picture.name}.jpg", "scene": picture.scene, "slices": ";".join(picture.slices)})
        on_done()
    data_yaml = folder / "data.yaml"
    described = {"train": "images/train"}
    if (folder / "images" / "test").exists():
        described["test"] = "images/test"
    data_yaml.write_text(yaml.safe_dump({**described, "names": dict(enumerate(class_names))}, sort_keys=False))
    with (folder / "groups.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "scene", "slices"])
        writer.writeheader()
        writer.writerows(rows)
    return data_yaml


def _yolo_line(class_id: int, box_xyxy: Xyxy, width: int, height: int) -> str:
    left, top, right, bottom = box_xyxy
    return (
        f"{class_id} {(left + right) / 2 / width:.6f} {(top + bottom) / 2 / height:.6f} "
        f"{(right - left) / width:.6f} {(bottom - top) / height:.6f}\n"
    )


class SyntheticWorld:
    """Two rendered streets. Day at first; night, and an animal that no day has shown, begins half-way through each window."""

    class_names = CLASS_NAMES

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self.recipe = recipe
        self.seed = seed
        self._devices = tuple(f"cam-{number}" for number in (1, 2))
        size = {"width": recipe.source_width, "height": recipe.source_height, "scene_frames": recipe.scene_frames}
        self._live_from = recipe.first_span_frames
        half = recipe.window_frames // 2
        self._night = {"night_from": self._live_from + half, "night_frames": half}
        self._live = {d: SceneStream(seed, n, **size, **self._night) for n, d in enumerate(self._devices)}
        self._day = {d: SceneStream(seed, n, **size) for n, d in enumerate(self._devices)}
        self._dark = {d: SceneStream(seed, n, **size, night_from=0) for n, d in enumerate(self._devices)}

    def cameras(self) -> dict[str, dict[str, Any]]:
        recipe = self.recipe
        fixed = f"width={recipe.source_width}&height={recipe.source_height}&scene_frames={recipe.scene_frames}"
        night = "&".join(f"{key}={value}" for key, value in self._night.items())
        return {
            device: {
                "name": "street",
                "source": f"synthetic:?seed={self.seed}&camera={number}&{fixed}&{night}",
                "pace": "realtime",
                "fps": recipe.stream_fps,
                "first_frame": self._live_from,
            }
            for number, device in enumerate(self._devices)
        }

    def selection(self) -> dict[str, Any]:
        return {"window_frames": self.recipe.window_frames, **self.recipe.selection}

    def count_first_and_held_out(self) -> int:
        return int(self.recipe.first_frames + self.recipe.held_out_frames)

    def first_and_held_out(self) -> Iterator[LabelledPicture]:
        for device, indices in _share(self._devices, self.recipe.first_frames, self._live_from):
            for index in indices:
                yield self._picture(self._day[device], device, index, "train")
        per_condition = self.recipe.held_out_frames // 2
        span = per_condition * self.recipe.scene_frames
        for streams, offset in ((self._day, 0), (self._dark, span)):
            for device, indices in _share(self._devices, per_condition, span):
                for index in indices:
                    yield self._picture(streams[device], device, _HELD_OUT_FROM + offset + index, "test")

    def truth(self, camera: str, sequence: int) -> list[TruthBox] | None:
        return _boxes(self._live[camera.partition("/")[0]].truth(sequence))

    def pictures(self, frames: Iterable[StreamFrame]) -> Iterator[LabelledPicture]:
        for frame in frames:
            device = frame.camera.partition("/")[0]
            yield self._picture(self._live[device], device, frame.sequence, "train")

    def stream(self, seen: dict[str, int]) -> list[StreamFrame]:
        return [
            StreamFrame(f"{device}/street", index)
            for device, count in seen.items()
            for index in range(self._live_from, self._live_from + count)
        ]

    def _picture(self, stream: SceneStream, device: str, index: int, split: str) -> LabelledPicture:
        image, truth = stream.render(index)
        return LabelledPicture(
            name=f"{device}-{truth.condition}-{index:07d}",
            image_bgr=image,
            boxes=tuple(_boxes(truth)),
            split=split,
            scene=f"{device}/{truth.condition}/{stream.scene(index)}",
            slices=(f"condition:{truth.condition}", f"camera:{device}"),
        )


def _boxes(truth: Truth) -> list[TruthBox]:
    return [
        (CLASS_NAMES[class_id], (float(left), float(top), float(right), float(bottom)))
        for (left, top, right, bottom), class_id in zip(truth.boxes_xyxy, truth.class_ids, strict=True)
    ]


def _share(devices: tuple[str, ...], frames: int, span: int) -> Iterator[tuple[str, list[int]]]:
    """`frames` numbers spread evenly over [0, span), dealt out to the devices in turn."""
    numbers = np.linspace(0, span - 1, frames).round().astype(int)
    for place, device in enumerate(devices):
        yield device, [int(number) for number in numbers[place :: len(devices)]]


class FilmWorld:
    """A film of a fixed camera: its first tenth for the first model, its last quarter held out, what lies between is live.

    Two agents share the live part by alternate 10-second segments.

    Args:
        film: a file that OpenCV reads.
        truth: MOTChallenge ground truth, or None: then frames are chosen and queued, and a person must label them.

    Raises:
        BadInput: not a film, or too short to be split.
    """

    SEGMENT_S = 10

    def __init__(self, recipe: Recipe, film: Path, truth: Path | None, class_name: str = "person") -> None:
        self.recipe = recipe
        self.class_names = (class_name,)
        self.film = film.resolve()
        capture = cv2.VideoCapture(str(film))
        self.frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
        self.fps = float(capture.get(cv2.CAP_PROP_FPS)) or 25.0
        self.width, self.height = (int(capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        capture.release()
        if self.frames <= 0:
            raise BadInput(
                f"{film} is not a film that OpenCV can read; check the path, or convert it: ffmpeg -i {film.name} film.mp4"
            )
        if self.frames < 200:
            raise BadInput(
                f"{film} has {self.frames} frames; the demo needs at least 200 to keep training and evaluation apart"
            )
        self.mot = None if truth is None else MotTruth(truth, class_name, (self.width, self.height))
        self.first_end = self.frames // 10
        self.held_out_from = self.frames * 3 // 4
        self.gap_frames = max(round(2 * self.fps), self.frames // 50)
        self.live_end = self.held_out_from - self.gap_frames  # exclusive

    def cameras(self) -> dict[str, dict[str, Any]]:
        return {
            f"cam-{number + 1}": {
                "name": "film",
                "source": str(self.film),
                "pace": "realtime",
                "fps": self.recipe.stream_fps,
                "first_frame": self.first_end,
                "last_frame": self.live_end - 1,
                "loop": True,
                "take": f"{self.SEGMENT_S}s/{2 * self.SEGMENT_S}s+{number * self.SEGMENT_S}s",
            }
            for number in range(2)
        }

    def selection(self) -> dict[str, Any]:
        # One window is one run of the film: each agent shows its half of the live frames.
        return {"window_frames": (self.live_end - self.first_end) // 2, **self.recipe.selection}

    def count_first_and_held_out(self) -> int:
        return int(self.recipe.first_frames) + len(self._held_out())

    def _held_out(self) -> range:
        step = max(1, (self.frames - self.held_out_from) // self.recipe.held_out_frames)
        return range(self.held_out_from, self.frames, step)

    def first_and_held_out(self) -> Iterator[LabelledPicture]:
        first = {int(i) for i in np.linspace(0, self.first_end - 1, self.recipe.first_frames).round()}
        held_out = set(self._held_out())
        for index, image in self._read(first | held_out):
            yield self._picture(index, image, "train" if index in first else "test")

    def truth(self, camera: str, sequence: int) -> list[TruthBox] | None:
        return None if self.mot is None else self.mot.boxes(camera, sequence)

    def pictures(self, frames: Iterable[StreamFrame]) -> Iterator[LabelledPicture]:
        for index, image in self._read({frame.sequence for frame in frames}):
            yield self._picture(index, image, "train")

    def stream(self, seen: dict[str, int]) -> list[StreamFrame]:
        segment = round(self.SEGMENT_S * self.fps)
        devices = sorted(seen)
        return [StreamFrame(f"{devices[(index // segment) % 2]}/film", index) for index in range(self.first_end, self.live_end)]

    def _read(self, wanted: set[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        capture = cv2.VideoCapture(str(self.film))
        try:
            for index in range(max(wanted, default=-1) + 1):
                if not capture.grab():
                    return
                if index in wanted:
                    decoded, image = capture.retrieve()
                    if decoded:
                        yield index, np.asarray(image, np.uint8)
        finally:
            capture.release()

    def _picture(self, index: int, image: NDArray[np.uint8], split: str) -> LabelledPicture:
        boxes = tuple(self.truth("", index) or ())
        seconds = int(index / self.fps)
        return LabelledPicture(f"film-{index:06d}", image, boxes, split, f"film/{split}/{seconds // 2:04d}", ("film",))
