"""Checkpoint -> ONNX with the embedding output, inside the training process (imports torch and Ultralytics).

In: a `.pt` of ours. Out: an ONNX file with Ultralytics' metadata, whose first output is the detection head as Ultralytics exports
it and whose second, "embedding", is the global average of each feature map that enters the head, one after the other. The
detections are compared bit by bit with the plain export before the file is kept. Only `train_child.py` calls this.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from bowerbird_server.train import TrainingFailed

logger = logging.getLogger(__name__)

EMBEDDING_OUTPUT = "embedding"
_PROBES = 3


def export_onnx(weights: Path, target: Path, image_size: int) -> Path:
    """Export a checkpoint; the file appears under its name only when it is whole.

    Args:
        weights: `.pt`, trusted.
        target: the ONNX file to write.
        image_size: side of the square input in pixels, a multiple of 32.

    Raises:
        TrainingFailed: Ultralytics wrote no file.
    """
    from ultralytics import YOLO

    model = YOLO(str(weights))
    head_inputs = tuple(model.model.model[-1].f)
    # Ultralytics names the file after the weights, beside them.
    work = target.parent / f".export-{os.getpid()}"
    work.mkdir(parents=True, exist_ok=True)
    try:
        copy = work / "model.pt"
        shutil.copyfile(weights, copy)
        channels = _head_channels(model, image_size)
        plain = Path(YOLO(str(copy)).export(format="onnx", imgsz=image_size, simplify=_can_slim(), device="cpu"))
        if not plain.is_file():
            raise TrainingFailed(f"Ultralytics exported no ONNX file from {weights}; see the log beside it")
        finished = plain
        extended = work / "embedding.onnx"
        try:
            add_embedding(plain, extended, head_inputs, channels)
            finished = extended
        except ValueError as fault:
            logger.warning("exported without the embedding output: %s", fault)
        _clean_metadata(finished)
        finished.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _clean_metadata(path: Path) -> None:
    """Drop the time of the export and the paths of this machine: equal weights shall give equal bytes, and tell nothing else."""
    model = onnx.load(str(path))
    entries = {entry.key: entry.value for entry in model.metadata_props if entry.key != "date"}
    entries["description"] = entries.get("description", "").split(" trained on ")[0]
    del model.metadata_props[:]
    for key in sorted(entries):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, entries[key]
    onnx.save(model, str(path))


def _can_slim() -> bool:
    """Whether the optional simplifier is there in a version that Ultralytics accepts (it may not install one by itself)."""
    try:
        import onnxslim
    except ImportError:
        return False
    numbers = [int(part) for part in onnxslim.__version__.split(".")[:3] if part.isdigit()]
    return numbers >= [0, 1, 82]


def _head_channels(model: Any, image_size: int) -> tuple[int, ...]:
    """How many channels each feature map has that enters the detection head."""
    import torch

    seen: list[tuple[int, ...]] = []
    network = model.model.eval()
    hook = network.model[-1].register_forward_pre_hook(lambda _, inputs: seen.append(tuple(x.shape[1] for x in inputs[0])))
    with torch.no_grad():
        network(torch.zeros(1, 3, image_size, image_size))
    hook.remove()
    return seen[0]


def add_embedding(plain: Path, target: Path, head_inputs: tuple[int, ...], channels: tuple[int, ...]) -> None:
    """Copy an exported detector and give it the second output.

    Args:
        plain: as Ultralytics exports it.
        target: where the copy goes.
        head_inputs: numbers of the layers that feed the head (`model.model[-1].f`).
        channels: of each of those.

    Raises:
        ValueError: the feature maps cannot be told in the graph, or the detections would change by a bit.
    """
    graph_file = onnx.load(str(plain))
    graph = graph_file.graph
    maps = [_feature_map(graph, layer, count) for layer, count in zip(head_inputs, channels, strict=True)]
    pooled = []
    for i, name in enumerate(maps):
        graph.node.append(helper.make_node("GlobalAveragePool", [name], [f"embedding_pool_{i}"], name=f"embedding/pool_{i}"))
        graph.node.append(
            helper.make_node("Flatten", [f"embedding_pool_{i}"], [f"embedding_flat_{i}"], name=f"embedding/flat_{i}", axis=1)
        )
        pooled.append(f"embedding_flat_{i}")
    graph.node.append(helper.make_node("Concat", pooled, [EMBEDDING_OUTPUT], name="embedding/concat", axis=1))
    graph.output.append(helper.make_tensor_value_info(EMBEDDING_OUTPUT, TensorProto.FLOAT, [1, sum(channels)]))
    entry = graph_file.metadata_props.add()
    entry.key, entry.value = EMBEDDING_OUTPUT, str(sum(channels))
    onnx.checker.check_model(graph_file)
    onnx.save(graph_file, str(target))
    _compare(plain, target)


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


def _compare(plain: Path, extended: Path) -> None:
    """Same input, same detections, to the bit."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]) for path in (plain, extended)
    ]
    image = sessions[0].get_inputs()[0]
    rng = np.random.default_rng(0)
    for _ in range(_PROBES):
        batch = rng.random(image.shape, np.float32)
        before, after = (session.run(None, {image.name: batch}) for session in sessions)
        if not np.array_equal(before[0], after[0]):
            raise ValueError("the second output changes the detections")
        if not np.isfinite(after[1]).all():
            raise ValueError("the embedding is not finite")
