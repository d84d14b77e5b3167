"""The head of a detection model: boxes, scores, classes.

In: (1, 4 + classes, anchors) or (1, rows, 6). Out: `Detections`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bowerbird_models.detections import Detections
from bowerbird_models.head import NetworkOutputs, detections_of, kept_boxes

if TYPE_CHECKING:
    from bowerbird_models.decode import HeadLayout
    from bowerbird_models.letterbox import Letterbox


@dataclass(frozen=True)
class DetectHead:
    """Implements `Head` for the task detect."""

    layout: HeadLayout
    output_names: tuple[str, ...]
    is_settled: bool
    class_count: int

    def read(self, outputs: NetworkOutputs, letterbox: Letterbox, *, confidence: float, iou: float) -> Detections:
        """As `Head.read`."""
        kept = kept_boxes(outputs.head[0], self.layout, self.class_count, extra_count=0, confidence=confidence, iou=iou)
        return detections_of(kept, outputs, letterbox.to_source(kept.boxes))
