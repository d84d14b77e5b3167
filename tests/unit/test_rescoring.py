"""What a second look says of a frame, and what labelling it costs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bowerbird_server.labelling_cost import ENOUGH_LABELS, Effort, cost_of, fit_effort
from bowerbird_server.rescoring import Seen, combined, disagreement, doubt, ranks_within

BIRD = Seen((0.0, 0.0, 10.0, 10.0), 0.9, "bird")
UNIT = st.floats(0, 1)


@given(st.lists(UNIT, max_size=20))
def test_doubt_lies_in_0_to_1_and_grows_with_every_box(scores: list[float]) -> None:
    value = doubt(np.array(scores))
    assert 0 <= value <= 1
    assert doubt(np.array([*scores, 0.5])) >= value


def test_a_model_that_is_sure_has_no_doubt() -> None:
    assert doubt(np.array([])) == 0
    assert doubt(np.array([1.0, 0.0])) < 1e-6
    assert doubt(np.array([0.5])) == pytest.approx(1 - np.exp(-0.5))


def test_a_teacher_disagrees_about_what_one_of_the_two_misses() -> None:
    """Equal boxes agree, another class or place does not, and what neither is sure of does not count."""
    assert disagreement([BIRD], [BIRD]) == 0
    assert disagreement([], []) == 0
    assert disagreement([BIRD], []) == disagreement([], [BIRD]) == 1
    assert disagreement([BIRD], [Seen(BIRD.box_xyxy, 0.9, "fox")]) == 1
    assert disagreement([BIRD, Seen((50.0, 50.0, 60.0, 60.0), 0.8, "bird")], [BIRD]) == pytest.approx(1 / 3)
    assert disagreement([BIRD, Seen((50.0, 50.0, 60.0, 60.0), 0.1, "bird")], [BIRD]) == 0


@given(UNIT, UNIT, UNIT, st.none() | st.dictionaries(st.sampled_from(["flicker", "missed_object"]), st.floats(0.25, 2)))
def test_what_the_device_saw_over_time_only_adds(
    fresh: float, flicker: float, missed: float, weights: dict[str, float] | None
) -> None:
    value = combined(fresh, {"flicker": flicker, "missed_object": missed}, weights)
    assert fresh - 1e-12 <= value <= 1


@given(st.dictionaries(st.text(max_size=3), st.tuples(st.sampled_from(["a", "b"]), UNIT), max_size=30))
def test_ranks_keep_the_order_within_a_camera_and_know_no_other(values: dict[str, tuple[str, float]]) -> None:
    ranks = ranks_within(values)
    for one, (camera, value) in values.items():
        assert 0 < ranks[one] < 1
        for other, (other_camera, other_value) in values.items():
            if camera == other_camera:
                assert (ranks[one] < ranks[other]) == (value < other_value)


def test_effort_is_learnt_from_labels_that_were_timed() -> None:
    """Ten seconds a picture and three a box come out; somebody's lunch does not."""
    rng = np.random.default_rng(1)
    labels = [(n, 10 + 3 * n + rng.normal(0, 0.5)) for n in rng.integers(0, 12, 200).tolist()] + [(2, 3600.0)]
    found = fit_effort(labels)
    assert found.look_s == pytest.approx(10, abs=0.5)
    assert found.box_s == pytest.approx(3, abs=0.1)
    assert fit_effort(labels[: ENOUGH_LABELS - 1]) == Effort()


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0.1, 500)), min_size=ENOUGH_LABELS, max_size=80))
def test_neither_looking_nor_drawing_gives_time_back(labels: list[tuple[int, float]]) -> None:
    found = fit_effort(labels)
    assert found.look_s >= -1e-6
    assert found.box_s >= 0


def test_a_cost_is_counted_in_what_was_asked_for() -> None:
    effort = Effort(5.0, 7.0)
    assert [cost_of(unit, 3, effort) for unit in ("frames", "boxes", "seconds")] == [1, 3, 26]
    with pytest.raises(ValueError, match="hours"):
        cost_of("hours", 3, effort)
