"""Looking at an ONNX graph by its structure: who makes a tensor, who reads it, what is constant, where the box decoding begins.

In: a `GraphProto`. Out: nodes and arrays. Names that an exporter chose are never relied on. It changes nothing. Needs the `onnx`
package (extra `train`) and is imported in child processes only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from numpy.typing import NDArray

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose second input is a weight where it is constant."""


@dataclass(frozen=True)
class DflSoftmax:
    """The softmax of distribution focal loss and what follows it.

    Args:
        softmax: reads the logits, (1, bins, 4, anchors), and makes probabilities along axis 1.
        conv: the 1x1 convolution that takes the mean of the bin numbers under these probabilities.
        bins: `reg_max`, 2 or more.
        source: the tensor that was transposed into the softmax, (1, 4, bins, anchors); "" where there was none.
    """

    softmax: Any
    conv: Any
    bins: int
    source: str


class Graph:
    """An index over a `GraphProto` that is not changed meanwhile."""

    def __init__(self, graph: Any) -> None:
        self.proto = graph

    @cached_property
    def maker(self) -> dict[str, Any]:
        """Tensor -> the node that makes it."""
        return {name: node for node in self.proto.node for name in node.output if name}

    @cached_property
    def _readers(self) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for node in self.proto.node:
            for name in dict.fromkeys(node.input):
                found.setdefault(name, []).append(node)
        return found

    @cached_property
    def initialisers(self) -> dict[str, Any]:
        """Name -> `TensorProto`."""
        return {tensor.name: tensor for tensor in self.proto.initializer}

    @cached_property
    def output_names(self) -> frozenset[str]:
        """Tensors that leave the graph."""
        return frozenset(output.name for output in self.proto.output)

    def readers(self, name: str) -> list[Any]:
        """The nodes that read a tensor, each once."""
        return self._readers.get(name, [])

    def constant(self, name: str) -> NDArray[Any] | None:
        """The value of a tensor that is the same for every picture, casts and quantisation undone; None for any other."""
        if name in self.initialisers:
            return np.asarray(numpy_helper.to_array(self.initialisers[name]))
        node = self.maker.get(name)
        if node is None:
            return None
        if node.op_type == "Constant":
            value = next((helper.get_attribute_value(each) for each in node.attribute if each.name == "value"), None)
            return None if value is None else np.asarray(numpy_helper.to_array(value))
        if node.op_type in {"Identity", "Cast"}:
            inner = self.constant(node.input[0])
            is_float = node.op_type == "Identity" or attributes(node)["to"] == 1
            return inner if inner is None or not is_float or node.op_type == "Identity" else inner.astype(np.float32)
        if node.op_type == "DequantizeLinear":
            return self._dequantised(node)
        return None

    def _dequantised(self, node: Any) -> NDArray[Any] | None:
        parts = [self.constant(name) for name in node.input]
        if any(part is None for part in parts):
            return None
        values, scale, *zero = (np.asarray(part) for part in parts)
        shifted = values.astype(np.float32) - (zero[0].astype(np.float32).reshape(_along(values, zero[0], node)) if zero else 0)
        return np.asarray(shifted * scale.reshape(_along(values, scale, node)), np.float32)

    def is_weighted(self, node: Any) -> bool:
        """Whether a node multiplies its input by trained weights; the mean under a DFL softmax is no training's work."""
        if node.op_type not in WEIGHTED or len(node.input) < 2 or self.constant(node.input[1]) is None:
            return False
        made_by = self.maker.get(node.input[0])
        return made_by is None or made_by.op_type != "Softmax"

    def decoding(self) -> frozenset[str]:
        """Names of the nodes that no trained layer follows: from the last layers' numbers to boxes, scores and curation outputs.

        Their tensors mix pixels, probabilities and class ids, which no single scale of 256 steps can hold: quantising them was
        measured to give mAP 0. Nodes without a name are not listed; `name_nodes` gives every node one.
        """
        before: set[int] = set()  # nodes on a way to a trained layer
        waiting = [node for node in self.proto.node if self.is_weighted(node)]
        trained = {id(node) for node in waiting}
        while waiting:
            node = waiting.pop()
            for name in node.input:
                made_by = self.maker.get(name)
                if made_by is not None and id(made_by) not in before:
                    before.add(id(made_by))
                    waiting.append(made_by)
        return frozenset(
            node.name for node in self.proto.node if id(node) not in before and id(node) not in trained and node.name
        )

    def dfl(self) -> DflSoftmax | None:
        """The softmax of a head with distribution focal loss, found by what follows it; None for a head without."""
        for softmax in self.proto.node:
            if softmax.op_type != "Softmax":
                continue
            followers = self.readers(softmax.output[0])
            for conv in followers:
                weight = self.constant(conv.input[1]) if conv.op_type == "Conv" else None
                if weight is None or weight.ndim != 4 or weight.shape[0] != 1 or weight.shape[2:] != (1, 1):
                    continue
                bins = weight.shape[1]
                if bins > 1 and np.array_equal(weight.reshape(-1), np.arange(bins)):
                    before = self.maker.get(softmax.input[0])
                    swaps = before is not None and before.op_type == "Transpose"
                    swaps = swaps and list(attributes(before).get("perm", [])) == [0, 2, 1, 3]
                    return DflSoftmax(softmax, conv, bins, before.input[0] if swaps and before is not None else "")
        return None


def attributes(node: Any) -> dict[str, Any]:
    """A node's attributes as Python values."""
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def opset(model: Any) -> int:
    """Version of ONNX's own operators that a model uses."""
    return next((int(each.version) for each in model.opset_import if each.domain in {"", "ai.onnx"}), 1)


def name_nodes(graph: Any) -> None:
    """Give every node a name of its own; ONNX allows nodes without and names twice."""
    seen: set[str] = set()
    for number, node in enumerate(graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.name or node.op_type}__{number}"
        seen.add(node.name)


def entry(model: Any, key: str) -> str | None:
    """A value of the metadata map, or None."""
    return next((each.value for each in model.metadata_props if each.key == key), None)


def set_entry(model: Any, key: str, value: str) -> None:
    """Write a value into the metadata map, in the place of an older one."""
    for each in model.metadata_props:
        if each.key == key:
            each.value = value
            return
    added = model.metadata_props.add()
    added.key, added.value = key, value


def _along(values: NDArray[Any], part: NDArray[Any], node: Any) -> tuple[int, ...]:
    """The shape in which a scale or zero point meets the values: one number, or one for each slice along an axis."""
    if part.size == 1:
        return (1,) * values.ndim
    axis = int(attributes(node).get("axis", 1))
    return tuple(part.size if side == axis % values.ndim else 1 for side in range(values.ndim))
