"""How much a label of a frame would teach, as the server sees it with a newer model than the device had. Pure.

In: confidences of a model's detections, or a teacher's detections beside the device's; what the device's temporal strategies said.
Out: numbers in [0, 1]. Ranks are taken within a camera: absolute scores of different scenes are not comparable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bowerbird_server.labelling.boxes import Box, iou

SAME_IOU = 0.5
SHOWN_CONFIDENCE = 0.25


@dataclass(frozen=True)
class Seen:
    """A detection: left, top, right, bottom in pixels, its confidence, its class."""

    box_xyxy: tuple[float, float, float, float]
    score: float
    class_name: str


def doubt(scores: NDArray[np.float64]) -> float:
    """1 - exp(-sum of binary entropies / 2): 0 for a model that is sure of all it sees.

    Args:
        scores: (n,) confidences in [0, 1]; n may be 0.

    Source: Yang et al., "Plug and Play Active Learning for Object Detection" (2024): entropy of the box's own confidence, as its
    released code has it.
    """
    p = np.clip(scores, 1e-9, 1 - 1e-9)
    bits = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    return float(1.0 - np.exp(-bits.sum() / 2))


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


def combined(fresh_doubt: float, strategies: Mapping[str, float], weights: Mapping[str, float] | None = None) -> float:
    """The server's doubt and what only the device could see over time, 1 - (1-U)(1-F/2)(1-M/2).

    Args:
        fresh_doubt: U, in [0, 1].
        strategies: what each strategy said on the device, in [0, 1]; `flicker` is F and `missed_object` M.
        weights: how much of each to believe in the place of one half, from `yields.py`; None for the design's.
    """
    silence = 1.0 - fresh_doubt
    for name in ("flicker", "missed_object"):
        said = min(1.0, max(0.0, float(strategies.get(name, 0.0))))
        silence *= 1.0 - (0.5 if weights is None else min(1.0, 0.5 * weights.get(name, 1.0))) * said
    return 1.0 - silence


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
