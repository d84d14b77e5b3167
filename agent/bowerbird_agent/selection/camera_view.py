"""What the selection remembers of one camera: its empty scene, its tracks, when frames of it were kept, the audit's last change.

In: what the selector tells it. Out: distances in time. It judges nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from typing import TYPE_CHECKING

from bowerbird_agent.selection.gate import Background
from bowerbird_agent.selection.temporal import Tracks
from bowerbird_agent.selection.twins import Twins

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bowerbird_agent.selection.explore import AuditDraw

# Kept capture times remembered: a day of one frame every ten seconds.
_KEPT_TIMES = 8640


class CameraView:
    """One camera's."""

    def __init__(self) -> None:
        self.background = Background()
        self.kept_at_ms: list[int] = []  # sorted capture times of the frames chosen so far
        self.last_admitted: tuple[NDArray[np.uint8], float] | None = None  # thumbnail and value
        self.draw: AuditDraw | None = None
        self.tracks = Tracks()
        self.twins = Twins()

    def keep(self, at_ms: int) -> None:
        """A frame captured then was chosen."""
        insort(self.kept_at_ms, at_ms)
        del self.kept_at_ms[:-_KEPT_TIMES]

    def gap_to_kept_ms(self, at_ms: int) -> float:
        """Milliseconds to the nearest frame that was chosen; infinite before the first."""
        kept = self.kept_at_ms
        place = bisect_left(kept, at_ms)
        after_ms = kept[place] - at_ms if place < len(kept) else math.inf
        return min(after_ms, at_ms - kept[place - 1]) if place else after_ms
