"""Tracks that break: what the model saw in one frame and lost in the next, and where a frame stands in its stretch of time. Pure.

In: a camera's detections, frame after frame, with their times. Out: scores in [0, 1]. An object that was there twice does not cease to
exist in a fraction of a second: either this frame or the one before has a miss. It keeps no picture and follows no object for longer
than three frames. What comes after a frame is not known when it is judged, so a frame is held against the two before it: a track that
ends in it, or that has a gap just before it, speaks for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from bowerbird_models.detections import Detections

MAX_STEP_S = 1.0  # frames farther apart say nothing: in between everything may have moved on
_EDGE = 0.03  # share of the picture's side within which objects come and go
_MOST_BOXES = 64  # most confident ones that are followed


class _Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float
    score: float
    class_id: int


class Tracks:
    """The last two frames of one camera. Not thread-safe."""

    def __init__(self) -> None:
        self._frames: list[tuple[int, list[_Box]]] = []  # capture time and boxes, the older one first

    def flicker(self, detections: Detections, *, at_ms: int, size_wh: tuple[int, int], visible: float = 0.25) -> float:
        """How surely the model has lost sight of an object: 1 for one that it was sure of and does not see at all.

        Args:
            detections: most confident first, below `visible` as well.
            at_ms: capture time; must grow.
            size_wh: of the frame, pixels: objects at its edge may leave it.
            visible: score from which a box is shown.
        Returns:
            [0, 1]; 0 while fewer than two frames, each within a second of the next, came before.
        Source: Jin et al., "Unsupervised Hard Example Mining from Videos for Improved Object Detection" (ECCV 2018), for detections
            that flicker as hard examples; the causal form is ours.
        """
        n = _MOST_BOXES
        now = [
            _Box(left, top, right, bottom, score, class_id)
            for (left, top, right, bottom), score, class_id in zip(
                detections.boxes_xyxy[:n].tolist(),
                detections.scores[:n].tolist(),
                detections.class_ids[:n].tolist(),
                strict=True,
            )
        ]
        before, self._frames = self._frames, [*self._frames[-1:], (at_ms, now)]
        if len(before) < 2:
            return 0.0
        (at_2, second), (at_1, last) = before
        step_ms = MAX_STEP_S * 1000.0
        if not 0 < at_1 - at_2 <= step_ms or not 0 < at_ms - at_1 <= step_ms:
            return 0.0
        lost = 0.0
        for box in second:
            if box.score < visible:
                break
            if _at_edge(box, size_wh):
                continue
            then = _near(box, last, reach=1.0)
            here = _near(box, now, reach=2.0) if then is None else _near(then, now, reach=1.0)
            scores = (0.0 if then is None else then.score, 0.0 if here is None else here.score)
            # Seen in two of the three frames, the first among them, and not in the third.
            if max(scores) >= visible > min(scores):
                lost = max(lost, min(box.score, max(scores)) * (visible - min(scores)) / visible)
        return min(1.0, lost)


def periodic(place: int, period: float) -> float:
    """How near a frame stands to the middle of its stretch: the strategy that takes one frame every so many.

    Args:
        place: frames of its camera before it in the window.
        period: frames in a stretch, above 0.
    Returns:
        [0, 1], 1 in the middle.
    Source: systematic sampling, Cochran, "Sampling Techniques" (1977), chapter 8, from the middle of each stretch.
    """
    if period <= 1.0:
        return 1.0
    return 1.0 - abs(2.0 * ((place + 0.5) % period) / period - 1.0)


def _at_edge(box: _Box, size_wh: tuple[int, int]) -> bool:
    width, height = size_wh
    return (
        box.left <= _EDGE * width
        or box.top <= _EDGE * height
        or box.right >= (1.0 - _EDGE) * width
        or box.bottom >= (1.0 - _EDGE) * height
    )


def _near(box: _Box, others: list[_Box], *, reach: float) -> _Box | None:
    """The best box of the same class whose centre has moved by less than `reach` times the box's own size; None for none."""
    x, y = (box.left + box.right) / 2.0, (box.top + box.bottom) / 2.0
    width, height = reach * (box.right - box.left), reach * (box.bottom - box.top)
    for other in others:
        if (
            other.class_id == box.class_id
            and abs((other.left + other.right) / 2.0 - x) < width
            and abs((other.top + other.bottom) / 2.0 - y) < height
        ):
            return other  # they come most confident first
    return None
