"""YOLO labels in and out: a `data.yaml`, a text file an image, lines of `class x_centre y_centre width height` in shares of the image.

In: folders of other tools; labelled frames. Out: labels in the catalogue; folders other tools read; or a whole foreign data set as an
iterator. Every fault is listed with file and line before anything is taken. It guesses nothing: pixels where shares belong are a fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bowerbird_server.blobs import BlobStore
from bowerbird_server.catalogue.classes import check_class_name, class_names
from bowerbird_server.catalogue.core import Catalogue
from bowerbird_server.errors import BadInput, EnvironmentFault
from bowerbird_server.labelling.boxes import Box, box_fault, clip_box
from bowerbird_server.labelling.file_faults import (
    IMAGE_SUFFIXES,
    BadLabelFiles,
    Fault,
    FrameFinder,
    FrameLabel,
    ImportResult,
    apply_labels,
    frames_to_export,
    numbers,
    write_images,
)

# What rounding in another tool may add to 1 before it is called outside.
_SLACK = 1e-3
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class YoloImage:
    """An image of a foreign data set; boxes in pixels, clipped. `labelled` is False when it has no label file: a background image."""

    path: Path
    split: str
    width: int
    height: int
    boxes: tuple[Box, ...]
    labelled: bool


def export_yolo(cat: Catalogue, blobs: BlobStore, out_dir: Path, which: Sequence[str] | str | None = None) -> int:
    """Write `data.yaml`, `images/<frame id>.jpg` and, for labelled frames, `labels/<frame id>.txt`.

    Args:
        out_dir: a folder that is new or empty.
        which: frame ids, a batch's id, or None for every labelled frame. Frames without a label go out as image only.

    Returns:
        The number of images written.

    Raises:
        BadInput: `out_dir` holds files already.
        NotFound: there is no such frame or batch.
        EnvironmentFault: a file cannot be written.
    """
    if out_dir.exists() and any(out_dir.iterdir()):
        raise BadInput(f"{out_dir} is not empty; name a new folder, so that no old label stays among the new ones")
    names = class_names(cat)
    class_id = {name: i for i, name in enumerate(names)}
    chosen = frames_to_export(cat, which)
    try:
        write_images(blobs, [row for row, _ in chosen], out_dir / "images")
        (out_dir / "labels").mkdir()
        for row, boxes in chosen:
            if boxes is not None:
                lines = [_line(class_id[box.class_name], box, row["width"], row["height"]) for box in boxes]
                (out_dir / "labels" / f"{row['id']}.txt").write_text("".join(lines))
        data = {"path": ".", "train": "images", "val": "images", "names": dict(enumerate(names))}
        (out_dir / "data.yaml").write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    except OSError as error:
        raise EnvironmentFault(f"cannot write below {out_dir}: {error.strerror}; free space or name another folder") from error
    return len(chosen)


def import_yolo(cat: Catalogue, blobs: BlobStore, folder: Path, author: str, *, add_classes: bool = False) -> ImportResult:
    """Take the labels of a folder with a `data.yaml` (for the class names), for frames that the catalogue has.

    A label file is matched by its stem (frame id or its beginning) or by the image of the same stem; an empty file is a frame with
    nothing in it. The frames' newest revision becomes what the files say.

    Args:
        folder: the folder; label files are looked for below its `labels` folders, or in it when there is none.
        author: whose labels these are.
        add_classes: append classes unknown here instead of refusing them.

    Raises:
        BadLabelFiles: anything is wrong in any file; nothing was imported.
    """
    faults: list[Fault] = []
    names = _read_names(folder / "data.yaml", faults)
    if names is None:
        raise BadLabelFiles(faults)
    known = set(class_names(cat))
    finder = FrameFinder(cat)
    images = {path.stem: path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES}
    found: list[FrameLabel] = []
    taken: dict[str, Path] = {}
    files = sorted(path for path in folder.rglob("*.txt") if "labels" in path.relative_to(folder).parts[:-1])
    for path in files or sorted(folder.glob("*.txt")):
        row = finder.find(path.stem, images.get(path.stem))
        if isinstance(row, str):
            faults.append(Fault(path, 0, row))
            continue
        if row["id"] in taken:
            faults.append(Fault(path, 0, f"is about the same frame as {taken[row['id']]}; keep one of them"))
            continue
        taken[row["id"]] = path
        found.append(FrameLabel(row, tuple(_read_boxes(path, names, row["width"], row["height"], faults)), path))
    used = list(dict.fromkeys(box.class_name for label in found for box in label.boxes))
    unknown = [name for name in used if name not in known]
    if unknown and not add_classes:
        said = f"classes {', '.join(map(repr, unknown))} are not in the catalogue's class list; add them first or allow it to add them"
        faults.append(Fault(folder / "data.yaml", 0, said))
    if not taken and not faults:
        faults.append(Fault(folder, 0, "holds no label files (*.txt below a `labels` folder)"))
    if faults:
        raise BadLabelFiles(faults)
    new = [name for name in names.values() if name in unknown]
    return apply_labels(cat, blobs, found, new, author)


def read_yolo_dataset(data_yaml: Path) -> Iterator[YoloImage]:
    """A foreign data set's images with their boxes. Everything is checked before the first image is given out.

    Args:
        data_yaml: names `train`, `val` and `test` as folders, lists of files, or text files of paths; the label file of `images/a.jpg`
            is `labels/a.txt`. Polygons become the boxes around them.

    Raises:
        BadLabelFiles: malformed lines, unknown classes, boxes outside, missing or unreadable images, no labels at all: all are listed.
    """
    faults: list[Fault] = []
    names = _read_names(data_yaml, faults)
    if names is None:
        raise BadLabelFiles(faults)
    data = yaml.safe_load(data_yaml.read_text(encoding="utf-8"))
    images: list[YoloImage] = []
    side_of: dict[Path, str] = {}
    for split in _SPLITS:
        for path in _split_images(data_yaml, data, split, faults):
            if side_of.setdefault(path.resolve(), split) != split:
                faults.append(
                    Fault(data_yaml, 0, f"{path} is in both {side_of[path.resolve()]} and {split}; an image has one side")
                )
                continue
            size = _image_size(path)
            if size is None:
                faults.append(Fault(path, 0, "is not a readable image; replace or remove it"))
                continue
            label = _label_path(path)
            boxes = _read_boxes(label, names, *size, faults) if label.is_file() else []
            images.append(YoloImage(path, split, *size, tuple(boxes), label.is_file()))
    if not images and not faults:
        faults.append(Fault(data_yaml, 0, "names no image; set train and val to folders with images"))
    if images and not any(image.labelled for image in images) and not faults:
        expected = _label_path(images[0].path)
        faults.append(Fault(data_yaml, 0, f"no image has a label file; for the first one it would be {expected}"))
    if faults:
        raise BadLabelFiles(faults)
    return iter(images)


def read_class_names(data_yaml: Path) -> tuple[str, ...]:
    """A data set's class names, by class id.

    Raises:
        BadLabelFiles: the file cannot be read or its names cannot be used.
    """
    faults: list[Fault] = []
    names = _read_names(data_yaml, faults)
    if names is None:
        raise BadLabelFiles(faults)
    return tuple(names.values())


def _line(class_id: int, box: Box, width: int, height: int) -> str:
    left, top, right, bottom = box.box_xyxy
    shares = ((left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height)
    # Ten decimals bring the thousandths of a pixel back exactly.
    return f"{class_id} " + " ".join(f"{share:.10f}" for share in shares) + "\n"


def _read_names(path: Path, faults: list[Fault]) -> Mapping[int, str] | None:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        faults.append(Fault(path, 0, "is missing; it must name the classes, e.g. `names: {0: person}`"))
        return None
    except (OSError, UnicodeDecodeError) as error:
        faults.append(Fault(path, 0, f"cannot be read: {error}"))
        return None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        faults.append(Fault(path, mark.line + 1 if mark else 0, f"is not YAML: {getattr(error, 'problem', error)}"))
        return None
    names = data.get("names") if isinstance(data, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        faults.append(Fault(path, 0, "has no class names; write e.g. `names: {0: person, 1: car}`"))
        return None
    if not all(isinstance(key, int) and key >= 0 and isinstance(name, str | int | float) for key, name in names.items()):
        faults.append(Fault(path, 0, "names must give a text for each number from 0 on"))
        return None
    clean: dict[int, str] = {}
    for key, name in sorted(names.items()):
        try:
            clean[key] = check_class_name(str(name))
        except BadInput as error:
            faults.append(Fault(path, 0, str(error)))
    if len(set(clean.values())) != len(clean):
        faults.append(Fault(path, 0, "gives two classes the same name"))
    return None if faults else clean


def _read_boxes(path: Path, names: Mapping[int, str], width: int, height: int, faults: list[Fault]) -> list[Box]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        faults.append(Fault(path, 0, f"cannot be read: {error}"))
        return []
    boxes = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        box = _parse_line(line, names, width, height)
        if isinstance(box, str):
            faults.append(Fault(path, number, box))
        else:
            boxes.append(box)
    return boxes


def _parse_line(line: str, names: Mapping[int, str], width: int, height: int) -> Box | str:
    """The box of a line, or what is wrong with it."""
    parts = line.split()
    values = numbers(parts)
    if values is None or len(values) < 5 or (len(values) > 5 and (len(values) < 7 or len(values) % 2 == 0)):
        return f"is not `class x y width height`: {line.strip()[:60]!r}"
    class_id, shares = values[0], values[1:]
    if class_id != int(class_id) or int(class_id) not in names:
        return f"class {parts[0]} is not in data.yaml, which names {', '.join(map(str, names))}"
    if any(share > 1 + _SLACK or share < -_SLACK for share in shares):
        return "box outside the image: coordinates are shares of the image from 0 to 1" + (
            "; these look like pixels" if max(shares) > 2 else ""
        )
    if len(shares) == 4:
        x, y, w, h = shares
        corners = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
    else:
        xs, ys = shares[0::2], shares[1::2]
        corners = (min(xs) * width, min(ys) * height, max(xs) * width, max(ys) * height)
    return box_fault(corners, width, height) or Box(names[int(class_id)], clip_box(corners, width, height))


def _split_images(data_yaml: Path, data: dict[str, Any], split: str, faults: list[Fault]) -> list[Path]:
    entries = data.get(split)
    if entries is None:
        return []
    # As Ultralytics reads it: `path` is relative to the file, the splits are relative to `path`.
    base = data_yaml.parent / str(data.get("path") or ".")
    found: list[Path] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        place = base / str(entry)
        if place.is_dir():
            found += sorted(path for path in place.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        elif place.suffix == ".txt" and place.is_file():
            for number, line in enumerate(place.read_text(encoding="utf-8").splitlines(), start=1):
                image = place.parent / line.strip()
                if line.strip() and image.is_file():
                    found.append(image)
                elif line.strip():
                    faults.append(Fault(place, number, f"image {line.strip()} is missing"))
        elif place.is_file() and place.suffix.lower() in IMAGE_SUFFIXES:
            found.append(place)
        else:
            faults.append(
                Fault(data_yaml, 0, f"{split}: {place} is missing; it should be a folder of images or a list of them")
            )
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
