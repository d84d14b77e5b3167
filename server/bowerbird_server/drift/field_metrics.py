"""Precision and recall in the field, unbiased, from the random audit: a look at all frames through the few that chance took. Pure.

In: audited frames with their probability and what people found on them; the audited frames that never came or have no label. Out:
estimates with intervals. What the policy chose is not used: it is chosen for being wrong.

Totals are estimated with weights 1 / p and divided (Hajek), so only the ratio of probabilities matters. An audited frame without a
label (evicted from a spool, dropped at a window's end, deleted, not labelled yet) is missing, not absent: its weight goes to the
labelled frames of its camera and period, and bounds say what the missing could change. The variance is linearised over scenes; the
interval is Korn and Graubard's, which keeps its promise for few scenes and rates near 1.
Sources: Hajek, discussion of Basu (1971); Saerndal, Swensson and Wretman, "Model Assisted Survey Sampling" (1992), ch. 5.3 and 15.6;
    Korn and Graubard, "Confidence intervals for proportions with small expected number of positive counts estimated from survey data"
    (1998).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from bowerbird_server.training.average_precision import iou_matrix, match

LEVEL = 0.95

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Audited:
    """One frame of the audit with a label.

    Args:
        camera: whose.
        captured_s: UTC seconds since the epoch.
        scene: frames of one scene are not independent.
        probability: with which the audit took it, in (0, 1].
        drawn, found, right: boxes that people drew, boxes that the model showed, and those of them that match.
    """

    camera: str
    captured_s: float
    scene: str
    probability: float
    drawn: int
    found: int
    right: int


@dataclass(frozen=True)
class Missing:
    """One frame of the audit of which nothing more is known."""

    camera: str
    captured_s: float
    probability: float


@dataclass(frozen=True)
class Estimate:
    """A rate with its interval.

    Args:
        value: in [0, 1]; None when there is nothing to divide by.
        low, high: ends of the 95 % interval.
        least, most: the value if all that is missing were wrong, or right.
    """

    value: float | None
    low: float
    high: float
    least: float
    most: float


@dataclass(frozen=True)
class FieldMetrics:
    """What is known of one group of frames.

    Args:
        frames, scenes: labelled ones.
        missing: audited frames without a label; `missing_share` is theirs of the weight.
        frames_seen: estimated number of frames that the device looked at.
    """

    precision: Estimate
    recall: Estimate
    frames: int
    scenes: int
    missing: int
    missing_share: float
    frames_seen: float


def matched(
    drawn_xyxy: NDArray[np.float64], drawn_classes: Sequence[str], found_xyxy: NDArray[np.float64], found_classes: Sequence[str]
) -> int:
    """How many found boxes match a drawn box of their class of their own, at an overlap of at least one half.

    Args:
        drawn_xyxy, found_xyxy: (n, 4) and (m, 4), the found ones by falling score.
    """
    right = 0
    for name in set(drawn_classes) & set(found_classes):
        ours = np.array([of == name for of in drawn_classes])
        theirs = np.array([of == name for of in found_classes])
        right += int(match(iou_matrix(found_xyxy[theirs], drawn_xyxy[ours]))[:, 0].sum())
    return right


def by_groups(
    audited: Iterable[Audited],
    missing: Iterable[Missing],
    key: Callable[[Audited | Missing], K],
    *,
    cell: Callable[[Audited | Missing], Hashable],
) -> dict[K, FieldMetrics]:
    """Metrics of each group.

    Args:
        key: which group a frame belongs to.
        cell: within a group, labelled frames stand for the missing ones of their cell.
    """
    groups: dict[K, tuple[list[Audited], list[Missing]]] = {}
    for frame in audited:
        groups.setdefault(key(frame), ([], []))[0].append(frame)
    for gone in missing:
        groups.setdefault(key(gone), ([], []))[1].append(gone)
    return {name: estimate(ours, gone, cell=cell) for name, (ours, gone) in groups.items()}


def estimate(
    audited: Sequence[Audited], missing: Sequence[Missing], *, cell: Callable[[Audited | Missing], Hashable]
) -> FieldMetrics:
    """Metrics of some frames together."""
    weights = _weights(audited, missing, cell)
    drawn, found, right = (np.array([getattr(a, name) for a in audited], np.float64) for name in ("drawn", "found", "right"))
    scenes = np.unique([a.scene for a in audited], return_inverse=True)[1] if audited else np.zeros(0, np.int64)
    known = float(sum(1.0 / a.probability for a in audited))
    lost = float(sum(1.0 / m.probability for m in missing))
    share = lost / (known + lost) if lost else 0.0
    return FieldMetrics(
        precision=_rate(weights, right, found, scenes, share),
        recall=_rate(weights, right, drawn, scenes, share),
        frames=len(audited),
        scenes=int(scenes.max()) + 1 if len(scenes) else 0,
        missing=len(missing),
        missing_share=share,
        frames_seen=known + lost,
    )


def _weights(
    audited: Sequence[Audited], missing: Sequence[Missing], cell: Callable[[Audited | Missing], Hashable]
) -> NDArray[np.float64]:
    """1 / p, raised so that each cell's labelled frames stand for its missing ones. A cell without any is spread over all."""
    known: dict[Hashable, float] = {}
    lost: dict[Hashable, float] = {}
    for frame in audited:
        known[cell(frame)] = known.get(cell(frame), 0.0) + 1.0 / frame.probability
    nowhere = 0.0
    for gone in missing:
        if cell(gone) in known:
            lost[cell(gone)] = lost.get(cell(gone), 0.0) + 1.0 / gone.probability
        else:
            nowhere += 1.0 / gone.probability
    raised = [(1.0 + lost.get(cell(f), 0.0) / known[cell(f)]) / f.probability for f in audited]
    total = sum(raised)
    return np.array(raised, np.float64) * (1.0 + nowhere / total if total else 1.0)


