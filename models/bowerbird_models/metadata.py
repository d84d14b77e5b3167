"""What an ONNX file says about itself, read strictly.

In: the ONNX metadata map, text to text, as Ultralytics writes it (Python literals: `{0: 'person'}`, `[640, 640]`, `True`) or as
JSON. Out: `ModelMetadata`, or an error that says what is missing. The text comes from whoever made the file: it is scanned
token by token with limits on length and count, never evaluated, and no general parser sees it.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bowerbird_models.errors import NotAModel, UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_CLASSES = 10_000
MAX_NAME_CHARACTERS = 200
MAX_NAMES_CHARACTERS = 1_000_000
MAX_VALUE_CHARACTERS = 200
MAX_SIDE_PX = 8192
MAX_ARGS_CHARACTERS = 10_000
MAX_KEYPOINTS = 1000
# What runs here: the tasks, and of each the heads by the names that Ultralytics writes since 8.4.
TASKS = {
    "detect": ("Detect", "v10Detect"),
    "segment": ("Segment", "Segment26"),
    "pose": ("Pose", "Pose26"),
    "obb": ("OBB", "OBB26"),
    "classify": ("Classify",),
}

_STRING = r"'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\""
_DICT_ITEM = re.compile(rf"\s*(?:(\d{{1,6}})|'(\d{{1,6}})'|\"(\d{{1,6}})\")\s*:\s*({_STRING})\s*(,|$)")
_LIST_ITEM = re.compile(rf"\s*({_STRING})\s*(,|$)")
_KEYPOINTS = re.compile(r"\s*[\[(]\s*(\d{1,4})\s*,\s*([23])\s*[\])]\s*")
_NMS_ARGUMENT = re.compile(r"['\"]nms['\"]\s*:\s*([^,}]*)")
_SIZE = re.compile(r"\s*[\[(]?\s*(\d{1,5})\s*(?:,\s*(\d{1,5})\s*)?[\])]?\s*")


@dataclass(frozen=True)
class ModelMetadata:
    """What the code around a model needs to know.

    Args:
        class_names: names by class id, at least one.
        stride: largest stride in pixels; sides of the input are multiples of it.
        image_size_hw: height and width it was exported for; None where the file does not say.
        end2end: whether the output needs no non-maximum suppression, by its head or because the graph holds it.
        task: one of `TASKS`.
        keypoint_shape: number of keypoints and of values each, 2 or 3; None for tasks without.
    """

    class_names: tuple[str, ...]
    stride: int
    image_size_hw: tuple[int, int] | None
    end2end: bool
    task: str = "detect"
    keypoint_shape: tuple[int, int] | None = None


def parse_metadata(entries: Mapping[str, str]) -> ModelMetadata:
    """Read the ONNX metadata map.

    Raises:
        NotAModel: no class names, or an entry that is not what Ultralytics writes.
        UnsupportedModel: a task or a head that does not run here.
    """
    if "names" not in entries:
        raise NotAModel(
            "the ONNX file carries no class names, so it is no YOLO exported by Ultralytics; export it with "
            "`yolo export model=best.pt format=onnx` (tools that rewrite ONNX files often drop the metadata: copy it back)"
        )
    task = entries.get("task", "detect")
    if task not in TASKS:
        raise UnsupportedModel(f"the model's task is {task[:40]!r}; models for {', '.join(TASKS)} run here")
    head = entries.get("head")
    if head is not None and head not in TASKS[task]:
        raise UnsupportedModel(
            f"the model ends in {head[:40]!r}, which does not run here (RT-DETR, YOLO-World and YOLOE do not either); for the "
            f"task {task!r} use one of the models YOLOv5u, v8, v9, v10, 11, 12 or 26"
        )
    end2end = _parse_flag("end2end", entries.get("end2end", "False"))
    return ModelMetadata(
        class_names=parse_names(entries["names"]),
        stride=_parse_stride(entries.get("stride", "32")),
        image_size_hw=_parse_image_size(entries["imgsz"]) if "imgsz" in entries else None,
        end2end=end2end or _holds_suppression(entries.get("args", "")),
        task=task,
        keypoint_shape=_parse_keypoint_shape(entries.get("kpt_shape", "")) if task == "pose" else None,
    )


def parse_names(text: str) -> tuple[str, ...]:
    """Class names from `{0: 'a', 1: 'b'}`, `{"0": "a"}` or `['a', 'b']`.

    Raises:
        NotAModel: anything else; ids that are not 0 to n - 1; too many, too long, empty or unprintable names.
    """
    if len(text) > MAX_NAMES_CHARACTERS:
        raise _bad_names(f"are {len(text)} characters long, at most {MAX_NAMES_CHARACTERS} are read")
    text = text.strip()
    names: dict[int, str] = {}
    body = text[1:-1].rstrip()
    if text[:1] == "{" and text[-1:] == "}":
        pattern = _DICT_ITEM
    elif text[:1] == "[" and text[-1:] == "]":
        pattern = _LIST_ITEM
    else:
        raise _bad_names("are neither a dict nor a list")
    position = 0
    while position < len(body):
        item = pattern.match(body, position)
        if item is None:
            raise _bad_names(f"cannot be read at character {position + 1}")
        class_id = len(names) if pattern is _LIST_ITEM else int(item[1] or item[2] or item[3])
        literal = item[1] if pattern is _LIST_ITEM else item[4]
        if class_id in names:
            raise _bad_names(f"name class {class_id} twice")
        names[class_id] = _name(literal, class_id)
        if len(names) > MAX_CLASSES:
            raise _bad_names(f"are more than {MAX_CLASSES}")
        position = item.end()
    if sorted(names) != list(range(len(names))) or not names:
        raise _bad_names("must have the ids 0, 1, 2, … without a gap, and at least one")
    return tuple(names[class_id] for class_id in range(len(names)))


def _name(literal: str, class_id: int) -> str:
    if len(literal) > MAX_NAME_CHARACTERS + 2:
        raise _bad_names(f"have a name of {len(literal) - 2} characters (class {class_id}), at most {MAX_NAME_CHARACTERS}")
    try:
        name = ast.literal_eval(literal)  # one short quoted string, checked by the pattern: undoes its escapes
        name = str(name).encode("utf-16", "surrogatepass").decode("utf-16")  # JSON writes rare characters as two halves
    except (SyntaxError, ValueError) as error:
        raise _bad_names(f"have a bad escape in class {class_id}") from error
    if not name.strip() or not name.isprintable():
        raise _bad_names(f"have an empty or unprintable name (class {class_id})")
    return name


def _parse_stride(text: str) -> int:
    size = _SIZE.fullmatch(text[:MAX_VALUE_CHARACTERS])
    if size is None or size[2] is not None or not 1 <= int(size[1]) <= 256:
        raise _bad_entry("stride", text, "a number of pixels from 1 to 256")
    return int(size[1])


def _parse_image_size(text: str) -> tuple[int, int]:
    size = _SIZE.fullmatch(text[:MAX_VALUE_CHARACTERS])
    if size is not None:
        height_width = int(size[1]), int(size[2] or size[1])
        if min(height_width) >= 1 and max(height_width) <= MAX_SIDE_PX:
            return height_width
    raise _bad_entry("imgsz", text, f"one or two sides from 1 to {MAX_SIDE_PX} pixels")


def _parse_flag(key: str, text: str) -> bool:
    word = text[:MAX_VALUE_CHARACTERS].strip().lower()
    if word not in {"true", "false", "none", "null"}:
        raise _bad_entry(key, text, "True or False")
    return word == "true"


def _holds_suppression(arguments: str) -> bool:
    """Whether the export's arguments, a dict as text, say that non-maximum suppression is part of the graph (`nms=True`)."""
    if len(arguments) > MAX_ARGS_CHARACTERS:
        raise _bad_entry("args", arguments, f"at most {MAX_ARGS_CHARACTERS} characters")
    said = _NMS_ARGUMENT.findall(arguments)
    return len(said) == 1 and _parse_flag("args nms", said[0])


def _parse_keypoint_shape(text: str) -> tuple[int, int]:
    shape = _KEYPOINTS.fullmatch(text[:MAX_VALUE_CHARACTERS])
    if shape is None or not 1 <= int(shape[1]) <= MAX_KEYPOINTS:
        raise _bad_entry("kpt_shape", text, "[keypoints, 2 or 3]")
    return int(shape[1]), int(shape[2])


def _bad_names(fault: str) -> NotAModel:
    return NotAModel(f"the class names in the ONNX metadata {fault}; export the model again with Ultralytics")


def _bad_entry(key: str, text: str, expected: str) -> NotAModel:
    return NotAModel(
        f"the ONNX metadata says {key} = {text[:60]!r}, expected {expected}; export the model again with Ultralytics"
    )
