"""Bytes spent within a rolling window of time, in bins, never below what was spent.

In: ages in seconds that never fall, and byte counts. Out: the sum over the window, and how long until enough of it has passed. Pure. A
bin counts in full until a window after its *end*: a cap on the sum is never exceeded by rounding, at worst bytes come back one bin
late.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence


class RollingSum:
    """The sum over the last `window_s` seconds. Its owner calls `forget` before it reads.

    Args:
        window_s, bin_s: length of the window and of one bin, seconds.
        bins: (end of bin as age in seconds, bytes) to begin with.
    """

    def __init__(self, window_s: float, bin_s: float, bins: Iterable[tuple[float, int]] = ()) -> None:
        self.window_s, self.bin_s = window_s, bin_s
        self._bins = deque(sorted(bins))
        self.spent_bytes = sum(spent for _, spent in self._bins)

    @property
    def bins(self) -> Sequence[tuple[float, int]]:
        """(end of bin as age in seconds, bytes), oldest first."""
        return tuple(self._bins)

    def add(self, age_s: float, size_bytes: int) -> None:
        """Count bytes, or take them back when negative."""
        self.spent_bytes += size_bytes
        if self._bins and self._bins[-1][0] > age_s:
            end_s, spent = self._bins[-1]
            self._bins[-1] = (end_s, spent + size_bytes)
        else:
            self._bins.append((age_s + self.bin_s, size_bytes))

    def newest_bytes(self, age_s: float) -> int:
        """What stands in the bin that is still open."""
        return self._bins[-1][1] if self._bins and self._bins[-1][0] > age_s else 0

    def forget(self, age_s: float) -> None:
        """Drop what lies before the window."""
        while self._bins and self._bins[0][0] + self.window_s <= age_s:
            self.spent_bytes -= self._bins.popleft()[1]

    def wait_s(self, age_s: float, excess_bytes: int, window_s: float | None = None) -> float:
        """Seconds until `excess_bytes` have left the window (or a shorter one); infinity when it does not hold so many."""
        window_s = self.window_s if window_s is None else window_s
        for end_s, spent in self._bins:
            if excess_bytes <= 0:
                return 0.0
            if end_s + window_s <= age_s:
                continue
            excess_bytes -= spent
            if excess_bytes <= 0:
                return end_s + window_s - age_s
        return 0.0 if excess_bytes <= 0 else math.inf

    def spent_within(self, age_s: float, step_s: float, least_steps: int) -> Iterable[tuple[int, int]]:
        """(n, bytes spent within the last n x `step_s` seconds) for each n at which that sum changes, from `least_steps` on."""
        total = 0
        for end_s, spent in reversed(self._bins):
            total += spent
            yield max(least_steps, math.floor((age_s - end_s) / step_s) + 1), total
