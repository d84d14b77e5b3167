"""What is selected from and what is tested on: a stream of labelled frames, from the synthetic cameras, a data set or a film.

In: a seed and where the frames come from. Out: a `World`: frames for the first model, the stream in order of time, held-out frames in
slices, all with ground truth. No scene is in two of the three. Pictures are read when they are asked for. It trains and selects
nothing.

The synthetic world is made to be hard for a selection: three cameras of which one comes only at half time, night and a class never
seen before from a third of the stream on, scenes of ten near-duplicates, three in ten empty; a fourth camera is in the test only.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import yaml

from bowerbird_agent.storing.encode import encode_image
from bowerbird_models.mot import read_mot
from bowerbird_models.scenes import CLASS_NAMES, SceneStream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

EPOCH_MS = 1_772_323_200_000
_LONG_SIDE, _QUALITY = 640, 90  # what a device sends unless it is told otherwise
_PICTURES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}


@dataclass(frozen=True)
class WorldFrame:
    """A frame and the truth about it.

    Args:
        name: unique in its world, fit for a file name.
        camera, sequence, at_ms: as a device would number it.
        scene: unit of splits and of misses.
        slices: groups under which a test frame is reported.
        boxes_xyxy, class_ids: (n, 4) pixels, (n,).
        objects: (n,) number of each object, the same in all frames of the scene.
        render: its picture, (H, W, 3) uint8 BGR.
    """

    name: str
    camera: str
    sequence: int
    at_ms: int
    scene: str
    slices: tuple[str, ...]
    boxes_xyxy: NDArray[np.float32]
    class_ids: NDArray[np.int32]
    objects: tuple[int, ...]
    render: Callable[[], NDArray[np.uint8]] = field(compare=False)

    def jpeg(self) -> bytes:
        """As a device would send it; what is trained on, and what it costs in bytes."""
        return encode_image(self.render(), long_side=_LONG_SIDE, quality=_QUALITY).jpeg


@dataclass(frozen=True)
class World:
    """One seed's frames.

    Args:
        name: with everything that decides its content; part of every row's key.
        class_names: by class id.
        start: labelled before the stream begins.
        stream: in order of time.
        test: held out.
        training: fields of `TrainingRequest` that suit it: image_size, batch, mosaic, rates.
        start_steps, round_steps: optimiser steps of the first model and of every later one.
        picks: frames to label in a round, unless told otherwise.
        frame_rate: of one camera, frames a second.
    """

    name: str
    class_names: tuple[str, ...]
    start: tuple[WorldFrame, ...]
    stream: tuple[WorldFrame, ...]
    test: tuple[WorldFrame, ...]
    training: Mapping[str, Any]
    start_steps: int
    round_steps: int
    picks: int
    frame_rate: float | None


def synthetic(
    seed: int, *, frames_a_camera: int = 720, start: int = 80, test: int = 240, picks: int = 45, quick: bool = False
) -> World:
    """The synthetic cameras of one seed; every seed is a world of its own."""
    fps, first = 5.0, 1000
    night = first + frames_a_camera // 3
    streams = [SceneStream(seed + 7000, camera, width=320, height=240, night_from=night) for camera in range(4)]
    starts = [_scene_frame(streams[i % 2], i % 2, i // 2 * (2 * first // start), fps) for i in range(start)]
    live = [
        _scene_frame(streams[camera], camera, first + i, fps)
        for i in range(frames_a_camera)
        for camera in range(3)
        if camera < 2 or i >= frames_a_camera // 2
    ]
    tests = []
    for i in range(test):
        camera, is_night = i % 4, i // 4 % 2
        # By day from before the stream, at scenes that no start frame touches; by night from long after it.
        index = (night + frames_a_camera + 1000 if is_night else 0) + 10 * (i // 8) + 5
        stream = streams[camera]
        if not is_night:
            stream = SceneStream(seed + 7000, camera, width=320, height=240)
            index += 200_000
        tests.append(_scene_frame(stream, camera, index, fps))
    training = {"image_size": 96 if quick else 192, "batch": 8, "learning_rate": 0.004}
    return World(
        f"synthetic/2/{seed}/{frames_a_camera}/{start}/{test}",
        CLASS_NAMES,
        tuple(starts),
        tuple(live),
        tuple(tests),
        training,
        # A first model that knows its days, and so many steps that a class of ten boxes is learnt (on the way from 300 to 600 to
        # 1200 a round's accuracy rises by 5 and by 3 points; a row of 1200 takes four minutes).
        120 if quick else 1800,
        60 if quick else 600,
        picks,
        fps,
    )


def _scene_frame(stream: SceneStream, camera: int, index: int, fps: float) -> WorldFrame:
    truth = stream.truth(index)
    return WorldFrame(
        f"c{camera}-{index}",
        f"cam-{camera}",
        index,
        EPOCH_MS + round(index * 1000 / fps),
        f"c{camera}-s{stream.scene(index)}",
        (f"condition:{truth.condition}", "camera:unseen" if camera == 3 else "camera:late" if camera == 2 else "camera:seen"),
        truth.boxes_xyxy,
        truth.class_ids,
        truth.actors,
        partial(_render, stream, index),
    )


def _render(stream: SceneStream, index: int) -> NDArray[np.uint8]:
    return stream.render(index)[0]


def film(seed: int, video: Path, gt: Path, folder: Path, *, picks: int = 18, start: int = 20) -> World:
    """A film with MOTChallenge ground truth: its first tenth for the start, the next six for the stream, its last quarter for the test.

    A gap of two seconds or more lies between the three. Frames are unpacked into `folder` once, without loss.
    """
    names, fps, wh = _unpack(video, folder)
    truth = read_mot(gt, wh)
    count = min(len(names), max(truth) + 1)
    gap = max(round(2 * fps), count // 50)
    begin, end, test_from = count // 10, count * 7 // 10, count * 7 // 10 + gap
    make = partial(_film_frame, names, truth, fps)
    chosen = np.random.default_rng((seed, 3)).choice(begin, min(start, begin), replace=False)
    return World(
        f"film/1/{video.name}/{count}/{seed}/{start}",
        ("person",),
        tuple(make(int(i)) for i in sorted(chosen)),
        tuple(make(i) for i in range(begin + gap, end)),
        tuple(make(i) for i in range(test_from, count, 2)),
        {"image_size": 384, "batch": 4, "learning_rate": 0.002, "mosaic": 1.0},
        300,
        300,
        picks,
        fps,
    )


def _film_frame(names: Sequence[Path], truth: Mapping[int, Sequence[Any]], fps: float, index: int) -> WorldFrame:
    objects = truth.get(index, ())
    boxes = np.array([box for _, box in objects], np.float32).reshape(-1, 4)
    at_ms = EPOCH_MS + round(index * 1000 / fps)
    return WorldFrame(
        f"f{index}",
        "film",
        index,
        at_ms,
        f"film-{int(index / fps / 2)}",
        (),
        boxes,
        np.zeros(len(boxes), np.int32),
        tuple(int(track) for track, _ in objects),
        partial(_read, names[index]),
    )


def _unpack(video: Path, folder: Path) -> tuple[list[Path], float, tuple[int, int]]:
    capture = cv2.VideoCapture(str(video))
    if not capture.isOpened():
        raise SystemExit(f"{video} cannot be read as a film; give the path of a video that OpenCV opens")
    fps = float(capture.get(cv2.CAP_PROP_FPS)) or 25.0
    folder.mkdir(parents=True, exist_ok=True)
    names: list[Path] = []
    wh = (0, 0)
    while True:
        ok, picture = capture.read()
        if not ok:
            break
        wh = (picture.shape[1], picture.shape[0])
        path = folder / f"{len(names)}.png"
        if not path.is_file():
            part = folder / "part.png"
            cv2.imwrite(str(part), picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])
            part.rename(path)
        names.append(path)
    capture.release()
    return names, fps, wh


def data_set(seed: int, data_yaml: Path, groups: Path | None, *, picks: int = 40, start: int = 40) -> World:
    """Any YOLO data set: `train` is shuffled by groups into start and stream, `val` is the test.

    Args:
        groups: lines `image,group[,camera[,seconds]]` by file name; frames of one group are never both in start and stream.
            None: every picture is a group of its own, in the order of names.
    """
    description = yaml.safe_load(data_yaml.read_text())
    names = description["names"]
    class_names = tuple(names.values() if isinstance(names, dict) else names)
    root = (data_yaml.parent / description.get("path", ".")).resolve()
    if not description.get("val"):
        raise SystemExit(f"{data_yaml} names no `val`; the test frames must be ones that nobody selects from")
    known = _read_groups(groups) if groups is not None else {}
    train = [_set_frame(path, i, known) for i, path in enumerate(_pictures(root, description["train"]))]
    tests = [_set_frame(path, i, known) for i, path in enumerate(_pictures(root, description["val"]))]
    shared = {f.scene for f in train} & {f.scene for f in tests}
    if shared:
        raise SystemExit(
            f"group {sorted(shared)[0]!r} is in `train` and in `val`; near-duplicates across them would make every figure too good"
        )
    scenes = np.random.default_rng((seed, 3)).permutation(sorted({f.scene for f in train})).tolist()
    first: set[str] = set()
    starts: list[WorldFrame] = []
    for scene in scenes:
        if len(starts) >= start:
            break
        first.add(scene)
        starts += [f for f in train if f.scene == scene][: max(1, start - len(starts))]
    live = sorted((f for f in train if f.scene not in first), key=lambda f: (f.at_ms, f.name))
    return World(
        f"data/1/{data_yaml.resolve()}/{len(train)}/{len(tests)}/{groups}/{seed}/{start}",
        class_names,
        tuple(starts[:start]),
        tuple(live),
        tuple(tests),
        {"image_size": 320, "batch": 4, "learning_rate": 0.002, "mosaic": 1.0},
        1200,
        1200,
        picks,
        None,
    )


def _read_groups(path: Path) -> dict[str, tuple[str, str, float | None]]:
    found = {}
    with path.open(newline="") as lines:
        for row in csv.reader(lines):
            if len(row) >= 2 and row[0] != "image":
                found[row[0].strip()] = (
                    row[1].strip(),
                    row[2].strip() if len(row) > 2 and row[2].strip() else "data",
                    float(row[3]) if len(row) > 3 and row[3].strip() else None,
                )
    return found


def _pictures(root: Path, split: str) -> list[Path]:
    place = root / split
    if place.is_dir():
        return sorted(path for path in place.rglob("*") if path.suffix.lower() in _PICTURES)
    if place.is_file():
        return [(root / line.strip()).resolve() for line in place.read_text().splitlines() if line.strip()]
    raise SystemExit(f"{place} is neither a folder nor a list of pictures; check `path`, `train` and `val` of the data set")


def _set_frame(path: Path, number: int, groups: Mapping[str, tuple[str, str, float | None]]) -> WorldFrame:
    scene, camera, seconds = groups.get(path.name, (path.stem, "data", None))
    parts = list(path.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    label = path.__class__(*parts).with_suffix(".txt")
    picture = cv2.imread(str(path))
    if picture is None:
        raise SystemExit(f"{path} is no picture that OpenCV reads; remove it from the data set")
    height, width = picture.shape[:2]
    rows = [line.split()[:5] for line in label.read_text().splitlines() if line.strip()] if label.is_file() else []
    values = np.array(rows, np.float64).reshape(-1, 5)
    centres, sizes = values[:, 1:3] * (width, height), values[:, 3:5] * (width, height)
    boxes = np.hstack([centres - sizes / 2, centres + sizes / 2]).astype(np.float32)
    at_ms = EPOCH_MS + (number * 1000 if seconds is None else round(seconds * 1000))
    ids = values[:, 0].astype(np.int32)
    # Objects are not followed from picture to picture: each counts as one of its own.
    objects = tuple(number * 1000 + i for i in range(len(ids)))
    return WorldFrame(path.stem, camera, number, at_ms, scene, (), boxes, ids, objects, partial(_read, path))


def _read(path: Path) -> NDArray[np.uint8]:
    picture = cv2.imread(str(path))
    if picture is None:
        raise SystemExit(f"{path} cannot be read; it was there before, do not change the data while the benchmark runs")
    return np.asarray(picture, np.uint8)
