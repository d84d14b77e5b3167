"""Where a picture lands in the network's input, and the way back.

In: the sizes of a picture and of a network input. Out: a frozen `Letterbox` that says how large the picture is drawn, where,
and how boxes return to source pixels. The arithmetic, rounding included, is that of Ultralytics 8.4's `LetterBox` and
`scale_boxes`, so that results agree to the pixel. It touches no pixel (see `network_input.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PADDING_GRAY = 114


@dataclass(frozen=True)
class Letterbox:
    """One picture size in one network size; the picture is scaled evenly and centred, the rest is gray.

    Args:
        source_hw: height and width of the picture in pixels.
        network_hw: height and width of the network input.
        resized_hw: height and width of the picture inside the input.
        top: rows of padding above it.
        left: columns of padding beside it.
    """

    source_hw: tuple[int, int]
    network_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    top: int
    left: int

    def to_source(self, boxes_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Boxes in network pixels, (n, 4), as boxes in source pixels, clipped to the picture; a new array."""
        gain_y, gain_x = self._gain_yx()
        offset = np.array([self.left, self.top, self.left, self.top], np.float32)
        gain = np.array([gain_x, gain_y, gain_x, gain_y], np.float32)
        return self.clip((boxes_xyxy - offset) / gain)

    def clip(self, boxes_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Boxes in source pixels, (n, 4), cut at the edges of the picture in place."""
        height, width = self.source_hw
        return np.clip(boxes_xyxy, 0, np.array([width, height, width, height], np.float32), out=boxes_xyxy)

    def points_to_source(self, points_xy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Points in network pixels, (..., 2), as points in source pixels, moved to the edge if outside; a new array."""
        height, width = self.source_hw
        gain_y, gain_x = self._gain_yx()
        points = points_xy - np.array([self.left, self.top], np.float32)
        points /= np.array([gain_x, gain_y], np.float32)
        return np.clip(points, 0, np.array([width, height], np.float32), out=points)

    def rotated_to_source(self, boxes_xywhr: NDArray[np.float32]) -> NDArray[np.float32]:
        """Oriented boxes in network pixels, (n, 5), as such in source pixels, not clipped; a new array."""
        gain_y, gain_x = self._gain_yx()
        offset = np.array([self.left, self.top, 0, 0, 0], np.float32)
        boxes = boxes_xywhr - offset
        # As Ultralytics: the two gains differ by rounding only, so an angle stays what it is.
        boxes /= np.array([gain_x, gain_y, gain_x, gain_y, 1], np.float32)
        return boxes

    def to_network(self, boxes_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Boxes in source pixels, (n, 4), as boxes in network pixels; the inverse of `to_source` inside the picture."""
        gain_y, gain_x = self._gain_yx()
        gain = np.array([gain_x, gain_y, gain_x, gain_y], np.float32)
        return boxes_xyxy * gain + np.array([self.left, self.top, self.left, self.top], np.float32)

    def _gain_yx(self) -> tuple[float, float]:
        return self.resized_hw[0] / self.source_hw[0], self.resized_hw[1] / self.source_hw[1]


def fit(source_hw: tuple[int, int], network_hw: tuple[int, int]) -> Letterbox:
    """The letterbox of a picture in a network input of fixed size.

    Raises:
        ValueError: a side is smaller than one pixel.
    """
    resized_hw = _resized(source_hw, network_hw)
    # Ultralytics rounds the smaller half down and the larger half up, by a tenth of a pixel.
    top = round((network_hw[0] - resized_hw[0]) / 2 - 0.1)
    left = round((network_hw[1] - resized_hw[1]) / 2 - 0.1)
    return Letterbox(source_hw, network_hw, resized_hw, top, left)


def smallest_rectangle(source_hw: tuple[int, int], largest_hw: tuple[int, int], stride: int) -> tuple[int, int]:
    """The smallest network input for a model of free size: the picture's own shape, padded up to the next stride.

    Args:
        source_hw: the picture.
        largest_hw: the size that the model was exported for; neither side is exceeded if both are multiples of `stride`.
        stride: the model's largest stride in pixels.

    Raises:
        ValueError: a side is smaller than one pixel.
    """
    resized_h, resized_w = _resized(source_hw, largest_hw)
    return (resized_h + (largest_hw[0] - resized_h) % stride, resized_w + (largest_hw[1] - resized_w) % stride)


def _resized(source_hw: tuple[int, int], network_hw: tuple[int, int]) -> tuple[int, int]:
    if min(*source_hw, *network_hw) < 1:
        raise ValueError(f"cannot fit a picture of {source_hw} (height, width) into {network_hw}; every side needs a pixel")
    ratio = min(network_hw[0] / source_hw[0], network_hw[1] / source_hw[1])
    return max(round(source_hw[0] * ratio), 1), max(round(source_hw[1] * ratio), 1)
