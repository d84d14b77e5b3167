"""Motion and near-duplicates on a small gray picture: what changed, and whether anything did.

In: BGR frames of one camera. Out: a 64x48 thumbnail, a 256-bit difference hash of it, and masks of the cells that move against
the background or differ from another thumbnail. It does not know detections, and it neither keeps nor drops a frame.

After a model has run, nothing of this is in the processor's cache, neither pixels nor code: a call of OpenCV then takes 30 to 50
microseconds and one of NumPy 10, whatever they do. So motion takes few calls, none of OpenCV, and masks are whole numbers (`cells.py`).
The thumbnail is best taken before the model runs (`glance`): the detector reads the same pixels a moment later and finds them there.

A cell has changed when it differs by more than the noise of this picture and so do its neighbours: sensor noise at night is not
motion. A change of the whole picture (light, a moved camera) is reported as such and not as motion.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from bowerbird_agent.selection.cells import HEIGHT, WIDTH, blob_sizes, coherent, from_bools, rectangle, to_bools

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

HASH_BYTES = 32
# The background is the median of the newest thumbnails, taken often at first and then rarely, so that what moves or pauses in
# front of it is seldom in more than half of them.
_SAMPLES, _LEAST_SAMPLES = 15, 9
_SAMPLE_EVERY, _SAMPLE_EVERY_AT_FIRST = 20, 5
WARM_UP_FRAMES = _LEAST_SAMPLES * _SAMPLE_EVERY_AT_FIRST
_LEAST_STEP = 10.0  # gray levels; smaller differences are compression and flicker
_NOISE_FACTOR = 5.0
_LARGEST_STEP = 30.0  # beyond, no mean of sixteen pixels is noise: half of the picture has changed, and nothing tells the noise
_BUSY_CELLS = WIDTH * HEIGHT // 6  # more than these are not believed before brightness and noise are measured anew
_LIGHT_SHARE = 0.4  # more of the picture than this does not move at once: the light changed or the camera moved
_LIGHT_STEP = 8.0  # half of the cells differ by more gray levels, overall brightness apart: likewise
_FLICKER_AT_FIRST = 2
# Brightness, noise and flicker are learned from one frame in four, flicker by a whole gray level; which ones has no beat that a
# lamp's could fall in with.
_LEARNS_FROM, _HASH_MULTIPLIER = 4, 0x9E3779B1
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
    """The frame as (48, 64) gray, whatever its size and aspect; of large ones the mean of 4x2 pixels in each cell.

    Two rows a cell and not four: what it costs is a wait for memory at the start of each row, whether much of a row is read or little.

    Args:
        image_bgr: (H, W, 3) uint8.
    """
    height, width = image_bgr.shape[:2]
    if width > 4 * WIDTH and height > 4 * HEIGHT:
        image_bgr = np.asarray(cv2.resize(image_bgr, (4 * WIDTH, 2 * HEIGHT), interpolation=cv2.INTER_NEAREST), np.uint8)
    return thumbnail_of(np.asarray(cv2.cvtColor(image_bgr, cv2.COLOR_BGR2GRAY), np.uint8))


def glance(image_bgr: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """`thumbnail`, taken before the model runs; None of what is no picture, which then fails where it is judged."""
    try:
        return thumbnail(image_bgr)
    except (cv2.error, ValueError):
        return None


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
    brighter, noise, difference = _compare(thumb, reference.astype(np.int16))
    difference -= brighter
    return to_bools(coherent(from_bools(np.abs(difference) > _least_step(noise))))


class Motion(NamedTuple):
    """What moves in a frame.

    Args:
        cells: that differ from the background, as in `cells.py`; none while the background is being learned.
        light_changed: most of the picture changed at once; nothing is called motion then.
        known: whether the background is known, so that no motion means that nothing moves.
    """

    cells: int
    light_changed: bool = False
    known: bool = True

    @property
    def moving(self) -> NDArray[np.bool_]:
        """The same as (48, 64) bool."""
        return to_bools(self.cells)


class SlidingMedian:
    """Each cell's median over the newest `size` thumbnails; of an even number the upper middle.

    The values of each cell stay sorted, and one goes out as another comes in: a sixtieth of the time that sorting them anew takes.

    Args:
        size: thumbnails remembered, at least 1.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._in_time: deque[NDArray[np.uint8]] = deque()
        self._sorted = np.zeros((0, HEIGHT, WIDTH), np.uint8)

    def __len__(self) -> int:
        return len(self._in_time)

    def add(self, thumb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Remember a thumbnail, (48, 64) uint8, and forget the oldest when there are too many.

        Returns:
            (48, 64), the median now; not to be changed.
        """
        rest = self._sorted
        if len(self._in_time) == self._size:
            oldest = self._in_time.popleft()
            # np.where takes ten times as long: one byte or its neighbour, by the bits of a mask of 0 and 255.
            stays = np.negative((rest[:-1] < oldest).view(np.uint8))
            rest = rest[1:] ^ ((rest[:-1] ^ rest[1:]) & stays)
        self._in_time.append(thumb)
        # Sorted in: each place holds the new value, or what it held, or its lower neighbour.
        grown = np.empty((len(rest) + 1, HEIGHT, WIDTH), np.uint8)
        grown[-1] = thumb
        np.minimum(rest, thumb, out=grown[:-1])
        np.maximum(grown[1:], rest, out=grown[1:])
        self._sorted = grown
        median: NDArray[np.uint8] = grown[len(grown) // 2].copy()
        return median


class Background:
    """The empty scene of one camera, learned on the fly: the median of thumbnails over some 300 frames, and each cell's flicker.

    A median of spaced samples leaves no ghost where something stood for a while, as running averages do. After a change of light it
    learns anew, and meanwhile nothing is called motion.

    Source: the flicker is that of Manzanera and Richefeu, "A new motion detection algorithm based on Sigma-Delta background
        estimation" (2007).
    """

    def __init__(self) -> None:
        self._scene = SlidingMedian(_SAMPLES)
        self._median: NDArray[np.int16] = np.zeros((HEIGHT, WIDTH), np.int16)
        self._flicker: NDArray[np.int16] = self._median
        # What is from `lowest` to `lowest + span` is the background; both as of the frame that was last measured.
        self._lowest: NDArray[np.int16] = self._median
        self._span = self._lowest.view(np.uint16)
        self._learn_anew()

    def observe(self, thumb: NDArray[np.uint8]) -> Motion:
        """What moves in this frame; the background then learns from it.

        Args:
            thumb: (48, 64) uint8 of the camera's next frame.
        """
        self._frames += 1
        known = len(self._scene) >= _LEAST_SAMPLES
        if self._frames % (_SAMPLE_EVERY if known else _SAMPLE_EVERY_AT_FIRST) == 0:
            self._median = self._scene.add(thumb).astype(np.int16)
            self._is_measured = False
        if not known:
            return Motion(0, known=False)
        learns = (self._frames * _HASH_MULTIPLIER >> 16) % _LEARNS_FROM == 0
        over = self._over(thumb) if self._is_measured and not learns else None
        if over is None or over.bit_count() > _BUSY_CELLS:
            # Much differs, or it is time: how bright the picture is now, how noisy, and how each cell flickers.
            self._measure(thumb, learns=learns)
            over = self._over(thumb)
        cells = coherent(over)
        if self._noise > _LIGHT_STEP or cells.bit_count() > _LIGHT_SHARE * HEIGHT * WIDTH:
            self._learn_anew()
            return Motion(0, light_changed=True, known=False)
        return Motion(cells)

    def _over(self, thumb: NDArray[np.uint8]) -> int:
        """The cells that are not background. One comparison does for both sides: what is below wraps to far above."""
        above = thumb.astype(np.int16)
        above -= self._lowest
        return from_bools(above.view(np.uint16) > self._span)

    def _measure(self, thumb: NDArray[np.uint8], *, learns: bool) -> None:
        brighter, self._noise, difference = _compare(thumb, self._median)
        limit = np.maximum(self._flicker, np.int16(_least_step(self._noise)))
        self._lowest = self._median - limit + np.int16(brighter)
        self._span = (2 * limit).view(np.uint16)
        self._is_measured = True
        if learns:
            difference -= brighter
            size = np.abs(difference, out=difference)
            self._flicker += np.sign(3 * size - self._flicker)

    def _learn_anew(self) -> None:
        self._frames = 0
        self._noise = 0
        self._is_measured = False
        self._scene = SlidingMedian(_SAMPLES)
        self._flicker = np.full((HEIGHT, WIDTH), _FLICKER_AT_FIRST, np.int16)


def uncovered_blobs(
    cells: int, boxes_xyxy: Iterable[Sequence[float]], *, image_width: int, image_height: int
) -> tuple[int, ...]:
    """How large each blob of motion is that no box explains, in cells; each box is grown by one cell.

    Two things side by side are one blob; what hangs together at a corner hangs together.

    Args:
        cells: that move.
        boxes_xyxy: left, top, right, bottom of each, in pixels of the frame; plain numbers are the fastest.
        image_width, image_height: of the frame, pixels.
    """
    if not cells:
        return ()
    across, down = WIDTH / image_width, HEIGHT / image_height
    covered = 0
    for x1, y1, x2, y2 in boxes_xyxy:
        covered |= rectangle(int(y1 * down) - 1, int(x1 * across) - 1, int(y2 * down) + 2, int(x2 * across) + 2)
    return blob_sizes(cells & ~covered)


def _compare(thumb: NDArray[np.uint8], reference: NDArray[np.int16]) -> tuple[int, int, NDArray[np.int16]]:
    """By how many gray levels a picture is brighter as a whole, by how many half of its cells differ from that, and by how many each.

    The first two are medians, nearly: of every ninth cell, which costs a fifth.
    """
    difference = thumb.astype(np.int16)
    difference -= reference
    sample = difference.reshape(-1)[::9].copy()
    half = len(sample) // 2
    sample.sort()
    brighter = int(sample[half])
    if brighter:
        sample -= brighter
    np.abs(sample, out=sample)
    sample.sort()
    return brighter, int(sample[half]), difference


def _least_step(noise: int) -> int:
    """Gray levels that a cell must differ by for it not to be noise, when half of the cells differ by `noise`."""
    # Of a normal distribution with this median of absolute values.
    return int(min(_LARGEST_STEP, max(_LEAST_STEP, _NOISE_FACTOR * noise / 0.6745)))
