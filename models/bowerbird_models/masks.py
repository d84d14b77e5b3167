"""The outlines of what a segmentation model saw, kept small until somebody wants pixels.

In: mask coefficients and prototypes as a head emits them, or finished bitmaps. Out: boolean masks in source pixels. Most frames are
scored and forgotten, so the prototypes travel with the detections and are only drawn when `bitmaps` is called. It needs OpenCV.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bowerbird_models.letterbox import Letterbox


class Masks(Protocol):
    """One mask for each detection, in the same order."""

    def __len__(self) -> int: ...

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Masks:
        """The masks of these rows, in this order."""
        ...

    def bitmaps(self) -> NDArray[np.bool_]:
        """(n, H, W) in source pixels, true on the object; n times the picture in bytes."""
        ...


@dataclass(frozen=True)
class BitmapMasks:
    """Masks that are pixels already.

    Args:
        pixels: (n, H, W) bool in source pixels.
    """

    pixels: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> BitmapMasks:
        """As `Masks.take`."""
        return BitmapMasks(self.pixels[rows])

    def bitmaps(self) -> NDArray[np.bool_]:
        """As `Masks.bitmaps`."""
        return self.pixels


@dataclass(frozen=True)
class PrototypeMasks:
    """Masks as a YOLO head emits them: each is a weighted sum of a few prototypes, positive on the object, cut to its box.

    Args:
        coefficients: (n, k) float32.
        prototypes: (k, h, w) float32, over the whole network input.
        boxes_xyxy: (n, 4) float32 in network pixels.
        letterbox: where the picture lies in the network input.
    """

    coefficients: NDArray[np.float32]
    prototypes: NDArray[np.float32]
    boxes_xyxy: NDArray[np.float32]
    letterbox: Letterbox

    def __len__(self) -> int:
        return len(self.coefficients)

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> PrototypeMasks:
        """As `Masks.take`."""
        return PrototypeMasks(self.coefficients[rows], self.prototypes, self.boxes_xyxy[rows], self.letterbox)

    def has_pixels(self) -> NDArray[np.bool_]:
        """(n,) which masks hold at least one pixel of the network input."""
        axes = _Axis(self.letterbox.network_hw[0]), _Axis(self.letterbox.network_hw[1])
        rows = zip(self.coefficients, self.boxes_xyxy, strict=True)
        return np.fromiter((self._has_pixels(row, self._patch(box, axes)) for row, box in rows), bool, len(self))

    def bitmaps(self) -> NDArray[np.bool_]:
        """As `Masks.bitmaps`."""
        box = self.letterbox
        height, width = box.source_hw
        axes = (
            _Axis(height, box.resized_hw[0] / height, box.top),
            _Axis(width, box.resized_hw[1] / width, box.left),
        )
        out = np.zeros((len(self), height, width), bool)
        for bitmap, row, corners in zip(out, self.coefficients, box.to_source(self.boxes_xyxy), strict=True):
            patch = self._patch(corners, axes)
            if patch is not None:
                bitmap[patch.pixels] = self._draw(row, patch)
        return out

    def _patch(self, box_xyxy: NDArray[np.float32], axes: tuple[_Axis, _Axis]) -> _Patch | None:
        """Where a box lies, in the pixels that the axes count and on the prototypes; None without pixels."""
        (y, x), (network_h, network_w), (rows, columns) = axes, self.letterbox.network_hw, self.prototypes.shape[1:]
        left, right = x.pixels(box_xyxy[0], box_xyxy[2])
        top, bottom = y.pixels(box_xyxy[1], box_xyxy[3])
        if left >= right or top >= bottom:
            return None
        x_scale, x_start, x_part = x.on_prototypes(left, right, columns, network_w)
        y_scale, y_start, y_part = y.on_prototypes(top, bottom, rows, network_h)
        back = np.array([[x_scale, 0, x_start - x_part.start], [0, y_scale, y_start - y_part.start]])
        return _Patch((slice(top, bottom), slice(left, right)), self.prototypes[:, y_part, x_part], back)

    def _has_pixels(self, coefficients: NDArray[np.float32], patch: _Patch | None) -> bool:
        if patch is None:
            return False
        # A prototype's pixel covers several of the network's: those amid four positive ones, well inside the box, are positive. That
        # settles nearly all masks at a fraction of the work; only the others are drawn.
        positive = _weighted(coefficients, patch.prototypes[:, 2:-2, 2:-2]) > 0
        if (positive[1:, 1:] & positive[1:, :-1] & positive[:-1, 1:] & positive[:-1, :-1]).any():
            return True
        return bool(self._draw(coefficients, patch).any())

    def _draw(self, coefficients: NDArray[np.float32], patch: _Patch) -> NDArray[np.bool_]:
        """One mask, of its box only."""
        import cv2

        rows, columns = patch.pixels
        drawn = cv2.warpAffine(
            _weighted(coefficients, patch.prototypes),
            patch.back,
            (columns.stop - columns.start, rows.stop - rows.start),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        return np.asarray(drawn > 0)


def _weighted(coefficients: NDArray[np.float32], prototypes: NDArray[np.float32]) -> NDArray[np.float32]:
    """(k,) and (k, h, w) -> (h, w). Not by a matrix product: that would copy, and start threads for a millisecond's work."""
    return np.asarray(np.einsum("k,khw->hw", coefficients, prototypes), np.float32)


@dataclass(frozen=True)
class _Patch:
    """A box, ready to be drawn in.

    Args:
        pixels: its rows and columns.
        prototypes: (k, h, w), the part that matters.
        back: (2, 3), from a pixel of the box to a place on that part.
    """

    pixels: tuple[slice, slice]
    prototypes: NDArray[np.float32]
    back: NDArray[np.float64]


@dataclass(frozen=True)
class _Axis:
    """One direction of the picture that masks are drawn in: its size in pixels, and where its pixels lie in the network input."""

    size: int
    gain: float = 1.0
    offset: float = 0.0

    def pixels(self, start: float, stop: float) -> tuple[int, int]:
        """First pixel of a box, and one past its last: those whose number is in [start, stop)."""
        return max(math.ceil(start), 0), min(math.ceil(stop), self.size)

    def on_prototypes(self, first: int, stop: int, prototype_size: int, network_size: int) -> tuple[float, float, slice]:
        """Prototype pixels per pixel, where the first pixel's centre lies, and the prototype pixels that matter."""
        ratio = prototype_size / network_size
        scale = self.gain * ratio
        start = ((first + 0.5) * self.gain + self.offset) * ratio - 0.5
        end = start + (stop - 1 - first) * scale
        low = min(max(math.floor(start), 0), prototype_size - 1)
        return scale, start, slice(low, min(max(math.ceil(end) + 1, low + 1), prototype_size))
