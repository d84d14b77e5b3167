"""A handmade YOLO of a few kilobytes: a real ONNX file whose detections the test dictates.

In: class names and the boxes it shall see. Out: an ONNX file that ONNX Runtime, our `OnnxDetector` and
`ultralytics.YOLO("x.onnx")` all load, with the raw head (1, 4 + classes, anchors) or the end-to-end head (1, 300, 6), what a
task adds to them, and the metadata map that Ultralytics writes. It learns nothing and needs neither torch nor ultralytics;
`onnx_models.py` exports real architectures.

The faults that a hostile or broken model shows are switches: NaN, a shape its metadata does not explain, slowness, a second
file of weights. Equal arguments give equal bytes, hence equal digests; `salt` makes an otherwise equal model differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

END_TO_END_ROWS = 300
ANGLE_RAD = 0.5
_SPIN_WIDTH = 192  # one loop of the slow model multiplies two square matrices of this width, a fraction of a millisecond


@dataclass(frozen=True)
class TinyBox:
    """One thing the model sees.

    Args:
        box_xyxy: left, top, right, bottom in network pixels, 0 to `image_size`.
        class_id: index into the class names.
        score: confidence in [0, 1] when it is seen at all.
        seen: "always"; "bright" where the input inside the box is brighter than mid-gray; "dark" where it is darker. Between
            45 % and 55 % gray the score runs from one to the other in a straight line.
    """

    box_xyxy: tuple[float, float, float, float]
    class_id: int = 0
    score: float = 0.9
    seen: Literal["always", "bright", "dark"] = "always"


def write_tiny_yolo(
    path: Path,
    *,
    class_names: Sequence[str] = ("person", "car"),
    boxes: Sequence[TinyBox] = (TinyBox((16.0, 16.0, 48.0, 48.0)),),
    image_size: int = 64,
    end2end: bool = False,
    half: bool = False,
    task: str = "detect",
    embedding_size: int = 0,
    loc_entropy: float | None = None,
    emit_nan: bool = False,
    sleep_loops: int = 0,
    wrong_shape: bool = False,
    external_data: bool = False,
    salt: str = "",
    metadata: Mapping[str, str | None] | None = None,
) -> Path:
    """Write a valid YOLO-like ONNX file and return its path.

    Args:
        path: file to write; its folder must exist.
        class_names: names in class-id order; at least one.
        boxes: what it sees, at most as many as the head has anchors (84 at image size 64, 300 end to end).
        image_size: side of the square input, a multiple of 32.
        end2end: write the head (1, 300, 6) instead of (1, 4 + classes, anchors).
        half: float16 input and outputs.
        task: "segment" adds masks that fill their boxes, "pose" a keypoint in two corners of each, "obb" an angle of `ANGLE_RAD`,
            "classify" emits the softmax over each class's best score, ten times as steep, and no boxes.
        embedding_size: length of a second output "embedding", 0 for none; its values are the mean brightness.
        loc_entropy: value of another output "loc_entropy" for every anchor; None for no such output.
        emit_nan: every output value is NaN.
        sleep_loops: matrix products spent before answering, a fraction of a millisecond each.
        wrong_shape: the head declares no sizes, loads well, and emits three rows or columns too many when it runs. (For a
            head that disagrees with its class names at once, replace the metadata's "names".)
        external_data: keep the weights in a second file beside it, as files over 2 GB must.
        salt: any text; other text, other digest.
        metadata: entries to replace, or to remove where the value is None.
    """
    elem = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    dtype = np.dtype(np.float16 if half else np.float32)
    nc = len(class_names)
    slots = END_TO_END_ROWS if end2end else sum((image_size // stride) ** 2 for stride in (8, 16, 32))
    if not class_names or len(boxes) > slots:
        raise ValueError(f"{nc} classes and {len(boxes)} boxes; at least one class and at most {slots} boxes fit")

    constants: dict[str, NDArray[Any]] = {}
    nodes: list[onnx.NodeProto] = []

    def node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    # Brightness inside every box: mean over channels, then a weighted sum over its rows and one over its columns.
    row_weights, column_weights = _box_weights(boxes, image_size)
    select = np.eye(len(row_weights), slots)  # box k is slot k; the other slots see darkness and score 0
    constants.update(
        row_weights=row_weights.astype(dtype), column_weights=column_weights.astype(dtype), select=select.astype(dtype)
    )
    gray = node("ReduceMean", ["images"], "gray", axes=[1], keepdims=0)
    bands = node("MatMul", ["row_weights", gray], "bands")  # (1, boxes, width)
    inside = node("ReduceMean", [node("Mul", [bands, "column_weights"], "spots")], "inside", axes=[2], keepdims=0)
    brightness = node("MatMul", [inside, "select"], "brightness")  # (1, slots)
    constants.update(
        lowest=np.array(0.45, dtype), slope=np.array(10.0, dtype), zero=np.array(0.0, dtype), one=np.array(1.0, dtype)
    )
    above = node("Mul", [node("Sub", [brightness, "lowest"], "over"), "slope"], "scaled")
    ramp = node("Clip", [above, "zero", "one"], "ramp")  # (1, slots)

    if sleep_loops:
        ramp = _spin(nodes, constants, node, ramp, loops=sleep_loops, elem=elem, dtype=dtype)

    by_light = {name: np.zeros((nc, slots), dtype) for name in ("always", "bright", "dark")}
    geometry = np.zeros((4, slots), dtype)
    for slot, box in enumerate(boxes):
        by_light[box.seen][box.class_id, slot] = box.score
        x1, y1, x2, y2 = box.box_xyxy
        geometry[:, slot] = (x1, y1, x2, y2) if end2end else ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
    scores_shape = (1, nc, slots)
    for name, table in by_light.items():
        constants[f"scores_{name}"] = table.reshape(scores_shape)
    constants["geometry"] = geometry.reshape(1, 4, slots)
    lit = node("Mul", [ramp, "scores_bright"], "lit")
    unlit = node("Mul", [node("Sub", ["one", ramp], "shade"), "scores_dark"], "unlit")
    scores = node("Add", [node("Add", [lit, unlit], "by_light"), "scores_always"], "scores")
    extra = _extra(task, geometry, end2end=end2end)
    added = ["added"] if len(extra) else []
    if added:
        constants["added"] = extra[None].astype(dtype)
    head = node("Concat", ["geometry", scores, *added], "head", axis=1)
    shape: tuple[int, ...] = (1, 4 + nc + len(extra), slots)

    if end2end:
        class_ids = np.zeros((1, 1, slots), dtype)
        for slot, box in enumerate(boxes):
            class_ids[0, 0, slot] = box.class_id
        constants["classes"] = class_ids
        top = node("ReduceMax", [scores], "top", axes=[1], keepdims=1)
        head = node("Concat", ["geometry", top, "classes", *added], "columns", axis=1)
        head = node("Transpose", [head], "rows", perm=[0, 2, 1])
        shape = (1, slots, 6 + len(extra))
    if task == "classify":
        constants["steep"] = np.array(10.0, dtype)
        best = node("ReduceMax", [scores], "best", axes=[2], keepdims=0)
        head = node("Softmax", [node("Mul", [best, "steep"], "logits")], "probabilities", axis=1)
        shape = (1, nc)
    if emit_nan:
        constants["nan"] = np.array(np.nan, dtype)
        head = node("Add", [head, "nan"], "not_a_number")
    if wrong_shape:
        # Three, but computed from the picture: no shape inference finds out before the model runs.
        constants.update(three=np.array([3.0], dtype), one_row=np.array([1], np.int64), all_slots=np.array([slots], np.int64))
        darkest = node("ReduceMin", [node("Mul", [ramp, "zero"], "dimmed")], "darkest", axes=[0, 1], keepdims=0)
        count = node("Cast", [node("Add", [darkest, "three"], "some")], "count", to=TensorProto.INT64)
        sizes = ["one_row", "all_slots", count] if end2end else ["one_row", count, "all_slots"]
        zeros = node("ConstantOfShape", [node("Concat", sizes, "sizes", axis=0)], "zeros")
        extra = node("Cast", [zeros], "extra", to=elem)
        head = node("Concat", [head, extra], "too_wide", axis=2 if end2end else 1)
    node("Identity", [head], "output0")

    declared: Sequence[int | str] = ("batch", "rows", "columns") if wrong_shape else shape
    outputs = [helper.make_tensor_value_info("output0", elem, declared)]
    if task == "segment":
        constants["prototypes"] = np.ones((1, 1, image_size // 4, image_size // 4), dtype)
        node("Identity", ["prototypes"], "output1")
        outputs.append(helper.make_tensor_value_info("output1", elem, constants["prototypes"].shape))
    if loc_entropy is not None:
        constants["entropies"] = np.full((1, slots), loc_entropy, dtype)
        node("Identity", ["entropies"], "loc_entropy")
        outputs.append(helper.make_tensor_value_info("loc_entropy", elem, (1, slots)))
    if embedding_size:
        constants["spread"] = np.ones((1, embedding_size), dtype)
        mean = node("ReduceMean", ["images"], "mean", axes=[1, 2, 3], keepdims=0)
        node("Mul", [node("Reshape", [mean, "column"], "mean_column"), "spread"], "embedding")
        constants["column"] = np.array([1, 1], np.int64)
        outputs.append(helper.make_tensor_value_info("embedding", elem, (1, embedding_size)))

    graph = helper.make_graph(
        nodes,
        "tiny_yolo",
        [helper.make_tensor_value_info("images", elem, (1, 3, image_size, image_size))],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    # Opset 17 and IR 9 load in every ONNX Runtime that we support.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9, producer_name="pytorch")
    entries: dict[str, str | None] = {
        "description": f"tiny handmade YOLO {salt}".strip(),
        "author": "Bowerbird tests",
        "version": "8.4.0",
        "stride": "32",
        "task": task,
        "batch": "1",
        "imgsz": str([image_size, image_size]),
        "names": str(dict(enumerate(class_names))),
        "args": str({"batch": 1, "half": half, "dynamic": False, "simplify": True, "nms": False}),
        "channels": "3",
        "end2end": str(end2end),
        "kpt_shape": "[2, 3]" if task == "pose" else None,
        **(metadata or {}),
    }
    helper.set_model_props(model, {key: value for key, value in entries.items() if value is not None})
    onnx.checker.check_model(model)
    if external_data:
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=256)
    else:
        path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def _extra(task: str, geometry: NDArray[Any], *, end2end: bool) -> NDArray[Any]:
    """What a task's head adds to each box, (e, slots)."""
    slots = geometry.shape[1]
    if task == "segment":
        return np.ones((1, slots))
    if task == "obb":
        return np.full((1, slots), ANGLE_RAD)
    if task == "pose":
        first, second = geometry[:2].astype(float), geometry[2:].astype(float)
        low, high = (first, second) if end2end else (first - second / 2, first + second / 2)
        seen, hidden = np.full((1, slots), 0.9), np.full((1, slots), 0.1)
        return np.concatenate([low, seen, high, hidden])
    return np.zeros((0, slots))


def _box_weights(boxes: Sequence[TinyBox], image_size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Row and column weights, each (boxes or 1, image_size): their outer product averages the pixels inside a box.

    The rows sum to 1 and the columns to `image_size`, because the graph takes a mean over the columns.
    """
    rows = np.zeros((max(len(boxes), 1), image_size))
    columns = np.zeros_like(rows)
    for k, box in enumerate(boxes):
        left, top, right, bottom = (int(min(max(edge, 0), image_size)) for edge in box.box_xyxy)
        if right > left and bottom > top:
            rows[k, top:bottom] = 1.0 / (bottom - top)
            columns[k, left:right] = image_size / (right - left)
    return rows, columns


def _spin(
    nodes: list[onnx.NodeProto],
    constants: dict[str, NDArray[Any]],
    node: Any,
    ramp: str,
    *,
    loops: int,
    elem: int,
    dtype: np.dtype[Any],
) -> str:
    """Burn time in an ONNX Loop whose result is multiplied by zero; `ramp` comes out unchanged."""
    square = (_SPIN_WIDTH, _SPIN_WIDTH)
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["still_going"]),
            helper.make_node("MatMul", ["state", "state"], ["product"]),
            helper.make_node("Tanh", ["product"], ["next_state"]),  # keeps it finite however long it spins
        ],
        "spin",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, ()),
            helper.make_tensor_value_info("going", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("state", elem, square),
        ],
        [
            helper.make_tensor_value_info("still_going", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("next_state", elem, square),
        ],
    )
    constants["turns"] = np.array(loops, np.int64)
    constants["go"] = np.array(True)
    constants["wheel"] = np.full(square, 0.01, dtype)
    mean = node("ReduceMean", [ramp], "spin_start", axes=[0, 1], keepdims=0)  # tied to the input: nothing to fold away
    start = node("Add", ["wheel", mean], "spin_state")
    nodes.append(helper.make_node("Loop", ["turns", "go", start], ["spun"], body=body))
    rest = node("ReduceMean", ["spun"], "spun_mean", axes=[0, 1], keepdims=0)
    nothing = node("Mul", [rest, "zero"], "spun_nothing")
    result: str = node("Add", [ramp, nothing], "ramp_after_spin")
    return result
