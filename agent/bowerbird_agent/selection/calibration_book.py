"""The calibration tables that a device knows, and what they say of a frame's boxes for `explain`. Pure.

In: tables from the server's wishes, the model that runs. Out: that model's `ScoreCalibration` for `uncertainty.py`; None where none is
known, and scores are then taken at their word.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from bowerbird_models.score_calibration import ScoreCalibration
from bowerbird_wire.calibration_table import decode
from bowerbird_wire.errors import MessageError
from bowerbird_wire.fleet_sketch import model_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bowerbird_models.detections import Detections

logger = logging.getLogger(__name__)

# Tables kept: of the running model, the one before and after it, and one to spare.
_TABLES = 4
_DOUBTED = 3
_EXPLAINED = 24


class DoubtedBoxes(NamedTuple):
    """What `explain` says of a frame's boxes; made into words later, by another thread than that which looks at frames."""

    calibration: ScoreCalibration
    scores: list[float]
    class_ids: list[int]
    class_names: Sequence[str]

    def plain(self) -> list[list[str | float]]:
        """Of the boxes nearest to a probability of one half, at most three: class, score, probability, weight."""
        scores, class_ids = self.scores, self.class_ids
        probabilities, weights = self.calibration.probabilities(scores, class_ids), self.calibration.weights(class_ids)
        rows = zip(scores, class_ids, probabilities, weights, strict=True)
        nearest = sorted(rows, key=lambda row: abs(row[2] - 0.5))[:_DOUBTED]
        names = self.class_names
        return [
            [names[class_id] if 0 <= class_id < len(names) else str(class_id), round(score, 4), round(p, 4), round(weight, 3)]
            for score, class_id, p, weight in nearest
        ]


def doubted_boxes(
    calibration: ScoreCalibration | None, detections: Detections | None, class_names: Sequence[str]
) -> DoubtedBoxes | None:
    """What to remember of a frame for `explain`; None where scores are taken at their word, or no box is there."""
    if calibration is None or detections is None or not len(detections.scores):
        return None
    _, scores, class_ids = detections.to_lists()
    return DoubtedBoxes(calibration, scores[:_EXPLAINED], class_ids[:_EXPLAINED], class_names)


class CalibrationBook:
    """The newest tables by model, so that a device that goes back to its earlier model, or starts without a network, has one.

    Args:
        tables: from `to_state`; what of it cannot be read is left out.
    """

    def __init__(self, tables: Mapping[bytes, bytes] | None = None) -> None:
        self._tables: dict[bytes, bytes] = {}
        for payload in (tables or {}).values():
            if isinstance(payload, bytes):
                self.take(payload, "")

    def take(self, payload: bytes, running: str) -> None:
        """Take up a wish's table. One without a table takes back that of the model which runs, and of no other.

        Args:
            running: digest of the model that runs, "" for none.
        """
        if not payload:
            self._tables.pop(model_key(running), None)
            return
        try:
            model = decode(payload).model
        except MessageError as error:
            logger.warning("the calibration of the model is not understood (%s); its scores are taken at their word", error)
            self._tables.pop(model_key(running), None)
            return
        self._tables.pop(model, None)
        self._tables[model] = payload
        while len(self._tables) > _TABLES:
            del self._tables[next(iter(self._tables))]

    def of(self, model_digest: str) -> ScoreCalibration | None:
        """What is known of a model's scores; None for nothing."""
        payload = self._tables.get(model_key(model_digest))
        return None if payload is None else ScoreCalibration(decode(payload))

    def to_state(self) -> dict[bytes, bytes]:
        """For the next start."""
        return dict(self._tables)
