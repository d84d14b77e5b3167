"""Pixels into the network's input buffer: resize, pad, reorder, normalise.

In: BGR frames of any size. Out: one reused tensor that a runtime binds once: (1, 3, H, W), RGB in [0, 1], or for graphs that do the
rest themselves (1, H, W, 3), BGR in uint8. The gray padding is written only when the frame size changes. It needs OpenCV; it
allocates nothing per frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np

from bowerbird_models.letterbox import PADDING_GRAY, Letterbox, fit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_SCALE = np.float32(1 / 255)


class InputBuffer(Protocol):
    """The input tensor of one network size. Not thread-safe."""

    tensor: NDArray[Any]

    def fill(self, image_bgr: NDArray[np.uint8]) -> Letterbox:
        """Draw a (H, W, 3) uint8 frame into `tensor` and return where it lies."""
        ...


class PictureInput:
    """Letterboxed pixels for a graph that takes the picture as it is: (1, H, W, 3) uint8 BGR. Implements `InputBuffer`.

    Args:
        network_hw: height and width of the input.
    """

    def __init__(self, network_hw: tuple[int, int]) -> None:
        self.tensor: NDArray[Any] = np.empty((1, *network_hw, 3), np.uint8)
        self._network_hw = network_hw
        self._letterbox: Letterbox | None = None
        self._picture: NDArray[Any] = self.tensor[0]

    def fill(self, image_bgr: NDArray[np.uint8]) -> Letterbox:
        """As `InputBuffer.fill`; the picture is resized straight into its place."""
        source_hw = (image_bgr.shape[0], image_bgr.shape[1])
        letterbox = self._letterbox
        if letterbox is None or letterbox.source_hw != source_hw:
            letterbox = self._lay_out(source_hw)
        if source_hw == letterbox.resized_hw:
            self._picture[...] = image_bgr
        else:
            height, width = letterbox.resized_hw
            cv2.resize(image_bgr, (width, height), dst=self._picture, interpolation=cv2.INTER_LINEAR)
        return letterbox

    def _lay_out(self, source_hw: tuple[int, int]) -> Letterbox:
        letterbox = fit(source_hw, self._network_hw)
        height, width = letterbox.resized_hw
        self.tensor[...] = PADDING_GRAY
        self._picture = self.tensor[0, letterbox.top : letterbox.top + height, letterbox.left : letterbox.left + width]
        self._letterbox = letterbox
        return letterbox


class NetworkInput:
    """Letterboxed pixels as Ultralytics' exports take them: (1, 3, H, W) RGB in [0, 1]. Implements `InputBuffer`.

    Args:
        network_hw: height and width of the input.
        dtype: float32 or float16, what the model takes.
    """

    def __init__(self, network_hw: tuple[int, int], dtype: np.dtype[Any]) -> None:
        self.tensor: NDArray[Any] = np.empty((1, 3, *network_hw), dtype)
        self._network_hw = network_hw
        self._letterbox: Letterbox | None = None
        self._resized = np.empty((0, 0, 3), np.uint8)
        self._planes: list[NDArray[np.uint8]] = []
        self._red_green_blue: list[NDArray[Any]] = []
        # NumPy converts to half precision in software, at 12 ms a picture; a table of 256 values takes half a millisecond.
        self._table = (np.arange(256) / 255).astype(dtype)

    def fill(self, image_bgr: NDArray[np.uint8]) -> Letterbox:
        """As `InputBuffer.fill`."""
        source_hw = (image_bgr.shape[0], image_bgr.shape[1])
        letterbox = self._letterbox
        if letterbox is None or letterbox.source_hw != source_hw:
            letterbox = self._lay_out(source_hw)
        height, width = letterbox.resized_hw
        if source_hw == letterbox.resized_hw:
            resized: NDArray[Any] = image_bgr
        else:
            resized = cv2.resize(image_bgr, (width, height), dst=self._resized, interpolation=cv2.INTER_LINEAR)
        planes: Sequence[NDArray[Any]] = cv2.split(resized, self._planes)
        for plane, target in zip(reversed(planes), self._red_green_blue, strict=True):
            if target.dtype == np.float32:
                np.multiply(plane, _SCALE, out=target, dtype=np.float32)
            else:
                np.take(self._table, plane, out=target, mode="clip")
        return letterbox

    def _lay_out(self, source_hw: tuple[int, int]) -> Letterbox:
        letterbox = fit(source_hw, self._network_hw)
        height, width = letterbox.resized_hw
        self.tensor[...] = self._table[PADDING_GRAY]
        rows, columns = slice(letterbox.top, letterbox.top + height), slice(letterbox.left, letterbox.left + width)
        self._red_green_blue = [self.tensor[0, channel, rows, columns] for channel in range(3)]
        self._resized = np.empty((height, width, 3), np.uint8)
        self._planes = [np.empty((height, width), np.uint8) for _ in range(3)]
        self._letterbox = letterbox
        return letterbox
