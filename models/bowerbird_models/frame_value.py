"""What a label of a frame would teach, put together from what each strategy says: the same sum on device and server. Pure.

In: scores of strategies and their weights. Out: one number. What the strategies mean is said where they are computed (`uncertainty.py`
on the device, `rescoring.py` at the server); novelty and budgets come on top of it there.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# Misses before doubt: docs/adr/0010-misses-before-doubt.md.
BALANCED: Mapping[str, float] = MappingProxyType({"entropy": 0.5, "missed_object": 1.0, "novelty": 0.05})


def noisy_or(scores: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Strategies combined: 1 - product of (1 - weight x score), in [0, 1]; a strategy that said nothing counts as 0.

    Args:
        scores: in [0, 1] by strategy.
        weights: in [0, 1] by strategy; scores without a weight are left out.

    Source: Pearl, "Probabilistic Reasoning in Intelligent Systems" (1988), section 4.3.2.
    """
    silence = 1.0
    for name, weight in weights.items():
        silence *= 1.0 - weight * scores.get(name, 0.0)
    return 1.0 - silence
