"""Makes the sketch of what the fleet has enough of, from what the champion saw in frames that are labelled or wait for it. Pure.

In: embeddings of one model. Out: bytes for `bowerbird_wire.fleet_sketch`, or none while nothing is there often enough. Which frames
count, and that those with a rare class do not, is `catalogue/fleet_sketches.py`'s business.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bowerbird_wire.fleet_sketch import MAX_CENTRES, FleetSketch, encode, projection

_STEPS = 15
# A group reaches as far as most of its members lie.
_REACH_PERCENTILE = 75.0


def make_sketch(model: bytes, embeddings: NDArray[np.float32], enough: int) -> bytes:
    """The sketch of groups with at least `enough` members; b"" when there is none.

    Args:
        model: `model_key` of the champion.
        embeddings: (n, d) of length 1, in an order that does not depend on chance; n may be 0.
        enough: least size of a group, at least 1.
    """
    if len(embeddings) < enough:
        return b""
    size = embeddings.shape[1]
    points = np.asarray(embeddings @ projection(model, size), np.float32)
    centres, members = k_means(points, min(MAX_CENTRES, max(1, len(points) // enough)))
    kept, radii = [], []
    for number, centre in enumerate(centres):
        own = points[members == number]
        if len(own) < enough:
            continue
        halves = ((own - centre) ** 2).sum(axis=1) / 2
        kept.append(centre)
        radii.append(min(1.0, float(np.percentile(halves, _REACH_PERCENTILE))))
    if not kept:
        return b""
    return encode(FleetSketch(model, size, np.stack(kept), np.array(radii, np.float32)))


def k_means(points: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Centres (k, d) and the centre of each point (n,), by Lloyd's steps from a farthest-first start; no chance in it.

    Args:
        points: (n, d), n at least k.
        k: at least 1.
    """
    first = int(((points - points.mean(axis=0)) ** 2).sum(axis=1).argmin())
    chosen = [first]
    nearest = ((points - points[first]) ** 2).sum(axis=1)
    while len(chosen) < k:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
    centres = points[chosen].astype(np.float64)
    members = np.zeros(len(points), np.int64)
    for _ in range(_STEPS):
        squares = (centres**2).sum(axis=1) - 2 * points @ centres.T
        members = squares.argmin(axis=1)
        before = centres.copy()
        for number in range(k):
            own = points[members == number]
            if len(own):
                centres[number] = own.mean(axis=0)
        if np.allclose(before, centres):
            break
    return centres.astype(np.float32), members
