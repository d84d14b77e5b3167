"""A classifier's input equals what Pillow makes of the picture, without Pillow."""

from __future__ import annotations

import numpy as np
import pytest

from bowerbird_models.classifier_input import ClassifierInput, centre_crop

SIZES = [
    (720, 1280),
    (333, 517),
    (517, 333),
    (64, 64),
    (20, 30),
    (65, 64),
    (64, 100),
    (7, 900),
    (1, 1),
    (2000, 65),
    (202, 100),
    (200, 100),
]


@pytest.mark.parametrize("source_hw", SIZES)
@pytest.mark.parametrize("network_hw", [(64, 64), (96, 160)])
def test_equals_pillow_to_the_bit(source_hw: tuple[int, int], network_hw: tuple[int, int]) -> None:
    """Shrinking, enlarging, neither; wide, tall, odd: resized with antialiasing, then the middle."""
    pytest.importorskip("PIL", "13", reason="Pillow comes with the train extra; before 13 it always went across first")
    image_module = pytest.importorskip("PIL.Image")
    image_bgr = np.random.default_rng(1).integers(0, 256, (*source_hw, 3), np.uint8)
    box = centre_crop(source_hw, network_hw)
    (resized_h, resized_w), top, left = box.resized_hw, -box.top, -box.left
    picture = image_module.fromarray(image_bgr).resize((resized_w, resized_h), image_module.Resampling.BILINEAR)
    expected = np.asarray(picture)[top : top + network_hw[0], left : left + network_hw[1]]
    ours = ClassifierInput(network_hw, np.dtype(np.float32))
    ours.fill(np.zeros((50, 70, 3), np.uint8))
    for _ in range(2):
        ours.fill(image_bgr)
        np.testing.assert_array_equal(np.rint(ours.tensor[0, ::-1].transpose(1, 2, 0) * 255), expected)


def test_a_square_input_shows_the_middle() -> None:
    """The shortest side fills it, what is beyond lies outside; other inputs are filled by stretching."""
    box = centre_crop((720, 1280), (224, 224))
    assert (box.resized_hw, box.top, box.left) == ((224, 398), 0, -87)
    assert centre_crop((720, 1280), (96, 160)).resized_hw == (96, 160)
    with pytest.raises(ValueError, match="needs a pixel"):
        centre_crop((0, 10), (64, 64))


def test_half_precision_gets_the_same_bytes() -> None:
    """Rounded once, at the end."""
    image_bgr = np.random.default_rng(2).integers(0, 256, (90, 120, 3), np.uint8)
    single, half = (ClassifierInput((64, 64), np.dtype(dtype)) for dtype in (np.float32, np.float16))
    single.fill(image_bgr)
    half.fill(image_bgr)
    np.testing.assert_array_equal(half.tensor, single.tensor.astype(np.float16))
