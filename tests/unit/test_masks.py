"""Masks are drawn from prototypes where the picture lies, and only inside their boxes."""

from __future__ import annotations

import numpy as np

from bowerbird_models.letterbox import fit
from bowerbird_models.masks import BitmapMasks, PrototypeMasks

LETTERBOX = fit((120, 200), (160, 160))  # drawn 96 high, between rows 32 and 128, at 0.8


def left_half_and_everything() -> PrototypeMasks:
    """Prototype 0 is positive on the left half of the network input, prototype 1 everywhere."""
    prototypes = np.ones((2, 40, 40), np.float32)
    prototypes[0, :, 20:] = -1
    boxes = np.array([[40, 40, 120, 120], [40, 40, 120, 120], [100, 40, 120, 120], [0, 0, 20, 20]], np.float32)
    coefficients = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], np.float32)
    return PrototypeMasks(coefficients, prototypes, boxes, LETTERBOX)


def test_a_mask_is_cut_to_its_box_in_source_pixels() -> None:
    """Network pixels 40 to 120 are source pixels 50 to 150; the left half ends in the middle of the picture."""
    masks = left_half_and_everything().bitmaps()
    assert masks.shape == (4, 120, 200)
    expected = np.zeros((120, 200), bool)
    expected[10:110, 50:150] = True
    np.testing.assert_array_equal(masks[1], expected)
    expected[:, 100:] = False
    np.testing.assert_array_equal(masks[0], expected)


def test_a_mask_without_a_pixel_is_known_before_it_is_drawn() -> None:
    """The third box lies where its prototype is negative; the fourth lies in the gray, and still has its pixels there."""
    masks = left_half_and_everything()
    assert masks.has_pixels().tolist() == [True, True, False, True]
    assert not masks.bitmaps()[2].any()


def test_masks_are_taken_like_rows() -> None:
    """By number and by truth, of both kinds."""
    masks = left_half_and_everything()
    pixels = BitmapMasks(masks.bitmaps())
    for taken in (masks.take(np.array([1, 0])), pixels.take(np.array([1, 0]))):
        assert len(taken) == 2
        np.testing.assert_array_equal(taken.bitmaps(), pixels.pixels[[1, 0]])
    assert len(masks.take(np.array([False, True, False, False]))) == 1


def test_boxes_outside_or_without_area_have_empty_masks() -> None:
    """Nothing is drawn and nothing fails, whatever boxes a head emits."""
    boxes = np.array(
        [[-50, -50, -10, -10], [170, 170, 400, 400], [50, 50, 50, 50], [90, 90, 40, 40], [-1e9, -1e9, 1e9, 1e9]], np.float32
    )
    masks = PrototypeMasks(np.ones((5, 1), np.float32), np.ones((1, 40, 40), np.float32), boxes, LETTERBOX)
    assert masks.has_pixels().tolist() == [False, False, False, False, True]
    drawn = masks.bitmaps()
    assert not drawn[:4].any()
    assert drawn[4].all()
    assert PrototypeMasks(
        np.zeros((0, 1), np.float32), np.ones((1, 1, 1), np.float32), boxes[:0], LETTERBOX
    ).bitmaps().shape == (0, 120, 200)
