"""Whether choosing pays: held against simulated labellers whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bowerbird_server.batches.batch_choice import CONTROL, EVALUATION, POLICY
from bowerbird_server.batches.yields import (
    HEAVIEST,
    LIGHTEST,
    Judged,
    accuracy_gain,
    by_strategy,
    edit_rates,
    judge_policy,
    wilson,
)


def simulated(seed: int, *, chosen_rate: float, control_rate: float, scenes: int = 60, per_scene: int = 4) -> list[Judged]:
    """Frames of scenes that differ among themselves: each scene has a rate of its own around the role's."""
    rng = np.random.default_rng(seed)
    judged = []
    for scene in range(scenes):
        role, rate = (POLICY, chosen_rate) if scene % 2 else (CONTROL, control_rate)
        own = rng.gamma(4.0, rate / 4.0)
        judged += [
            Judged(role, "score", f"scene{scene}", ("entropy",), 50_000, int(rng.poisson(own))) for _ in range(per_scene)
        ]
    return judged


def test_a_policy_that_finds_twice_the_errors_is_better() -> None:
    words = [judge_policy(simulated(seed, chosen_rate=2.0, control_rate=1.0)).word for seed in range(40)]
    assert words.count("better") >= 32
    assert "not_better" not in words


def test_a_policy_that_finds_half_of_what_chance_finds_is_not_better() -> None:
    words = [judge_policy(simulated(seed, chosen_rate=0.5, control_rate=1.0)).word for seed in range(40)]
    assert words.count("not_better") >= 36
    assert "better" not in words


def test_without_a_difference_better_is_seldom_said() -> None:
    """The interval is wrong in about one of twenty; one-sidedly in one of forty, and for two currencies."""
    words = [judge_policy(simulated(seed, chosen_rate=1.0, control_rate=1.0)).word for seed in range(200)]
    assert words.count("better") <= 16


def test_the_interval_covers_the_true_difference() -> None:
    covered = 0
    for seed in range(150):
        gain = judge_policy(simulated(seed, chosen_rate=1.6, control_rate=1.0)).per_label.gain
        assert gain is not None
        covered += gain.low <= 0.6 <= gain.high
    assert covered >= 132  # 95 % is 142; a percentile bootstrap over thirty scenes a side is a little short


def test_few_labels_decide_nothing() -> None:
    verdict = judge_policy(simulated(1, chosen_rate=0.0, control_rate=5.0, scenes=8))
    assert verdict.word == "undecided"
    assert "are needed" in verdict.why
    assert judge_policy([]).word == "undecided"


def test_a_gain_seen_in_a_single_scene_has_no_interval_and_is_not_told() -> None:
    judged = [Judged(role, "score", "s", (), 50_000, changes) for role, changes in ((POLICY, 3), (CONTROL, 2))]
    for found in (judge_policy(judged).per_label, judge_policy(judged).per_megabyte):
        assert found.chosen is not None
        assert found.gain is None


def test_frames_of_the_evaluation_set_and_of_the_fall_back_count_for_neither_side() -> None:
    judged = simulated(1, chosen_rate=1.0, control_rate=1.0)
    more = [Judged(EVALUATION, "score", "e", (), 1, 99), Judged(POLICY, "diversity", "d", (), 1, 99)]
    assert judge_policy(judged + more) == judge_policy(judged)


def test_a_policy_that_pays_per_label_but_brings_larger_files_is_judged_by_both() -> None:
    """Per megabyte it is clearly worse: that is no `better`."""
    judged = [
        Judged(one.role, "score", one.scene, (), 500_000 if one.role == POLICY else 50_000, one.changes)
        for one in simulated(3, chosen_rate=2.5, control_rate=1.0)
    ]
    verdict = judge_policy(judged)
    assert verdict.per_label.gain is not None
    assert verdict.per_label.gain.low > 0
    assert verdict.per_megabyte.gain is not None
    assert verdict.per_megabyte.gain.high < 0
    assert verdict.word == "undecided"


@given(st.integers(0, 200), st.integers(0, 200))
def test_a_share_lies_in_its_interval_and_that_in_0_to_1(hits: int, misses: int) -> None:
    found = wilson(hits, hits + misses)
    assert 0 <= found.low <= found.value <= found.high <= 1


def edited(scene: int, role: str, *, kept: int, deleted: int, added: int) -> Judged:
    return Judged(role, "score", f"s{scene}", ("entropy",), 50_000, deleted + added, kept + deleted, kept + added, kept)


