"""Field metrics against simulated truth: the estimate is unbiased, its interval holds what it promises, what is missing is said."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bowerbird_agent.selection.explore import AuditDraw
from bowerbird_server.drift.field_changes import changes
from bowerbird_server.drift.field_metrics import Audited, FieldMetrics, Missing, by_groups, estimate, matched

HOUR_S = 3600.0


def day_of(frame: Audited | Missing) -> tuple[str, int]:
    return frame.camera, int(frame.captured_s // (6 * HOUR_S))


def population(seed: int, frames: int = 12_000) -> list[Audited]:
    """Every frame that a camera showed in a day, with the truth: objects stay for a while, the model is bad at night, when it is
    also quiet, and sees or misses an object for as long as it stays."""
    rng = np.random.default_rng(seed)
    everything: list[Audited] = []
    while len(everything) < frames:
        at = len(everything) / frames
        night = at > 0.5
        objects = int(rng.poisson(0.4 if night else 1.5))
        seen = rng.random(objects) < (0.45 if night else 0.9)
        false = int(rng.random() < (0.3 if night else 0.1))
        for _ in range(int(rng.integers(5, 40))):
            flicker = rng.random(objects) < 0.95
            right = int((seen & flicker).sum())
            number = len(everything)
            captured_s = number * 24 * HOUR_S / frames
            scene = f"gate@{int(captured_s // 60)}"
            everything.append(Audited("gate", captured_s, scene, 1.0, objects, right + false, right))
    return everything[:frames]


def audit(everything: list[Audited], seed: int, probability: Callable[[int], float]) -> list[Audited]:
    """What the device's own draw takes of them."""
    taken = []
    draw = AuditDraw(f"{seed}/cam-01/1", "gate")
    for number, frame in enumerate(everything):
        is_taken, exact = draw.take(probability(number))
        if is_taken:
            taken.append(dataclasses.replace(frame, probability=exact))
    return taken


def truth(everything: list[Audited]) -> tuple[float, float]:
    right = sum(f.right for f in everything)
    return right / sum(f.found for f in everything), right / sum(f.drawn for f in everything)


def more_by_night(number: int) -> float:
    """A boost that coincides with the bad hours, as it would."""
    return 0.05 if number > 6000 else 0.0125


RUNS = 200


@pytest.fixture(scope="module")
def runs() -> list[tuple[tuple[float, float], list[Audited], FieldMetrics]]:
    found = []
    for seed in range(RUNS):
        everything = population(seed)
        taken = audit(everything, seed, more_by_night)
        found.append((truth(everything), taken, estimate(taken, [], cell=day_of)))
    return found


def test_intervals_hold_the_truth_as_often_as_they_say(
    runs: list[tuple[tuple[float, float], list[Audited], FieldMetrics]],
) -> None:
    """95 % of 200 runs are 190; fewer than 182 would come by chance once in two hundred times."""
    for name, which in (("precision", 0), ("recall", 1)):
        held = sum(getattr(m, name).low <= true[which] <= getattr(m, name).high for true, _, m in runs)
        assert held >= 182, f"{name}: {held} of {RUNS}"
        widths = [getattr(m, name).high - getattr(m, name).low for _, _, m in runs]
        assert np.median(widths) < 0.2, "an interval that says nothing holds the truth, too"


def test_the_estimate_is_unbiased_and_the_plain_share_is_not(
    runs: list[tuple[tuple[float, float], list[Audited], FieldMetrics]],
) -> None:
    errors = [metrics.recall.value - true[1] for true, _, metrics in runs if metrics.recall.value is not None]
    plain = [sum(f.right for f in taken) / sum(f.drawn for f in taken) - true[1] for true, taken, _ in runs]
    spread = float(np.std(errors)) / np.sqrt(len(errors))
    assert abs(float(np.mean(errors))) < 4 * spread
    assert float(np.mean(plain)) < -0.05, "the unweighted share counts the bad hours four times"


def test_what_was_evicted_by_night_is_made_up_for_by_the_rest_of_the_night() -> None:
    with_names, without = [], []
    for seed in range(60):
        everything = population(seed)
        taken = audit(everything, seed, lambda _: 0.03)
        rng = np.random.default_rng(seed)
        gone = [f.captured_s > 12 * HOUR_S and rng.random() < 0.8 for f in taken]
        kept = [f for f, is_gone in zip(taken, gone, strict=True) if not is_gone]
        missing = [Missing(f.camera, f.captured_s, f.probability) for f, is_gone in zip(taken, gone, strict=True) if is_gone]
        metrics = estimate(kept, missing, cell=day_of)
        blind = estimate(kept, [], cell=day_of)
        assert metrics.recall.value is not None
        assert blind.recall.value is not None
        assert metrics.missing == sum(gone)
        assert 0.2 < metrics.missing_share < 0.6
        assert metrics.recall.least <= truth(everything)[1] <= metrics.recall.most
        with_names.append(metrics.recall.value - truth(everything)[1])
        without.append(blind.recall.value - truth(everything)[1])
    assert abs(float(np.mean(with_names))) < 0.02
    assert float(np.mean(without)) > 0.04, "as if the evicted frames had never been there"


