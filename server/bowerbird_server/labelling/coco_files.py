"""COCO labels in and out: one `annotations.json`, boxes as `[left, top, width, height]` in pixels.

In: a JSON file of another tool; labelled frames. Out: labels in the catalogue; a folder other tools read. Every fault is listed before
anything is taken. Masks, keypoints and crowds are not read: a crowd is not one object, so it is refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from bowerbird_server.blobs import BlobStore
from bowerbird_server.catalogue.classes import check_class_name, class_names
from bowerbird_server.catalogue.core import Catalogue
from bowerbird_server.errors import BadInput, EnvironmentFault
from bowerbird_server.labelling.boxes import Box, box_fault, clip_box
from bowerbird_server.labelling.file_faults import (
    BadLabelFiles,
    Fault,
    FrameFinder,
    FrameLabel,
    ImportResult,
    apply_labels,
    frames_to_export,
    must_be_new,
    write_images,
)

ANNOTATIONS = "annotations.json"
_FARTHEST_PX = 1e9  # farther than any box reaches; a number of hundreds of digits is none that floats can hold


def export_coco(cat: Catalogue, blobs: BlobStore, out_dir: Path, which: Sequence[str] | str | None = None) -> int:
    """Write `annotations.json` and `images/<frame id>.jpg` of labelled frames.

    Args:
        out_dir: a folder that is new or empty.
        which: frame ids, a batch's id, or None for every labelled frame. Frames without a label are left out: in this format they
            could not be told from frames with nothing in them.

    Returns:
        The number of images written.

    Raises:
        BadInput: `out_dir` holds files already.
        NotFound: there is no such frame or batch.
        EnvironmentFault: a file cannot be written.
    """
    must_be_new(out_dir)
    names = class_names(cat)
    category = {name: i + 1 for i, name in enumerate(names)}
    chosen = [(row, boxes) for row, boxes in frames_to_export(cat, which) if boxes is not None]
    try:
        files = write_images(blobs, [row for row, _ in chosen], out_dir / "images")
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, (row, boxes) in enumerate(chosen, start=1):
            images.append({"id": number, "file_name": files[row["id"]], "width": row["width"], "height": row["height"]})
            for box in boxes:
                left, top, right, bottom = box.box_xyxy
                width, height = round(right - left, 3), round(bottom - top, 3)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": category[box.class_name],
                        "bbox": [left, top, width, height],
                        "area": round(width * height, 3),
                        "iscrowd": 0,
                    }
                )
        whole = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": category[name], "name": name} for name in names],
        }
        (out_dir / ANNOTATIONS).write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise EnvironmentFault(f"cannot write below {out_dir}: {error.strerror}; free space or name another folder") from error
    return len(chosen)


def import_coco(cat: Catalogue, blobs: BlobStore, path: Path, author: str, *, add_classes: bool = False) -> ImportResult:
    """Take the labels of a COCO file, for frames that the catalogue has; each image in it becomes a labelled frame.

    Args:
        path: the JSON file, or a folder with `annotations.json`. An image is matched by its file name's stem (frame id or its
            beginning) or by the file itself, beside the JSON or in `images`.
        author: whose labels these are.
        add_classes: append classes unknown here instead of refusing them.

    Raises:
        BadLabelFiles: anything is wrong in it; nothing was imported.
    """
    file = path / ANNOTATIONS if path.is_dir() else path
    faults: list[Fault] = []
    data = _read_json(file)
    categories = _categories(file, data, faults)
    labels = _images(file, data, FrameFinder(cat), faults)
    used: set[str] = set()
    boxes: dict[Any, list[Box]] = {image: [] for image in labels}
    for position, annotation in enumerate(_list(file, data, "annotations", faults), start=1):
        problem = _take(annotation, categories, labels, boxes)
        if problem:
            faults.append(Fault(file, 0, f"annotation {annotation.get('id', f'number {position}')}: {problem}"))
    for image_boxes in boxes.values():
        used.update(box.class_name for box in image_boxes)
    known = set(class_names(cat))
    unknown = [name for name in categories.values() if name in used - known]
    if unknown and not add_classes:
        said = f"classes {', '.join(map(repr, unknown))} are not in the catalogue's class list; add them first or allow it to add them"
        faults.append(Fault(file, 0, said))
    if not labels and not faults:
        faults.append(Fault(file, 0, "lists no images"))
    if faults:
        raise BadLabelFiles(faults)
    found = [FrameLabel(row, tuple(boxes[image]), file) for image, row in labels.items()]
    return apply_labels(cat, blobs, found, unknown, author)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise BadLabelFiles([Fault(file, error.lineno, f"is not JSON: {error.msg}")]) from error
    except RecursionError as error:
        raise BadLabelFiles([Fault(file, 0, "is nested too deeply for COCO")]) from error
    except (OSError, ValueError) as error:  # not UTF-8; a number of thousands of digits
        raise BadLabelFiles([Fault(file, 0, f"cannot be read: {error}")]) from error
    if not isinstance(data, dict):
        raise BadLabelFiles([Fault(file, 0, "is not COCO: an object with images, annotations and categories is expected")])
    return data


def _list(file: Path, data: dict[str, Any], key: str, faults: list[Fault]) -> list[dict[str, Any]]:
    rows = data.get(key)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        faults.append(Fault(file, 0, f"`{key}` must be a list of objects"))
        return []
    return rows


def _categories(file: Path, data: dict[str, Any], faults: list[Fault]) -> dict[Any, str]:
    found: dict[Any, str] = {}
    for row in _list(file, data, "categories", faults):
        try:
            name = check_class_name(str(row.get("name", "")))
        except BadInput as error:
            faults.append(Fault(file, 0, f"category {row.get('id')}: {error}"))
            continue
        if not isinstance(row.get("id"), int) or row["id"] in found:
            faults.append(Fault(file, 0, f"category {name}: id {row.get('id')!r} must be a number that no other category has"))
            continue
        found[row["id"]] = name
    return found


def _images(file: Path, data: dict[str, Any], finder: FrameFinder, faults: list[Fault]) -> dict[Any, dict[str, Any]]:
    found: dict[Any, dict[str, Any]] = {}
    frames_seen: dict[str, str] = {}
    for row in _list(file, data, "images", faults):
        name = str(row.get("file_name", ""))
        said = f"image {row.get('id')} ({name[:80]})"
        if not isinstance(row.get("id"), int) or row["id"] in found or not name:
            faults.append(Fault(file, 0, f"{said}: needs a file_name and an id that no other image has"))
            continue
        base = PurePosixPath(name.replace("\\", "/")).name
        beside = next((place for place in (file.parent / base, file.parent / "images" / base) if place.is_file()), None)
        frame = finder.find(PurePosixPath(base).stem, beside)
        if isinstance(frame, str):
            faults.append(Fault(file, 0, f"{said}: {frame}"))
            continue
        if (row.get("width", frame["width"]), row.get("height", frame["height"])) != (frame["width"], frame["height"]):
            size = f"{row.get('width')}x{row.get('height')}"
            faults.append(Fault(file, 0, f"{said}: is {size} here, but the frame is {frame['width']}x{frame['height']}"))
            continue
        if frame["id"] in frames_seen:
            faults.append(Fault(file, 0, f"{said}: is the same frame as {frames_seen[frame['id']]}; keep one of them"))
            continue
        frames_seen[frame["id"]] = said
        found[row["id"]] = frame
    return found


def _take(
    annotation: dict[str, Any], categories: dict[Any, str], images: dict[Any, dict[str, Any]], boxes: dict[Any, list[Box]]
) -> str | None:
    """Add an annotation's box to its image's, or say what is wrong with it."""
    image, category, bbox = annotation.get("image_id"), annotation.get("category_id"), annotation.get("bbox")
    if not isinstance(image, int) or image not in images:
        return f"image_id {image!r} is none of the images that could be matched"
    if not isinstance(category, int) or category not in categories:
        return f"category_id {category!r} is not in categories"
    if annotation.get("iscrowd"):
        return "is a crowd, which is not one object; draw its members or leave it out"
    if (
        not isinstance(bbox, list)
        or len(bbox) != 4
        or not all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < _FARTHEST_PX for v in bbox)
    ):
        return "bbox must be four numbers: left, top, width, height"
    left, top, width, height = bbox
    corners = (left, top, left + width, top + height)
    frame = images[image]
    fault = box_fault(corners, frame["width"], frame["height"])
    if fault is None:
        boxes[image].append(Box(categories[category], clip_box(corners, frame["width"], frame["height"])))
    return fault
