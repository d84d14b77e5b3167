"""A graph that takes the camera's own bytes: uint8 (1, H, W, 3), blue first, instead of floats (1, 3, H, W), red first.

In: a float detector, or one quantised with QDQ nodes. Out: a copy whose first operators are a Transpose and a conversion. In a float
model the division by 255 and the order of colours are folded into the first convolution's weights; the zeros that this convolution
pads with are zeros before and after the division, and the gray of the letterbox is a pixel value, so both stay right. In a quantised
model the bytes *are* the quantised input (scale 1/255, zero point 0) and only the order of colours changes. Needs `onnx`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bowerbird_server.errors import BadInput
from bowerbird_server.quantisation.onnx_graph import Graph, name_nodes

_PICTURE = "picture_planes"
_FLOATS = "picture_floats"


def uint8_input(model: Any) -> Any:
    """The copy.

    Raises:
        BadInput: the input is no float picture of three colours, or something else than one convolution reads it.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    name_nodes(changed.graph)
    graph = Graph(changed.graph)
    image, shape = _picture(changed.graph)
    reader = _only_reader(graph, image.name)
    if reader.op_type == "QuantizeLinear":
        first = _only_reader(graph, reader.output[0])
        conv = _only_reader(graph, first.output[0]) if first.op_type == "DequantizeLinear" else None
        if conv is None or conv.op_type != "Conv" or not _is_a_byte(graph, first):
            raise BadInput(
                "the quantised model does not begin with a convolution of bytes (scale 1/255, zero point 0), so it cannot take "
                "a uint8 picture; quantise it again"
            )
        _reverse_colours(graph, conv, 1.0)
        first.input[0] = _PICTURE
        gone, new = [reader.name], []
    elif reader.op_type == "Conv":
        _reverse_colours(graph, reader, 1 / 255)
        reader.input[0] = _FLOATS
        gone, new = [], [helper.make_node("Cast", [_PICTURE], [_FLOATS], name="picture/floats", to=TensorProto.FLOAT)]
    else:
        raise BadInput(
            f"the model begins with {reader.op_type}, not with a convolution, so it cannot take a uint8 picture; export it again "
            "with Ultralytics"
        )
    transpose = helper.make_node("Transpose", [image.name], [_PICTURE], name="picture/planes", perm=[0, 3, 1, 2])
    nodes = [node for node in changed.graph.node if node.name not in gone]
    del changed.graph.node[:]
    changed.graph.node.extend([transpose, *new, *nodes])
    batch, _, height, width = shape
    image.CopyFrom(helper.make_tensor_value_info(image.name, TensorProto.UINT8, [batch, height, width, 3]))
    onnx.checker.check_model(changed)
    return changed


def _picture(graph: Any) -> tuple[Any, list[int | str]]:
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [each for each in graph.input if each.name not in constants]
    kind = inputs[0].type.tensor_type if len(inputs) == 1 else None
    if kind is None or kind.elem_type != TensorProto.FLOAT or len(kind.shape.dim) != 4 or kind.shape.dim[1].dim_value != 3:
        raise BadInput("the model takes something else than one float32 picture (1, 3, H, W); export it again with Ultralytics")
    return inputs[0], [dim.dim_param or dim.dim_value for dim in kind.shape.dim]


def _only_reader(graph: Graph, name: str) -> Any:
    readers = graph.readers(name)
    if len(readers) != 1:
        raise BadInput(f"{len(readers)} operators read the picture, expected one; export the model again with Ultralytics")
    return readers[0]


def _is_a_byte(graph: Graph, dequantise: Any) -> bool:
    """Whether what is dequantised here is a pixel's byte over 255."""
    scale, *zero = (graph.constant(name) for name in dequantise.input[1:])
    unsigned = bool(zero) and zero[0] is not None and zero[0].dtype == np.uint8 and not zero[0].any()
    return scale is not None and scale.size == 1 and bool(np.isclose(scale, 1 / 255, rtol=1e-5).all()) and unsigned


def _reverse_colours(graph: Graph, conv: Any, factor: float) -> None:
    """Give a convolution weights for blue, green, red, times `factor`, whatever form its weights have."""
    name = conv.input[1]
    made_by = graph.maker.get(name)
    if made_by is not None and made_by.op_type == "DequantizeLinear":
        name = made_by.input[0]  # whole numbers: turning them round is exact
    tensor = graph.initialisers.get(name)
    if tensor is not None and factor == 1.0:
        values = numpy_helper.to_array(tensor)
    else:
        found = graph.constant(conv.input[1])
        if found is None or found.dtype.kind != "f":
            raise BadInput("the first convolution's weights are not in the file; export the model again with Ultralytics")
        values, name = found.astype(np.float32) * np.float32(factor), "picture_weights"
        tensor = graph.proto.initializer.add()
        conv.input[1] = name
    if values.ndim != 4 or values.shape[1] != 3:
        raise BadInput("the first convolution does not read three colours; export the model again with Ultralytics")
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values[:, ::-1]), name))
