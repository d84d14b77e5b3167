"""The head of a pose model: boxes with keypoints.

In: (1, 4 + classes + keypoints * values, anchors) or (1, rows, 6 + keypoints * values), two or three values a keypoint. Out:
`Detections` with `keypoints`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bowerbird_models.detections import Detections
from bowerbird_models.head import NetworkOutputs, detections_of, kept_boxes

if TYPE_CHECKING:
    from bowerbird_models.decode import HeadLayout
    from bowerbird_models.letterbox import Letterbox


@dataclass(frozen=True)
class PoseHead:
    """Implements `Head` for the task pose; `keypoint_shape` is number of keypoints and of values each."""

    layout: HeadLayout
    output_names: tuple[str, ...]
    is_settled: bool
    class_count: int
    keypoint_shape: tuple[int, int]

    def read(self, outputs: NetworkOutputs, letterbox: Letterbox, *, confidence: float, iou: float) -> Detections:
        """As `Head.read`."""
        count, values = self.keypoint_shape
        kept = kept_boxes(
            outputs.head[0], self.layout, self.class_count, extra_count=count * values, confidence=confidence, iou=iou
        )
        emitted = kept.extra.reshape(-1, count, values)
        keypoints = np.ones((len(emitted), count, 3), np.float32)  # without a visibility every keypoint counts as seen
        keypoints[..., :2] = letterbox.points_to_source(emitted[..., :2])
        if values == 3:
            np.clip(emitted[..., 2], 0.0, 1.0, out=keypoints[..., 2])
        return detections_of(kept, outputs, letterbox.to_source(kept.boxes), keypoints=keypoints)
