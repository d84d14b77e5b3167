"""The byte budget of the uplink: a token bucket with a hard cap in every rolling 24 hours.

In: monotonic seconds and byte counts. Out: yes or no, and how long to wait. Pure: no clock, no file. `to_state` and
`from_state` carry it over restarts. It does not know what the bytes are; the uploader asks before every publish.

Wall time is never read: a stepped clock cannot mint tokens. Every UTC calendar day is one of the rolling 24-hour windows, so the
cap holds for it too. While the device is off, time passes only as far as the caller can vouch for it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DAY_S = 86_400.0
# Spending is remembered per five minutes. A bin counts in full until 24 h after its *end*, hence the cap is never exceeded by
# rounding; at worst bytes come back five minutes late.
_BIN_S = 300.0


@dataclass(frozen=True)
class ByteLimits:
    """The caps; None means that there is none of that kind.

    Args:
        bytes_per_s: long-term rate, positive. Over any t seconds at most bytes_per_s x t + burst_bytes are spent.
        burst_bytes: size of the bucket, positive; a message larger than this can never be sent. Needed with bytes_per_s.
        bytes_per_day: hard cap in every rolling 24 hours, not negative.

    Raises:
        ValueError: a number is out of range.
    """

    bytes_per_s: float | None = None
    burst_bytes: int | None = None
    bytes_per_day: int | None = None

    def __post_init__(self) -> None:
        if self.bytes_per_s is not None and not (math.isfinite(self.bytes_per_s) and self.bytes_per_s > 0):
            raise ValueError(f"bytes_per_s must be above 0, not {self.bytes_per_s!r}; leave it out for no limit")
        if (self.bytes_per_s is None) != (self.burst_bytes is None):
            raise ValueError("bytes_per_s and burst_bytes belong together: set both or neither")
        if self.burst_bytes is not None and self.burst_bytes < 1:
            raise ValueError(f"burst_bytes must be at least 1, not {self.burst_bytes!r}")
        if self.bytes_per_day is not None and self.bytes_per_day < 0:
            raise ValueError(f"bytes_per_day must not be negative, not {self.bytes_per_day!r}")


class BudgetExceeded(ValueError):
    """`spend` was called for bytes that `allow` refuses; ask `wait_s` first."""


class TokenBucket:
    """Bytes that may leave the device now. Not thread-safe: one thread owns it.

    All methods take `now_s`, monotonic seconds. When `now_s` falls, no time has passed.

    Args:
        limits: the caps.
        now_s: monotonic seconds at which the bucket is made; it starts full.
    """

    def __init__(self, limits: ByteLimits, now_s: float) -> None:
        self.limits = limits
        self._clock_s = now_s  # the caller's clock at the last call
        self._age_s = 0.0  # time that has passed for the bucket: never falls, survives restarts
        self._tokens = float(limits.burst_bytes or 0)
        self._bins: deque[tuple[float, int]] = deque()  # (end of bin in age seconds, bytes)
        self._spent_24h = 0
        self._ahead_left = 0

    def allow(self, now_s: float, size_bytes: int) -> bool:
        """Whether `size_bytes` may be sent now."""
        return self.wait_s(now_s, size_bytes) == 0.0

    def wait_s(self, now_s: float, size_bytes: int) -> float:
        """Seconds until `size_bytes` may be sent: 0 for now, infinity for never (larger than a cap)."""
        self._advance(now_s)
        limits = self.limits
        wait = 0.0
        if limits.bytes_per_s is not None and limits.burst_bytes is not None:
            if size_bytes > limits.burst_bytes:
                return math.inf
            missing = size_bytes - self._tokens
            # A missing millionth of a byte is the rounding of a wait that has just been served.
            wait = missing / limits.bytes_per_s if missing > 1e-6 else 0.0
        if limits.bytes_per_day is not None:
            if size_bytes > limits.bytes_per_day:
                return math.inf
            wait = max(wait, self._wait_for_day(size_bytes, limits.bytes_per_day))
        return wait

    def left_bytes(self, now_s: float) -> int | None:
        """The largest message that may be sent now; None without limits."""
        self._advance(now_s)
        caps: list[int] = []
        if self.limits.bytes_per_s is not None:
            caps.append(math.floor(self._tokens))
        if self.limits.bytes_per_day is not None:
            caps.append(self.limits.bytes_per_day - self._spent_24h)
        return max(0, min(caps)) if caps else None

    def left_today_bytes(self, now_s: float) -> int | None:
        """Bytes left in the rolling 24 hours; None without a daily cap. What a selection window may plan with."""
        self._advance(now_s)
        return None if self.limits.bytes_per_day is None else max(0, self.limits.bytes_per_day - self._spent_24h)

    def spend(self, now_s: float, size_bytes: int) -> None:
        """Record bytes about to be sent, resends included.

        Raises:
            BudgetExceeded: they do not fit now; nothing is recorded.
        """
        if not self.allow(now_s, size_bytes):
            raise BudgetExceeded(
                f"{size_bytes} bytes do not fit the byte budget now; wait {self.wait_s(now_s, size_bytes):.0f} s"
            )
        self.charge(now_s, size_bytes)

    def charge(self, now_s: float, size_bytes: int) -> None:
        """Record bytes that left without asking (keep-alives, protocol overhead); frames wait until the debt is paid.

        Raises:
            ValueError: size_bytes is negative.
        """
        if size_bytes < 0:
            raise ValueError(f"cannot charge {size_bytes} bytes: a size is not negative")
        self._advance(now_s)
        if self.limits.bytes_per_s is not None:
            self._tokens -= size_bytes
        self._record(size_bytes)
        self._ahead_left -= size_bytes

    def change_limits(self, limits: ByteLimits, now_s: float) -> None:
        """Other caps from now on. What was spent stays spent; a bucket that grows fills at its rate, it is not made full."""
        self._advance(now_s)
        had_rate = self.limits.bytes_per_s is not None
        self.limits = limits
        self._tokens = min(self._tokens, float(limits.burst_bytes or 0)) if had_rate else 0.0

    def refund(self, now_s: float, size_bytes: int) -> int:
        """Take back bytes that were spent in the last minutes and never left, since the connection broke; returns how many.

        What was spent longer ago stays spent: the errors are to the side of sending less.
        """
        self._advance(now_s)
        newest = self._bins[-1][1] if self._bins and self._bins[-1][0] > self._age_s else 0
        size_bytes = max(0, min(size_bytes, newest))
        if self.limits.burst_bytes is not None:
            self._tokens = min(float(self.limits.burst_bytes), self._tokens + size_bytes)
        if size_bytes:
            self._record(-size_bytes)
        return size_bytes

    @property
    def needs_save(self) -> bool:
        """True when more was spent than the saved state accounts for: save before the next byte leaves."""
        return self._ahead_left < 0

    def to_state(self, *, ahead_bytes: int = 0) -> dict[str, Any]:
        """What to persist, plain numbers only.

        With `ahead_bytes` the saved state counts that many bytes as spent already, so that a crash before the next save loses
        them instead of sending them twice; `needs_save` turns True when they are used up.
        """
        self._ahead_left = ahead_bytes
        bins = [[end_s, spent] for end_s, spent in self._bins]
        if ahead_bytes:
            bins.append([self._age_s + _BIN_S, ahead_bytes])
        return {
            "version": 1,
            "age_s": self._age_s,
            "tokens": self._tokens - (ahead_bytes if self.limits.bytes_per_s is not None else 0),
            "burst_bytes": self.limits.burst_bytes,
            "bins": bins,
        }

    @classmethod
    def from_state(
        cls, limits: ByteLimits, state: Mapping[str, Any], now_s: float, *, elapsed_off_s: float = 0.0
    ) -> TokenBucket:
        """The bucket as it was saved, `elapsed_off_s` later.

        Args:
            limits: today's caps; they may differ from those at the save.
            state: from `to_state`.
            now_s: monotonic seconds now (another boot's clock than at the save).
            elapsed_off_s: how long the device is known to have been off; 0 when its wall clock cannot be trusted.

        Raises:
            ValueError: the state is damaged; start with `TokenBucket.exhausted` then, so that damage mints no tokens.
        """
        bucket = cls(limits, now_s)
        try:
            bucket._age_s = float(state["age_s"])
            tokens = float(state["tokens"])
            bins = [(float(end_s), int(spent)) for end_s, spent in state["bins"]]
            had_rate = state["burst_bytes"] is not None
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError("the saved byte budget is damaged; delete it to start with an empty one") from error
        numbers = [bucket._age_s, tokens, elapsed_off_s, *(end_s for end_s, _ in bins)]
        if not all(math.isfinite(number) for number in numbers) or any(spent < 0 for _, spent in bins):
            raise ValueError("the saved byte budget is damaged; delete it to start with an empty one")
        if limits.burst_bytes is not None:
            bucket._tokens = min(tokens, float(limits.burst_bytes)) if had_rate else 0.0
        bucket._bins = deque(sorted(bins))
        bucket._spent_24h = sum(spent for _, spent in bins)
        bucket._elapse(max(0.0, elapsed_off_s))
        return bucket

    @classmethod
    def exhausted(cls, limits: ByteLimits, now_s: float) -> TokenBucket:
        """An empty bucket with the whole day spent: the safe start when the saved state is lost."""
        bucket = cls(limits, now_s)
        bucket._tokens = 0.0
        if limits.bytes_per_day is not None:
            bucket._record(limits.bytes_per_day)
        return bucket

    def _advance(self, now_s: float) -> None:
        passed_s = now_s - self._clock_s
        self._clock_s = now_s
        if passed_s > 0:
            self._elapse(passed_s)

    def _elapse(self, passed_s: float) -> None:
        self._age_s += passed_s
        if self.limits.bytes_per_s is not None and self.limits.burst_bytes is not None:
            self._tokens = min(float(self.limits.burst_bytes), self._tokens + passed_s * self.limits.bytes_per_s)
        while self._bins and self._bins[0][0] + DAY_S <= self._age_s:
            self._spent_24h -= self._bins.popleft()[1]

    def _record(self, size_bytes: int) -> None:
        self._spent_24h += size_bytes
        if self._bins and self._bins[-1][0] > self._age_s:
            end_s, spent = self._bins[-1]
            self._bins[-1] = (end_s, spent + size_bytes)
        else:
            self._bins.append((self._age_s + _BIN_S, size_bytes))

    def _wait_for_day(self, size_bytes: int, bytes_per_day: int) -> float:
        excess = self._spent_24h + size_bytes - bytes_per_day
        for end_s, spent in self._bins:
            if excess <= 0:
                break
            excess -= spent
            if excess <= 0:
                return end_s + DAY_S - self._age_s
        return 0.0
