"""Average precision as COCO defines it, kept in a form that can be resampled.

In: boxes that a model found and boxes that people drew, frame by frame. Out: a `MatchTable` (which detections were right at each
overlap) and from it the average precision of each class. The numbers equal pycocotools' for boxes without crowd regions: 101
recall points, IoU 0.50 to 0.95 by 0.05, the 100 best detections of a class in a frame.

Matching is the slow half and happens once; `average_precision` accepts a weight for every frame, so that a bootstrap over
scenes re-weights the same table instead of matching again. It reads no files and knows no scenes.
Source: cocodataset/cocoapi PythonAPI/pycocotools/cocoeval.py (definition); Lin et al., "Microsoft COCO" (2014).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

IOU_THRESHOLDS: NDArray[np.float64] = np.linspace(0.5, 0.95, 10)
RECALL_POINTS: NDArray[np.float64] = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS_A_CLASS = 100


@dataclass(frozen=True)
class FrameBoxes:
    """The boxes of one frame, found or drawn.

    Args:
        boxes_xyxy: (n, 4) in pixels.
        class_ids: (n,), 0 to classes - 1.
        scores: (n,) in [0, 1]; None for drawn boxes.
    """

    boxes_xyxy: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    scores: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class MatchTable:
    """Every counted detection of a run of frames and whether it was right.

    Args:
        frame_ids: (d,) which frame it lies in, 0 to frames - 1.
        class_ids: (d,) what it was called.
        scores: (d,) its confidence.
        true_positive: (d, 10) bool, at each of `IOU_THRESHOLDS`.
        ground_truth: (frames, classes) number of drawn boxes.
    """

    frame_ids: NDArray[np.int64]
    class_ids: NDArray[np.int64]
    scores: NDArray[np.float64]
    true_positive: NDArray[np.bool_]
    ground_truth: NDArray[np.int64]

    @property
    def frame_count(self) -> int:
        """Number of frames, those without any box included."""
        return len(self.ground_truth)

    @property
    def class_count(self) -> int:
        """Number of classes of the data set."""
        return int(self.ground_truth.shape[1])


def iou_matrix(a_xyxy: NDArray[np.float64], b_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of each of (n, 4) boxes with each of (m, 4); 0 where both are empty."""
    corner_low = np.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])
    corner_high = np.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:])
    overlap = np.clip(corner_high - corner_low, 0, None).prod(axis=2)
    area_a = (a_xyxy[:, 2:] - a_xyxy[:, :2]).prod(axis=1)
    area_b = (b_xyxy[:, 2:] - b_xyxy[:, :2]).prod(axis=1)
    union = area_a[:, None] + area_b[None, :] - overlap
    ious: NDArray[np.float64] = np.divide(overlap, union, out=np.zeros_like(union), where=union > 0)
    return ious


