"""The score of each strategy of a policy for one frame with its detections, and which of them spoke.

In: detections, the camera's motion and tracks, what is known of the model's scores. Out: name -> score, in [0, 1] for most. Novelty,
chance and what is periodic are `select.py`'s, which knows the frames before.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bowerbird_agent.selection.gate import uncovered_blobs
from bowerbird_agent.selection.uncertainty import SCORERS, entropy, hidden_objects, least_confidence, rare_class

if TYPE_CHECKING:
    from bowerbird_agent.capture.capture import Frame
    from bowerbird_agent.selection.gate import Motion
    from bowerbird_agent.selection.policy import Policy
    from bowerbird_agent.selection.temporal import Tracks
    from bowerbird_models.detections import Detections
    from bowerbird_models.score_calibration import ScoreCalibration

# Cells at which a blob of unexplained motion counts as half a missed object.
_HALF_STRENGTH_CELLS = 12.0
_SPEAKS_FROM = 0.3
# What a class counts for falls by this factor with each frame: how often it was shown in the last two thousand or so.
_FREQUENCY_KEPT = 1.0 - 1.0 / 2000.0


class FrameScores:
    """The owner feeds it every frame with detections, for it counts which classes are seldom here.

    Args:
        policy: which strategies there are, and from which score a box is shown.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._class_frequency: dict[int, float] = {}  # class id -> frames that showed it, older ones for less
        self.calibration: ScoreCalibration | None = None

    def forget_classes(self) -> None:
        """Another model's classes mean something else."""
        self._class_frequency.clear()

    def of(self, frame: Frame, detections: Detections, motion: Motion, tracks: Tracks) -> dict[str, float]:
        """Score of each strategy that needs the detections.

        Raises:
            ValueError: a score is not a number.
        """
        policy = self._policy
        visible, floor = policy.visible_confidence, min(policy.decode_confidence, 0.4)
        scores: dict[str, float] = {}
        for name in policy.strategies:
            if name == "entropy":
                scores[name] = entropy(detections, floor_score=floor, calibration=self.calibration)
            elif name == "least_confidence":
                scores[name] = least_confidence(detections, visible=visible, calibration=self.calibration)
            elif name == "missed_object":
                scores[name] = self._missed(frame, detections, motion)
            elif name == "rare_class":
                scores[name] = rare_class(detections, self._class_frequency, visible=visible)
                self._count_classes(detections, visible)
            elif name == "flicker":
                height, width = frame.image_bgr.shape[:2]
                scores[name] = tracks.flicker(detections, at_ms=frame.captured_at_ms, size_wh=(width, height), visible=visible)
            elif name in SCORERS:
                scores[name] = SCORERS[name](detections, visible=visible)
        if not all(map(math.isfinite, scores.values())):
            raise ValueError(f"detections gave scores that are not numbers: {scores}")
        return scores

    def _missed(self, frame: Frame, detections: Detections, motion: Motion) -> float:
        """That objects are there which are not shown: blobs of motion that no box explains, and boxes below the threshold."""
        policy = self._policy
        visible = policy.visible_confidence
        blobs: tuple[int, ...] = ()
        if motion.cells:
            height, width = frame.image_bgr.shape[:2]
            boxes, confidences, _ = detections.to_lists()
            shown = [box for box, confidence in zip(boxes, confidences, strict=True) if confidence >= visible]
            blobs = uncovered_blobs(motion.cells, shown, image_width=width, image_height=height)
        moved = sum(cells / (cells + _HALF_STRENGTH_CELLS) for cells in blobs)
        hidden = hidden_objects(detections, floor_score=policy.decode_confidence, visible=visible)
        return -math.expm1(-(moved + hidden) / 2.0)

    def _count_classes(self, detections: Detections, visible: float) -> None:
        """Remember which classes this frame shows, after it was compared with those before."""
        for class_id in self._class_frequency:
            self._class_frequency[class_id] *= _FREQUENCY_KEPT
        for class_id in set(detections.class_ids[detections.scores >= visible].tolist()):
            self._class_frequency[class_id] = self._class_frequency.get(class_id, 0.0) + 1.0


def speakers(scores: dict[str, float], policy: Policy) -> tuple[str, ...]:
    """The strategies whose weighted score says something, the strongest first."""
    weighted = [(weight * scores.get(name, 0.0), name) for name, weight in policy.strategies.items()]
    weighted.sort(reverse=True)
    loudest, name = weighted[0]
    if loudest < _SPEAKS_FROM:
        return (name,) if loudest > 0 else ()
    return tuple([name for score, name in weighted if score >= _SPEAKS_FROM])
