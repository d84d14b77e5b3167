"""Makes a model's calibration table from its evaluation on held-out frames: what its scores are worth, which classes are hard. Pure.

In: the matches of an evaluation. Out: plain values to keep with the model's figures, by class name, and from them the bytes for
`bowerbird_wire.calibration_table`, by the model's own class ids. Which devices are told is `catalogue/calibrations.py`'s business. (The
ranges of an int8 file are another calibration: `calibration.py`.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bowerbird_wire.calibration_table import (
    BINS,
    MAX_CLASSES,
    MAX_WEIGHT,
    CalibrationTable,
    ClassCalibration,
    encode,
    middles,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bowerbird_server.training.average_precision import MatchTable

# Below it no device keeps a box, so its score is never asked about.
_LOWEST_SCORE = 0.05
# A bin with so many boxes goes half the way from the score to the share that was right.
_PRIOR_BOXES = 20.0
# Drawn boxes of a class from which on its average precision says something.
ENOUGH_DRAWN = 20


def calibration_of(
    matches: MatchTable, average_precision: Mapping[str, float | None], class_names: Sequence[str]
) -> dict[str, Any]:
    """What is worth telling of each class: class name -> `p`, ten probabilities; `weight`; `boxes`, what they were learnt from.

    Args:
        matches: of the held-out frames.
        average_precision: by class name, None where nothing was drawn.
        class_names: of the data set, by class id.
    """
    found: dict[str, Any] = {}
    drawn = matches.ground_truth.sum(axis=0)
    for class_id, name in enumerate(class_names):
        own = (matches.class_ids == class_id) & (matches.scores >= _LOWEST_SCORE)
        p = class_probabilities(matches.scores[own], matches.true_positive[own, 0])
        weight = difficulty_weight(average_precision.get(name), int(drawn[class_id]))
        if own.any() or weight != 1.0:
            found[name] = {"p": [round(float(one), 4) for one in p], "weight": round(weight, 4), "boxes": int(own.sum())}
    return found


def class_probabilities(scores: NDArray[np.float64], right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(10,) probability that a box is right, at the middle of each of ten equal bins of its score; never falling.

    Each bin is moved by as much as its boxes were right more often than they said, as if it held twenty more that were as right as they
    said: without boxes nothing is moved.

    Args:
        scores: (n,) in [0, 1]; n may be 0.
        right: (n,).

    Source: Zadrozny and Elkan, "Transforming Classifier Scores into Accurate Multiclass Probability Estimates" (2002), for isotonic
    regression of binned scores.
    """
    bins = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(bins, minlength=BINS).astype(np.float64)
    moved = np.bincount(bins, weights=right - scores, minlength=BINS) / (counts + _PRIOR_BOXES)
    # Where bins fall they become one, by what was seen in them: an empty one gives way.
    return np.clip(pool_adjacent_violators(np.array(middles()) + moved, counts + 1.0), 0.0, 1.0)


def pool_adjacent_violators(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The never falling numbers that are nearest to `values` in weighted squares.

    Args:
        values: (n,).
        weights: (n,), above 0.

    Source: Ayer, Brunk, Ewing, Reid and Silverman, "An Empirical Distribution Function for Sampling with Incomplete Information"
    (1955).
    """
    blocks: list[tuple[float, float, int]] = []  # mean, weight, how many
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        block = (value, weight, 1)
        while blocks and blocks[-1][0] >= block[0]:
            mean, heavy, count = blocks.pop()
            both = heavy + block[1]
            block = ((mean * heavy + block[0] * block[1]) / both, both, count + block[2])
        blocks.append(block)
    return np.repeat([mean for mean, _, _ in blocks], [count for _, _, count in blocks])


def difficulty_weight(average_precision: float | None, drawn: int) -> float:
    """How much more the doubt about a class's boxes counts: 1 for a class found perfectly, 1.2 for one never found, 1 while too few
    were drawn to know.

    Args:
        average_precision: mAP50-95 of the class; None where nothing was drawn.
        drawn: boxes of it in the held-out frames.

    Source: the difficulty weights of PPAL (Yang et al., CVPR 2024) in the range that it uses; by average precision instead of the
    training loss, which is not known for imported models.
    """
    if average_precision is None or drawn < ENOUGH_DRAWN:
        return 1.0
    return 1.0 + (MAX_WEIGHT - 1.0) * (1.0 - min(1.0, max(0.0, average_precision)))


def table_bytes(model: bytes, class_names: Sequence[str], calibration: Mapping[str, Any]) -> bytes:
    """The table for devices that run the model; b"" where there is nothing to tell.

    Args:
        model: `model_key` of its digest.
        class_names: the model's, by its class ids; those of the data set may be in another order.
        calibration: from `calibration_of`.
    """
    told = sorted((-calibration[name]["boxes"], class_id) for class_id, name in enumerate(class_names) if name in calibration)[
        :MAX_CLASSES
    ]
    if not told:
        return b""
    rows = {class_id: calibration[class_names[class_id]] for _, class_id in told}
    return encode(
        CalibrationTable(model, {class_id: ClassCalibration(tuple(row["p"]), row["weight"]) for class_id, row in rows.items()})
    )
