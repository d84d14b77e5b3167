"""The seam between a model file and everything that wants detections.

In: a BGR frame. Out: `Detections`. One file per runtime implements it (`onnx_detector.py`, later OpenVINO and TensorRT); the
device and the evaluation gate run the same code through this Protocol.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bowerbird_models.detections import Detections


class Detector(Protocol):
    """A loaded model. Not thread-safe: one thread owns it."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class id."""
        ...

    @property
    def file_digest(self) -> str:
        """SHA-256 of the loaded model file, 64 hex digits."""
        ...

    def detect(self, image_bgr: NDArray[np.uint8], *, confidence: float = 0.05, iou: float = 0.7) -> Detections:
        """Detections in one frame.

        Args:
            image_bgr: (H, W, 3) uint8.
            confidence: lowest score kept, in [0, 1]; 0.05 keeps the band where the misses are. A classifier always answers.
            iou: overlap in [0, 1] above which the weaker box of one class is dropped (raw heads only).

        Raises:
            ModelOutputError: the model emitted NaN or a shape that its metadata does not explain.
        """
        ...
