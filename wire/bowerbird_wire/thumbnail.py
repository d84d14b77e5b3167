"""A picture as 24 x 24 gray values: enough to tell that the server has one like it, small enough to ask with.

In: values. Out: how different two thumbnails are. They are plain bytes, row by row from the top left, 0 black to 255 white, the whole
picture squeezed to a square: whoever compares them needs no image decoder, which a stranger's bytes could attack.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SIDE_PX = 24
THUMBNAIL_BYTES = SIDE_PX * SIDE_PX


def difference(one: bytes, many: NDArray[np.uint8]) -> NDArray[np.int16]:
    """The largest difference at any place between a thumbnail and each of many.

    The largest and not the mean: a small object that is new in a picture changes few places, but these much.

    Args:
        one: THUMBNAIL_BYTES bytes.
        many: (n, THUMBNAIL_BYTES) uint8; n may be 0.

    Returns:
        (n,) in 0..255.
    """
    own = np.frombuffer(one, np.uint8).astype(np.int16)
    return np.asarray(np.abs(many.astype(np.int16) - own).max(axis=1, initial=0), np.int16)
