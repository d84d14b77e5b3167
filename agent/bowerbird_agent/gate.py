"""Motion and near-duplicates on a small gray picture: what changed, and whether anything did.

In: BGR frames of one camera. Out: a 64x48 thumbnail, a 256-bit difference hash of it, and masks of the cells that move against
the background or differ from another thumbnail. Costs at most half a millisecond at 720p. It does not know detections, and
it neither keeps nor drops a frame.

A cell has changed when it differs by more than the noise of this picture and so do its neighbours: sensor noise at night is not
motion. A change of the whole picture (light, a moved camera) is reported as such and not as motion.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDTH, HEIGHT = 64, 48
HASH_BYTES = 32
# The background is the median of the newest thumbnails, taken often at first and then rarely, so that what moves or pauses in
# front of it is seldom in more than half of them.
_SAMPLES, _LEAST_SAMPLES = 15, 9
_SAMPLE_EVERY, _SAMPLE_EVERY_AT_FIRST = 20, 5
WARM_UP_FRAMES = _LEAST_SAMPLES * _SAMPLE_EVERY_AT_FIRST
_LEAST_STEP = 10.0  # gray levels; smaller differences are compression and flicker
_NOISE_FACTOR = 5.0
_LARGEST_STEP = 30.0  # beyond, no mean of sixteen pixels is noise: half of the picture has changed, and nothing tells the noise
_LIGHT_SHARE = 0.4  # more of the picture than this does not move at once: the light changed or the camera moved
_LIGHT_STEP = 8.0  # half of the cells differ by more gray levels, overall brightness apart: likewise
_HASH_GRID = (17, 16)


def sampled_gray(image_bgr: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The frame in gray, of large ones every nth pixel so that 256x192 remain: sharp edges stay sharp, and it costs little.

    Args:
        image_bgr: (H, W, 3) uint8.
    Returns:
        (192, 256) uint8, or (H, W) of a frame that is not larger.
    """
    height, width = image_bgr.shape[:2]
    if width > 4 * WIDTH and height > 4 * HEIGHT:
        image_bgr = np.asarray(cv2.resize(image_bgr, (4 * WIDTH, 4 * HEIGHT), interpolation=cv2.INTER_NEAREST), np.uint8)
    return np.asarray(cv2.cvtColor(image_bgr, cv2.COLOR_BGR2GRAY), np.uint8)


