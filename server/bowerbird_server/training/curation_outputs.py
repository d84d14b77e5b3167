"""Two more outputs for an exported detector: how the whole frame looks to it, and how unsure it is of each box.

In: an exported ONNX file. Out: the same with "embedding" (1, d), the global average of each feature map that enters the head, and, for
heads with distribution focal loss, "loc_entropy" (1, anchors) in [0, 1]: the mean over a box's four sides of the entropy of where
that side lies, over its greatest possible value. Each is kept only if every detection stays the same to the bit, on ONNX Runtime and,
where it is installed, on OpenVINO at f32. A model that cannot have them is left as it is. Runs in the training process only.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bowerbird_models.errors import ModelError
from bowerbird_models.model_file import ModelFile
from bowerbird_models.runtime_options import OPENVINO_CPU, RuntimeOptions
from bowerbird_models.runtimes import available, open_session
from bowerbird_server.quantisation.onnx_graph import Graph, opset, set_entry

logger = logging.getLogger(__name__)

EMBEDDING_OUTPUT = "embedding"
LOC_ENTROPY_OUTPUT = "loc_entropy"
_PROBES = 3


def add_curation_outputs(plain: Path, target: Path, head_inputs: tuple[int, ...], channels: tuple[int, ...]) -> tuple[str, ...]:
    """Copy an exported detector and give it the outputs that it can have; returns their names.

    Args:
        plain: as Ultralytics exports it.
        target: where the copy goes, also when nothing could be added.
        head_inputs: numbers of the layers that feed the head (`model.model[-1].f`).
        channels: of each of those.
    """
    model = onnx.load(str(plain))
    added: list[str] = []
    for name in (EMBEDDING_OUTPUT, LOC_ENTROPY_OUTPUT):
        candidate = onnx.ModelProto()
        candidate.CopyFrom(model)
        try:
            if name == EMBEDDING_OUTPUT:
                add_embedding(candidate, head_inputs, channels)
            else:
                add_loc_entropy(candidate)
            onnx.checker.check_model(candidate)
            onnx.save(candidate, str(target))
            compare(plain, target)
        except ValueError as fault:
            logger.warning("exported without the output %s: %s", name, fault)
            continue
        model = candidate
        added.append(name)
    onnx.save(model, str(target))
    return tuple(added)


def add_embedding(model: Any, head_inputs: tuple[int, ...], channels: tuple[int, ...]) -> None:
    """Add the output "embedding" to a model, in place.

    Raises:
        ValueError: the feature maps cannot be told in the graph.
    """
    graph = model.graph
    pooled = []
    for i, (layer, count) in enumerate(zip(head_inputs, channels, strict=True)):
        name = _feature_map(graph, layer, count)
        graph.node.append(helper.make_node("GlobalAveragePool", [name], [f"embedding_pool_{i}"], name=f"embedding/pool_{i}"))
        graph.node.append(
            helper.make_node("Flatten", [f"embedding_pool_{i}"], [f"embedding_flat_{i}"], name=f"embedding/flat_{i}", axis=1)
        )
        pooled.append(f"embedding_flat_{i}")
    graph.node.append(helper.make_node("Concat", pooled, [EMBEDDING_OUTPUT], name="embedding/concat", axis=1))
    graph.output.append(helper.make_tensor_value_info(EMBEDDING_OUTPUT, TensorProto.FLOAT, [1, sum(channels)]))
    set_entry(model, EMBEDDING_OUTPUT, str(sum(channels)))


def add_loc_entropy(model: Any) -> None:
    """Add the output "loc_entropy" to a model whose head has distribution focal loss, in place.

    With probabilities p and logits z of one side, the entropy is log(sum exp z) - sum p z, and log(sum exp z) is max z - log(max p):
    the only logarithm is taken of one number a side, not of every bin.

    Raises:
        ValueError: the head has none (yolo26), or it is end to end, so that its rows are no anchors any more.
    """
    graph = model.graph
    dfl = Graph(graph).dfl()
    if dfl is None:
        raise ValueError("the head has no distribution focal loss")
    head = graph.output[0].type.tensor_type
    shape = [dim.dim_value for dim in head.shape.dim]
    if len(shape) != 3 or any(node.op_type in {"TopK", "NonMaxSuppression"} for node in graph.node):
        raise ValueError("the head is end to end: its rows are boxes, not anchors")
    if head.elem_type != TensorProto.FLOAT:
        raise ValueError("the model computes in half precision")
    logits, p = dfl.softmax.input[0], dfl.softmax.output[0]
    version = opset(model)

    def constant(name: str, value: Any) -> str:
        graph.initializer.append(numpy_helper.from_array(value, f"loc_entropy_{name}"))
        return f"loc_entropy_{name}"

    def node(kind: str, inputs: list[str], name: str, **given: Any) -> str:
        output = name if name == LOC_ENTROPY_OUTPUT else f"loc_entropy_{name}"
        graph.node.append(helper.make_node(kind, inputs, [output], name=f"loc_entropy/{name}", **given))
        return output

    def reduce(kind: str, over: str, name: str) -> str:
        axes_are_an_input = version >= 18 or kind == "ReduceSum"
        if axes_are_an_input:
            return node(kind, [over, axes], name, keepdims=0)
        return node(kind, [over], name, keepdims=0, axes=[1])

    axes = constant("axis", np.array([1], np.int64))
    top = reduce("ReduceMax", logits, "top_logit")
    top_p = node("Log", [reduce("ReduceMax", p, "top_p")], "log_top_p")
    mean = reduce("ReduceSum", node("Mul", [p, logits], "weighed"), "mean_logit")
    entropy = node("Sub", [node("Sub", [top, top_p], "log_sum"), mean], "nats")  # (1, 4, anchors)
    sides = reduce("ReduceMean", entropy, "sides")
    share = node("Mul", [sides, constant("scale", np.array(1 / np.log(dfl.bins), np.float32))], "share")
    node(
        "Clip", [share, constant("none", np.array(0, np.float32)), constant("all", np.array(1, np.float32))], LOC_ENTROPY_OUTPUT
    )
    anchors = shape[2] if shape[2] > 0 else "anchors"
    graph.output.append(helper.make_tensor_value_info(LOC_ENTROPY_OUTPUT, TensorProto.FLOAT, [1, anchors]))
    set_entry(model, LOC_ENTROPY_OUTPUT, str(dfl.bins))


def _feature_map(graph: Any, layer: int, channels: int) -> str:
    """The tensor that layer `layer` hands to the head: its last output that another layer's node reads.

    Ultralytics' exporter keeps the module's path in each node's name (`/model.16/cv2/act/Mul`).
    """
    prefix = f"/model.{layer}/"
    mine = [node for node in graph.node if node.name.startswith(prefix)]
    if not mine:
        raise ValueError(f"no node of layer {layer} in the graph")
    read_elsewhere = {name for node in graph.node if not node.name.startswith(prefix) for name in node.input}
    outputs = [name for node in mine for name in node.output if name in read_elsewhere]
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in graph.value_info}
    if len(outputs) != 1:
        raise ValueError(f"layer {layer} hands on {len(outputs)} tensors; expected one")
    shape = shapes.get(outputs[0])
    if shape is not None and (len(shape) != 4 or shape[1] != channels):
        raise ValueError(f"layer {layer} hands on a tensor of shape {shape}; expected {channels} channels")
    return str(outputs[0])


def compare(plain: Path, extended: Path) -> None:
    """Same input, same detections to the bit, on every runtime of the processor that is installed; what is new must be finite.

    Raises:
        ValueError: they are not.
    """
    runtimes = [each.name for each in available() if each.usable and each.name in {"onnxruntime-cpu", OPENVINO_CPU}]
    for runtime in runtimes:
        options = RuntimeOptions(runtime)  # computes in fp32, whatever this processor would like better
        try:
            sessions = [open_session(ModelFile.read(path), options) for path in (plain, extended)]
        except ModelError as fault:
            raise ValueError(f"{runtime} does not load it: {fault}") from fault
        image = sessions[0].inputs[0]
        shape = [1 if side is None and place == 0 else side or 256 for place, side in enumerate(image.shape)]
        tensor = np.empty(shape, image.dtype)
        heads = [output.name for output in sessions[0].outputs]
        ours = [output.name for output in sessions[1].outputs if output.name not in heads]
        before, after = sessions[0].bind(tensor, heads, fixed=False), sessions[1].bind(tensor, [*heads, *ours], fixed=False)
        rng = np.random.default_rng(0)
        for _ in range(_PROBES):
            tensor[...] = rng.random(shape, np.float32)
            old = [np.array(output) for output in before()]
            new = after()
            if not all(np.array_equal(one, other) for one, other in zip(old, new[: len(old)], strict=True)):
                raise ValueError(f"it changes the detections on {runtime}")
            if not all(np.isfinite(output).all() for output in new[len(old) :]):
                raise ValueError(f"it is not finite on {runtime}")
        for session in sessions:
            session.close()
