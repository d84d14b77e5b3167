"""What is selected from and what is tested on: a stream of labelled frames, from the synthetic cameras, a data set or a film.

In: a seed and where the frames come from. Out: a `World`: frames for the first model, the stream in order of time, held-out frames in
slices, all with ground truth. No scene is in two of the three. Pictures are read when they are asked for. It trains and selects
nothing.

The synthetic world is made to be hard for a selection: three cameras of which one comes only at half time, night and a class never
seen before from a third of the stream on, scenes of ten near-duplicates, three in ten empty; a fourth camera is in the test only.
"""

from __future__ import annotations

import csv
import math
import os
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from bowerbird_agent.storing.encode import encode_image
from bowerbird_models.mot import read_mot
from bowerbird_models.scenes import CLASS_NAMES, SceneStream
from bowerbird_server.labelling.file_faults import BadLabelFiles
from bowerbird_server.labelling.yolo_dataset import read_yolo_dataset

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from bowerbird_server.labelling.yolo_dataset import YoloImage

EPOCH_MS = 1_772_323_200_000
_LONG_SIDE, _QUALITY = 640, 90  # what a device sends unless it is told otherwise
_MOST_FAULTS = 20  # that are shown


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
        # 1200 a round's accuracy rises by 5 and by 4 points, in one world; a row of 1200 takes four minutes).
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

    Raises:
        SystemExit: the film or its ground truth cannot be read.
    """
    names, fps, wh = _unpack(video, folder)
    try:
        truth = read_mot(gt, wh)
    except ValueError as error:
        raise SystemExit(str(error)) from error
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
    folder = folder / f"{video.name}-{video.stat().st_size}"  # another film's frames may lie beside
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
            part = folder / f"part-{os.getpid()}.png"  # two processes may run on one --out
            cv2.imwrite(str(part), picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])
            part.rename(path)
        names.append(path)
    capture.release()
    if not names:
        raise SystemExit(f"{video} has no frame that OpenCV decodes; give the path of another film")
    return names, fps, wh


def data_set(seed: int, data_yaml: Path, groups: Path | None, *, picks: int = 40, start: int = 40) -> World:
    """Any YOLO data set: `train` is shuffled by groups into start and stream, `val` is the test. It is read as the server imports one.

    Args:
        groups: lines `image,group[,camera[,seconds]]`, the image by its file name or the end of its path; frames of one group are
            never both in start and stream. None: every picture is a group of its own, in the order of names.

    Raises:
        SystemExit: the data set or the groups have faults, or pictures of one group are on both sides.
    """
    try:
        found = read_yolo_dataset(data_yaml)
    except BadLabelFiles as error:
        raise _refusal([str(fault) for fault in error.faults], "correct the data set and run it again") from error
    if found.notices:
        raise _refusal(found.notices, "`train` and `val` must share no picture: nobody may select from what is tested on")
    images = {split: [image for image in found.images if image.split == split] for split in ("train", "val")}
    for split, there in images.items():
        if not there:
            raise SystemExit(f"{data_yaml} names no picture under `{split}`; `train` is selected from, `val` is tested on")
    known = None if groups is None else _read_groups(groups)
    place = {path: _place_of(path, known) for path in (image.path for image in found.images) if known is not None}
    missing = [path for path, here in place.items() if here is None]
    if missing:
        raise SystemExit(
            f"{groups} has no line for {len(missing)} of {len(place)} pictures, {missing[0].name} the first; each needs a line "
            "`image,group`, or near-duplicates of it could be on both sides"
        )
    train, tests = (
        [_set_frame(image, number, found.class_names, place.get(image.path)) for number, image in enumerate(images[split])]
        for split in ("train", "val")
    )
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
        f"data/2/{data_yaml.resolve()}/{len(train)}/{len(tests)}/{groups}/{seed}/{start}",
        found.class_names,
        tuple(starts[:start]),
        tuple(live),
        tuple(tests),
        {"image_size": 320, "batch": 4, "learning_rate": 0.002, "mosaic": 1.0},
        1200,
        1200,
        picks,
        None,
    )


def _refusal(faults: Sequence[str], advice: str) -> SystemExit:
    more = [f"... and {len(faults) - _MOST_FAULTS} more"] if len(faults) > _MOST_FAULTS else []
    return SystemExit("\n".join([*faults[:_MOST_FAULTS], *more, advice]))


class _Place(NamedTuple):
    group: str
    camera: str
    seconds: float | None


def _read_groups(path: Path) -> dict[str, _Place]:
    """Image -> where it belongs."""
    found: dict[str, _Place] = {}
    faults = []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"cannot read the groups {path}: {error}") from error
    for number, row in enumerate(csv.reader(text.splitlines()), start=1):
        image, group, camera, seconds = ([cell.strip() for cell in row] + [""] * 4)[:4]
        if (number == 1 and image == "image") or not any(row):
            continue
        try:
            at_s = float(seconds) if seconds else None
        except ValueError:
            at_s = math.nan
        if not image or not group:
            faults.append(f"{path}:{number}: a line is `image,group[,camera[,seconds]]`, not {','.join(row)[:60]!r}")
        elif at_s is not None and not math.isfinite(at_s):
            faults.append(f"{path}:{number}: seconds must be a number, not {seconds[:40]!r}")
        else:
            found[image] = _Place(group, camera or "data", at_s)
    if faults:
        raise _refusal(faults, "correct the groups and run it again")
    return found


def _place_of(path: Path, known: Mapping[str, _Place]) -> _Place | None:
    """By the longest end of its path that is listed: two folders may have pictures of one name."""
    return next((known[end] for i in range(len(path.parts)) if (end := "/".join(path.parts[i:])) in known), None)


def _set_frame(image: YoloImage, number: int, class_names: Sequence[str], place: _Place | None) -> WorldFrame:
    name = f"{image.split}{number:06}-{image.path.stem}"
    group, camera, seconds = place or _Place(name, "data", None)
    boxes = np.array([box.box_xyxy for box in image.boxes], np.float32).reshape(-1, 4)
    at_ms = EPOCH_MS + (number * 1000 if seconds is None else round(seconds * 1000))
    ids = np.array([class_names.index(box.class_name) for box in image.boxes], np.int32)
    # Objects are not followed from picture to picture: each counts as one of its own.
    objects = tuple(number * 1000 + i for i in range(len(ids)))
    return WorldFrame(name, camera, number, at_ms, group, (), boxes, ids, objects, partial(_read, image.path))


def _read(path: Path) -> NDArray[np.uint8]:
    picture = cv2.imread(str(path))
    if picture is None:
        raise SystemExit(f"{path} cannot be read; it was there before, do not change the data while the benchmark runs")
    return np.asarray(picture, np.uint8)
