"""What is typical of a window: a random sample of its frames' fingerprints, and how near a candidate is to them.

In: fingerprints with a draw each. Out: ranks in [0, 1]. Early on typical frames teach more than odd ones (selection without a model).
"""

from __future__ import annotations

from bisect import insort
from typing import TYPE_CHECKING

import numpy as np

from bowerbird_agent.selection.novelty import Fingerprint, Ranks, distances

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bowerbird_agent.selection.choose import Candidate

_RESERVOIR = 256


class WindowSample:
    """One window's."""

    def __init__(self) -> None:
        self._kept: list[tuple[float, int, Fingerprint]] = []

    def add(self, draw: float, fingerprint: Fingerprint) -> None:
        """Keep it if its draw, in [0, 1), is among the lowest."""
        insort(self._kept, (draw, len(self._kept), fingerprint), key=lambda entry: entry[0])
        del self._kept[_RESERVOIR:]

    def typicality(self, candidates: Sequence[Candidate]) -> dict[str, float] | None:
        """Frame id -> how near a candidate is to the whole window's frames, as a rank; None where nothing can be said."""
        if not self._kept or not candidates:
            return None
        sample = [fingerprint for _, _, fingerprint in self._kept]
        means = np.array([distances(c.judgement.fingerprint, sample).mean() for c in candidates])
        ranks = Ranks(len(candidates))
        for mean in means.tolist():
            ranks.add(mean)
        return {c.frame_id: 1.0 - ranks.rank(mean) for c, mean in zip(candidates, means.tolist(), strict=True)}
