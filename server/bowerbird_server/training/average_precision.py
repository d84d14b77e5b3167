"""Average precision as COCO defines it, kept in a form that can be resampled.

In: boxes that a model found and boxes that people drew, frame by frame. Out: a `MatchTable` (which detections were right at each
overlap) and from it the average precision of each class. The numbers equal pycocotools' for boxes without crowd regions: 101
recall points, IoU 0.50 to 0.95 by 0.05, the 100 best detections of a class in a frame.

Matching is the slow half and happens once; `PrecisionCurves` accepts a weight for every group of frames, so that a bootstrap
over scenes re-weights the same table instead of matching again. It reads no files and knows no scenes.
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
_VALUES_AT_ONCE = 1_000_000  # bounds the memory of a bootstrap at some tens of megabytes


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
    """A match table sorted once, for asking its average precision many times while whole groups of frames are re-weighted.

    Precision counts only where a detection is right, so between two right ones the wrong ones are kept as numbers: what is
    stored for a class is, at each right detection, how many detections and how many right ones each group has shown so far. A
    thousand resamples are then two matrix products.

    Args:
        table: the matches of all frames.
        group_ids: (frames,) group of each frame, 0 to groups - 1; None puts all into one group.
        inside: (frames,) bool, the frames that count at all; None for all.
    """

    def __init__(
        self, table: MatchTable, group_ids: NDArray[np.int64] | None = None, inside: NDArray[np.bool_] | None = None
    ) -> None:
        groups_of = np.zeros(table.frame_count, np.int64) if group_ids is None else group_ids
        counted = np.ones(table.frame_count, np.bool_) if inside is None else inside
        self.group_count = int(groups_of.max()) + 1 if table.frame_count else 0
        self._class_count = table.class_count
        self._table, self._groups_of, self._counted = table, groups_of, counted
        # (groups, classes) drawn boxes
        self._drawn = np.zeros((self.group_count, table.class_count))
        np.add.at(self._drawn, groups_of[counted], table.ground_truth[counted])

    def average_precision(self, group_weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Average precision of each class at each overlap, under each row of weights.

        Args:
            group_weights: (resamples, groups), how often each group counts, 0 or more; None for one resample of once each. An
                integer weight is the same as repeating the group's frames.

        Returns:
            (resamples, classes, 10) in [0, 1]; NaN for a class of which the counted frames hold no drawn box.
        """
        weights = np.ones((1, self.group_count)) if group_weights is None else group_weights
        drawn = weights @ self._drawn
        result = np.full((len(weights), self._class_count, len(IOU_THRESHOLDS)), np.nan)
        for class_id in range(self._class_count):
            known = np.flatnonzero(drawn[:, class_id] > 0)
            if len(known):
                result[known, class_id] = self._areas_of_class(class_id, weights[known], drawn[known, class_id])
        return result

    def _areas_of_class(self, class_id: int, weights: NDArray[np.float64], drawn: NDArray[np.float64]) -> NDArray[np.float64]:
        table = self._table
        rows = np.flatnonzero((table.class_ids == class_id) & self._counted[table.frame_ids])
        rows = rows[np.argsort(-table.scores[rows], kind="stable")]
        groups = self._groups_of[table.frame_ids[rows]]
        areas = np.zeros((len(weights), len(IOU_THRESHOLDS)))
        for column in range(len(IOU_THRESHOLDS)):
            right = np.flatnonzero(table.true_positive[rows, column])
            if len(right) == 0:
                continue
            # How many detections, and how many right ones, each group has shown up to and including each right one.
            shown = np.zeros((len(right), self.group_count))
            up_to = right[-1] + 1
            np.add.at(shown, (np.searchsorted(right, np.arange(up_to)), groups[:up_to]), 1.0)
            hits = np.zeros_like(shown)
            hits[np.arange(len(right)), groups[right]] = 1.0
            shown, hits = shown.cumsum(axis=0).T, hits.cumsum(axis=0).T
            step = max(1, _VALUES_AT_ONCE // len(right))
            for start in range(0, len(weights), step):
                part = slice(start, start + step)
                areas[part, column] = _areas(weights[part] @ shown, weights[part] @ hits, drawn[part])
        return areas


def mean_average_precision(per_class: NDArray[np.float64]) -> float:
    """Mean over overlaps and over the classes that have ground truth; NaN if none has.

    Args:
        per_class: (classes, overlaps), NaN where a class has no ground truth.
    """
    known = per_class[~np.isnan(per_class[:, 0])]
    return float(known.mean()) if len(known) else float("nan")


def _areas(
    counted: NDArray[np.float64], true_positives: NDArray[np.float64], drawn: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean precision over the recall points.

    Args:
        counted: (resamples, n) detections up to each right one.
        true_positives: (resamples, n) right ones up to and including it.
        drawn: (resamples,) drawn boxes, above 0.
    """
    precision = true_positives / (counted + np.spacing(1))  # the reference's guard against 0 / 0
    # The best precision at this recall or a higher one.
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # The reference reads the envelope where a recall point is first reached: count the points that each step newly reaches.
    reached = np.searchsorted(RECALL_POINTS, true_positives / drawn[:, None], side="right")
    newly = np.diff(reached, axis=1, prepend=0)
    areas: NDArray[np.float64] = (envelope * newly).sum(axis=1) / len(RECALL_POINTS)
    return areas
