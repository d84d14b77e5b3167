"""Whether a data set on disk has anything to learn from, told before a training process warms up.

In: an Ultralytics `data.yaml` with YOLO label files. Out: the pictures of its training split with the classes that they show, or an
error that says what is missing. It needs neither torch nor Ultralytics and does not judge the labels' quality.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bowerbird_server.errors import BadInput

_PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


class NoLabels(BadInput):
    """The data set has no picture, or no box, to learn from."""


@dataclass(frozen=True)
class TrainingSplit:
    """What there is to learn from; pictures without a box count as background.

    Args:
        images: the pictures, in the order of their names.
        class_ids: of each picture's boxes.
    """

    images: tuple[Path, ...]
    class_ids: tuple[tuple[int, ...], ...]


def read_training_split(data_yaml: Path) -> TrainingSplit:
    """The pictures to train on, and what they show.

    Raises:
        BadInput: the description cannot be read or lacks `train` or `names`, or a label names a class that is not there.
        NoLabels: no picture or not one box.
    """
    description = _read(data_yaml)
    root = (data_yaml.parent / str(description.get("path") or ".")).resolve()
    names = description["names"]
    trains = description["train"] if isinstance(description["train"], list) else [description["train"]]
    images = [image for train in trains for image in _pictures(root, str(train))]
    if not images:
        raise NoLabels(f"{data_yaml} has no training picture; check `path` and `train` in it, or label some frames first")
    class_ids = tuple(_class_ids(image, len(names)) for image in images)
    if not any(class_ids):
        raise NoLabels(
            f"none of the {len(images)} training pictures of {data_yaml} has a box, so there is nothing to learn; label frames "
            "on the review page, or check that `labels/` lies beside `images/`"
        )
    return TrainingSplit(tuple(images), class_ids)


def _read(data_yaml: Path) -> dict[str, Any]:
    try:
        description = yaml.safe_load(data_yaml.read_text())
    except OSError as error:
        raise BadInput(f"{data_yaml} cannot be read ({error.strerror}); give the path of a data.yaml") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{data_yaml} is not YAML ({error}); see the Ultralytics data set format") from error
    missing = [key for key in ("train", "names") if not isinstance(description, dict) or not description.get(key)]
    if missing:
        raise BadInput(f"{data_yaml} lacks {' and '.join(f'`{key}`' for key in missing)}; see the Ultralytics data set format")
    return dict(description)


def _pictures(root: Path, train: str) -> list[Path]:
    place = root / train
    if place.is_dir():
        return sorted(path for path in place.rglob("*") if path.suffix.lower() in _PICTURES)
    if place.is_file():
        return [place.parent / line.strip() for line in place.read_text().splitlines() if line.strip()]
    return []


def _class_ids(image: Path, classes: int) -> tuple[int, ...]:
    """Class of each box of a picture; its labels lie where the last `images` of its path reads `labels`."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    label = Path(*parts).with_suffix(".txt")
    if not label.is_file():
        return ()
    lines = [line.split() for line in label.read_text().splitlines() if line.strip()]
    for fields in lines:
        if not fields[0].isdigit() or int(fields[0]) >= classes:
            raise BadInput(f"{label} names class {fields[0]!r}, but the data set has {classes} classes, 0 to {classes - 1}")
    return tuple(int(fields[0]) for fields in lines)
