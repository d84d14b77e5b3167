"""The head of a model for oriented boxes.

In: (1, 4 + classes + 1, anchors) or (1, rows, 7): centre, size, scores, and an angle at the end. Out: `Detections` with
`rotated_xywhr`, whose upright boxes enclose the oriented ones. Angles are passed on as the head gives them, as Ultralytics' predict
does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bowerbird_models.decode import Candidates, HeadLayout, decode_end_to_end, decode_raw
from bowerbird_models.detections import Detections
from bowerbird_models.head import NetworkOutputs, detections_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bowerbird_models.letterbox import Letterbox


@dataclass(frozen=True)
class ObbHead:
    """Implements `Head` for the task obb."""

    layout: HeadLayout
    output_names: tuple[str, ...]
    is_settled: bool
    class_count: int

    def read(self, outputs: NetworkOutputs, letterbox: Letterbox, *, confidence: float, iou: float) -> Detections:
        """As `Head.read`."""
        from bowerbird_models.rotated import enclosing_boxes

        kept = self._kept(outputs.head[0], confidence, iou)
        boxes_xywhr = letterbox.rotated_to_source(_with_angle(kept))
        return detections_of(kept, outputs, letterbox.clip(enclosing_boxes(boxes_xywhr)), rotated_xywhr=boxes_xywhr)

    def _kept(self, output: NDArray[Any], confidence: float, iou: float) -> Candidates:
        from bowerbird_models.nms import MAX_DETECTIONS
        from bowerbird_models.rotated import suppress_rotated

        if self.layout is HeadLayout.RAW:
            found = decode_raw(output, self.class_count, confidence, extra_count=1, corners=False)
            return found.take(suppress_rotated(_with_angle(found), found.scores, found.class_ids, iou))
        found = decode_end_to_end(output, self.class_count, confidence, extra_count=1)
        return found.take(np.arange(min(len(found.scores), MAX_DETECTIONS)))


def _with_angle(found: Candidates) -> NDArray[np.float32]:
    return np.concatenate([found.boxes, found.extra], axis=1)
