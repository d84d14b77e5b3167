"""How unsure a model is of one frame: detections to scores in [0, 1], and the printed rules that we are compared with.

In: `Detections` decoded at a low confidence (0.05), whose weak boxes hold the misses. Out: one number per strategy. Pure; it
remembers nothing between frames (motion and novelty do, elsewhere) and decides nothing.

YOLO heads are independent sigmoids: a class score is a probability of its own, rows do not sum to 1. End-to-end heads give the
top score only, so binary entropy is the common ground; what needs more says what it does without. Where the server knows how often such
a box is right, doubt is that of this probability and not of the score; what is shown is decided by the score alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bowerbird_models.detections import Detections
    from bowerbird_models.score_calibration import ScoreCalibration

# A frame is summed over at most this many boxes, the most confident: beyond, scores have saturated and time has not.
_MOST_BOXES = 64
_SAME_OBJECT_IOU = 0.5
_COVERED_IOU = 0.3
# Up to so many boxes loops over plain numbers are faster than arrays.
_FEW_BOXES = 24
# A hidden box counts from this share of the way between the decode threshold and that for being shown.
_LEAST_STRENGTH = 0.2
# Boxes shown in a frame that counts as half crowded.
_HALF_CROWDED = 8.0


def binary_entropy(scores: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Entropy in bits of "object or not" for each score: 1 at 0.5, 0 at 0 and 1.

    Args:
        scores: (n,) in [0, 1].
    Returns:
        (n,) in [0, 1].
    Source: Shannon (1948); as a per-box uncertainty: Yang, Huang and Crowley, "Plug and Play Active Learning for Object
        Detection" (CVPR 2024), section 3.2.
    """
    # np.clip and the like cost more than their work on a dozen numbers; this runs for every frame.
    p = np.minimum(np.maximum(scores.astype(np.float64), 1e-9), 1 - 1e-9)
    q = 1 - p
    bits: NDArray[np.float64] = np.minimum(np.maximum(-(p * np.log2(p) + q * np.log2(q)), 0.0), 1.0)
    return bits


