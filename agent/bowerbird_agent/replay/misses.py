"""Which objects of a film's ground truth a model does not show.

In: ground truth as `mot.py` reads it, a frame with its detections. Out: the tracks that no shown box lies on. It chooses nothing and
reads no file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bowerbird_agent.selection.uncertainty import pairwise_iou

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bowerbird_agent.capture.capture import Frame
    from bowerbird_models.detections import Detections
    from bowerbird_models.mot import MotBox

_FOUND_IOU = 0.5


class Misses:
    """One film's.

    Args:
        truth: sequence -> tracks and boxes in pixels, which may reach past the picture's edge.
        class_names: of the model.
        truth_class: what the objects are.
    """

    def __init__(self, truth: Mapping[int, Sequence[MotBox]], class_names: Sequence[str], truth_class: str) -> None:
        self._truth, self._last = truth, max(truth, default=-1)
        self._class_id = class_names.index(truth_class) if truth_class in class_names else None
        self.objects_in_view = 0  # so far; 0 at the end: the ground truth is another film's
        self.note = ""
        if self._class_id is None:
            self.note = (
                f"the model has no class {truth_class!r}, so any box on an object shows it; name its class with --gt-class"
            )

    def of(self, frame: Frame, detections: Detections, visible: float) -> tuple[int, ...] | None:
        """Tracks without a shown box on them (IoU at least a half, one box for each); None where nothing is known."""
        if not 0 <= frame.sequence <= self._last:
            return None
        objects = _in_view(self._truth.get(frame.sequence, ()), frame)
        self.objects_in_view += len(objects)
        shown = detections.scores >= visible
        if self._class_id is not None:
            shown &= detections.class_ids == self._class_id
        boxes = detections.boxes_xyxy[shown].astype(np.float64)
        if not objects or not len(boxes):
            return tuple(track for track, _ in objects)
        iou = pairwise_iou(np.array([box for _, box in objects], np.float64), boxes)
        found: set[int] = set()
        used: set[int] = set()
        for place in np.argsort(-iou, axis=None, kind="stable").tolist():
            i, j = divmod(place, len(boxes))
            if iou[i, j] < _FOUND_IOU:
                break
            if i not in found and j not in used:
                found.add(i)
                used.add(j)
        return tuple(track for i, (track, _) in enumerate(objects) if i not in found)


def _in_view(objects: Sequence[MotBox], frame: Frame) -> list[MotBox]:
    """Boxes cut at the picture's edge, beyond which no model sees; those wholly outside are left out."""
    height, width = (float(side) for side in frame.image_bgr.shape[:2])
    cut = [(track, (max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height))) for track, (x1, y1, x2, y2) in objects]
    return [(track, box) for track, box in cut if box[2] > box[0] and box[3] > box[1]]
