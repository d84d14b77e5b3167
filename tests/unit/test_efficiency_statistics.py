"""Statistics of the label-efficiency benchmark, held against what is known by hand or by simulation."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from efficiency.statistics import (
    area_under_curve,
    cost_to_reach,
    efficiency_ratio,
    holm,
    paired_difference,
    paired_permutation,
)


def test_six_pairs_that_all_agree_have_the_smallest_p_that_six_pairs_can_have() -> None:
    assert paired_permutation([1.0, 2.0, 0.5, 3.0, 1.5, 0.1]) == pytest.approx(2 / 64)


def test_the_permutation_test_counts_the_flips_that_are_as_far_from_nothing() -> None:
    # Sums of +-3 +-1: 4, 2, -2, -4; observed 2: all four are at least as far.
    assert paired_permutation([3.0, -1.0]) == 1.0
    assert paired_permutation([3.0, 1.0]) == 0.5


def test_many_pairs_are_tested_by_draws_and_never_with_certainty() -> None:
    p = paired_permutation([1.0] * 40)
    assert 0 < p < 0.001
    assert paired_permutation([1.0, -1.0] * 20) > 0.9


def test_a_fair_coin_is_called_significant_at_most_as_often_as_promised() -> None:
    rng = np.random.default_rng(1)
    called = sum(paired_permutation(rng.normal(size=8).tolist()) <= 0.05 for _ in range(400))
    assert called <= 400 * 0.05 + 3 * math.sqrt(400 * 0.05 * 0.95)


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    inside = one_sided = 0
    for _ in range(1000):
        found = paired_difference(rng.normal(0.3, 1.0, 6).tolist())
        inside += found.low <= 0.3 <= found.high
        one_sided += found.one_sided_low <= 0.3
    assert abs(inside - 950) < 25
    assert abs(one_sided - 950) < 25


def test_a_single_pair_bounds_nothing() -> None:
    found = paired_difference([0.2])
    assert (found.low, found.high, found.p) == (-math.inf, math.inf, 1.0)


def test_no_pair_is_an_error() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        paired_difference([])


def test_holm_multiplies_the_smallest_by_all_and_never_turns_the_order_round() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}


def test_the_cost_of_an_accuracy_lies_on_the_line_between_two_rounds() -> None:
    assert cost_to_reach([40, 80, 120], [0.2, 0.4, 0.5], 0.3) == pytest.approx(60)
    assert cost_to_reach([40, 80, 120], [0.2, 0.1, 0.5], 0.35) == pytest.approx(100), "a worse round is no step back"
    assert cost_to_reach([40, 80], [0.2, 0.4], 0.2) == 40
    assert cost_to_reach([40, 80], [0.2, 0.4], 0.41) == math.inf


def test_who_needs_half_the_labels_has_a_ratio_of_two() -> None:
    base = [[(100.0, 0.2), (200.0, 0.3), (300.0, 0.4)]] * 4
    ours = [[(100.0, 0.2), (150.0, 0.4), (300.0, 0.4)]] * 4
    ratio, low, high = efficiency_ratio(base, ours)
    assert ratio == pytest.approx(2.0)
    assert (low, high) == pytest.approx((2.0, 2.0))


def test_equal_arms_have_a_ratio_of_about_one_within_its_interval() -> None:
    rng = np.random.default_rng(3)

    def curves() -> list[list[tuple[float, float]]]:
        return [[(40.0 + 40 * r, 0.2 + 0.1 * r + 0.02 * float(rng.normal())) for r in range(4)] for _ in range(10)]

    ratio, low, high = efficiency_ratio(curves(), curves())
    assert low < ratio < high
    assert low < 1.0 < high


def test_curves_without_their_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="in pairs"):
        efficiency_ratio([[(1.0, 0.1)]], [])


def test_the_area_is_the_mean_accuracy_over_the_labels() -> None:
    assert area_under_curve([0, 10, 20], [0.0, 1.0, 1.0]) == pytest.approx(0.75)
