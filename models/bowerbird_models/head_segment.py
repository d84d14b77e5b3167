"""The head of a segmentation model: boxes with masks.

In: (1, 4 + classes + k, anchors) or (1, rows, 6 + k), and k prototypes (1, k, h, w). Out: `Detections` with `masks`. As in Ultralytics'
predict, a box whose mask holds no pixel is no detection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bowerbird_models.decode import shown
from bowerbird_models.detections import Detections
from bowerbird_models.errors import ModelOutputError
from bowerbird_models.head import NetworkOutputs, detections_of, finite, kept_boxes
from bowerbird_models.masks import PrototypeMasks

if TYPE_CHECKING:
    from bowerbird_models.decode import HeadLayout
    from bowerbird_models.letterbox import Letterbox


@dataclass(frozen=True)
class SegmentHead:
    """Implements `Head` for the task segment; the second output holds the `mask_count` prototypes."""

    layout: HeadLayout
    output_names: tuple[str, ...]
    is_settled: bool
    class_count: int
    mask_count: int

    def read(self, outputs: NetworkOutputs, letterbox: Letterbox, *, confidence: float, iou: float) -> Detections:
        """As `Head.read`."""
        boxes, prototypes = outputs.head
        if prototypes.ndim != 4 or prototypes.shape[:2] != (1, self.mask_count) or 0 in prototypes.shape:
            raise ModelOutputError(
                f"the model emitted prototypes {shown(prototypes.shape)}, expected (1, {self.mask_count}, height, width); this "
                "file is damaged or mislabelled, do not use it"
            )
        kept = kept_boxes(boxes, self.layout, self.class_count, extra_count=self.mask_count, confidence=confidence, iou=iou)
        # A copy, because the next frame overwrites the buffer; an empty frame, the commonest, needs none.
        planes = finite(prototypes[0].astype(np.float32)) if len(kept.scores) else np.zeros((self.mask_count, 1, 1), np.float32)
        masks = PrototypeMasks(kept.extra, planes, kept.boxes, letterbox)
        visible = np.flatnonzero(masks.has_pixels())
        if len(visible) < len(masks):
            kept, masks = kept.take(visible), masks.take(visible)
        return detections_of(kept, outputs, letterbox.to_source(kept.boxes), masks=masks)
