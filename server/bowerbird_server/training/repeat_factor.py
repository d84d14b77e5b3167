"""How often a training shows each picture, so that a rare class is learnt: repeat-factor sampling. Pure.

In: the classes that each picture shows. Out: how often each picture goes into the list that a training passes over. It adds no steps:
who makes a pass longer makes fewer passes (`train_child.py`).

A class that few pictures show, as one must that was labelled for the first time yesterday, is seen too seldom for a network to learn it
before the others are done. Background is shown as often as it was labelled.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_LONGEST = 2.0  # times as long as without repeats: pictures are kept in memory


def repeats(classes: Sequence[Collection[int]], *, below: float, seed: int) -> list[int]:
    """How often each picture is shown in a pass, at least once.

    A picture counts as its rarest class does: sqrt(below / share), where `share` is that of the pictures which show the class. What
    is left of whole numbers is drawn. If the pass became more than twice as long, `below` is lowered until it does not.

    Args:
        classes: class ids that each picture shows; none for background.
        below: classes that a smaller share of the pictures shows are repeated, in [0, 1]; 0 repeats nothing.
        seed: of the draw.
    Source: Gupta, Dollar and Girshick, "LVIS: A Dataset for Large Vocabulary Instance Segmentation" (CVPR 2019), section 5; the
        bound is ours.
    """
    shown = Counter(class_id for one in classes for class_id in set(one))
    shares = {class_id: count / len(classes) for class_id, count in shown.items()}
    factors = np.ones(len(classes))
    while below > 0.0:
        factors = np.array([_factor(one, shares, below) for one in classes])
        if factors.sum() <= _LONGEST * len(classes):
            break
        below *= 0.9
    whole = np.floor(factors)
    drawn = np.random.default_rng((seed, len(classes))).random(len(classes)) < factors - whole
    return [int(n) for n in whole + drawn]


def _factor(classes: Collection[int], shares: dict[int, float], below: float) -> float:
    return max(1.0, *(math.sqrt(below / shares[class_id]) for class_id in classes)) if classes else 1.0