def least_confidence_boxes(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """One minus each box's score.

    Args:
        scores: (n,) in [0, 1].
    Returns:
        (n,) in [0, 1].
    Source: Settles, "Active Learning Literature Survey" (2009), section 3.1.
    """
    return np.clip(1.0 - scores.astype(np.float64), 0.0, 1.0)


def margin_boxes(class_scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Margin uncertainty of each detection: 1 means a tie between its top two classes.

    Args:
        class_scores: (n, classes >= 2) in [0, 1]; YOLO heads are sigmoids, rows need not sum to 1; n may be 0.
    Returns:
        (n,) in [0, 1].
    Raises:
        ValueError: class_scores is not 2-D with at least two classes.
    Source: Settles, "Active Learning Literature Survey" (2009), section 3.1.
    """
    if class_scores.ndim != 2 or class_scores.shape[1] < 2:
        raise ValueError(f"margin needs scores of at least two classes per box, not an array of shape {class_scores.shape}")
    top_two = np.partition(class_scores.astype(np.float64), -2, axis=1)[:, -2:]
    return np.clip(1.0 - (top_two[:, 1] - top_two[:, 0]), 0.0, 1.0)


def soft_sum(uncertainties: NDArray[np.float64]) -> float:
    """A frame's score from its boxes': 1 - exp(-sum / 2), so that two doubtful boxes say more than one; 0 without boxes.

    Args:
        uncertainties: (n,) in [0, 1].
    Source: sum aggregation after Brust, Kaeding and Denzler, "Active Learning for Deep Object Detection" (2019); bounded by us.
    """
    return float(-np.expm1(-float(np.sort(uncertainties).sum()) / 2.0))


def largest(uncertainties: NDArray[np.float64]) -> float:
    """A frame's score from its boxes': the largest; 0 without boxes.

    Args:
        uncertainties: (n,) in [0, 1].
    Source: maximum aggregation, Brust, Kaeding and Denzler (2019).
    """
    return float(uncertainties.max()) if len(uncertainties) else 0.0


def largest_of_overlapping(
    uncertainties: NDArray[np.float64], boxes_xyxy: NDArray[np.float32], class_ids: NDArray[np.int32]
) -> NDArray[np.float64]:
    """One uncertainty per object: of boxes of one class that overlap (IoU above 0.5) only the largest value stays.

    End-to-end heads and loose suppression leave several boxes on one object; a sum must not count it several times.

    Args:
        uncertainties: (n,) in [0, 1].
        boxes_xyxy: (n, 4).
        class_ids: (n,).
    Returns:
        (m <= n,) the values that stay, largest first.
    Source: the same-class suppression of PPAL (Yang et al., CVPR 2024), restated.
    """
    if len(uncertainties) < 2:
        return uncertainties
    if len(uncertainties) <= _FEW_BOXES and not _some_overlap(boxes_xyxy.tolist(), class_ids.tolist()):
        return -np.sort(-uncertainties)
    # Ties are broken by position and class, never by the order in which the boxes came.
    order = np.lexsort((*boxes_xyxy.T, class_ids, -uncertainties))
    boxes, classes = boxes_xyxy[order].astype(np.float64), class_ids[order]
    same = (pairwise_iou(boxes, boxes) > _SAME_OBJECT_IOU) & (classes[:, None] == classes[None, :])
    keep = np.ones(len(order), dtype=bool)
    if same.sum() > len(order):  # some pair overlaps, which is rare after suppression
        for i in range(len(order)):
            if keep[i]:
                keep[i + 1 :] &= ~same[i, i + 1 :]
    return uncertainties[order][keep]


def _some_overlap(boxes: list[list[float]], classes: list[int]) -> bool:
    """Whether any two boxes of one class may have an IoU above a half; True when it is close, for the arrays to settle.

    Plain numbers: arrays of a few boxes cost ten times as much, and most frames have few.
    """
    if len(set(classes)) == len(classes):
        return False
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        for j in range(i):
            if classes[i] == classes[j]:
                left, top, right, bottom = boxes[j]
                width = (x2 if x2 < right else right) - (x1 if x1 > left else left)
                height = (y2 if y2 < bottom else bottom) - (y1 if y1 > top else top)
                if width > 0 and height > 0:
                    overlap = width * height
                    # IoU > 1/2 is overlap > (both areas) / 3; the margin keeps rounding on the safe side.
                    if 3.0000001 * overlap >= (x2 - x1) * (y2 - y1) + (right - left) * (bottom - top):
                        return True
    return False


def _is_covered(box: list[float], others: list[list[float]], *, iou: float) -> bool:
    """Whether any of the others overlaps a box by more than `iou`; the arithmetic of `pairwise_iou` in plain numbers."""
    x1, y1, x2, y2 = box
    area = max(x2 - x1, 0.0) * max(y2 - y1, 0.0)
    for left, top, right, bottom in others:
        if left < x2 and x1 < right and top < y2 and y1 < bottom:  # few do, and comparing is all that the others cost
            overlap = (min(x2, right) - max(x1, left)) * (min(y2, bottom) - max(y1, top))
            union = area + max(right - left, 0.0) * max(bottom - top, 0.0) - overlap
            if union > 0 and overlap / union > iou:
                return True
    return False


def pairwise_iou(a_xyxy: NDArray[np.float64], b_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union, (n, 4) and (m, 4) -> (n, m) in [0, 1]; boxes without area overlap nothing."""
    ax1, ay1, ax2, ay2 = a_xyxy.T[:, :, None]
    bx1, by1, bx2, by2 = b_xyxy.T[:, None, :]
    widths = np.minimum(ax2, bx2) - np.maximum(ax1, bx1)
    heights = np.minimum(ay2, by2) - np.maximum(ay1, by1)
    overlap = np.maximum(widths, 0.0) * np.maximum(heights, 0.0)
    areas_a = np.maximum(ax2 - ax1, 0.0) * np.maximum(ay2 - ay1, 0.0)
    areas_b = np.maximum(bx2 - bx1, 0.0) * np.maximum(by2 - by1, 0.0)
    union = areas_a + areas_b - overlap
    iou: NDArray[np.float64] = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
    return iou


def entropy(detections: Detections, *, floor_score: float = 0.05, calibration: ScoreCalibration | None = None) -> float:
    """Binary entropy summed over the objects, counted above that of a score of `floor_score`.

    Without the floor, a dozen junk boxes at the decode threshold would outweigh one object that the model is torn about.

    Args:
        floor_score: the score, in (0, 0.5), at and below which (and at and above one minus which) a box says nothing.
        calibration: what the model's scores are worth; the entropy is then that of the probability, times the class's weight.
    Returns:
        [0, 1]; 0 without detections.
    Source: Yang, Huang and Crowley, "Plug and Play Active Learning for Object Detection" (CVPR 2024), section 3.2, with its class
        weights; the floor is ours.
    """
    floor = _entropy_of(floor_score)
    if len(detections.scores) <= _FEW_BOXES:
        total = _entropy_of_few(detections, floor, calibration)
        if total is not None:
            return -math.expm1(-total / 2.0)
    if calibration is None:
        values = np.minimum(np.maximum((binary_entropy(detections.scores) - floor) / (1.0 - floor), 0.0), 1.0)
        return soft_sum(_objects(values, detections))
    n = _MOST_BOXES
    scores, classes = detections.scores[:n].tolist(), detections.class_ids[:n].tolist()
    bits = binary_entropy(np.array(calibration.probabilities(scores, classes), np.float64))
    values = np.minimum(np.maximum((bits - floor) / (1.0 - floor), 0.0), 1.0) * calibration.weights(classes)
    return soft_sum(_objects(values, detections))


def _entropy_of_few(detections: Detections, floor: float, calibration: ScoreCalibration | None) -> float | None:
    """The sum of the boxes' entropies above the floor; None when boxes of one class may overlap, for the arrays to settle."""
    boxes, scores, classes = detections.to_lists()
    values, speaking = [], []
    for i, p in enumerate(scores if calibration is None else calibration.probabilities(scores, classes)):
        if p <= 0.0 or p >= 1.0:
            continue
        q = 1.0 - p
        value = (-(p * math.log2(p) + q * math.log2(q)) - floor) / (1.0 - floor)
        if not value <= 0.0:  # what is not a number stays, for the selector to stumble over
            values.append(1.0 if value > 1.0 else value)
            speaking.append(i)
    if calibration is not None:
        weights = calibration.weights([classes[i] for i in speaking])
        values = [value * weight for value, weight in zip(values, weights, strict=True)]
    # A box that says nothing takes nothing away from the others of its object either: it would come last.
    if len(values) > 1 and _some_overlap([boxes[i] for i in speaking], [classes[i] for i in speaking]):
        return None
    return math.fsum(values)


@lru_cache(maxsize=16)
def _entropy_of(score: float) -> float:
    return float(binary_entropy(np.array([score], np.float32))[0])


def least_confidence(detections: Detections, *, visible: float = 0.25, calibration: ScoreCalibration | None = None) -> float:
    """One minus the score, or where that is known the probability, of the least certain visible box; 0 without visible boxes.

    Source: Settles (2009), section 3.1; the largest of the boxes after Brust, Kaeding and Denzler (2019).
    """
    shown = detections.scores >= visible
    if calibration is None:
        return largest(least_confidence_boxes(detections.scores[shown]))
    scores, class_ids = detections.scores[shown].tolist(), detections.class_ids[shown].tolist()
    return 1.0 - min(calibration.probabilities(scores, class_ids), default=1.0)


def margin(detections: Detections, *, visible: float = 0.25) -> float:
    """The closest top two classes among the visible boxes; 0 without visible boxes.

    With end-to-end heads or a single class there is no second class: the margin is that between "object" and "none", p and 1 - p.
    Source: Settles (2009), section 3.1; the largest of the boxes after Brust, Kaeding and Denzler (2019).
    """
    shown = detections.scores >= visible
    if detections.class_scores is None or detections.class_scores.shape[1] < 2:
        return largest(1.0 - np.abs(2.0 * detections.scores[shown].astype(np.float64) - 1.0))
    return largest(margin_boxes(detections.class_scores[shown]))


def localisation(detections: Detections, *, visible: float = 0.25) -> float:
    """Normalised entropy of the box edges' distributions, summed over visible objects; 0 for models that have none.

    Source: Li et al., "Generalized Focal Loss" (NeurIPS 2020) for the distributions.
    """
    if detections.loc_entropy is None:
        return 0.0
    values = np.where(detections.scores >= visible, np.clip(detections.loc_entropy.astype(np.float64), 0.0, 1.0), 0.0)
    return soft_sum(_objects(values, detections))


def close_to_threshold(detections: Detections, *, visible: float = 0.25) -> float:
    """How close any box's score is to the threshold from which it is shown: 1 on it, 0 at 0 and at 1.

    Source: Lewis and Gale, "A Sequential Algorithm for Training Text Classifiers" (SIGIR 1994): what lies nearest to the threshold of
        the decision; the scale on either side is ours.
    """
    scores = detections.scores.astype(np.float64)
    return largest(np.clip(np.where(scores < visible, scores / visible, (1.0 - scores) / (1.0 - visible)), 0.0, 1.0))


def count(detections: Detections, *, visible: float = 0.25) -> float:
    """How many boxes are shown: n / (n + 8).

    Source: ours, a count bounded so that it can be combined with the others.
    """
    shown = int((detections.scores >= visible).sum())
    return shown / (shown + _HALF_CROWDED)


def rare_class(detections: Detections, frequency: Mapping[int, float], *, visible: float = 0.25) -> float:
    """The rarest class among the boxes: 1 for a class never shown here, 0 for the most frequent one.

    Boxes down to half the threshold for being shown count in part: what a model seldom sees it seldom sees well.

    Args:
        frequency: class id -> in how many frames it was shown lately; classes that are missing were not.
    Returns:
        [0, 1]; 0 without detections, and for a model of one class as soon as it was seen.
    Source: weighting by inverse class frequency after Brust, Kaeding and Denzler (2019); the faint boxes and the forgetting are ours.
    """
    most = max(frequency.values(), default=0.0)
    score = 0.0
    for confidence, class_id in zip(detections.scores.tolist(), detections.class_ids.tolist(), strict=True):
        strength = min(1.0, max(0.0, 2.0 * confidence / visible - 1.0))
        rarity = 1.0 - frequency.get(class_id, 0.0) / most if most > 0 else 1.0
        score = max(score, strength * rarity)
    return score


def hidden_objects(detections: Detections, *, floor_score: float = 0.05, visible: float = 0.25) -> float:
    """About how many objects hide below the threshold for being shown: boxes there, each counted by its strength, added up.

    Strength is 0 at `floor_score` and 1 just below `visible`, squared, for most boxes near the floor are junk; those under a fifth
    do not count. A box counts once: not under a shown box, and not under a stronger hidden one.

    Returns:
        0 or more.
    Source: ours; published scores of detectors look at boxes that are shown, and a miss is one that is not.
    """
    all_boxes, confidences, _ = detections.to_lists()
    least, most = _single(floor_score), _single(visible)
    shown, strengths = 0, []
    # Most confident first: the shown ones lead, those that count follow, the junk comes last.
    for score in confidences:
        if score >= most:
            shown += 1
            continue
        strength = (score - least) / (most - least)
        if not strength >= _LEAST_STRENGTH:
            break
        strengths.append(strength)
    if not strengths:
        return 0.0
    boxes = all_boxes[: shown + len(strengths)]
    # Ties are broken by position, never by the order in which the boxes came.
    hidden = sorted(zip(strengths, boxes[shown:], strict=True), reverse=True)
    if len(boxes) > _FEW_BOXES:
        return _hidden_among_many(boxes[:shown], hidden)
    total, others = 0.0, boxes[:shown]
    for strength, box in hidden:
        if not _is_covered(box, others, iou=_COVERED_IOU):
            total += strength * strength
            others.append(box)
    return total


def _hidden_among_many(shown: list[list[float]], hidden: list[tuple[float, list[float]]]) -> float:
    boxes = np.array([box for _, box in hidden], np.float64)
    free = np.ones(len(hidden), np.bool_)
    if shown:
        free[(pairwise_iou(boxes, np.array(shown, np.float64)) > _COVERED_IOU).any(axis=1)] = False
    covers = pairwise_iou(boxes, boxes) > _COVERED_IOU
    total = 0.0
    for i, (strength, _) in enumerate(hidden):
        if free[i]:
            total += strength * strength
            free &= ~covers[i]  # the stronger ones have been counted
    return total


@lru_cache(maxsize=16)
def _single(number: float) -> float:
    return float(np.float32(number))


def rule_max_below(detections: Detections, *, threshold: float = 0.6, visible: float = 0.25) -> bool:
    """The field's rule of thumb, first printing: `max(conf) < threshold`, over what a user is shown; never without a box.

    Source: handed on in examples of edge pipelines without an author; a baseline, not a recommendation.
    """
    scores = detections.scores[detections.scores >= visible]
    return bool(len(scores)) and float(scores.max()) < threshold


def rule_min_below(detections: Detections, *, threshold: float = 0.6, visible: float = 0.25) -> bool:
    """The same rule in its other printing: `min(conf) < threshold`, over what a user is shown; never without a box.

    Source: as `rule_max_below`.
    """
    scores = detections.scores[detections.scores >= visible]
    return bool(len(scores)) and float(scores.min()) < threshold


def _rule_max(detections: Detections, *, visible: float = 0.25) -> float:
    return float(rule_max_below(detections, visible=visible))


def _rule_min(detections: Detections, *, visible: float = 0.25) -> float:
    return float(rule_min_below(detections, visible=visible))


# The strategies that need nothing but detections and the threshold for being shown.
SCORERS: Mapping[str, Callable[..., float]] = MappingProxyType(
    {
        "least_confidence": least_confidence,
        "margin": margin,
        "localisation": localisation,
        "close_to_threshold": close_to_threshold,
        "count": count,
        "rule_max": _rule_max,
        "rule_min": _rule_min,
    }
)


def _objects(values: NDArray[np.float64], detections: Detections) -> NDArray[np.float64]:
    """The values of the most confident boxes, one per object. Detections come most confident first."""
    n = _MOST_BOXES
    return largest_of_overlapping(values[:n], detections.boxes_xyxy[:n], detections.class_ids[:n])
