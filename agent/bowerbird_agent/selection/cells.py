"""A set of cells of a 64x48 picture as one whole number, a bit for each: cell (row, column) is bit 64 x row + column.

In: boolean pictures, rectangles. Out: such numbers and what is true of them. Pure. A whole picture takes one operation of the
interpreter where arrays take a call each, and what has to be fetched into the processor's cache after a model has run is little.
It knows nothing of motion (`gate.py` does).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDTH, HEIGHT = 64, 48

_ALL = (1 << WIDTH * HEIGHT) - 1
# The lowest bit of each of the first n rows: times a row's bits, these bits in n rows.
_FIRST_COLUMN = [sum(1 << WIDTH * row for row in range(rows)) for rows in range(HEIGHT + 1)]
_NOT_FIRST_COLUMN = _ALL ^ _FIRST_COLUMN[HEIGHT]
_NOT_LAST_COLUMN = _ALL ^ (_FIRST_COLUMN[HEIGHT] << WIDTH - 1)


def from_bools(picture: NDArray[np.bool_]) -> int:
    """The cells that are true.

    Args:
        picture: (48, 64) bool.
    """
    return int.from_bytes(np.packbits(picture, bitorder="little").tobytes(), "little")


def to_bools(cells: int) -> NDArray[np.bool_]:
    """The same as (48, 64) bool."""
    packed = np.frombuffer(cells.to_bytes(WIDTH * HEIGHT // 8, "little"), np.uint8)
    return np.unpackbits(packed, bitorder="little").astype(np.bool_).reshape(HEIGHT, WIDTH)


def rectangle(top: int, left: int, bottom: int, right: int) -> int:
    """The cells in rows `top` to `bottom` and columns `left` to `right`, the latter of each excluded, cut at the picture's edges."""
    # Comparisons: `max` and `min` take longer, and this runs for every box of every frame.
    top, left = top if top > 0 else 0, left if left > 0 else 0
    bottom, right = bottom if bottom < HEIGHT else HEIGHT, right if right < WIDTH else WIDTH
    if bottom <= top or right <= left:
        return 0
    return (((1 << right - left) - 1) << left) * _FIRST_COLUMN[bottom - top] << WIDTH * top


def coherent(cells: int) -> int:
    """The cells that are set together with at least half of their 3x3 neighbourhood: a lone cell is noise, a blob of six is not.

    Neighbours are counted as a circuit of full adders would, for all cells at once; beyond the edge nothing is set.
    """
    left, right = cells << 1 & _NOT_FIRST_COLUMN, cells >> 1 & _NOT_LAST_COLUMN
    differ = left ^ right
    ones, twos = differ ^ cells, left & right | differ & cells  # of the three in a row, in binary
    above_1, below_1, above_2, below_2 = ones << WIDTH, ones >> WIDTH, twos << WIDTH, twos >> WIDTH
    differ = above_1 ^ below_1
    odd, carry = differ ^ ones, above_1 & below_1 | differ & ones
    # Four numbers of weight two are left: five or more are three of them, or two and the odd one.
    one_a, both_a = above_2 ^ below_2, above_2 & below_2
    one_b, both_b = twos ^ carry, twos & carry
    three = both_a & (one_b | both_b) | both_b & one_a
    two = both_a | both_b | one_a & one_b
    return cells & (three | two & odd)


def blob_sizes(cells: int) -> tuple[int, ...]:
    """How many cells each blob has; what hangs together at a corner hangs together.

    Each is flooded from its first cell, a ring a step.
    """
    found = []
    while cells:
        blob, grown = 0, cells & -cells
        while grown != blob:
            blob = grown
            row = blob | blob << 1 & _NOT_FIRST_COLUMN | blob >> 1 & _NOT_LAST_COLUMN
            grown = (row | row << WIDTH | row >> WIDTH) & cells
        found.append(blob.bit_count())
        cells ^= blob
    return tuple(found)
