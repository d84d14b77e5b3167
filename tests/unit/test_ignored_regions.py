"""What a device has covered counts neither as an object nor as background."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from bowerbird_server.training.ignored_regions import NEUTRAL_GRAY, covered, paint


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((10, 10, 20, 20), True),
        ((5, 10, 15, 20), True),  # half of it
        ((4, 10, 14, 20), False),
        ((40, 40, 50, 50), False),
        ((0, 0, 100, 100), False),  # a car in front of which a person stands is still a car
    ],
)
def test_a_box_is_ignored_when_half_of_it_is_covered(box: tuple[int, ...], expected: bool) -> None:
    regions = np.array([[10, 10, 30, 30], [60, 60, 61, 61]], np.float64)
    assert covered(np.array([box], np.float64), regions).tolist() == [expected]


@pytest.mark.parametrize(("boxes", "regions"), [(0, 2), (2, 0), (0, 0)])
def test_without_boxes_or_regions_nothing_is_ignored(boxes: int, regions: int) -> None:
    assert not covered(np.ones((boxes, 4)), np.ones((regions, 4))).any()


def test_a_covered_region_is_painted_in_the_gray_of_borders_and_the_source_is_left_alone(tmp_path: Path) -> None:
    source, target = tmp_path / "a.png", tmp_path / "b.png"
    cv2.imwrite(str(source), np.full((40, 40, 3), 200, np.uint8))
    before = source.read_bytes()
    paint(source, target, [(10.2, 10.0, 19.5, 30.0), (-5, -5, 3, 3)])
    painted = cv2.imread(str(target))
    assert (painted[10:30, 10:20] == NEUTRAL_GRAY).all()
    assert (painted[:3, :3] == NEUTRAL_GRAY).all()
    assert (painted[31:] == 200).all()
    assert source.read_bytes() == before
