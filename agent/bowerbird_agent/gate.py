"""Motion and near-duplicates on a small gray picture: what changed, and whether anything did.

In: BGR frames of one camera. Out: a 64x48 thumbnail, a 256-bit difference hash of it, and masks of the cells that move against
the background or differ from another thumbnail. Costs at most half a millisecond at 720p. It does not know detections, and
it neither keeps nor drops a frame.

A cell has changed when it differs by more than the noise of this picture and so do its neighbours: sensor noise at night is not
motion. A change of the whole picture (light, a moved camera) is reported as such and not as motion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDTH, HEIGHT = 64, 48
HASH_BYTES = 32
# Frames after which the background is known well enough to speak of motion.
WARM_UP_FRAMES = 20
_LEAST_STEP = 10.0  # gray levels; smaller differences are compression and flicker
_NOISE_FACTOR = 5.0
_LIGHT_SHARE = 0.4  # more of the picture than this does not move at once: the light changed or the camera moved
_HASH_GRID = (17, 16)


def thumbnail(image_bgr: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The frame as (48, 64) gray, whatever its size and aspect.

    Large frames are read with a stride first: averaging 64x48 cells needs no more than about 320 columns.

    Args:
        image_bgr: (H, W, 3) uint8.
    """
    height, width = image_bgr.shape[:2]
    stride = max(1, min(width // (WIDTH * 4), height // (HEIGHT * 4)))
    sample = np.ascontiguousarray(image_bgr[::stride, ::stride]) if stride > 1 else image_bgr
    gray = cv2.cvtColor(sample, cv2.COLOR_BGR2GRAY)
    return np.asarray(cv2.resize(gray, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA), np.uint8)


def dhash(thumb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Difference hash: whether each of 16x16 cells is darker than its right neighbour.

    Args:
        thumb: (48, 64) uint8 from `thumbnail`.
    Returns:
        (32,) uint8, 256 packed bits.
    Source: N. Krawetz, "Kind of Like That" (2013).
    """
    grid = cv2.resize(thumb, _HASH_GRID, interpolation=cv2.INTER_AREA)
    return np.packbits(grid[:, 1:] > grid[:, :-1])


def changed_cells(thumb: NDArray[np.uint8], reference: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The cells in which two thumbnails of one camera show different things; noise and overall brightness do not count.

    Args:
        thumb, reference: (48, 64) uint8.
    Returns:
        (48, 64) bool.
    """
    return _coherent(_difference(thumb, reference.astype(np.float32)))


@dataclass(frozen=True)
class Motion:
    """What moves in a frame.

    Args:
        moving: (48, 64) bool, cells that differ from the background; all False while the background is being learned.
        light_changed: most of the picture changed at once; nothing is called motion then.
    """

    moving: NDArray[np.bool_]
    light_changed: bool


class Background:
    """The empty scene of one camera, learned on the fly: a running median of thumbnails and each cell's usual flicker.

    Source: Manzanera and Richefeu, "A new motion detection algorithm based on Sigma-Delta background estimation" (2007).
    """

    def __init__(self) -> None:
        self._median: NDArray[np.float32] | None = None
        self._flicker = np.full((HEIGHT, WIDTH), 2.0, np.float32)
        self._frames = 0

    def observe(self, thumb: NDArray[np.uint8]) -> Motion:
        """What moves in this frame; the background then takes one step towards it.

        Args:
            thumb: (48, 64) uint8 of the camera's next frame.
        """
        still = np.zeros((HEIGHT, WIDTH), np.bool_)
        if self._median is None:
            self._median, self._frames = thumb.astype(np.float32), 1
            return Motion(still, light_changed=False)
        difference = _difference(thumb, self._median)
        moving = _coherent(difference, self._flicker)
        if float(moving.mean()) > _LIGHT_SHARE:
            self._median, self._frames = thumb.astype(np.float32), 1
            return Motion(still, light_changed=True)
        self._frames += 1
        # Large steps while learning, so that what stood in the first frame leaves no ghost for long.
        step = 1.0 if self._frames > 2 * WARM_UP_FRAMES else 4.0
        self._median += np.clip(thumb - self._median, -step, step)
        size = np.abs(difference)
        self._flicker += np.clip(3.0 * size - self._flicker, -0.25, 0.25)
        return Motion(moving if self._frames > WARM_UP_FRAMES else still, light_changed=False)


def uncovered_cells(moving: NDArray[np.bool_], boxes_xyxy: NDArray[np.float32], *, image_width: int, image_height: int) -> int:
    """Moving cells that no box covers, each box grown by one cell.

    Args:
        moving: (48, 64) bool.
        boxes_xyxy: (n, 4) in pixels of the frame.
        image_width, image_height: of the frame, pixels.
    """
    if not moving.any():
        return 0
    left_over = moving.copy()
    scale = np.array([WIDTH / image_width, HEIGHT / image_height] * 2)
    for x1, y1, x2, y2 in (boxes_xyxy * scale).tolist():
        left_over[max(0, int(y1) - 1) : int(y2) + 2, max(0, int(x1) - 1) : int(x2) + 2] = False
    return int(left_over.sum())


def _difference(thumb: NDArray[np.uint8], reference: NDArray[np.float32]) -> NDArray[np.float32]:
    """Gray levels by which each cell differs, without the change of overall brightness."""
    difference = thumb - reference
    return np.asarray(difference - np.median(difference), np.float32)


def _coherent(difference: NDArray[np.float32], flicker: NDArray[np.float32] | None = None) -> NDArray[np.bool_]:
    """Cells that differ by more than noise together with at least half of their 3x3 neighbourhood."""
    size = np.abs(difference)
    noise = float(np.median(size)) / 0.6745
    threshold: float | NDArray[np.float32] = max(_LEAST_STEP, _NOISE_FACTOR * noise)
    if flicker is not None:
        threshold = np.maximum(threshold, flicker)
    over = (size > threshold).astype(np.float32)
    # 5 of 9: a lone cell is noise, a blob of six is not.
    return (over > 0) & (cv2.blur(over, (3, 3), borderType=cv2.BORDER_CONSTANT) > 4.5 / 9)
