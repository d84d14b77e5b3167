"""The head of a classification model: one probability a class for the whole picture.

In: (1, classes). Out: `Detections` with one detection that covers the picture, so that everything which scores, sends and compares
detections works on classifications too. A classifier always answers: its best class is reported however improbable it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bowerbird_models.decode import HeadLayout, shown
from bowerbird_models.detections import Detections
from bowerbird_models.errors import ModelOutputError
from bowerbird_models.head import NetworkOutputs, finite

if TYPE_CHECKING:
    from bowerbird_models.letterbox import Letterbox


@dataclass(frozen=True)
class ClassifyHead:
    """Implements `Head` for the task classify."""

    output_names: tuple[str, ...]
    is_settled: bool
    class_count: int
    layout: HeadLayout = HeadLayout.PROBABILITIES

    def read(self, outputs: NetworkOutputs, letterbox: Letterbox, *, confidence: float, iou: float) -> Detections:
        """As `Head.read`; neither limit applies."""
        del confidence, iou
        output = outputs.head[0]
        if output.shape != (1, self.class_count):
            raise ModelOutputError(
                f"the model emitted {shown(output.shape)}, expected (1, {self.class_count}); this file is damaged or mislabelled, "
                "do not use it"
            )
        probabilities = finite(output.astype(np.float32))
        if probabilities.min() < -1e-3 or probabilities.max() > 1 + 1e-3:
            raise ModelOutputError(
                "the model emitted numbers outside [0, 1] as probabilities; export it again with Ultralytics"
            )
        best = int(probabilities[0].argmax())
        height, width = letterbox.source_hw
        return Detections(
            np.array([[0, 0, width, height]], np.float32),
            probabilities[:, best].copy(),
            np.array([best], np.int32),
            class_scores=probabilities,
            embedding=outputs.frame_embedding(),
        )
