"""The transport form of a float model: weights stored in half precision, computed with in single precision.

In: an ONNX model. Out: one of half the bytes: each trained weight is a float16 initialiser with a Cast to float32 behind it, which
every runtime folds when it loads the file. Nothing is computed in half precision: the only difference to the original is that its
weights are rounded to eleven significant bits, once. `restore_full` undoes the form, not the rounding. Biases, scales and the
constants of the decoding stay as they are: they are few, and rounding them moves boxes. Needs `onnx`; child processes only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bowerbird_server.quantisation.onnx_graph import WEIGHTED, Graph, attributes, entry, set_entry
from bowerbird_server.quantisation.quantise import FORM, HALF

MAX_HALF = float(np.finfo(np.float16).max)
_SMALLEST = 64  # numbers; below that a Cast costs more bytes than it saves


def store_half(model: Any) -> Any:
    """A copy in transport form; a model that is in it, or whose weights are halves anyway, comes back as it is."""
    if entry(model, FORM) == HALF or has_half_weights(model):
        return model
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    weights = _weights(Graph(graph))
    casts = []
    for tensor in graph.initializer:
        if tensor.name not in weights or tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size < _SMALLEST or not np.isfinite(values).all() or np.abs(values).max() > MAX_HALF:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}__half"))
        casts.append(helper.make_node("Cast", [f"{name}__half"], [name], name=f"{name}__cast", to=TensorProto.FLOAT))
    if not casts:
        return model
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *nodes])
    set_entry(changed, FORM, HALF)
    onnx.checker.check_model(changed)
    return changed


def restore_full(model: Any) -> Any:
    """A copy with the weights in single precision again, for tools that look for them in initialisers."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    index = Graph(graph)
    kept = []
    for node in graph.node:
        stored = index.initialisers.get(node.input[0]) if node.op_type == "Cast" else None
        is_ours = stored is not None and stored.data_type == TensorProto.FLOAT16 and attributes(node)["to"] == TensorProto.FLOAT
        if stored is None or not is_ours or len(index.readers(node.input[0])) > 1:
            kept.append(node)
            continue
        full = numpy_helper.to_array(stored).astype(np.float32)
        stored.CopyFrom(numpy_helper.from_array(full, node.output[0]))
    del graph.node[:]
    graph.node.extend(kept)
    entries = [each for each in changed.metadata_props if each.key != FORM]
    del changed.metadata_props[:]
    changed.metadata_props.extend(entries)
    return changed


def has_half_weights(model: Any) -> bool:
    """Whether the trained weights are halves already (an export with `quantize=16`)."""
    graph = Graph(model.graph)
    kinds = [graph.initialisers[name].data_type for name in _weights(graph) if name in graph.initialisers]
    return bool(kinds) and kinds.count(TensorProto.FLOAT16) * 2 > len(kinds)


def _weights(graph: Graph) -> set[str]:
    """Initialisers that a trained layer multiplies its input by."""
    return {node.input[1] for node in graph.proto.node if node.op_type in WEIGHTED and len(node.input) > 1}
