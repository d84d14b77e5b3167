"""Where a picture lands in the network and the way back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bowerbird_models.letterbox import PADDING_GRAY, fit, smallest_rectangle
from bowerbird_models.network_input import NetworkInput, PictureInput

sides = st.integers(1, 3000)
network_sides = st.integers(1, 40).map(lambda count: 32 * count)


def test_a_wide_picture_is_centred_between_gray_bars() -> None:
    """1280x720 in 640x640 is drawn at half size with 140 rows above and below."""
    letterbox = fit((720, 1280), (640, 640))
    assert (letterbox.resized_hw, letterbox.top, letterbox.left) == ((360, 640), 140, 0)


def test_an_odd_row_of_padding_goes_below() -> None:
    """Ultralytics rounds the upper half down."""
    letterbox = fit((101, 200), (200, 200))
    assert (letterbox.top, letterbox.resized_hw) == (49, (101, 200))


@given(sides, sides, network_sides, network_sides)
def test_the_picture_stays_inside_the_network(height: int, width: int, network_h: int, network_w: int) -> None:
    """For every size the drawn picture has at least a pixel and fits."""
    letterbox = fit((height, width), (network_h, network_w))
    assert 1 <= letterbox.resized_hw[0] <= network_h
    assert 1 <= letterbox.resized_hw[1] <= network_w
    assert 0 <= letterbox.top <= network_h - letterbox.resized_hw[0]
    assert 0 <= letterbox.left <= network_w - letterbox.resized_hw[1]


@given(sides, sides, network_sides, network_sides, st.data())
def test_there_and_back_is_the_same_box(height: int, width: int, network_h: int, network_w: int, data: st.DataObject) -> None:
    """A box inside the picture survives the way to the network and back."""
    x = sorted(data.draw(st.lists(st.floats(0, width, width=32), min_size=2, max_size=2)))
    y = sorted(data.draw(st.lists(st.floats(0, height, width=32), min_size=2, max_size=2)))
    boxes = np.array([[x[0], y[0], x[1], y[1]]], np.float32)
    letterbox = fit((height, width), (network_h, network_w))
    np.testing.assert_allclose(letterbox.to_source(letterbox.to_network(boxes)), boxes, atol=0.5)


def test_boxes_are_clipped_to_the_picture() -> None:
    """A box that reaches into the gray ends at the edge."""
    letterbox = fit((720, 1280), (640, 640))
    boxes = letterbox.to_source(np.array([[-50, 0, 700, 640]], np.float32))
    assert boxes.tolist() == [[0, 0, 1280, 720]]


@given(sides, sides, network_sides)
def test_the_smallest_rectangle_is_whole_strides_and_never_larger(height: int, width: int, side: int) -> None:
    """A model of free size gets no more gray than the stride asks for."""
    rectangle = smallest_rectangle((height, width), (side, side), 32)
    assert max(rectangle) == side
    resized = fit((height, width), (side, side)).resized_hw
    for network, picture in zip(rectangle, resized, strict=True):
        assert network % 32 == 0
        assert network - 32 < picture <= network


def test_a_picture_without_pixels_is_refused() -> None:
    """A zero side is an error, not a division by zero."""
    with pytest.raises(ValueError, match="needs a pixel"):
        fit((0, 10), (64, 64))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_pixels_arrive_as_rgb_between_zero_and_one(dtype: type[np.floating]) -> None:
    """Blue, green, red become red, green, blue over 255; the rest is gray."""
    network_input = NetworkInput((64, 64), np.dtype(dtype))
    image_bgr = np.full((32, 64, 3), (10, 20, 30), np.uint8)
    network_input.fill(image_bgr)
    picture = network_input.tensor[0, :, 16:48]
    for channel, value in enumerate((30, 20, 10)):
        np.testing.assert_allclose(picture[channel], value / 255, rtol=1e-3)
    np.testing.assert_allclose(network_input.tensor[0, :, :16], PADDING_GRAY / 255, rtol=1e-3)
    np.testing.assert_allclose(network_input.tensor[0, :, 48:], PADDING_GRAY / 255, rtol=1e-3)


def test_nothing_of_the_last_picture_stays_when_the_size_changes() -> None:
    """A tall picture after a wide one leaves no wide one behind; a second of the same size reuses the buffer."""
    reused, fresh = NetworkInput((64, 64), np.dtype(np.float32)), NetworkInput((64, 64), np.dtype(np.float32))
    rng = np.random.default_rng(1)
    tall = rng.integers(0, 256, (90, 30, 3), np.uint8)
    buffer = reused.tensor
    reused.fill(np.full((30, 90, 3), 255, np.uint8))
    reused.fill(tall)
    fresh.fill(tall)
    np.testing.assert_array_equal(reused.tensor, fresh.tensor)
    assert reused.tensor is buffer


def test_a_picture_that_is_no_contiguous_array_is_drawn_all_the_same() -> None:
    """A crop is a view; it is read like a copy."""
    big = np.random.default_rng(2).integers(0, 256, (100, 200, 3), np.uint8)
    view, copy = NetworkInput((64, 64), np.dtype(np.float32)), NetworkInput((64, 64), np.dtype(np.float32))
    view.fill(big[10:74, 20:84])
    copy.fill(big[10:74, 20:84].copy())
    np.testing.assert_array_equal(view.tensor, copy.tensor)


@pytest.mark.parametrize("source_hw", [(32, 64), (90, 30), (333, 517), (64, 64)])
def test_a_graph_that_takes_bytes_gets_the_picture_as_it_is(source_hw: tuple[int, int]) -> None:
    """Blue, green, red in rows of pixels, gray around: the same bytes as the planes of floats, drawn in place."""
    image_bgr = np.random.default_rng(5).integers(0, 256, (*source_hw, 3), np.uint8)
    picture, planar = PictureInput((64, 96)), NetworkInput((64, 96), np.dtype(np.float32))
    buffer = picture.tensor
    picture.fill(np.full((64, 96, 3), 255, np.uint8))
    for _ in range(2):
        assert picture.fill(image_bgr) == planar.fill(image_bgr)
    assert picture.tensor is buffer
    assert picture.tensor.dtype == np.uint8
    expected = np.rint(planar.tensor[0, ::-1].transpose(1, 2, 0) * 255)
    np.testing.assert_array_equal(picture.tensor[0], expected)


def test_points_and_oriented_boxes_return_like_boxes() -> None:
    """One geometry for corners, keypoints and centres; points outside move to the edge, oriented boxes are not cut."""
    letterbox = fit((720, 1280), (640, 640))
    points = letterbox.points_to_source(np.array([[[320, 320], [-9, 100]]], np.float32))
    assert points.tolist() == [[[640, 360], [0, 0]]]
    boxes = letterbox.rotated_to_source(np.array([[-10, 320, 20, 40, 0.5]], np.float32))
    np.testing.assert_allclose(boxes, [[-20, 360, 40, 80, 0.5]])
