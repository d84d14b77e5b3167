"""The rules a labelled box obeys, and the counts of what a label changed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bowerbird_server.errors import BadInput
from bowerbird_server.labelling.boxes import Box, box_fault, clip_box, count_edits, fit_boxes, iou

sides = st.floats(-500, 1500, allow_nan=False)


@given(st.tuples(sides, sides, sides, sides))
def test_a_box_is_either_refused_or_clipped_into_the_image(box: tuple[float, float, float, float]) -> None:
    """Whatever comes in, what is kept lies inside and has an area, and clipping it again changes nothing."""
    if box_fault(box, 640, 480) is not None:
        with pytest.raises(BadInput):
            fit_boxes([Box("car", box)], 640, 480, ["car"])
        return
    (fitted,) = fit_boxes([Box("car", box)], 640, 480, ["car"])
    left, top, right, bottom = fitted.box_xyxy
    assert 0 <= left < right <= 640
    assert 0 <= top < bottom <= 480
    assert clip_box(fitted.box_xyxy, 640, 480) == fitted.box_xyxy


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ((700, 10, 800, 50), "wholly outside the 640x480 image"),
        ((-50, 10, 0, 50), "wholly outside"),
        ((50, 10, 20, 50), "inverted"),
        ((10, 50, 20, 20), "inverted"),
        ((10, 50, 20, 50), "no area"),
        ((10, 50, float("nan"), 60), "finite"),
        ((10, 50, float("inf"), 60), "finite"),
        ((10, 50, 20), "four"),
    ],
)
def test_each_refusal_says_which(box: tuple[float, ...], said: str) -> None:
    """A reader of the message knows what to change."""
    fault = box_fault(box, 640, 480)
    assert fault is not None
    assert said in fault


def test_a_box_over_the_border_is_clipped() -> None:
    """What lies inside is kept."""
    assert fit_boxes([Box("car", (-5, 470, 30, 490))], 640, 480, ["car"])[0].box_xyxy == (0, 470, 30, 480)


def test_all_faults_of_a_label_are_named_together() -> None:
    """One answer names every box to correct, with its number."""
    with pytest.raises(BadInput, match=r"box 1: class .yeti.*box 3 \(car\).*inverted"):
        fit_boxes([Box("yeti", (1, 1, 5, 5)), Box("car", (1, 1, 5, 5)), Box("car", (9, 9, 2, 12))], 640, 480, ["car"])


def test_edits_count_what_became_of_each_prelabel() -> None:
    """Kept, moved, reclassed, deleted and added, one of each."""
    before = [Box("a", (0, 0, 10, 10)), Box("a", (20, 0, 30, 10)), Box("a", (40, 0, 50, 10)), Box("a", (60, 0, 70, 10))]
    after = [Box("a", (0, 0, 10, 10)), Box("a", (22, 0, 32, 10)), Box("b", (40, 0, 50, 10)), Box("a", (90, 0, 99, 10))]
    assert count_edits(before, after) == {"kept": 1, "moved": 1, "reclassed": 1, "deleted": 1, "added": 1}


def test_iou_of_known_boxes() -> None:
    """A third, none, all."""
    assert iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0.0
    assert iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1.0