def test_edits_say_how_good_the_pre_labels_were() -> None:
    frames = [edited(n, CONTROL, kept=8, deleted=2, added=0 if n % 2 else 4) for n in range(10)]
    (rate,) = edit_rates(frames)
    assert (rate.role, rate.frames) == ("control", 10)
    assert rate.precision is not None
    assert rate.recall is not None
    assert rate.precision.value == pytest.approx(0.8)
    assert rate.recall.value == pytest.approx(0.8)
    assert rate.recall.low < 0.75, "scenes differ in what is missed"
    assert rate.recall.high > 0.85
    assert edit_rates([]) == []


def test_edits_of_one_scene_or_without_a_box_promise_nothing() -> None:
    (one_scene,) = edit_rates([edited(0, POLICY, kept=8, deleted=0, added=0)] * 5)
    assert one_scene.precision is None
    (empty,) = edit_rates([edited(n, POLICY, kept=0, deleted=0, added=0) for n in range(5)])
    assert (empty.role, empty.precision, empty.recall) == ("chosen", None, None)
    (perfect,) = edit_rates([edited(n, POLICY, kept=2, deleted=0, added=0) for n in range(5)])
    assert perfect.precision is not None
    assert perfect.precision.value == 1.0
    assert perfect.precision.low < 0.8, "ten boxes that were right are no proof"


def test_each_strategy_is_told_per_label_and_per_megabyte() -> None:
    (found,) = by_strategy(simulated(1, chosen_rate=2.0, control_rate=1.0))
    assert found.per_label is not None
    assert found.per_megabyte is not None
    assert found.per_label.low < found.per_label.value < found.per_label.high
    assert found.per_megabyte.value == pytest.approx(20 * found.per_label.value), "fifty kilobytes a frame"


def test_the_interval_of_a_strategys_yield_holds_the_truth() -> None:
    """Negative binomial counts of scenes with mean 2: in nine of ten of 60 simulations at least."""
    held = 0
    for seed in range(60):
        (found,) = by_strategy(simulated(seed, chosen_rate=2.0, control_rate=1.0))
        assert found.per_label is not None
        held += found.per_label.low <= 2.0 <= found.per_label.high
    assert held >= 52


def test_wilson_is_the_textbooks() -> None:
    """8 of 10: 0.490 to 0.943 (Newcombe 1998, method 3)."""
    found = wilson(8, 10)
    assert (round(found.low, 3), round(found.high, 3)) == (0.490, 0.943)


@given(
    st.lists(
        st.builds(
            Judged,
            st.sampled_from([POLICY, CONTROL]),
            st.just("score"),
            st.sampled_from(["a", "b"]),
            st.lists(st.sampled_from(["entropy", "novelty"]), unique=True).map(tuple),
            st.integers(1, 10**6),
            st.integers(0, 5),
        ),
        max_size=50,
    )
)
def test_weights_are_bounded_and_every_strategy_that_spoke_is_there(judged: list[Judged]) -> None:
    found = by_strategy(judged)
    assert {one.strategy for one in found} == {name for one in judged if one.role == POLICY for name in one.reasons}
    assert all(LIGHTEST <= one.weight <= HEAVIEST for one in found)


def test_a_strategy_whose_frames_needed_no_change_is_believed_less() -> None:
    judged = [Judged(POLICY, "score", str(n), ("flicker",), 1, 0) for n in range(40)]
    judged += [Judged(POLICY, "score", str(n), ("missed_object",), 1, 2) for n in range(40)]
    weights = {one.strategy: one.weight for one in by_strategy(judged)}
    assert weights["flicker"] < 0.5
    assert weights["missed_object"] > 1.5


def test_a_gain_is_divided_with_its_interval_and_by_nothing_it_is_none() -> None:
    gain = accuracy_gain("m", labels=200, size_bytes=10_000_000, difference=0.04, interval=(0.01, 0.07))
    assert gain.per_label is not None
    assert gain.per_megabyte is not None
    assert (gain.per_label.value, gain.per_label.low, gain.per_label.high) == pytest.approx((0.0002, 0.00005, 0.00035))
    assert gain.per_megabyte.value == pytest.approx(0.004)
    assert accuracy_gain("m", labels=0, size_bytes=0, difference=0.04, interval=(0.01, 0.07)).per_label is None
    assert accuracy_gain("m", labels=5, size_bytes=1, difference=0.04, interval=None).per_label is None
