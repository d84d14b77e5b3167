"""A foreign YOLO data set as people have it: `data.yaml`, images and label files wherever the tools of this field put them.

In: the path of a `data.yaml`. Out: `YoloDataset`, checked whole before the first image is given out, with notices of what was read
otherwise than it was written. Paths are found as Ultralytics finds them: relative to `path`, `../train/images` also inside the
folder, lists of files, polygons and key points beside boxes. It writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bowerbird_server.labelling.boxes import Box
from bowerbird_server.labelling.file_faults import IMAGE_SUFFIXES, BadLabelFiles, Fault
from bowerbird_server.labelling.yolo_files import read_boxes, read_names

_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class YoloImage:
    """An image of a foreign data set, its size as decoded (turned by its EXIF), boxes in pixels, clipped.

    `labelled` is False when it has no label file: a background image.
    """

    path: Path
    split: str
    width: int
    height: int
    boxes: tuple[Box, ...]
    labelled: bool


@dataclass(frozen=True)
class YoloDataset:
    """What a `data.yaml` leads to.

    Args:
        images: each file once, on the side that names it first.
        class_names: by class id.
        notices: what a person should know: images that both sides name, images that were left out.
    """

    images: tuple[YoloImage, ...]
    class_names: tuple[str, ...]
    notices: tuple[str, ...] = ()


def read_yolo_dataset(data_yaml: Path, *, skip_faulty: bool = False) -> YoloDataset:
    """Read and check a whole data set.

    Args:
        data_yaml: names `train`, `val` and `test` as folders, lists of files, or text files of paths; the label file of `images/a.jpg`
            is `labels/a.txt`. Polygons become the boxes around them.
        skip_faulty: leave out images that cannot be read or whose label file has a fault, with a notice, instead of refusing all.

    Raises:
        BadLabelFiles: malformed lines, unknown classes, boxes outside, missing or unreadable images, no labels at all: all are listed.
    """
    faults: list[Fault] = []
    names = read_names(data_yaml, faults)
    if names is None:
        raise BadLabelFiles(faults)
    data = yaml.safe_load(data_yaml.read_text(encoding="utf-8"))
    images: list[YoloImage] = []
    skipped: list[Fault] = []
    side_of: dict[Path, str] = {}
    twice: dict[tuple[str, str], list[Path]] = {}
    for split in _SPLITS:
        for path in _split_images(data_yaml, data, split, faults):
            first = side_of.setdefault(path.resolve(), split)
            if first != split:
                twice.setdefault((first, split), []).append(path)
                continue
            found: list[Fault] = []
            image = _read_image(path, split, names, found)
            if found:
                (skipped if skip_faulty else faults).extend(found)
            elif image is not None:
                images.append(image)
    if not images and not faults:
        faults.append(_nothing(data_yaml, skipped))
    if images and not any(image.labelled for image in images) and not faults:
        expected = _label_path(images[0].path)
        faults.append(Fault(data_yaml, 0, f"no image has a label file; for the first one it would be {expected}"))
    if faults:
        raise BadLabelFiles(faults, can_skip=any(fault.file != data_yaml for fault in faults) and not skip_faulty)
    return YoloDataset(tuple(images), tuple(names.values()), _notices(twice, skipped))


def _notices(twice: Mapping[tuple[str, str], Sequence[Path]], skipped: Sequence[Fault]) -> tuple[str, ...]:
    said = [
        f"{len(paths)} image{'s are' if len(paths) > 1 else ' is'} in both {first} and {second} ({paths[0].name} first): taken for "
        f"{first} only, since an image has one side"
        for (first, second), paths in twice.items()
    ]
    files = dict.fromkeys(fault.file for fault in skipped)
    if files:
        said.append(f"{len(files)} faulty images were left out:\n  " + "\n  ".join(str(fault) for fault in skipped[:20]))
    return tuple(said)


def _nothing(data_yaml: Path, skipped: Sequence[Fault]) -> Fault:
    if skipped:
        return Fault(data_yaml, 0, f"every image is faulty, the first: {skipped[0]}")
    return Fault(data_yaml, 0, "names no image; set train and val to folders with images")


def _read_image(path: Path, split: str, names: Mapping[int, str], faults: list[Fault]) -> YoloImage | None:
    size = _image_size(path)
    if size is None:
        faults.append(Fault(path, 0, "is not a readable image; replace or remove it"))
        return None
    label = _label_path(path)
    boxes = read_boxes(label, names, *size, faults) if label.is_file() else []
    return YoloImage(path, split, *size, tuple(boxes), label.is_file())


def _split_images(data_yaml: Path, data: dict[str, Any], split: str, faults: list[Fault]) -> list[Path]:
    entries = data.get(split)
    if entries is None and split == "val":
        entries = data.get("validation")  # Ultralytics takes this name too
    if not entries:
        return []
    found: list[Path] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        place = _place(data_yaml, data, str(entry))
        if place.is_dir():
            found += sorted(path for path in place.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        elif place.suffix == ".txt" and place.is_file():
            found += _listed(place, faults)
        elif place.is_file() and place.suffix.lower() in IMAGE_SUFFIXES:
            found.append(place)
        else:
            faults.append(
                Fault(data_yaml, 0, f"{split}: {place} is missing; it should be a folder of images or a list of them")
            )
    return found


def _place(data_yaml: Path, data: dict[str, Any], entry: str) -> Path:
    """Where a split lies: relative to `path`, which is relative to the file; the first of the usual places that exists.

    Files exported by labelling services say `../train/images` and mean `train/images` beside the file; files written for a common
    folder of data sets say `path: name` while they lie in that folder themselves.
    """
    folder = data_yaml.parent
    bases = [folder / str(data.get("path") or "."), folder]
    places = [base / text for base in bases for text in (entry, entry.removeprefix("../"))]
    return next((place for place in places if place.exists()), places[0])


def _listed(place: Path, faults: list[Fault]) -> list[Path]:
    found = []
    try:
        lines = place.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        faults.append(Fault(place, 0, f"cannot be read: {error}"))
        return []
    for number, line in enumerate(lines, start=1):
        image = place.parent / line.strip()
        if line.strip() and image.is_file():
            found.append(image)
        elif line.strip():
            faults.append(Fault(place, number, f"image {line.strip()} is missing"))
    return found


def _label_path(image: Path) -> Path:
    """`.../images/a.jpg` -> `.../labels/a.txt`: the last folder called images counts, as everywhere in this format."""
    parts = list(image.parts)
    for position in range(len(parts) - 2, -1, -1):
        if parts[position] == "images":
            parts[position] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _image_size(path: Path) -> tuple[int, int] | None:
    """Width and height of an image that can be decoded (as the trainer will see it, turned by its EXIF), else None."""
    import cv2

    try:
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    except cv2.error:
        return None
    return None if image is None else (int(image.shape[1]), int(image.shape[0]))