def match(ious: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which detections of one class in one frame are right, greedily by score.

    Args:
        ious: (detections, drawn boxes), rows by falling score.

    Returns:
        (detections, 10) bool: matched to a drawn box of its own at each of `IOU_THRESHOLDS`.
    """
    right = np.zeros((len(ious), len(IOU_THRESHOLDS)), np.bool_)
    if ious.size == 0:
        return right
    for column, threshold in enumerate(np.minimum(IOU_THRESHOLDS, 1 - 1e-10)):
        free = ious.copy()
        for row in np.flatnonzero(ious.max(axis=1) >= threshold):
            # Of equally good boxes the reference takes the last.
            best = free.shape[1] - 1 - int(free[row, ::-1].argmax())
            if free[row, best] >= threshold:
                right[row, column] = True
                free[:, best] = -1.0
    return right


def match_frames(found: Sequence[FrameBoxes], drawn: Sequence[FrameBoxes], class_count: int) -> MatchTable:
    """Match the detections of every frame to the boxes drawn there.

    Args:
        found: detections of each frame, with scores.
        drawn: ground truth of the same frames in the same order.
        class_count: number of classes of the data set.

    Raises:
        ValueError: the two lists differ in length, or detections come without scores.
    """
    if len(found) != len(drawn):
        raise ValueError(
            f"{len(found)} frames with detections and {len(drawn)} with ground truth; they must be the same frames"
        )
    ground_truth = np.zeros((len(drawn), class_count), np.int64)
    frame_ids: list[NDArray[np.int64]] = []
    class_ids: list[NDArray[np.int64]] = []
    scores: list[NDArray[np.float64]] = []
    matches: list[NDArray[np.bool_]] = []
    for frame_id, (theirs, ours) in enumerate(zip(found, drawn, strict=True)):
        if theirs.scores is None:
            raise ValueError(f"frame {frame_id} has detections without scores")
        ground_truth[frame_id] = np.bincount(ours.class_ids, minlength=class_count)[:class_count]
        for class_id in np.unique(theirs.class_ids):
            rows = np.flatnonzero(theirs.class_ids == class_id)
            rows = rows[np.argsort(-theirs.scores[rows], kind="stable")][:MAX_DETECTIONS_A_CLASS]
            ious = iou_matrix(theirs.boxes_xyxy[rows], ours.boxes_xyxy[ours.class_ids == class_id])
            frame_ids.append(np.full(len(rows), frame_id, np.int64))
            class_ids.append(np.full(len(rows), class_id, np.int64))
            scores.append(theirs.scores[rows])
            matches.append(match(ious))
    if not frame_ids:
        none = np.zeros(0, np.int64)
        return MatchTable(none, none, np.zeros(0), np.zeros((0, len(IOU_THRESHOLDS)), np.bool_), ground_truth)
    return MatchTable(
        np.concatenate(frame_ids), np.concatenate(class_ids), np.concatenate(scores), np.concatenate(matches), ground_truth
    )


class PrecisionCurves:
    """A match table sorted once, for asking its average precision many times under different frame weights.

    Args:
        table: the matches of all frames.
    """

    def __init__(self, table: MatchTable) -> None:
        self._table = table
        self._by_class: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
        for class_id in range(table.class_count):
            rows = np.flatnonzero(table.class_ids == class_id)
            rows = rows[np.argsort(-table.scores[rows], kind="stable")]
            # What comes after the last right detection only lowers a precision that no recall point asks for.
            right = np.flatnonzero(table.true_positive[rows].any(axis=1))
            rows = rows[: right[-1] + 1] if len(right) else rows[:0]
            self._by_class.append((table.frame_ids[rows], table.true_positive[rows].T.astype(np.float64)))

    def average_precision(self, frame_weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Average precision of each class at each overlap.

        Args:
            frame_weights: (frames,) how often each frame counts, 0 or more; None for once each. An integer weight is the same
                as repeating the frame.

        Returns:
            (classes, 10) in [0, 1]; NaN for a class of which the counted frames hold no drawn box.
        """
        weights = np.ones(self._table.frame_count) if frame_weights is None else frame_weights
        drawn = weights @ self._table.ground_truth
        result = np.full((self._table.class_count, len(IOU_THRESHOLDS)), np.nan)
        for class_id, (frame_ids, right) in enumerate(self._by_class):
            if drawn[class_id] > 0:
                result[class_id] = _areas(weights[frame_ids], right, float(drawn[class_id]))
        return result


def mean_average_precision(per_class: NDArray[np.float64]) -> float:
    """Mean over overlaps and over the classes that have ground truth; NaN if none has.

    Args:
        per_class: (classes, overlaps), NaN where a class has no ground truth.
    """
    known = per_class[~np.isnan(per_class[:, 0])]
    return float(known.mean()) if len(known) else float("nan")


def _areas(weights: NDArray[np.float64], right: NDArray[np.float64], drawn: float) -> NDArray[np.float64]:
    """Mean precision over the recall points: `weights` (d,), `right` (10, d), both by falling score -> (10,)."""
    if right.shape[1] == 0:
        return np.zeros(len(right))
    counted = np.cumsum(weights)
    true_positives = np.cumsum(right * weights, axis=1)
    recall = true_positives / drawn
    precision = true_positives / (counted + np.spacing(1))  # the reference's guard against 0 / 0
    # The best precision at this recall or a higher one.
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    areas = np.zeros(len(right))
    for row in range(len(right)):
        reached = np.searchsorted(recall[row], RECALL_POINTS, side="left")
        reached = reached[reached < recall.shape[1]]
        areas[row] = envelope[row, reached].sum() / len(RECALL_POINTS)
    return areas
