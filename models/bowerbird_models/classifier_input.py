"""Pixels into a classification network's input: shortest side resized, centre cut out.

In: BGR frames of any size. Out: one reused (1, 3, H, W) tensor, RGB in [0, 1]. Classification models are trained and run on pictures
that Pillow shrank with its antialiasing bilinear filter; OpenCV has no such filter and anything else changes the scores. So the same
arithmetic is done here: two passes, each a weighted sum of integers, weights of 22 bits, rounded to bytes in between. It equals
Pillow 13 to the bit and needs neither Pillow nor torch; older Pillows always go across first, which changes some bytes of tall
pictures by one. Only what the crop keeps is computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from bowerbird_models.letterbox import Letterbox

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WEIGHT_BITS = 22


@dataclass(frozen=True)
class _Taps:
    """Where the values of each output row come from.

    Args:
        source: the rows of the picture that matter.
        rows: (taps, n), counted from the first of those.
        weights: (taps, n), of 22 bits.
    """

    source: slice
    rows: NDArray[np.intp]
    weights: NDArray[np.int32]


class ClassifierInput:
    """The input tensor of a classification network. Implements `InputBuffer`; not thread-safe.

    Args:
        network_hw: height and width of the input; equal ones keep the picture's proportions.
        dtype: float32 or float16, what the model takes.
    """

    def __init__(self, network_hw: tuple[int, int], dtype: np.dtype[Any]) -> None:
        self.tensor: NDArray[Any] = np.empty((1, 3, *network_hw), dtype)
        self._network_hw = network_hw
        self._letterbox: Letterbox | None = None
        self._across: _Taps | None = None
        self._down: _Taps | None = None
        self._is_down_first = False
        self._table = (np.arange(256, dtype=np.float32) / np.float32(255)).astype(dtype)

    def fill(self, image_bgr: NDArray[np.uint8]) -> Letterbox:
        """As `InputBuffer.fill`; the letterbox has negative offsets where the picture reaches beyond the input."""
        source_hw = (image_bgr.shape[0], image_bgr.shape[1])
        letterbox = self._letterbox
        if letterbox is None or letterbox.source_hw != source_hw:
            letterbox = self._lay_out(source_hw)
        picture: NDArray[np.uint8] = image_bgr
        if self._is_down_first:
            picture = _pass_across(_pass_down(picture, self._down), self._across)
        else:
            picture = _pass_down(_pass_across(picture, self._across), self._down)
        height, width = self._network_hw
        top, left = -letterbox.top if self._down is None else 0, -letterbox.left if self._across is None else 0
        planes = picture[top : top + height, left : left + width, ::-1].transpose(2, 0, 1)
        np.take(self._table, planes, out=self.tensor[0], mode="clip")
        return letterbox

    def _lay_out(self, source_hw: tuple[int, int]) -> Letterbox:
        letterbox = centre_crop(source_hw, self._network_hw)
        (height, width), (resized_h, resized_w) = source_hw, letterbox.resized_hw
        self._across = self._down = None
        if resized_w != width:
            self._across = _taps(width, resized_w, -letterbox.left, self._network_hw[1])
        if resized_h != height:
            self._down = _taps(height, resized_h, -letterbox.top, self._network_hw[0])
        # Pillow's own choice, seen from its results: down first where the height loses more than twice what the width does.
        self._is_down_first = height > resized_h and height - resized_h > 2 * (width - resized_w)
        self._letterbox = letterbox
        return letterbox


def centre_crop(source_hw: tuple[int, int], network_hw: tuple[int, int]) -> Letterbox:
    """Where a picture lies when its shortest side fills a square input and the middle is cut out; others are stretched.

    Raises:
        ValueError: a side is smaller than one pixel.
    """
    (height, width), (network_h, network_w) = source_hw, network_hw
    if min(*source_hw, *network_hw) < 1:
        raise ValueError(f"cannot fit a picture of {source_hw} (height, width) into {network_hw}; every side needs a pixel")
    if network_h != network_w:
        return Letterbox(source_hw, network_hw, network_hw, 0, 0)
    side = network_h
    resized_hw = (side, int(side * width / height)) if height <= width else (int(side * height / width), side)
    top, left = round((resized_hw[0] - network_h) / 2), round((resized_hw[1] - network_w) / 2)
    return Letterbox(source_hw, network_hw, resized_hw, -top, -left)


def _taps(source: int, resized: int, first: int, count: int) -> _Taps:
    """Weights of the triangle filter for `count` outputs from `first` on, when `source` pixels become `resized`.

    The filter is as wide as the source pixels that fall on one output pixel, and at least two; the weights of an output sum to one.
    """
    scale = source / resized
    width = max(scale, 1.0)
    tap_count = math.ceil(width) * 2 + 1
    rows = np.zeros((tap_count, count), np.intp)
    weights = np.zeros((tap_count, count), np.int32)
    for k in range(count):
        centre = (first + k + 0.5) * scale
        low, high = max(int(centre - width + 0.5), 0), min(int(centre + width + 0.5), source)
        triangle = np.maximum(1.0 - np.abs((np.arange(low, high) - centre + 0.5) / width), 0.0)
        rows[:, k] = low
        rows[: high - low, k] = np.arange(low, high)
        weights[: high - low, k] = np.floor(triangle / triangle.sum() * (1 << _WEIGHT_BITS) + 0.5)
    low, high = int(rows.min()), int(rows.max()) + 1
    return _Taps(slice(low, high), rows - low, weights)


def _pass_across(picture: NDArray[np.uint8], taps: _Taps | None) -> NDArray[np.uint8]:
    """Columns summed; turned, because whole rows are faster to add up."""
    if taps is None:
        return picture
    turned = _weighted_rows(np.asarray(cv2.transpose(picture[:, taps.source]), np.uint8), taps)
    return np.asarray(cv2.transpose(turned), np.uint8)


def _pass_down(picture: NDArray[np.uint8], taps: _Taps | None) -> NDArray[np.uint8]:
    """Rows summed."""
    return picture if taps is None else _weighted_rows(np.ascontiguousarray(picture[taps.source]), taps)


def _weighted_rows(picture: NDArray[np.uint8], taps: _Taps) -> NDArray[np.uint8]:
    """(rows, columns, 3) -> (n, columns, 3): each new row is a weighted sum of old ones, rounded to the nearest byte."""
    flat = picture.reshape(len(picture), -1)
    total = np.full((taps.rows.shape[1], flat.shape[1]), 1 << (_WEIGHT_BITS - 1), np.int32)
    product = np.empty_like(total)
    for rows, weights in zip(taps.rows, taps.weights, strict=True):
        if weights.any():
            np.multiply(flat[rows], weights[:, None], out=product, dtype=np.int32)
            total += product
    total >>= _WEIGHT_BITS
    return np.clip(total, 0, 255).astype(np.uint8).reshape(-1, *picture.shape[1:])
