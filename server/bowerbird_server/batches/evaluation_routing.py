"""Which scenes of the random audit become the evaluation set: decided by chance, once, before anybody looks at them. Pure.

In: scenes with an explore frame that are on no side yet, and how many scenes of each camera have one. Out: a side for each. Policy
frames of a scene that is held out go nowhere: not into the evaluation set, which nothing but chance may fill, nor into training,
where they would repeat its frames. `catalogue/batches.py` carries it out; `snapshot.py` keeps the sides for ever.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping

HELD_OUT, TRAINED_ON = "holdout", "train"


def route(scenes: Iterable[tuple[str, str]], before: Mapping[str, int], share: float, seed: str) -> dict[str, str]:
    """A side for each scene.

    Systematic sampling with a random start per camera: of the first n scenes of a camera n x share are held out, give or take one, and
    each scene is with probability `share` whatever it shows.

    Args:
        scenes: (camera, scene).
        before: camera -> scenes of it that have a side already.
        share: of the scenes to hold out, in [0, 1].
        seed: of the starts; the site keeps one.

    Raises:
        ValueError: the share is no share.

    Source: Cochran, "Sampling Techniques" (1977), chapter 8.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share lies in [0, 1], not {share}")
    places = dict(before)
    sides: dict[str, str] = {}
    for camera, scene in sorted(set(scenes)):
        place = places.get(camera, 0)
        places[camera] = place + 1
        start = int.from_bytes(hashlib.sha256(f"evaluation/{seed}/{camera}".encode()).digest()[:8], "big") / 2**64
        crosses = math.floor((place + 1) * share + start) > math.floor(place * share + start)
        sides[scene] = HELD_OUT if crosses else TRAINED_ON
    return sides
