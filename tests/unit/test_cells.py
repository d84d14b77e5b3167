"""A set of cells as one number says the same as a boolean picture."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from bowerbird_agent.selection.cells import HEIGHT, WIDTH, blob_sizes, coherent, from_bools, rectangle, to_bools


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.5, 0.7, 1.0])
def test_coherent_cells_are_those_with_five_of_nine_set_around_them(share: float) -> None:
    picture = np.random.default_rng(7).random((HEIGHT, WIDTH)) < share
    around = cv2.boxFilter(picture.view(np.uint8), -1, (3, 3), normalize=False, borderType=cv2.BORDER_CONSTANT)
    assert (to_bools(coherent(from_bools(picture))) == (picture & (around >= 5))).all()


def test_a_picture_survives_the_way_there_and_back() -> None:
    picture = np.random.default_rng(1).random((HEIGHT, WIDTH)) < 0.5
    assert (to_bools(from_bools(picture)) == picture).all()
    assert from_bools(picture).bit_count() == np.count_nonzero(picture)


@pytest.mark.parametrize(
    ("top", "left", "bottom", "right"),
    [
        (0, 0, 48, 64),
        (3, 5, 4, 6),
        (-4, 60, 9, 99),
        (40, -1, 99, 3),
        (10, 10, 10, 20),
        (20, 9, 30, 9),
        (50, 70, 60, 80),
        (-9, -9, 0, 0),
    ],
)
def test_a_rectangle_is_cut_at_the_edges_of_the_picture(top: int, left: int, bottom: int, right: int) -> None:
    picture = np.zeros((HEIGHT, WIDTH), np.bool_)
    picture[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = True
    assert (to_bools(rectangle(top, left, bottom, right)) == picture).all()


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 0.4, 1.0])
def test_blobs_are_those_that_hang_together_also_at_a_corner(share: float) -> None:
    picture = np.random.default_rng(3).random((HEIGHT, WIDTH)) < share
    labels = cv2.connectedComponents(picture.view(np.uint8), connectivity=8, ltype=cv2.CV_16U)[1]
    expected = np.bincount(labels.reshape(-1), minlength=1)[1:].tolist()
    assert sorted(blob_sizes(from_bools(picture))) == sorted(expected)
