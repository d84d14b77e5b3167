"""Non-maximum suppression: of overlapping boxes of one class the most confident stays.

In: `Candidates`. Out: the rows that stay, most confident first, at most `MAX_DETECTIONS`. As in Ultralytics, classes are kept
apart by moving each to its own place on the plane; unlike there, the arithmetic is float64, so that a high class id costs
no precision. Needs OpenCV.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bowerbird_models.decode import Candidates

MAX_DETECTIONS = 300
_BEST_FIRST = (1_000, 4_000, 30_000)  # Ultralytics looks at 30,000 candidates at most too


def suppress(candidates: Candidates, iou: float, *, max_detections: int = MAX_DETECTIONS) -> NDArray[np.intp]:
    """Row numbers of the candidates that stay, by falling score.

    Args:
        candidates: any number of boxes.
        iou: overlap in [0, 1] above which the weaker box of one class goes.
        max_detections: how many stay at most.
    """
    scores = candidates.scores
    if len(scores) == 0:
        return np.zeros(0, np.intp)
    boxes_xywh = candidates.boxes.astype(np.float64)
    boxes_xywh[:, 2:] -= boxes_xywh[:, :2]
    span = float(candidates.boxes.max() - candidates.boxes.min()) + 1.0
    boxes_xywh[:, :2] += (candidates.class_ids * span)[:, None]
    # Suppression is greedy by score, so what stays of the best k is a prefix of what stays of all: an undecided model that
    # offers thousands of boxes costs milliseconds instead of half a second.
    for best in _BEST_FIRST:
        # OpenCV's own threshold of 0 leaves that decision to the decoder (a score of exactly 0 is no detection).
        kept = cv2.dnn.NMSBoxes(boxes_xywh, scores, 0.0, iou, top_k=best)  # type: ignore[arg-type,unused-ignore]  # takes arrays too
        if len(kept) >= max_detections or best >= len(scores):
            break
    return np.asarray(kept, np.intp).reshape(-1)[:max_detections]
