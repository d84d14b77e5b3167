"""Lets Ultralytics run beside a torchvision whose compiled operators do not load.

In: nothing. Out: `import torchvision` works and `torchvision.ops.nms` runs on the CPU. Ultralytics imports torchvision always
and needs one operator of it, non-maximum suppression. Wheels of torchvision are built for one build of torch: beside a CPU-only
torch the registry's default torchvision misses CUDA's libraries and its import fails with "operator torchvision::nms does not
exist". This module is imported in the training child only, before Ultralytics. It offers no other operator of torchvision.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
# A torch library lives as long as the object that registered it.
_registered: list[Any] = []


def make_torchvision_importable() -> bool:
    """Define the operators that torchvision's import needs, if its own library does not load.

    Returns:
        Whether the replacement is in use; False where torchvision's own operators work or torchvision is not installed.
    """
    if _registered:
        return True
    spec = None if "torchvision" in sys.modules else importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    for library in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
        except (ImportError, OSError):
            continue
        return False
    registry = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS.values():
        registry.define(schema)
    registry.impl("nms", nms, "CPU")
    _registered.append(registry)
    import torchvision  # type: ignore[import-untyped,unused-ignore]  # it publishes no types

    torchvision.extension._has_ops = lambda: True
    return True


def nms(dets: Any, scores: Any, iou_threshold: float) -> Any:
    """Greedy non-maximum suppression, as torchvision defines it.

    Args:
        dets: (n, 4) tensor, left, top, right, bottom.
        scores: (n,) tensor.
        iou_threshold: a box that overlaps a better one by more than this is dropped.

    Returns:
        (k,) int64 tensor of the kept rows, best first.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    boxes = dets[order]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    alive = torch.ones(len(boxes), dtype=torch.bool)
    kept: list[int] = []
    for i in range(len(boxes)):
        if not alive[i]:
            continue
        kept.append(i)
        corner_low = torch.maximum(boxes[i, :2], boxes[i + 1 :, :2])
        corner_high = torch.minimum(boxes[i, 2:], boxes[i + 1 :, 2:])
        sides = (corner_high - corner_low).clamp(min=0)
        overlap = sides[:, 0] * sides[:, 1]
        iou = overlap / (areas[i] + areas[i + 1 :] - overlap)
        alive[i + 1 :] &= ~(iou > iou_threshold)
    return order[torch.tensor(kept, dtype=torch.int64)]
