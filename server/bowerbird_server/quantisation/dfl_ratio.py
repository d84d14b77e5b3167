"""The mean under a softmax, computed as a ratio of two sums: the same numbers for a fraction of the time.

In: a quantised detector whose DFL logits are known to be small. Out: the same model with sum(i exp z) / sum(exp z) in place of
transpose, softmax over the second axis and 1x1 convolution; ONNX Runtime's softmax over an axis that is not the last one takes a
tenth of a quantised yolo11n. Subtracting the largest logit first, as softmax does against overflow, is not needed where a bound is
known, and int8 gives one. For float models nothing is known, and they stay as they are. Needs `onnx`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bowerbird_server.quantisation.onnx_graph import Graph, opset
from bowerbird_server.training.curation_outputs import LOC_ENTROPY_OUTPUT

MAX_LOGIT = 60.0  # exp(60) * reg_max is far from float32's greatest number, exp(-60) far from its smallest


def ratio_of_sums(model: Any, bound: float) -> bool:
    """Change a model in place; False, and nothing changed, where its head has no such softmax or it cannot be replaced.

    Args:
        model: its nodes have names of their own.
        bound: no logit is further from zero.
    """
    graph = Graph(model.graph)
    dfl = graph.dfl()
    if dfl is None or not dfl.source or bound > MAX_LOGIT:
        return False
    mean = dfl.conv.output[0]
    if len(dfl.conv.input) > 2 or any(reader.op_type != "Reshape" for reader in graph.readers(mean)):
        return False
    gone = {dfl.softmax.name, dfl.conv.name, graph.maker[dfl.softmax.input[0]].name}
    entropy = _entropy_nodes(graph)
    other_readers = [*graph.readers(dfl.softmax.output[0]), *graph.readers(dfl.softmax.input[0])]
    if any(reader.name not in gone | entropy for reader in other_readers):
        return False

    nodes: list[Any] = []

    def constant(name: str, value: Any) -> str:
        model.graph.initializer.append(numpy_helper.from_array(value, f"dfl_{name}"))
        return f"dfl_{name}"

    def node(kind: str, inputs: list[str], outputs: list[str], **given: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, outputs, name=f"dfl/{outputs[0]}", **given))
        return outputs[0]

    bins = np.arange(dfl.bins, dtype=np.float32)
    both = constant("bins_and_ones", np.stack([bins, np.ones_like(bins)]))
    powers = node("Exp", [dfl.source], ["dfl_powers"])  # (1, 4, bins, anchors)
    sums = node("MatMul", [both, powers], ["dfl_sums"])  # (1, 4, 2, anchors)
    node("Split", [sums, constant("one_each", np.array([1, 1], np.int64))], ["dfl_weighted", "dfl_total"], axis=2)
    node("Div", ["dfl_weighted", "dfl_total"], [mean])
    if entropy:
        # log(sum exp z) - sum(z exp z) / sum(exp z), over its greatest value
        axis = constant("bin_axis", np.array([2], np.int64))
        weighed = node("Mul", [dfl.source, powers], ["dfl_logit_powers"])
        node("ReduceSum", [weighed, axis], ["dfl_logit_sum"], keepdims=1)
        node("Div", ["dfl_logit_sum", "dfl_total"], ["dfl_mean_logit"])
        nats = node("Sub", [node("Log", ["dfl_total"], ["dfl_log_total"]), "dfl_mean_logit"], ["dfl_nats"])
        if opset(model) >= 18:
            node("ReduceMean", [nats, constant("sides", np.array([1, 2], np.int64))], ["dfl_entropy"], keepdims=0)
        else:
            node("ReduceMean", [nats], ["dfl_entropy"], keepdims=0, axes=[1, 2])
        share = node("Mul", ["dfl_entropy", constant("scale", np.array(1 / np.log(dfl.bins), np.float32))], ["dfl_share"])
        ends = [constant("least", np.array(0, np.float32)), constant("most", np.array(1, np.float32))]
        node("Clip", [share, *ends], [LOC_ENTROPY_OUTPUT])
    kept: list[Any] = []
    for each in model.graph.node:
        if each.name == dfl.conv.name:
            kept.extend(nodes)
        elif each.name not in gone | entropy:
            kept.append(each)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    onnx.checker.check_model(model)
    return True


def _entropy_nodes(graph: Graph) -> frozenset[str]:
    """Names of the nodes that work for nothing but the localisation entropy."""
    found: set[str] = set()
    wanted = [LOC_ENTROPY_OUTPUT] if LOC_ENTROPY_OUTPUT in graph.output_names else []
    while wanted:
        tensor = wanted.pop()
        made_by = graph.maker.get(tensor)
        if made_by is None or made_by.op_type == "Constant":
            continue
        alone = tensor == LOC_ENTROPY_OUTPUT or (
            tensor not in graph.output_names and all(reader.name in found for reader in graph.readers(tensor))
        )
        if alone and made_by.name not in found:
            found.add(made_by.name)
            wanted.extend(made_by.input)
    return frozenset(found)
