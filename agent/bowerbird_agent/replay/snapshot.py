"""One frame of a camera as the agent sees it: boxes, what each strategy says of it, and whether it would be kept and why.

In: a source, a detector, a policy. Out: a `Snapshot` (picture and verdict). It needs no server and sends nothing. A few frames run
before the one that is shown, so that motion has a background to differ from; what was sent in earlier life is not known here, so
novelty compares with nothing, and the random audit is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bowerbird_agent.capture.capture import open_camera
from bowerbird_agent.errors import SourceError
from bowerbird_agent.selection.decisions import REFUSALS
from bowerbird_agent.selection.policy import STRATEGIES
from bowerbird_agent.selection.select import Selector

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from bowerbird_agent.capture.capture import Frame, Source
    from bowerbird_agent.selection.choose import Judgement
    from bowerbird_agent.selection.policy import Policy
    from bowerbird_agent.storing.redaction import Redactor
    from bowerbird_models.detections import Detections
    from bowerbird_models.detector import Detector

WARM_UP_FRAMES = 30


@dataclass(frozen=True)
class Snapshot:
    """A frame and what the agent makes of it.

    Args:
        frame: as captured.
        detections: at the policy's decode confidence, in the frame's pixels.
        class_names: by class id.
        judgement: the policy's verdict; `admit` says whether it would wait for its window's end.
        strategy_scores: every strategy that there is -> its score in [0, 1].
        policy: by which it was judged.
    """

    frame: Frame
    detections: Detections
    class_names: tuple[str, ...]
    judgement: Judgement
    strategy_scores: Mapping[str, float]
    policy: Policy

    @property
    def verdict(self) -> str:
        """Whether it would be kept and why, in words."""
        judgement = self.judgement
        if judgement.admit:
            return f"candidate, because of {', '.join(judgement.reasons) or 'its value'}"
        return f"not kept: {REFUSALS.get(judgement.refused, judgement.refused.replace('_', ' '))}"

    def plain(self) -> dict[str, Any]:
        """As values for JSON."""
        height, width = self.frame.image_bgr.shape[:2]
        found = self.detections
        return {
            "camera": self.frame.camera,
            "sequence": self.frame.sequence,
            "captured_at_ms": self.frame.captured_at_ms,
            "width": width,
            "height": height,
            "kept": self.judgement.admit,
            "verdict": self.verdict,
            "refused": self.judgement.refused,
            "value": round(self.judgement.value, 4),
            "reasons": list(self.judgement.reasons),
            "strategies": {
                name: {"score": round(self.strategy_scores.get(name, 0.0), 4), "weight": self.policy.strategies.get(name, 0.0)}
                for name in STRATEGIES
            },
            "detections": [
                {
                    "class": self.class_names[int(found.class_ids[i])],
                    "score": round(float(found.scores[i]), 4),
                    "box_xyxy": [round(float(edge), 1) for edge in found.boxes_xyxy[i]],
                    "shown": bool(found.scores[i] >= self.policy.visible_confidence),
                }
                for i in range(len(found))
            ],
        }


def take_snapshot(
    source: Source,
    detector: Detector,
    policy: Policy,
    *,
    warm_up_frames: int = WARM_UP_FRAMES,
    redactor: Redactor | None = None,
) -> Snapshot:
    """Read some frames and judge the last of them. A shorter source gives its last frame.

    Args:
        redactor: of this camera; the picture of the snapshot is what would have been kept.

    Raises:
        RedactionError: it cannot be redacted.
        CameraError: the source gives nothing.
        ModelOutputError: the model fails.
    """
    if policy.epsilon < 1.0:
        policy = replace(policy, epsilon=0.0, cold_epsilon=0.0)
    selector = Selector(policy, device="snapshot")
    everything = Selector(
        replace(policy, strategies=dict.fromkeys(STRATEGIES, 1.0), epsilon=0.0, cold_epsilon=0.0), device="snapshot"
    )
    selector.expect(0)  # until the frame that counts: it shall not be called the duplicate of one shortly before it
    camera = open_camera(source)
    seen: tuple[Frame, Detections] | None = None
    scores: Mapping[str, float] = {}
    try:
        for _ in range(warm_up_frames + 1):
            frame = camera.read()
            if frame is None:
                break
            if seen is not None:
                selector.judge(*seen)
            seen = (frame, detector.detect(frame.image_bgr, confidence=policy.decode_confidence))
            scores = everything.judge(*seen).strategy_scores
    finally:
        camera.close()
    if seen is None:
        raise SourceError(f"camera {source.name}: {source.text} gave no frame; check the source")
    selector.expect(None)
    judgement = selector.judge(*seen)
    if redactor is not None:
        found = detector.detect(seen[0].image_bgr, confidence=min(policy.decode_confidence, redactor.config.confidence))
        seen = (replace(seen[0], image_bgr=redactor.apply(seen[0].image_bgr, found, detector.class_names)[0]), seen[1])
    return Snapshot(*seen, tuple(detector.class_names), judgement, scores, policy)


def draw(snapshot: Snapshot) -> NDArray[np.uint8]:
    """The picture with boxes, and a panel with the strategies to its right; (H, W, 3) uint8 BGR."""
    from bowerbird_agent.replay.snapshot_drawing import draw_boxes, draw_panel, side_by_side

    shown = snapshot.policy.visible_confidence
    boxes = [
        (snapshot.class_names[int(class_id)], float(score), tuple(float(edge) for edge in box), int(class_id))
        for box, score, class_id in zip(
            snapshot.detections.boxes_xyxy, snapshot.detections.scores, snapshot.detections.class_ids, strict=True
        )
    ]
    image = draw_boxes(snapshot.frame.image_bgr, boxes, visible=shown)
    rows = [(name, snapshot.strategy_scores.get(name, 0.0), snapshot.policy.strategies.get(name, 0.0)) for name in STRATEGIES]
    title = f"{snapshot.frame.camera} frame {snapshot.frame.sequence}"
    panel = draw_panel(title, rows, value=snapshot.judgement.value, kept=snapshot.judgement.admit, verdict=snapshot.verdict)
    return side_by_side(image, panel)
