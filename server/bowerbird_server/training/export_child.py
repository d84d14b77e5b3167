"""Checkpoint -> ONNX in its transport form, inside the training process (imports torch and Ultralytics).

In: a `.pt` of ours. Out: an ONNX file with Ultralytics' metadata, whose first outputs are the head's as Ultralytics exports them, whose
further outputs are those of `curation_outputs.py` where the head can have them, and whose weights are stored in half precision
(`half_weights.py`). Only `train_child.py` calls this.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import onnx

from bowerbird_server.quantisation.half_weights import store_half
from bowerbird_server.training.curation_outputs import add_curation_outputs
from bowerbird_server.training.train import TrainingFailed


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
    # Ultralytics names the file after the weights, beside them.
    work = target.parent / f".export-{os.getpid()}"
    work.mkdir(parents=True, exist_ok=True)
    try:
        copy = work / "model.pt"
        shutil.copyfile(weights, copy)
        head_inputs, channels = _head_inputs(model, image_size)
        plain = Path(YOLO(str(copy)).export(format="onnx", imgsz=image_size, simplify=_can_slim(), device="cpu"))
        if not plain.is_file():
            raise TrainingFailed(f"Ultralytics exported no ONNX file from {weights}; see the log beside it")
        finished = work / "finished.onnx"
        add_curation_outputs(plain, finished, head_inputs, channels)
        onnx.save(store_half(onnx.load(str(finished))), str(finished))
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


def _head_inputs(model: Any, image_size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Numbers of the layers that feed the head, and how many channels each of them has."""
    import torch

    head = model.model.model[-1]
    sources = head.f if isinstance(head.f, list) else [head.f]
    layers = tuple(layer if layer >= 0 else head.i + layer for layer in sources)
    seen: list[tuple[int, ...]] = []

    def look(_: Any, inputs: Any) -> None:
        maps = inputs[0] if isinstance(inputs[0], list | tuple) else [inputs[0]]
        seen.append(tuple(each.shape[1] for each in maps))

    network = model.model.eval()
    hook = head.register_forward_pre_hook(look)
    with torch.no_grad():
        network(torch.zeros(1, 3, image_size, image_size))
    hook.remove()
    return layers, seen[0]
