"""What a frame costs the people who label it, in frames, boxes or seconds. Pure.

In: how many boxes a frame is expected to need, and how long labels have taken so far. Out: a cost. A budget of 400 pictures is no
budget when one shows forty cars and another none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Before enough labels were timed: seconds to look at a picture, and to draw a box.
# Source: Papadopoulos et al., "Extreme clicking for efficient object annotation" (2017): 7 s a box; looking is our own guess.
LOOK_S, BOX_S = 5.0, 7.0
ENOUGH_LABELS = 30
# Somebody who went for lunch has not looked at a picture for an hour.
_LONGEST_S = 600.0


@dataclass(frozen=True)
class Effort:
    """Seconds of a person: `look_s` a picture and `box_s` a box."""

    look_s: float = LOOK_S
    box_s: float = BOX_S

    def seconds(self, boxes: float) -> float:
        """Of a picture that needs so many boxes."""
        return self.look_s + self.box_s * boxes


def fit_effort(labels: Sequence[tuple[int, float]]) -> Effort:
    """Effort by least squares from labels that were timed; the usual values while there are few.

    Args:
        labels: (boxes, seconds) of each.
    """
    timed = [(boxes, seconds) for boxes, seconds in labels if 0 < seconds <= _LONGEST_S]
    if len(timed) < ENOUGH_LABELS:
        return Effort()
    boxes, seconds = np.array(timed, np.float64).T
    spread = float(np.var(boxes))
    slope = float(np.cov(boxes, seconds, bias=True)[0, 1]) / spread if spread > 0 else 0.0
    # Neither looking nor drawing gives time back.
    slope = min(max(0.0, slope), float(seconds.mean() / max(boxes.mean(), 1e-9)))
    return Effort(float(seconds.mean() - slope * boxes.mean()), slope)


def cost_of(unit: str, boxes: float, effort: Effort) -> float:
    """A frame's cost: 1 frame, its boxes, or its seconds.

    Raises:
        ValueError: no such unit.
    """
    if unit == "frames":
        return 1.0
    if unit == "boxes":
        return boxes
    if unit == "seconds":
        return effort.seconds(boxes)
    raise ValueError(f"cost is counted in frames, boxes or seconds, not in {unit!r}")
