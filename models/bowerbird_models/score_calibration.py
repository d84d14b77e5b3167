"""What a model's scores are worth: how likely a box of this class and score is right, and how much its doubt counts. Pure.

In: the calibration table of a model, scores and class ids. Out: probabilities and weights, the same on device and server. It fits
nothing (the server does, on held-out frames) and it changes no score: what is shown, sent and counted stays what the model said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bowerbird_wire.calibration_table import BINS, middles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bowerbird_wire.calibration_table import CalibrationTable, ClassCalibration


class ScoreCalibration:
    """A table made quick to apply. Not changed once made.

    Between the middles of two bins the probability lies on a straight line; outside of the outermost the score is moved by as much as
    there, so that a table that says what the scores say changes nothing anywhere.

    Args:
        table: of the model that runs.
    """

    def __init__(self, table: CalibrationTable) -> None:
        self.table = table
        self._lines = {class_id: _lines(one) for class_id, one in table.classes.items()}
        self._weights = {class_id: one.weight for class_id, one in table.classes.items()}

    def probabilities(self, scores: Sequence[float], class_ids: Sequence[int]) -> list[float]:
        """How likely each box is right, in [0, 1].

        Plain numbers, less than half a microsecond each: this runs for every frame, and most frames have few boxes.

        Args:
            scores: in [0, 1]; what is no number stays, for the selector to stumble over.
            class_ids: as many.
        """
        found, of_class = [], self._lines.get
        for score, class_id in zip(scores, class_ids, strict=True):
            lines = of_class(class_id)
            if lines is None or not 0.0 <= score <= 1.0:
                found.append(score)
                continue
            start, slope = lines[int(score * BINS + 0.5)]
            p = start + slope * score
            found.append(0.0 if p < 0.0 else 1.0 if p > 1.0 else p)
        return found

    def weights(self, class_ids: Sequence[int]) -> list[float]:
        """How much the doubt of each class's boxes counts, in [1, 1.2]."""
        of_class = self._weights.get
        return [of_class(class_id, 1.0) for class_id in class_ids]


def _lines(one: ClassCalibration) -> tuple[tuple[float, float], ...]:
    """(start, slope) of the straight line in each stretch between two middles, and in those before and behind all of them."""
    at, p = middles(), one.probabilities
    found = [(p[0] - at[0], 1.0)]
    for i in range(BINS - 1):
        slope = (p[i + 1] - p[i]) * BINS
        found.append((p[i] - slope * at[i], slope))
    found.append((p[-1] - at[-1], 1.0))
    return tuple(found)
