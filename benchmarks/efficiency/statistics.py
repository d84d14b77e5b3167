"""What a handful of paired runs can say: permutation test, Holm's correction, Student's interval, label-efficiency ratio.

In: numbers, one per seed. Out: numbers. Pure; randomness comes in as a seed. It knows nothing of arms or models.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

# Quantiles of Student's t for 1 to 30 degrees of freedom; beyond, the last one is used, which is a little too wide.
_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_T_975 += (2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)
_T_950 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796, 1.782, 1.771, 1.761, 1.753)
_T_950 += (1.746, 1.740, 1.734, 1.729, 1.725, 1.721, 1.717, 1.714, 1.711, 1.708, 1.706, 1.703, 1.701, 1.699, 1.697)
_EXACT_UP_TO = 14


@dataclass(frozen=True)
class PairedDifference:
    """Mean of paired differences with what it is worth.

    Args:
        pairs: how many.
        mean: of the differences.
        low, high: two-sided 95 % interval (Student); infinite below two pairs.
        one_sided_low: 95 % lower bound.
        p: of the two-sided paired permutation test; 1 below two pairs.
    """

    pairs: int
    mean: float
    low: float
    high: float
    one_sided_low: float
    p: float


def paired_difference(differences: Sequence[float], seed: int = 0) -> PairedDifference:
    """What the differences of pairs say about their mean.

    Raises:
        ValueError: there is none.
    """
    values = np.asarray(differences, np.float64)
    if not len(values):
        raise ValueError("there are no pairs to compare; run both arms with the same seeds")
    mean = float(values.mean())
    if len(values) < 2:
        return PairedDifference(1, mean, -math.inf, math.inf, -math.inf, 1.0)
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    at = min(len(values) - 2, len(_T_975) - 1)
    return PairedDifference(
        len(values),
        mean,
        mean - _T_975[at] * error,
        mean + _T_975[at] * error,
        mean - _T_950[at] * error,
        paired_permutation(values.tolist(), seed),
    )


def paired_permutation(differences: Sequence[float], seed: int = 0, draws: int = 20_000) -> float:
    """Two-sided p of "swapping a pair's arms changes nothing": share of sign flips whose mean is at least as far from 0.

    Exact up to 14 pairs; beyond, that many draws, the observed one counted among them so that p is never 0.
    Source: Fisher, "The Design of Experiments" (1935), section 21; Phipson and Smyth (2010) for the count.
    """
    values = np.asarray(differences, np.float64)
    observed = abs(values.sum())
    slack = 1e-12 * max(1.0, float(np.abs(values).sum()))
    if len(values) <= _EXACT_UP_TO:
        signs: NDArray[np.float64] = np.array(list(itertools.product((-1.0, 1.0), repeat=len(values))))
        return float((np.abs(signs @ values) >= observed - slack).mean())
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), (draws, len(values)))
    return float((1 + (np.abs(signs @ values) >= observed - slack).sum()) / (draws + 1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values made larger so that all claims together are wrong at most as often as one alone.

    Source: Holm, "A simple sequentially rejective multiple test procedure" (1979).
    """
    adjusted: dict[str, float] = {}
    largest = 0.0
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda pair: (pair[1], pair[0]))):
        largest = max(largest, min(1.0, p * (len(p_values) - place)))
        adjusted[name] = largest
    return adjusted


def cost_to_reach(costs: Sequence[float], accuracies: Sequence[float], wanted: float) -> float:
    """What it cost to reach an accuracy, on the line through (cost, best accuracy so far); infinite if it was not reached.

    Args:
        costs: rising.
        accuracies: at these costs; a later one that is worse counts as the best before it.
    """
    best = np.maximum.accumulate(np.asarray(accuracies, np.float64))
    if best[-1] < wanted:
        return math.inf
    at = int(np.argmax(best >= wanted))
    if at == 0:
        return float(costs[0])
    share = (wanted - best[at - 1]) / (best[at] - best[at - 1])
    return float(costs[at - 1] + share * (costs[at] - costs[at - 1]))


def area_under_curve(costs: Sequence[float], accuracies: Sequence[float]) -> float:
    """Mean accuracy over the range of costs; the accuracy itself when there is no range."""
    width = costs[-1] - costs[0]
    return float(np.trapezoid(accuracies, costs) / width) if width > 0 else float(accuracies[-1])


def efficiency_ratio(
    base: Sequence[Sequence[tuple[float, float]]],
    ours: Sequence[Sequence[tuple[float, float]]],
    *,
    seed: int = 0,
    draws: int = 2000,
) -> tuple[float, float, float]:
    """How many times the base's cost ours needs less: n_base(y) / n_ours(y) on mean curves, and its 95 % bootstrap interval over seeds.

    y is the highest accuracy that both mean curves reach. What both paid for the start counts in both.

    Args:
        base, ours: for each seed the same number of (cost, accuracy), costs rising; seeds in the same order.

    Raises:
        ValueError: the numbers of seeds or rounds differ, or there is none.
    """
    if not base or len(base) != len(ours) or len({len(curve) for curve in (*base, *ours)}) != 1:
        raise ValueError("curves must come in pairs of the same length; run all rounds of both arms with the same seeds")
    a, b = np.asarray(base, np.float64), np.asarray(ours, np.float64)
    rng = np.random.default_rng(seed)
    ratio = _ratio(a.mean(axis=0), b.mean(axis=0))
    if len(a) < 2:
        return ratio, 0.0, math.inf
    again = []
    for _ in range(draws):
        seeds = rng.integers(0, len(a), len(a))
        again.append(_ratio(a[seeds].mean(axis=0), b[seeds].mean(axis=0)))
    low, high = np.quantile(again, (0.025, 0.975))
    return ratio, float(low), float(high)


def _ratio(base: NDArray[np.float64], ours: NDArray[np.float64]) -> float:
    wanted = min(base[:, 1].max(), ours[:, 1].max())
    return cost_to_reach(base[:, 0], base[:, 1], wanted) / cost_to_reach(ours[:, 0], ours[:, 1], wanted)
