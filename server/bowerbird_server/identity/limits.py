"""How often one address may ask, and how often all together: token buckets over whatever names an asker, bounded in memory.

In: a name and the time. Out: whether it may. Pure but for what it remembers.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

MAX_NAMES = 4096


@dataclass(frozen=True)
class Rate:
    """`burst` at once, then `per_s` a second."""

    burst: float
    per_s: float


class RateLimit:
    """One bucket a name; the names heard of least recently are forgotten first, which forgives them."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._level: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def has_room(self, name: str, now_s: float) -> bool:
        """Whether one more would be allowed; takes nothing."""
        return self._left(name, now_s) >= 1.0

    def take(self, name: str, now_s: float) -> bool:
        """Take one; False when there is none."""
        left = self._left(name, now_s)
        allowed = left >= 1.0
        self._level[name] = (left - 1.0 if allowed else left, now_s)
        self._level.move_to_end(name)
        while len(self._level) > MAX_NAMES:
            self._level.popitem(last=False)
        return allowed

    def _left(self, name: str, now_s: float) -> float:
        left, at_s = self._level.get(name, (self._rate.burst, now_s))
        return min(self._rate.burst, left + max(0.0, now_s - at_s) * self._rate.per_s)
