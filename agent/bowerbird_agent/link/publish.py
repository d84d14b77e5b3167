"""Detections for the site's own use: what the model sees, as JSON at the broker, for whoever opens a gate or counts cars.

In: detections, from the inference thread, which is never held up. Out: MQTT messages of QoS 0, from the control thread. They come
last: nothing is queued while the link is down, a few wait at most, and they never use the bytes that a frame waits for. Every byte
counts in the budget. Frames and receipts are not its business.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from bowerbird_agent.health import counters as names
from bowerbird_wire.local_detections import DetectionsMessage, LocalDetection, to_json
from bowerbird_wire.topics import DetectionsTopic

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bowerbird_agent.capture.capture import Frame
    from bowerbird_agent.health.counters import Counters
    from bowerbird_models.detections import Detections
    from bowerbird_wire.topics import DeviceTopic

_MAX_WAITING = 32
_MAX_BOXES = 100


@dataclass(frozen=True)
class PublishConfig:
    """Detections as JSON on a topic per camera, for other programs of the site.

    Args:
        detections: publish them at all.
        confidence: lowest score published, in [0, 1].
        max_per_s: most messages per second of one camera; frames between them are left out.
    """

    detections: bool = False
    confidence: float = 0.25
    max_per_s: float = 5.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.confidence <= 1.0:
            raise ValueError(f"confidence is {self.confidence}; it must be 0 to 1")
        if not 0.01 <= self.max_per_s <= 100.0:
            raise ValueError(f"max_per_s is {self.max_per_s}; it must be 0.01 to 100")


class Sender(Protocol):
    """What publishes: `upload_runner.UploadRunner`, which knows the budget."""

    def publish_beside(self, topic: DeviceTopic, payload: bytes, now_s: float) -> bool:
        """Publish with QoS 0 if no frame pays for it; False when it was dropped."""


@dataclass(frozen=True)
class _Seen:
    camera: str
    sequence: int
    captured_at_ms: int
    width: int
    height: int
    detections: Detections
    class_names: Sequence[str]
    model_digest: str
    confidence: float


class LocalPublisher:
    """Hands detections from the inference thread (`offer`) to the control thread (`pump`).

    Args:
        config: may be replaced while running, by assignment.
        site, device: names in the topics.
        connected: whether a message has a chance now; must not block.
        wake: called when something waits; must not block.
        clock_ok: whether wall time may be trusted.
    """

    def __init__(
        self,
        config: PublishConfig,
        site: str,
        device: str,
        counters: Counters,
        *,
        connected: Callable[[], bool],
        wake: Callable[[], None] = lambda: None,
        clock_ok: Callable[[], bool] = lambda: True,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self._names = (site, device)
        self._counters, self._connected, self._wake = counters, connected, wake
        self._clock_ok, self._monotonic_s = clock_ok, monotonic_s
        self._waiting: deque[_Seen] = deque()
        self._due_s: dict[str, float] = {}

    def offer(self, frame: Frame, detections: Detections, class_names: Sequence[str], model_digest: str) -> bool:
        """Publish what was seen in a frame, if it is this camera's turn; a few comparisons, and never a wait."""
        config = self.config
        if not config.detections or not self._connected():
            return False
        now_s = self._monotonic_s()
        due_s = self._due_s.get(frame.camera, now_s)
        if now_s < due_s:
            return False
        # From when it was due, not from now: a camera of 25 frames a second shall give five messages, not four and a half.
        period_s = 1.0 / config.max_per_s
        self._due_s[frame.camera] = max(due_s + period_s, now_s + period_s / 2)
        if len(self._waiting) >= _MAX_WAITING:
            self._counters.add(names.DETECTIONS_UNPUBLISHED)
            return False
        height, width = frame.image_bgr.shape[:2]
        is_first = not self._waiting
        # The picture itself is let go.
        self._waiting.append(
            _Seen(
                frame.camera,
                frame.sequence,
                frame.captured_at_ms,
                width,
                height,
                detections,
                class_names,
                model_digest,
                config.confidence,
            )
        )
        if is_first:
            self._wake()
        return True

    def pump(self, sender: Sender, now_s: float) -> None:
        """Send what waits, or drop it. For the control thread; `now_s`: monotonic seconds."""
        while self._waiting:
            seen = self._waiting.popleft()
            topic = DetectionsTopic(*self._names, seen.camera)
            sent = self._connected() and sender.publish_beside(topic, to_json(self._message(seen)), now_s)
            self._counters.add(names.DETECTIONS_PUBLISHED if sent else names.DETECTIONS_UNPUBLISHED)

    def _message(self, seen: _Seen) -> DetectionsMessage:
        kept = seen.detections.above(seen.confidence)
        boxes = []
        for i in range(min(len(kept), _MAX_BOXES)):
            left, top, right, bottom = (round(float(edge), 1) for edge in kept.boxes_xyxy[i])
            name = seen.class_names[int(kept.class_ids[i])]
            boxes.append(LocalDetection(name, round(float(kept.scores[i]), 3), (left, top, right, bottom)))
        return DetectionsMessage(
            camera=seen.camera,
            sequence=seen.sequence,
            captured_at_ms=seen.captured_at_ms,
            clock_ok=self._clock_ok(),
            model_digest=seen.model_digest,
            width=seen.width,
            height=seen.height,
            detections=tuple(boxes),
        )