def _rate(
    weights: NDArray[np.float64],
    right: NDArray[np.float64],
    of: NDArray[np.float64],
    scenes: NDArray[np.int64],
    missing_share: float,
) -> Estimate:
    total = float((weights * of).sum())
    if total <= 0.0:
        return Estimate(None, 0.0, 1.0, 0.0, 1.0)
    value = min(1.0, float((weights * right).sum()) / total)
    low, high = _interval(value, weights, right, of, scenes)
    shown = 1.0 - missing_share
    return Estimate(value, low, high, value * shown, value * shown + missing_share)


def _interval(
    value: float,
    weights: NDArray[np.float64],
    right: NDArray[np.float64],
    of: NDArray[np.float64],
    scenes: NDArray[np.int64],
) -> tuple[float, float]:
    """Korn and Graubard's: a binomial interval at the number of boxes that would tell as much if they were independent."""
    from scipy.special import betaincinv, stdtrit  # takes a while to import, and most commands estimate nothing

    residuals = np.bincount(scenes, weights * (right - value * of))
    counted = int((np.bincount(scenes, of) > 0).sum())
    if counted < 2:
        return 0.0, 1.0
    variance = counted / (counted - 1) * float((residuals**2).sum()) / float((weights * of).sum()) ** 2
    boxes = float(of.sum())
    # All right or all wrong: the scenes are what was seen independently.
    size = float(counted) if variance <= 0.0 else min(boxes, value * (1.0 - value) / variance)
    tail = (1.0 - LEVEL) / 2.0
    if boxes > 1:
        size *= float(stdtrit(boxes - 1, tail) / stdtrit(counted - 1, tail)) ** 2
    hits = value * size
    low = 0.0 if hits <= 0.0 else float(betaincinv(hits, size - hits + 1.0, tail))
    high = 1.0 if hits >= size else float(betaincinv(hits + 1.0, size - hits, 1.0 - tail))
    return min(low, value), max(high, value)
