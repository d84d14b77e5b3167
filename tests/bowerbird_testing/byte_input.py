"""Any of the tests' models with a picture of bytes as its input: uint8 (1, H, W, 3) in BGR, as packages carry it.

In: an ONNX file that takes float32 (1, 3, H, W) RGB in [0, 1]. Out: one that casts, scales and reorders inside.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx


def take_bytes(path: Path, target: Path) -> Path:
    """Write the model of `path` with a uint8 input to `target`."""
    model = onnx.load(path)
    graph, old = model.graph, model.graph.input[0]
    height, width = (side.dim_value for side in old.type.tensor_type.shape.dim[2:])
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(1 / 255, np.float32), "per_byte"))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 1, 0], np.int64), "red_green_blue"))
    steps = [
        onnx.helper.make_node("Cast", ["pixels"], ["real"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Mul", ["real", "per_byte"], ["unit"]),
        onnx.helper.make_node("Gather", ["unit", "red_green_blue"], ["rgb"], axis=3),
        onnx.helper.make_node("Transpose", ["rgb"], [old.name], perm=[0, 3, 1, 2]),
    ]
    nodes = [*steps, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.UINT8, (1, height, width, 3)))
    onnx.checker.check_model(model)
    target.write_bytes(model.SerializeToString())
    return target
