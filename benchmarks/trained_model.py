"""A yolo11n that has learned something, at 640 pixels, within minutes on a processor: for figures that need accuracy.

In: a folder to work in; weights are kept in the user's cache. Out: the ONNX file as the server exports it, calibration pictures and
held-out frames with ground truth. Training at 640 pixels would take hours here, so it is trained at 160 on synthetic scenes of 160x120
and tested on 640x600 pictures that are put together from twenty scenes each: objects have the same size in pixels, the network is
fully convolutional, and mAP at 640 means what it says. Held-out scenes share no camera with the training's.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from bowerbird_server.training.evaluate import EvaluationFrame

TILE_WH, COLUMNS, ROWS = (160, 120), 4, 5
TRAINING_SCENES, EPOCHS = 480, 24
CALIBRATION_PICTURES, TEST_PICTURES = 64, 60
_RECIPE = f"yolo11n {TILE_WH} {TRAINING_SCENES} {EPOCHS} 1"


@dataclass(frozen=True)
class TrainedModel:
    """The files: the exported model, pictures of training scenes, held-out frames with boxes, and the class names."""

    onnx: Path
    calibration: tuple[Path, ...]
    held_out: tuple[EvaluationFrame, ...]
    class_names: tuple[str, ...]


def cache_folder() -> Path:
    """Where models of this recipe are kept between runs."""
    from platformdirs import user_cache_path

    return user_cache_path("bowerbird") / "benchmarks" / hashlib.sha256(_RECIPE.encode()).hexdigest()[:12]


def is_ready() -> bool:
    """Whether the training was done before."""
    return (cache_folder() / "weights.pt").is_file()


def trained_model(folder: Path) -> TrainedModel:
    """Train if it was not done before (ten minutes on one core), export, and render pictures into `folder`."""
    from bowerbird_models.scenes import CLASS_NAMES
    from bowerbird_server.training.evaluate import EvaluationFrame
    from bowerbird_server.training.export import export_weights

    weights = cache_folder() / "weights.pt"
    if not weights.is_file():
        _train(folder / "training", weights)
    onnx = export_weights(weights, folder / "export", image_size=640).onnx
    calibration = [
        _write(folder / "calibration" / f"{number}.png", image)
        for number, (image, _, _) in enumerate(_sheets(CALIBRATION_PICTURES, seeds=range(1, 5)))
    ]
    held_out = [
        EvaluationFrame(_write(folder / "held-out" / f"{number}.png", image), f"sheet-{number}", (), boxes, class_ids)
        for number, (image, boxes, class_ids) in enumerate(_sheets(TEST_PICTURES, seeds=range(101, 105)))
    ]
    return TrainedModel(onnx, tuple(calibration), tuple(held_out), CLASS_NAMES)


def _scenes(seeds: range) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int32]]]:
    """Scenes of several cameras by turns, day and night, one frame of each scene."""
    from bowerbird_models.scenes import SceneStream

    streams = [SceneStream(seed, width=2 * TILE_WH[0], height=2 * TILE_WH[1], night_from=4000) for seed in seeds]
    number = 0
    while True:
        for stream in streams:
            at = number * 10 + (4000 if number % 2 else 0)
            image, truth = stream.render(at)
            small = cv2.resize(image, TILE_WH, interpolation=cv2.INTER_AREA)
            yield np.asarray(small, np.uint8), truth.boxes_xyxy / 2, truth.class_ids
        number += 1


def _sheets(count: int, *, seeds: range) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int32]]]:
    """Pictures of `COLUMNS` x `ROWS` scenes with all their boxes."""
    scenes = _scenes(seeds)
    width, height = TILE_WH
    for _ in range(count):
        sheet = np.zeros((ROWS * height, COLUMNS * width, 3), np.uint8)
        boxes, class_ids = [], []
        for place in range(COLUMNS * ROWS):
            left, top = place % COLUMNS * width, place // COLUMNS * height
            image, found, classes = next(scenes)
            sheet[top : top + height, left : left + width] = image
            boxes.append(found + np.array([left, top, left, top], np.float32))
            class_ids.append(classes)
        yield sheet, np.concatenate(boxes).astype(np.float32), np.concatenate(class_ids).astype(np.int32)


def _write(path: Path, image: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image):
        raise SystemExit(f"cannot write {path}; free some space")
    return path


def _train(folder: Path, weights: Path) -> None:
    import yaml

    from bowerbird_models.scenes import CLASS_NAMES
    from bowerbird_server.training.train import TrainingRequest, run_training

    width, height = TILE_WH
    scenes = _scenes(range(1, 5))
    for number in range(TRAINING_SCENES):
        image, boxes, class_ids = next(scenes)
        _write(folder / "images" / f"{number}.png", image)
        centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2 / (width, height), (boxes[:, 2:] - boxes[:, :2]) / (width, height)
        lines = [
            f"{class_id} {x:.6f} {y:.6f} {w:.6f} {h:.6f}"
            for class_id, (x, y), (w, h) in zip(class_ids, centres, sizes, strict=True)
        ]
        (folder / "labels").mkdir(exist_ok=True)
        (folder / "labels" / f"{number}.txt").write_text("\n".join(lines))
    data_yaml = folder / "data.yaml"
    data_yaml.write_text(yaml.safe_dump({"path": ".", "train": "images", "names": dict(enumerate(CLASS_NAMES))}))
    request = TrainingRequest(data_yaml, folder / "out", model="yolo11n", image_size=160, epochs=EPOCHS, batch=8)

    def told(progress: object) -> None:
        print(f"training, once for this machine: {progress}", flush=True)

    result = run_training(request, told)
    weights.parent.mkdir(parents=True, exist_ok=True)
    part = weights.with_suffix(".part")
    part.write_bytes(result.weights.read_bytes())  # the cache may lie on another file system
    part.rename(weights)
