"""A handmade YOLO with real layers: strided convolutions, SiLU, a head with distribution focal loss, Ultralytics' decoding.

In: a side and class names. Out: an ONNX file that sees bright squares of 16 pixels on a dark ground, one class each brightness. What an
exporter would write is here in small: a convolution stem, `/model.N/` node names, the DFL's transpose, softmax and 1x1 convolution.
`tiny_yolo.py` has no layer to quantise; `onnx_models.py` takes seconds and Ultralytics.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

STRIDE = 8
SQUARE_PX = 16
BINS = 16
CHANNELS = 16
FEATURE_LAYER = 2


def write_conv_yolo(
    path: Path,
    *,
    image_size: int = 64,
    class_names: Sequence[str] = ("square", "never"),
    dfl: bool = True,
    end2end: bool = False,
    opset: int = 18,
    seed: int = 0,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write the model and return its path.

    Args:
        image_size: side of the square input, a multiple of 8.
        class_names: the first is found where it is bright.
        dfl: the head regresses distributions; without, four distances (as yolo26 does).
        end2end: a TopK follows, so that rows are no anchors.
        opset: of ONNX's operators.
        seed: of the weights that mean nothing.
        metadata: entries beside those that Ultralytics writes.
    """
    rng = np.random.default_rng(seed)
    cells = image_size // STRIDE
    anchors, nc = cells * cells, len(class_names)
    constants: dict[str, NDArray[Any]] = {}
    nodes: list[Any] = []

    def node(op: str, inputs: Sequence[str], output: str, name: str = "", **attributes: Any) -> str:
        nodes.append(helper.make_node(op, list(inputs), [output], name=name or f"/model.3/{output}", **attributes))
        return output

    def conv(source: str, name: str, weight: NDArray[np.float32], bias: NDArray[np.float32], stride: int, layer: str) -> str:
        constants[f"{name}.weight"], constants[f"{name}.bias"] = weight, bias
        side = weight.shape[2]
        sizes = {"kernel_shape": [side, side], "strides": [stride, stride], "pads": [side // 2] * 4}
        return node("Conv", [source, f"{name}.weight", f"{name}.bias"], f"{name}_out", f"{layer}/conv/Conv", **sizes)

    features = "images"
    inputs = 3
    for layer in range(3):
        # Channel 0 carries the mean brightness through; the others are there to be quantised too.
        weight = rng.normal(0, 0.2, (CHANNELS, inputs, 3, 3)).astype(np.float32)
        weight[0] = 0
        weight[0, : 3 if layer == 0 else 1] = 2.0 / (27 if layer == 0 else 9)
        at = f"/model.{layer}"
        out = conv(features, f"model.{layer}", weight, np.zeros(CHANNELS, np.float32), 2, at)
        gate = node("Sigmoid", [out], f"model.{layer}_gate", f"{at}/act/Sigmoid")
        features = node("Mul", [out, gate], f"model.{layer}_act", f"{at}/act/Mul")
        inputs = CHANNELS

    sides = BINS if dfl else 1
    box_weight = rng.normal(0, 0.02, (4 * sides, CHANNELS, 1, 1)).astype(np.float32)
    reach = SQUARE_PX / 2 / STRIDE
    box_bias = np.zeros((4, sides), np.float32)
    if dfl:
        box_bias[:, round(reach)] = 10.0
    else:
        box_bias[:] = reach
    class_weight = rng.normal(0, 0.05, (nc, CHANNELS, 1, 1)).astype(np.float32)
    class_weight[0] = 0
    class_weight[0, 0] = 3.0
    class_bias = np.full(nc, -9.0, np.float32)
    class_bias[0] = -10.0
    raw_boxes = conv(features, "box", box_weight, box_bias.reshape(-1), 1, "/model.3/box")
    raw_classes = conv(features, "cls", class_weight, class_bias, 1, "/model.3/cls")
    constants.update(flat_boxes=np.array([1, 4 * sides, -1]), flat_classes=np.array([1, nc, -1]), four=np.array([1, 4, -1]))
    distances = node("Reshape", [raw_boxes, "flat_boxes"], "distances")
    scores = node("Sigmoid", [node("Reshape", [raw_classes, "flat_classes"], "class_logits")], "class_scores")
    if dfl:
        constants.update(bins=np.array([1, 4, BINS, -1]), mean=np.arange(BINS, dtype=np.float32).reshape(1, BINS, 1, 1))
        logits = node("Transpose", [node("Reshape", [distances, "bins"], "binned")], "logits", perm=[0, 2, 1, 3])
        mean = node("Conv", [node("Softmax", [logits], "p", axis=1), "mean"], "mean_bin", kernel_shape=[1, 1])
        distances = node("Reshape", [mean, "four"], "sides")
    grid = (np.stack(np.meshgrid(np.arange(cells), np.arange(cells))).reshape(1, 2, anchors) + 0.5).astype(np.float32)
    constants.update(
        grid=grid,
        halves=np.array([2, 2]),
        two=np.array(2, np.float32),
        stride=np.array(STRIDE, np.float32),
    )
    if opset >= 13:
        nodes.append(helper.make_node("Split", [distances, "halves"], ["lt", "rb"], name="/model.3/split", axis=1))
    else:
        nodes.append(helper.make_node("Split", [distances], ["lt", "rb"], name="/model.3/split", axis=1, split=[2, 2]))
    first, last = node("Sub", ["grid", "lt"], "first"), node("Add", ["grid", "rb"], "last")
    centre = node("Div", [node("Add", [first, last], "sum"), "two"], "centre")
    size = node("Sub", [last, first], "size")
    boxes = node("Mul", [node("Concat", [centre, size], "cells", axis=1), "stride"], "boxes")
    head = "output0"
    shape = [1, 4 + nc, anchors]
    if end2end:
        constants["ten"] = np.array([10])
        rows = node("Transpose", [node("Concat", [boxes, scores], "all", axis=1)], "rows", perm=[0, 2, 1])
        nodes.append(helper.make_node("TopK", [rows, "ten"], ["output0", "places"], name="/model.3/TopK", axis=1))
        shape = [1, 10, 4 + nc]
    else:
        node("Concat", [boxes, scores], head, axis=1)
    size_info = [1, 3, image_size, image_size]
    graph = helper.make_graph(
        nodes,
        "conv_yolo",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, size_info)],
        [helper.make_tensor_value_info(head, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9, producer_name="pytorch")
    entries = {
        "description": f"handmade YOLO with layers {seed}",
        "stride": "32" if image_size % 32 == 0 else "8",
        "task": "detect",
        "imgsz": str([image_size, image_size]),
        "names": str(dict(enumerate(class_names))),
        "end2end": "False",
        **(metadata or {}),
    }
    helper.set_model_props(model, entries)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def squares(count: int, *, image_size: int = 64, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A dark, noisy picture (H, W, 3) with `count` bright squares where cells have their middle, and their boxes (count, 4)."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 40, (image_size, image_size, 3)).astype(np.uint8)
    cells = image_size // STRIDE
    places = [(row, column) for row in range(1, cells - 1, 3) for column in range(1, cells - 1, 3)]
    boxes = []
    for index in rng.choice(len(places), min(count, len(places)), replace=False):
        row, column = places[index]
        top, left = round((row + 0.5) * STRIDE - SQUARE_PX / 2), round((column + 0.5) * STRIDE - SQUARE_PX / 2)
        image[top : top + SQUARE_PX, left : left + SQUARE_PX] = rng.integers(200, 256)
        boxes.append([left, top, left + SQUARE_PX, top + SQUARE_PX])
    return image, np.array(boxes, np.float32).reshape(-1, 4)
