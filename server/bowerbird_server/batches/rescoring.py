"""How much a label of a frame would teach, as the server sees it with a newer model than the device had. Pure.

In: a model's detections, or a teacher's detections beside the device's; what the device's temporal strategies said.
Out: numbers in [0, 1]. Ranks are taken within a camera: absolute scores of different scenes are not comparable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bowerbird_models.frame_value import BALANCED, noisy_or
from bowerbird_server.labelling.boxes import Box, iou
from bowerbird_server.training.average_precision import iou_matrix

if TYPE_CHECKING:
    from bowerbird_models.detections import Detections
    from bowerbird_models.score_calibration import ScoreCalibration

SAME_IOU = 0.5
SHOWN_CONFIDENCE = 0.25
# As on the device, `uncertainty.py` there.
_FLOOR_SCORE = float(np.float32(0.05))
_MOST_BOXES = 64
# `balanced` asks no device for flicker; where another policy did it counts as much as in `missed_objects`.
_OVER_TIME: Mapping[str, float] = MappingProxyType({"missed_object": BALANCED["missed_object"], "flicker": 0.5})


@dataclass(frozen=True)
class Seen:
    """A detection: left, top, right, bottom in pixels, its confidence, its class."""

    box_xyxy: tuple[float, float, float, float]
    score: float
    class_name: str


def doubt(found: Detections, calibration: ScoreCalibration | None = None) -> float:
    """1 - exp(-sum over objects of binary entropy / 2): 0 for a model that is sure of all it sees.

    The same number as the device's strategy `entropy` (a test compares them): entropy above that of a score of 0.05, of the
    probability where the model's scores are calibrated, times the class's weight; of overlapping boxes of a class the largest.

    Args:
        found: decoded at 0.05.
        calibration: what the model's scores are worth; None to take them at their word.

    Source: Yang et al., "Plug and Play Active Learning for Object Detection" (2024): entropy of the box's own confidence, as its
    released code has it.
    """
    boxes, classes = found.boxes_xyxy[:_MOST_BOXES].astype(np.float64), found.class_ids[:_MOST_BOXES]
    p = found.scores[:_MOST_BOXES].astype(np.float64)
    weights = np.ones(len(p))
    if calibration is not None:
        p = np.array(calibration.probabilities(p.tolist(), classes.tolist()), np.float64)
        weights = np.array(calibration.weights(classes.tolist()), np.float64)
    floor = float(_bits(np.array([_FLOOR_SCORE]))[0])
    values = np.clip((_bits(p) - floor) / (1.0 - floor), 0.0, 1.0) * weights
    order = np.lexsort((*boxes.T, classes, -values))
    same = (iou_matrix(boxes, boxes) > SAME_IOU) & (classes[:, None] == classes[None, :])
    total, taken = 0.0, np.zeros(len(p), np.bool_)
    for i in order.tolist():
        if not taken[i]:
            total += float(values[i])
            taken |= same[i]
    return float(-np.expm1(-total / 2))


def _bits(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Binary entropy."""
    p = np.clip(p, 1e-9, 1 - 1e-9)
    bits: NDArray[np.float64] = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    return bits


def disagreement(teacher: Sequence[Seen], device: Sequence[Seen]) -> float:
    """1 - F1 between what a teacher and what the device shows at 0.25 and more, matched by class and IoU 0.5; 0 where both see nothing.

    Only what both are sure enough of to show counts: with a teacher the right frames are those where it is confident and the device
    is wrong, not those where the teacher itself is in doubt.
    """
    sure = [one for one in teacher if one.score >= SHOWN_CONFIDENCE]
    shown = [one for one in device if one.score >= SHOWN_CONFIDENCE]
    if not sure and not shown:
        return 0.0
    matched = len(pairs(sure, shown))
    return 1.0 - 2 * matched / (len(sure) + len(shown))


def pairs(ours: Sequence[Seen | Box], theirs: Sequence[Seen | Box]) -> list[tuple[int, int]]:
    """Which of ours is which of theirs: greedy by IoU, one to one, of one class, IoU 0.5 and more."""
    close = sorted(
        (
            (-iou(one.box_xyxy, other.box_xyxy), i, j)
            for i, one in enumerate(ours)
            for j, other in enumerate(theirs)
            if one.class_name == other.class_name
        ),
    )
    taken_i, taken_j, found = set[int](), set[int](), list[tuple[int, int]]()
    for negative, i, j in close:
        if -negative < SAME_IOU:
            break
        if i not in taken_i and j not in taken_j:
            taken_i.add(i)
            taken_j.add(j)
            found.append((i, j))
    return found


def combined(
    fresh_doubt: float,
    strategies: Mapping[str, float],
    weights: Mapping[str, float] | None = None,
    *,
    fresh_weight: float = BALANCED["entropy"],
) -> float:
    """The server's doubt and what only the device could see over time, put together as the device's `balanced` does it.

    Args:
        fresh_doubt: in [0, 1]; takes the place of the device's `entropy`.
        strategies: what each strategy said on the device, in [0, 1]: `missed_object`, and `flicker` where its policy asked for that.
        weights: by how much to believe in each more or less than that, from `yields.py`; None for not at all.
        fresh_weight: how much `fresh_doubt` counts, in [0, 1]; 1 for a teacher, who does not doubt but knows.
    """
    factors = weights or {}
    believed = {name: min(1.0, weight * factors.get(name, 1.0)) for name, weight in _OVER_TIME.items()}
    said = {name: min(1.0, max(0.0, float(strategies.get(name, 0.0)))) for name in _OVER_TIME}
    return noisy_or({"entropy": fresh_doubt, **said}, {"entropy": fresh_weight, **believed})


def ranks_within(values: Mapping[str, tuple[str, float]]) -> dict[str, float]:
    """Rank in [0, 1] of each value among those of its group, ties in the middle; 0.5 for one that is alone.

    Args:
        values: key -> (group, value).
    """
    groups: dict[str, list[float]] = {}
    for group, value in values.values():
        groups.setdefault(group, []).append(value)
    ordered = {group: np.sort(np.array(members)) for group, members in groups.items()}
    ranks = {}
    for key, (group, value) in values.items():
        members = ordered[group]
        below, up_to = np.searchsorted(members, value, "left"), np.searchsorted(members, value, "right")
        ranks[key] = float(below + up_to) / (2 * len(members))
    return ranks