def test_the_weights_add_up_to_the_frames_that_were_seen() -> None:
    everything = population(3)
    seen = [estimate(audit(everything, seed, more_by_night), [], cell=day_of).frames_seen for seed in range(20)]
    assert float(np.mean(seen)) == pytest.approx(len(everything), rel=0.02)


frames = st.builds(
    lambda scene, p, drawn, found, right: Audited("gate", 0.0, f"gate@{scene}", p, drawn, found, min(drawn, found, right)),
    st.integers(0, 5),
    st.floats(0.001, 1.0),
    st.integers(0, 6),
    st.integers(0, 6),
    st.integers(0, 6),
)


@given(
    st.lists(frames, max_size=15),
    st.lists(st.builds(Missing, st.just("gate"), st.just(0.0), st.floats(0.001, 1.0)), max_size=5),
)
def test_whatever_was_audited_gives_rates_inside_their_intervals(audited: list[Audited], missing: list[Missing]) -> None:
    metrics = estimate(audited, missing, cell=lambda _: 0)
    for rate in (metrics.precision, metrics.recall):
        assert 0.0 <= rate.low <= rate.high <= 1.0
        assert 0.0 <= rate.least <= rate.most <= 1.0 + 1e-9
        if rate.value is not None:
            assert rate.low <= rate.value <= rate.high
            assert rate.least - 1e-9 <= rate.value <= rate.most + 1e-9


def test_a_perfect_score_on_few_scenes_promises_little() -> None:
    few = [Audited("gate", 0.0, f"s{i}", 0.1, 10, 10, 10) for i in range(3)]
    many = [Audited("gate", 0.0, f"s{i}", 0.1, 10, 10, 10) for i in range(100)]
    assert estimate(few, [], cell=day_of).recall.low < 0.4
    assert estimate(many, [], cell=day_of).recall.low > 0.95
    assert (estimate(few[:1], [], cell=day_of).recall.low, estimate(few[:1], [], cell=day_of).recall.high) == (0.0, 1.0)


def test_without_a_box_there_is_no_rate() -> None:
    metrics = estimate([Audited("gate", 0.0, "s", 0.5, 0, 0, 0)], [], cell=day_of)
    assert metrics.recall.value is None
    assert metrics.precision.value is None


def test_groups_are_kept_apart_and_one_may_have_nothing_but_missing_frames() -> None:
    audited = [
        Audited(camera, 0.0, f"{camera}{i}", 0.5, 2, 2, right) for camera, right in (("a", 2), ("b", 1)) for i in range(4)
    ]
    found = by_groups(audited, [Missing("c", 0.0, 0.5)], lambda f: f.camera, cell=day_of)
    assert {name: metrics.recall.value for name, metrics in found.items()} == {"a": 1.0, "b": 0.5, "c": None}
    assert found["c"].missing_share == 1.0


def test_a_box_matches_one_box_of_its_class() -> None:
    drawn = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], float)
    found = np.array([[0, 0, 10, 9], [1, 0, 10, 10], [20, 20, 30, 30]], float)
    assert matched(drawn, ["car", "car"], found, ["car", "car", "car"]) == 2
    assert matched(drawn, ["car", "person"], found, ["car", "car", "car"]) == 1
    assert matched(drawn, ["car", "car"], found[:0], []) == 0


def test_a_fall_of_recall_is_noticed_and_steadiness_is_not() -> None:
    rng = np.random.default_rng(4)

    def shown(rates: list[float]) -> list[Audited]:
        return [
            Audited("gate", number * 60.0, f"s{number}", 0.1, 4, 4, int(rng.binomial(4, rate)))
            for number, rate in enumerate(rates)
        ]

    assert changes(shown([0.85] * 600)) == []
    found = changes(shown([0.85] * 400 + [0.5] * 200))
    assert len(found) >= 1
    assert found[0].before - found[0].after > 0.05
    assert found[-1].after < 0.72
    assert 400 * 60.0 <= found[0].noticed_s <= 520 * 60.0
