"""How far two labels agree, and when a label is odd."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bowerbird_server.batches.label_quality import SURE, agreement, is_drawn, suspicion
from bowerbird_server.batches.rescoring import Seen
from bowerbird_server.labelling.boxes import Box

CLASSES = ["bird", "fox"]
BIRD = Box("bird", (0.0, 0.0, 10.0, 10.0))
boxes = st.lists(
    st.tuples(st.sampled_from(CLASSES), st.integers(0, 40), st.integers(0, 40), st.integers(1, 20), st.integers(1, 20)).map(
        lambda t: Box(t[0], (float(t[1]), float(t[2]), float(t[1] + t[3]), float(t[2] + t[4])))
    ),
    max_size=8,
)


@given(boxes, boxes)
def test_agreement_is_a_share_and_the_same_either_way_round(one: list[Box], other: list[Box]) -> None:
    assert 0 <= agreement(one, other) <= 1
    assert agreement(one, one) == 1
    # Greedy by overlap: ties may be broken differently, which changes no count but where three boxes overlap each other.
    assert agreement(one, other) == pytest.approx(agreement(other, one), abs=0.35)


@given(boxes)
def test_one_box_more_is_less_agreement(one: list[Box]) -> None:
    more = [*one, Box("bird", (500.0, 500.0, 510.0, 510.0))]
    assert agreement(one, more) < 1


def test_agreement_by_hand() -> None:
    assert agreement([], []) == 1
    assert agreement([BIRD], []) == 0
    assert agreement([BIRD], [Box("fox", BIRD.box_xyxy)]) == 0
    assert agreement([BIRD, Box("fox", (30, 30, 40, 40))], [BIRD]) == pytest.approx(2 / 3)
    assert agreement([BIRD], [Box("bird", (0, 0, 10, 4))]) == 0, "less than half of it overlaps"


def test_what_a_model_is_sure_of_and_nobody_drew_is_odd() -> None:
    seen = [Seen((0, 0, 10, 10), 0.9, "bird"), Seen((30, 30, 40, 40), 0.95, "fox")]
    odd = suspicion([BIRD], seen, CLASSES, CLASSES)
    assert odd is not None
    assert odd.why == "a fox seen with 0.95 is not drawn"
    assert suspicion([BIRD], seen, ["bird"], CLASSES) is None, "nobody looked for foxes"
    assert suspicion([], [Seen((0, 0, 10, 10), SURE - 0.01, "bird")], CLASSES, CLASSES) is None


def test_a_box_that_is_drawn_as_another_class_is_odd_where_the_model_knows_that_class() -> None:
    seen = [Seen((0, 0, 10, 10), 0.9, "fox")]
    odd = suspicion([BIRD], seen, CLASSES, CLASSES)
    assert odd is not None
    assert "drawn as bird, seen as fox" in odd.why
    assert suspicion([BIRD], seen, CLASSES, ["fox"]) is None
    assert suspicion([BIRD], [], CLASSES, CLASSES) is None, "what no model sees is what labels are for"


@given(boxes, st.lists(st.floats(0, 1), max_size=8))
def test_a_label_that_says_what_the_model_says_is_never_odd(drawn: list[Box], scores: list[float]) -> None:
    seen = [Seen(box.box_xyxy, score, box.class_name) for box, score in zip(drawn, scores, strict=False)]
    assert suspicion(drawn, seen, CLASSES, CLASSES) is None


def test_the_share_is_drawn_by_lot_and_the_lot_does_not_change() -> None:
    drawn = [is_drawn(str(n), 0.1, "s") for n in range(5000)]
    assert 420 <= sum(drawn) <= 580  # 500 expected, standard deviation 21
    assert drawn == [is_drawn(str(n), 0.1, "s") for n in range(5000)]
    assert not any(is_drawn(str(n), 0.0, "s") for n in range(100))
    assert all(is_drawn(str(n), 1.0, "s") for n in range(100))