def thumbnail_of(gray: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What `sampled_gray` gave as (48, 64): the mean of sixteen pixels tells as much about a cell as that of hundreds."""
    return np.asarray(cv2.resize(gray, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA), np.uint8)


def thumbnail(image_bgr: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The frame as (48, 64) gray, whatever its size and aspect.

    Args:
        image_bgr: (H, W, 3) uint8.
    """
    return thumbnail_of(sampled_gray(image_bgr))


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
    size = np.abs(_difference(thumb, reference.astype(np.float32)))
    return _coherent(size, _middle(size))


@dataclass(frozen=True)
class Motion:
    """What moves in a frame.

    Args:
        moving: (48, 64) bool, cells that differ from the background; all False while the background is being learned.
        light_changed: most of the picture changed at once; nothing is called motion then.
        known: whether the background is known, so that no motion means that nothing moves.
    """

    moving: NDArray[np.bool_]
    light_changed: bool = False
    known: bool = True


class Background:
    """The empty scene of one camera, learned on the fly: the median of thumbnails over some 300 frames, and each cell's flicker.

    A median of spaced samples leaves no ghost where something stood for a while, as running averages do. After a change of light it
    learns anew, and meanwhile nothing is called motion.

    Source: the flicker is that of Manzanera and Richefeu, "A new motion detection algorithm based on Sigma-Delta background
        estimation" (2007).
    """

    def __init__(self) -> None:
        self._frames = 0
        self._samples: deque[NDArray[np.uint8]] = deque(maxlen=_SAMPLES)
        self._median = np.zeros((HEIGHT, WIDTH), np.float32)
        self._flicker = np.full((HEIGHT, WIDTH), 2.0, np.float32)

    def observe(self, thumb: NDArray[np.uint8]) -> Motion:
        """What moves in this frame; the background then learns from it.

        Args:
            thumb: (48, 64) uint8 of the camera's next frame.
        """
        self._frames += 1
        known = len(self._samples) >= _LEAST_SAMPLES
        if self._frames % (_SAMPLE_EVERY if known else _SAMPLE_EVERY_AT_FIRST) == 0:
            self._samples.append(thumb)
            self._median = np.median(np.stack(self._samples), axis=0).astype(np.float32)
        if not known:
            return Motion(_still(), known=False)
        size = np.abs(_difference(thumb, self._median))
        middle = _middle(size)
        moving = _coherent(size, middle, self._flicker)
        if np.count_nonzero(moving) / moving.size > _LIGHT_SHARE or middle > _LIGHT_STEP:
            self._learn_anew()
            return Motion(_still(), light_changed=True, known=False)
        step = 3.0 * size
        step -= self._flicker
        self._flicker += np.minimum(np.maximum(step, -0.25, out=step), 0.25, out=step)
        return Motion(moving)

    def _learn_anew(self) -> None:
        self._frames = 0
        self._samples.clear()
        self._flicker = np.full((HEIGHT, WIDTH), 2.0, np.float32)


def uncovered_blobs(
    moving: NDArray[np.bool_], boxes_xyxy: NDArray[np.float32], *, image_width: int, image_height: int
) -> tuple[int, ...]:
    """How large each blob of motion is that no box explains, in cells; each box is grown by one cell.

    Two things side by side are one blob; what hangs together at a corner hangs together.

    Args:
        moving: (48, 64) bool.
        boxes_xyxy: (n, 4) in pixels of the frame.
        image_width, image_height: of the frame, pixels.
    """
    if not moving.any():
        return ()
    left_over = moving.copy()
    across, down = WIDTH / image_width, HEIGHT / image_height
    for x1, y1, x2, y2 in boxes_xyxy.tolist():
        top, left = max(0, int(y1 * down) - 1), max(0, int(x1 * across) - 1)
        left_over[top : int(y2 * down) + 2, left : int(x2 * across) + 2] = False
    if not left_over.any():
        return ()
    labels = cv2.connectedComponents(left_over.view(np.uint8), connectivity=8, ltype=cv2.CV_16U)[1]
    return tuple(np.bincount(labels.reshape(-1))[1:].tolist())


def _difference(thumb: NDArray[np.uint8], reference: NDArray[np.float32]) -> NDArray[np.float32]:
    """Gray levels by which each cell differs, without the change of overall brightness."""
    difference = thumb - reference
    difference -= _middle(difference)
    return difference


def _still() -> NDArray[np.bool_]:
    return np.zeros((HEIGHT, WIDTH), np.bool_)


def _coherent(size: NDArray[np.float32], middle: float, flicker: NDArray[np.float32] | None = None) -> NDArray[np.bool_]:
    """Cells that differ by more than noise together with at least half of their 3x3 neighbourhood.

    Args:
        size: (48, 64), gray levels by which each cell differs.
        middle: the median of it.
        flicker: (48, 64), what each cell differs by at all times.
    """
    noise = middle / 0.6745  # of a normal distribution with this median of absolute values
    threshold: float | NDArray[np.float32] = min(_LARGEST_STEP, max(_LEAST_STEP, _NOISE_FACTOR * noise))
    if flicker is not None:
        threshold = np.maximum(threshold, flicker)
    over = size > threshold
    # 5 of 9: a lone cell is noise, a blob of six is not.
    around = cv2.boxFilter(over.view(np.uint8), -1, (3, 3), normalize=False, borderType=cv2.BORDER_CONSTANT)
    coherent: NDArray[np.bool_] = over & (around >= 5)
    return coherent


def _middle(values: NDArray[np.float32]) -> float:
    """The median, nearly: of every ninth cell, which costs a fifth."""
    sample = values[1::3, 1::3].ravel()  # a copy, as every other place of a picture is left out
    middle = len(sample) // 2
    sample.partition(middle)
    return float(sample[middle])
