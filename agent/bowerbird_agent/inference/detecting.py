"""The model at work on one frame: what it finds, how long it takes, and what is done when it fails.

In: a loaded model and a frame. Out: detections, or None; the observer (a model on trial) and the audience (the site's own programs) are
told. A detector that fails ends nothing. It loads and swaps no model (`device_models.py`, `inference.py`) and judges no frame.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from bowerbird_agent.health import counters as names
from bowerbird_agent.health.telemetry import count_frame

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bowerbird_agent.capture.capture import Frame
    from bowerbird_agent.health.counters import Counters
    from bowerbird_agent.storing.redaction import Redactor
    from bowerbird_models.detections import Detections
    from bowerbird_models.detector import Detector

logger = logging.getLogger(__name__)

RECENT = 256  # frames over which speed and latency are told
_NO_DETECTIONS_PAUSE_S = 0.05


class Observer(Protocol):
    """Who wants to know how the running model does: the updater, for a model on trial."""

    def observe(self, ok: bool, inference_ms: float, detections: int) -> None: ...


class Audience(Protocol):
    """Who wants every frame's detections: `publish.LocalPublisher`. Must not block."""

    def offer(self, frame: Frame, detections: Detections, class_names: Sequence[str], model_digest: str) -> bool: ...


@dataclass(frozen=True)
class LoadedModel:
    """A detector ready to run. `digest` is the package's (of a bare ONNX file: the file's), what reports and headers carry;
    `runs_with` says in plain values on which file and runtime, for health messages."""

    detector: Detector
    digest: str
    runs_with: Mapping[str, object] = field(default_factory=dict)


class _Idle:
    """Nobody watches the model."""

    def observe(self, ok: bool, inference_ms: float, detections: int) -> None:
        del ok, inference_ms, detections


class Detecting:
    """The inference thread owns it; `inference_ms` may be read by others.

    Args:
        counters: totals that survive.
        redactors: camera -> what covers its frames, as it is in force now.
        decode_confidence: lowest score that the selection asks of the detector, in (0, 1).
        pause: lets so many seconds pass after a failure, or less when the agent ends.
        observer: told of every detection, for a model on trial.
        audience: offered every frame's detections, None for nobody.
    """

    def __init__(
        self,
        counters: Counters,
        redactors: Callable[[], Mapping[str, Redactor]],
        *,
        decode_confidence: float,
        pause: Callable[[float], object],
        observer: Observer | None = None,
        audience: Audience | None = None,
    ) -> None:
        self._counters, self._redactors, self._pause = counters, redactors, pause
        self.decode_confidence = decode_confidence
        self.observer: Observer = observer or _Idle()
        self.audience = audience
        self._is_failing = False
        self._latencies_ms: deque[float] = deque(maxlen=RECENT)

    @property
    def inference_ms(self) -> float:
        """Median time of one detection over the last frames, 0 before the first."""
        recent = list(self._latencies_ms)
        return float(np.median(recent)) if recent else 0.0

    def begin(self) -> None:
        """Another model runs from now on."""
        self._is_failing = False
        self._latencies_ms.clear()

    def detect(self, model: LoadedModel, frame: Frame) -> Detections | None:
        """Detections, or None when the model failed; either is told to the observer."""
        started_s = time.perf_counter()
        confidence, redactor = self.decode_confidence, self._redactors().get(frame.camera)
        if redactor is not None:
            confidence = min(confidence, redactor.config.confidence)
        try:
            detections = model.detector.detect(frame.image_bgr, confidence=confidence)
        except Exception as error:  # whatever a model does, cameras and updates must go on
            self._counters.add(names.DETECTOR_FAILURES)
            level = logging.DEBUG if self._is_failing else logging.WARNING
            self._is_failing = True
            logger.log(level, "model %s failed on frame %d of %s: %s", model.digest[:12], frame.sequence, frame.camera, error)
            self.observer.observe(False, (time.perf_counter() - started_s) * 1000, 0)
            self._pause(_NO_DETECTIONS_PAUSE_S)
            return None
        took_ms = (time.perf_counter() - started_s) * 1000
        self._is_failing = False
        self._latencies_ms.append(took_ms)
        chosen = self.for_selection(frame.camera, detections)
        count_frame(self._counters, took_ms, float(chosen.scores.max()) if len(chosen) else 0.0)
        if self.audience is not None:
            self.audience.offer(frame, chosen, model.detector.class_names, model.digest)
        self.observer.observe(True, took_ms, len(chosen))
        return detections

    def for_selection(self, camera: str, detections: Detections) -> Detections:
        """Redaction may ask the model for more than the policy wants to see; selection shall not change because of it."""
        redactor = self._redactors().get(camera)
        if redactor is None or redactor.config.confidence >= self.decode_confidence:
            return detections
        return detections.above(self.decode_confidence)
