"""YOLO labels in and out: a `data.yaml`, a text file an image, lines of `class x_centre y_centre width height` in shares of the image.

In: folders of other tools; labelled frames. Out: labels in the catalogue; folders other tools read. Every fault is listed with file and
line before anything is taken. It guesses nothing: pixels where shares belong are a fault. Whole foreign data sets: `yolo_dataset.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

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
    must_be_new,
    numbers,
    write_images,
)

# What rounding in another tool may add to 1 before it is called outside.
_SLACK = 1e-3
_MOST_CLASSES = 10_000
_MOST_YAML_BYTES = 1024 * 1024  # 10,000 names take a fifth of it


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
    must_be_new(out_dir)
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
        # Our split is by scene and not in these files; a trainer wants both keys, and an import reads the images once.
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
    names = read_names(folder / "data.yaml", faults)
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
        found.append(FrameLabel(row, tuple(read_boxes(path, names, row["width"], row["height"], faults)), path))
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


def _line(class_id: int, box: Box, width: int, height: int) -> str:
    left, top, right, bottom = box.box_xyxy
    shares = ((left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height)
    # Ten decimals bring the thousandths of a pixel back exactly.
    return f"{class_id} " + " ".join(f"{share:.10f}" for share in shares) + "\n"


def read_names(path: Path, faults: list[Fault]) -> Mapping[int, str] | None:
    """Class names of a `data.yaml` by class id; None when there are faults, which are appended."""
    try:
        if path.stat().st_size > _MOST_YAML_BYTES:
            raise ValueError(f"it has more than {_MOST_YAML_BYTES} bytes")
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        faults.append(Fault(path, 0, "is missing; it must name the classes, e.g. `names: {0: person}`"))
        return None
    except RecursionError:
        faults.append(Fault(path, 0, "is nested too deeply; it needs no more than `names: {0: person, 1: car}`"))
        return None
    except (OSError, ValueError) as error:  # not UTF-8; a date or a number that is none
        faults.append(Fault(path, 0, f"cannot be read: {error}"))
        return None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        faults.append(Fault(path, mark.line + 1 if mark else 0, f"is not YAML: {getattr(error, 'problem', error)}"))
        return None
    names = data.get("names") if isinstance(data, dict) else None
    if names is None and isinstance(data, dict) and isinstance(data.get("nc"), int) and 0 < data["nc"] <= _MOST_CLASSES:
        names = [f"class_{number}" for number in range(data["nc"])]  # as Ultralytics calls them
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


def read_boxes(path: Path, names: Mapping[int, str], width: int, height: int, faults: list[Fault]) -> list[Box]:
    """The boxes of one label file, in pixels of its width x height image; faults are appended."""
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
