"""Scores of a frame's detections stay in [0, 1], do not hang on the order of boxes, and say what their names promise."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bowerbird_agent.selection import uncertainty as u
from bowerbird_models.detections import Detections

FRAME_SCORES: dict[str, Callable[[Detections], float]] = {**u.SCORERS, "entropy": u.entropy}


def detections(*boxes: tuple[float, int, tuple[float, float, float, float]], classes: int | None = None) -> Detections:
    """From (score, class id, box), most confident first; with class scores when the number of classes is given."""
    order = sorted(boxes, key=lambda box: -box[0])
    class_scores = None
    if classes is not None:
        class_scores = np.zeros((len(order), classes), np.float32)
        for row, (score, class_id, _) in enumerate(order):
            class_scores[row, class_id] = score
    return Detections(
        np.array([box for _, _, box in order], np.float32).reshape(-1, 4),
        np.array([score for score, _, _ in order], np.float32),
        np.array([class_id for _, class_id, _ in order], np.int32),
        class_scores,
    )


def at(x: float) -> tuple[float, float, float, float]:
    """A box 10 pixels wide that overlaps no other whose x differs by ten."""
    return (x, 0.0, x + 10.0, 10.0)


_box = st.tuples(
    st.floats(0.0, 1.0, width=32), st.integers(0, 3), st.tuples(*[st.integers(0, 60).map(float)] * 4)
)  # boxes of no or negative area are among them


@given(st.lists(_box, max_size=40), st.sampled_from(sorted(FRAME_SCORES)), st.sampled_from([None, 1, 4]))
@settings(deadline=None)
def test_every_score_is_between_0_and_1_whatever_the_boxes(
    boxes: list[tuple[float, int, tuple[float, float, float, float]]], name: str, classes: int | None
) -> None:
    if classes == 1:
        boxes = [(score, 0, box) for score, _, box in boxes]
    assert 0.0 <= FRAME_SCORES[name](detections(*boxes, classes=classes)) <= 1.0


@given(st.lists(_box, max_size=30), st.randoms(use_true_random=False), st.sampled_from(sorted(FRAME_SCORES)))
@settings(deadline=None)
def test_the_order_of_equal_boxes_does_not_matter(
    boxes: list[tuple[float, int, tuple[float, ...]]], random: object, name: str
) -> None:
    shuffled = list(boxes)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert FRAME_SCORES[name](detections(*boxes)) == FRAME_SCORES[name](detections(*shuffled))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(FRAME_SCORES))
def test_an_empty_frame_scores_nothing(name: str) -> None:
    assert FRAME_SCORES[name](Detections.empty()) == 0.0


def test_entropy_is_highest_for_a_coin_toss_and_nothing_for_certainty() -> None:
    torn, sure, absent = (u.entropy(detections((score, 0, at(0)))) for score in (0.5, 0.97, 0.05))
    assert torn == pytest.approx(1 - np.exp(-0.5))
    assert sure == absent == 0.0


def test_two_torn_boxes_say_more_than_one_and_two_on_one_object_do_not() -> None:
    one = u.entropy(detections((0.5, 0, at(0))))
    assert u.entropy(detections((0.5, 0, at(0)), (0.5, 0, at(50)))) > one
    assert u.entropy(detections((0.5, 0, at(0)), (0.4, 0, at(1)))) == pytest.approx(one)


def test_overlapping_boxes_of_different_classes_both_count() -> None:
    two_classes = detections((0.5, 0, at(0)), (0.5, 1, at(1)))
    assert u.entropy(two_classes) > u.entropy(detections((0.5, 0, at(0))))


def test_a_dozen_junk_boxes_do_not_outweigh_one_torn_one() -> None:
    junk = detections(*((0.06, 0, at(20.0 * i)) for i in range(12)))
    assert u.entropy(junk) < u.entropy(detections((0.5, 0, at(0))))


def test_least_confidence_and_margin_look_at_shown_boxes_only() -> None:
    seen = detections((0.9, 0, at(0)), (0.06, 1, at(20)))
    assert u.least_confidence(seen) == pytest.approx(0.1)
    assert u.margin(seen) == pytest.approx(0.2)


def test_margin_uses_the_second_class_where_the_head_gives_it() -> None:
    tie = Detections(
        np.array([at(0)], np.float32), np.array([0.9], np.float32), np.array([0], np.int32), np.array([[0.9, 0.9]], np.float32)
    )
    assert u.margin(tie) == pytest.approx(1.0)


def test_margin_of_one_class_is_an_error_for_arrays_and_the_binary_margin_for_frames() -> None:
    with pytest.raises(ValueError, match="two classes"):
        u.margin_boxes(np.zeros((3, 1), np.float32))
    assert u.margin(detections((0.5, 0, at(0)), classes=1)) == pytest.approx(1.0)


def test_a_hidden_box_counts_by_its_strength_unless_a_shown_box_covers_it() -> None:
    assert u.hidden_objects(detections((0.2, 0, at(0)))) == pytest.approx(0.75**2)
    assert u.hidden_objects(detections((0.9, 1, at(0)), (0.2, 0, at(1)))) == 0.0
    assert u.hidden_objects(detections((0.06, 0, at(0)))) == 0.0


def test_hidden_objects_add_up_and_two_boxes_on_one_count_once() -> None:
    one = u.hidden_objects(detections((0.2, 0, at(0))))
    assert u.hidden_objects(detections((0.2, 0, at(0)), (0.2, 0, at(20)))) == pytest.approx(2 * one)
    assert u.hidden_objects(detections((0.2, 0, at(0)), (0.15, 1, at(1)))) == pytest.approx(one)


@given(st.lists(_box, max_size=40), st.randoms())
def test_hidden_objects_do_not_hang_on_the_order_of_boxes(boxes: list[Any], luck: Random) -> None:
    hidden = [(score * 0.3, class_id, box) for score, class_id, box in boxes]
    total = u.hidden_objects(detections(*hidden))
    luck.shuffle(hidden)
    assert 0.0 <= total <= len(boxes)
    assert u.hidden_objects(detections(*hidden)) == pytest.approx(total)


def test_close_to_threshold_is_one_on_it() -> None:
    assert u.close_to_threshold(detections((0.25, 0, at(0)))) == pytest.approx(1.0)


def test_localisation_is_nothing_for_models_without_it() -> None:
    assert u.localisation(detections((0.5, 0, at(0)))) == 0.0


@pytest.mark.parametrize(
    ("scores", "by_max", "by_min"), [([], False, False), ([0.1], False, False), ([0.5], True, True), ([0.9, 0.5], False, True)]
)
def test_the_two_readings_of_the_printed_rule(scores: list[float], by_max: bool, by_min: bool) -> None:
    seen = detections(*((score, 0, at(20.0 * i)) for i, score in enumerate(scores)))
    assert (u.rule_max_below(seen), u.rule_min_below(seen)) == (by_max, by_min)
