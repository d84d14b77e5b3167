"""Oriented boxes are compared as Gaussians and dropped in one pass."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bowerbird_models.rotated import corners, enclosing_boxes, probiou, suppress_rotated


def boxes(*rows: tuple[float, float, float, float, float]) -> NDArray[np.float64]:
    """Centre x, centre y, width, height, angle."""
    return np.array(rows, np.float64)


def test_equal_boxes_are_alike_and_far_ones_are_not() -> None:
    """One and zero."""
    box = boxes((50, 40, 20, 10, 0.3))
    assert probiou(box, box)[0] == pytest.approx(1.0, abs=1e-3)
    assert probiou(box, boxes((1050, 40, 20, 10, 0.3)))[0] == pytest.approx(0.0, abs=1e-3)


def test_the_same_rectangle_said_in_two_ways_is_the_same() -> None:
    """A quarter turn with sides swapped, and half a turn."""
    box = boxes((50, 40, 20, 10, 0.3))
    for other in (boxes((50, 40, 10, 20, 0.3 + math.pi / 2)), boxes((50, 40, 20, 10, 0.3 + math.pi))):
        assert probiou(box, other)[0] == pytest.approx(1.0, abs=1e-3)


def test_the_distance_is_that_of_gaussians() -> None:
    """Two upright squares beside each other: the closed form for equal spreads."""
    side, apart = 12.0, 6.0
    expected = 1 - math.sqrt(1 - math.exp(-(apart**2) / (8 * side**2 / 12)))
    assert probiou(boxes((0, 0, side, side, 0)), boxes((apart, 0, side, side, 0)))[0] == pytest.approx(expected, abs=1e-4)


def test_corners_go_round_and_the_upright_box_encloses_them() -> None:
    """A square on its tip reaches half a diagonal to each side."""
    square = np.array([[10, 20, 4, 4, math.pi / 4]], np.float32)
    half = math.sqrt(8)
    np.testing.assert_allclose(enclosing_boxes(square), [[10 - half, 20 - half, 10 + half, 20 + half]], rtol=1e-5)
    np.testing.assert_allclose(corners(np.array([[0, 0, 4, 2, 0]], np.float32))[0], [[2, 1], [2, -1], [-2, -1], [-2, 1]])
    assert enclosing_boxes(np.zeros((0, 5), np.float32)).shape == (0, 4)


def plainly(rows: NDArray[np.float32], scores: NDArray[np.float32], classes: NDArray[np.int32], iou: float) -> list[int]:
    """Every pair compared, as it is defined."""
    order = np.argsort(-scores, kind="stable")
    kept = []
    for place, row in enumerate(order):
        stronger = [other for other in order[:place] if classes[other] == classes[row]]
        if not stronger or probiou(rows[stronger].astype(np.float64), rows[[row]].astype(np.float64)).max() <= iou:
            kept.append(int(row))
    return kept


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.integers(1, 4), st.sampled_from([0.1, 0.5, 0.7, 0.95]))
def test_suppression_compares_with_every_stronger_box_of_the_class(seed: int, count: int, classes: int, iou: float) -> None:
    """In blocks and without the far pairs, the same boxes stay."""
    rng = np.random.default_rng(seed)
    rows = np.concatenate(
        [rng.uniform(0, 60, (count, 2)), rng.uniform(2, 40, (count, 2)), rng.uniform(-2, 4, (count, 1))], axis=1
    ).astype(np.float32)
    scores = rng.permutation(np.linspace(0.05, 0.95, count)).astype(np.float32)
    class_ids = rng.integers(0, classes, count).astype(np.int32)
    assert suppress_rotated(rows, scores, class_ids, iou).tolist() == plainly(rows, scores, class_ids, iou)


def test_thousands_of_boxes_are_cut_to_300() -> None:
    """Two thousand that do not overlap, over several blocks, each with a weaker twin."""
    rng = np.random.default_rng(4)
    centre = np.stack(np.meshgrid(np.arange(50), np.arange(40)), axis=-1).reshape(-1, 2) * 20.0
    box = np.concatenate([centre, np.full((2000, 2), 8.0), rng.uniform(0, 3, (2000, 1))], axis=1).astype(np.float32)
    scores = rng.permutation(np.linspace(0.5, 0.9, 2000)).astype(np.float32)
    kept = suppress_rotated(np.concatenate([box, box]), np.concatenate([scores, scores - 0.45]), np.zeros(4000, np.int32), 0.7)
    assert kept.tolist() == np.argsort(-scores)[:300].tolist()
