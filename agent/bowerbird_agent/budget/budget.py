"""One byte budget: a token bucket with hard caps in every rolling 24 hours and 31 days.

In: monotonic seconds and byte counts. Out: yes or no, and how long to wait. Pure: no clock, no file. `to_state` and
`from_state` carry it over restarts. It does not know what the bytes are; the uploader asks before every publish.

Wall time is never read: a stepped clock cannot mint tokens. Every calendar day lies in one of the rolling 24-hour windows, every
calendar month in one of 31 days, whatever the time zone, so the caps hold for them too. While the device is off, time passes only as
far as the caller can vouch for it.

Bytes that cannot wait (keep-alives, acknowledgements, commands) are charged after the fact. So that the caps hold with them, what
can wait leaves `control_bytes` of each cap free.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bowerbird_agent.budget.rolling_sum import RollingSum

DAY_S = 86_400.0
MONTH_S = 31 * DAY_S
# At worst the bytes of a day come back five minutes late, those of a month six hours.
_DAY_BIN_S, _MONTH_BIN_S = 300.0, 21_600.0
_PROMISED_WAIT_S = 60.0
# What a power failure takes from the bucket at most: time that no saved state knows of has not passed, and old bytes count for longer.
_SAVE_EVERY_S = 1800.0


@dataclass(frozen=True)
class ByteLimits:
    """The caps; None means that there is none of that kind.

    Args:
        bytes_per_s: long-term rate, positive. Over any t seconds at most bytes_per_s x t + burst_bytes are spent.
        burst_bytes: size of the bucket, positive; a message larger than this can never be sent. Needed with bytes_per_s.
        bytes_per_day: hard cap in every rolling 24 hours, not negative.
        bytes_per_month: hard cap in every rolling 31 days, not negative.
        carry_over_bytes: what days leave unspent may be spent later, up to so much on top of a day: in any n days, n up to 31, at
            most n x bytes_per_day + carry_over_bytes. Needs bytes_per_day.
        control_bytes: part of the day's cap that only control uses; of the month's cap 31 times as much, but at most a twentieth.

    Raises:
        ValueError: a number is out of range.
    """

    bytes_per_s: float | None = None
    burst_bytes: int | None = None
    bytes_per_day: int | None = None
    bytes_per_month: int | None = None
    carry_over_bytes: int = 0
    control_bytes: int = 0

    def __post_init__(self) -> None:
        if self.bytes_per_s is not None and not (math.isfinite(self.bytes_per_s) and self.bytes_per_s > 0):
            raise ValueError(f"bytes_per_s must be above 0, not {self.bytes_per_s!r}; leave it out for no limit")
        if (self.bytes_per_s is None) != (self.burst_bytes is None):
            raise ValueError("bytes_per_s and burst_bytes belong together: set both or neither")
        if self.burst_bytes is not None and self.burst_bytes < 1:
            raise ValueError(f"burst_bytes must be at least 1, not {self.burst_bytes!r}")
        if self.bytes_per_day is not None and self.bytes_per_day < 0:
            raise ValueError(f"bytes_per_day must not be negative, not {self.bytes_per_day!r}")
        if self.bytes_per_month is not None and self.bytes_per_month < 0:
            raise ValueError(f"bytes_per_month must not be negative, not {self.bytes_per_month!r}")
        if min(self.carry_over_bytes, self.control_bytes) < 0:
            raise ValueError("carry_over_bytes and control_bytes must not be negative")
        if self.carry_over_bytes and self.bytes_per_day is None:
            raise ValueError("carry_over_bytes carries over what a day leaves: set bytes_per_day as well")

    @property
    def most_in_a_day(self) -> int | None:
        """Most bytes in any 24 hours: the day's cap with everything that may be carried over."""
        return None if self.bytes_per_day is None else self.bytes_per_day + self.carry_over_bytes

    @property
    def control_in_a_month(self) -> int:
        """Part of the month's cap that only control uses."""
        return min(31 * self.control_bytes, (self.bytes_per_month or 0) // 20)

    @property
    def even_bytes_per_s(self) -> float | None:
        """Rate at which the tighter of the caps of day and month is spent evenly; None without them."""
        caps = ((self.bytes_per_day, DAY_S), (self.bytes_per_month, MONTH_S))
        return min((cap / seconds for cap, seconds in caps if cap is not None), default=None)

    @property
    def has_any(self) -> bool:
        """Whether anything is limited."""
        return (self.bytes_per_s, self.bytes_per_day, self.bytes_per_month) != (None, None, None)


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
        self._day = RollingSum(DAY_S, _DAY_BIN_S)
        self._month = RollingSum(MONTH_S, _MONTH_BIN_S)
        self._ahead_left = 0
        self._saved_age_s = 0.0
        self.promised_bytes = 0  # asked for and not here yet: what the caps of day and month must have room for

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
        return max(wait, self._wait_for_caps(size_bytes))

    def cap_wait_s(self, now_s: float, size_bytes: int, *, is_control: bool = False) -> float:
        """As `wait_s`, for bytes that only the caps of day and month bind; `is_control` may use what is kept free for control."""
        self._advance(now_s)
        return self._wait_for_caps(size_bytes, is_control=is_control)

    def left_bytes(self, now_s: float) -> int | None:
        """The largest message that may be sent now; None without limits."""
        self._advance(now_s)
        caps = self._left_of_caps()
        if self.limits.bytes_per_s is not None:
            caps.append(math.floor(self._tokens))
        return max(0, min(caps)) if caps else None

    def left_today_bytes(self, now_s: float) -> int | None:
        """Bytes left of the day's and the month's cap; None without them. What a selection window may plan with."""
        self._advance(now_s)
        caps = self._left_of_caps()
        return max(0, min(caps)) if caps else None

    def spent_today_bytes(self, now_s: float) -> int:
        """Bytes of the rolling 24 hours."""
        self._advance(now_s)
        return self._day.spent_bytes

    def spent_month_bytes(self, now_s: float) -> int:
        """Bytes of the rolling 31 days."""
        self._advance(now_s)
        return self._month.spent_bytes

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

    def charge(self, now_s: float, size_bytes: int, *, is_download: bool = False) -> None:
        """Record bytes that left without asking (keep-alives, protocol overhead); frames wait until the debt is paid.

        With `is_download` they have come in: they count for day and month, the rate is that of the uplink.

        Raises:
            ValueError: size_bytes is negative.
        """
        if size_bytes < 0:
            raise ValueError(f"cannot charge {size_bytes} bytes: a size is not negative")
        self._advance(now_s)
        if self.limits.bytes_per_s is not None and not is_download:
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
        size_bytes = max(0, min(size_bytes, self._day.newest_bytes(self._age_s), self._month.newest_bytes(self._age_s)))
        if self.limits.burst_bytes is not None:
            self._tokens = min(float(self.limits.burst_bytes), self._tokens + size_bytes)
        if size_bytes:
            self._record(-size_bytes)
        return size_bytes

    @property
    def needs_save(self) -> bool:
        """True when more was spent than the saved state accounts for, or it has grown old: save before the next byte leaves."""
        return self._ahead_left < 0 or self._age_s - self._saved_age_s >= _SAVE_EVERY_S

    def to_state(self, *, ahead_bytes: int = 0) -> dict[str, Any]:
        """What to persist, plain numbers only.

        With `ahead_bytes` the saved state counts that many bytes as spent already, so that a crash before the next save loses
        them instead of sending them twice; `needs_save` turns True when they are used up.
        """
        self._ahead_left, self._saved_age_s = ahead_bytes, self._age_s
        bins, month_bins = (
            [[end_s, spent] for end_s, spent in window.bins]
            + ([[self._age_s + window.bin_s, ahead_bytes]] if ahead_bytes else [])
            for window in (self._day, self._month)
        )
        return {
            "version": 2,
            "age_s": self._age_s,
            "tokens": self._tokens - (ahead_bytes if self.limits.bytes_per_s is not None else 0),
            "burst_bytes": self.limits.burst_bytes,
            "bins": bins,
            "month_bins": month_bins,
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
            bucket._age_s = bucket._saved_age_s = float(state["age_s"])
            tokens = float(state["tokens"])
            bins = [(float(end_s), int(spent)) for end_s, spent in state["bins"]]
            # Version 1 knew no months: what is known of this one is the last day.
            month_bins = [(float(end_s), int(spent)) for end_s, spent in state.get("month_bins", state["bins"])]
            had_rate = state["burst_bytes"] is not None
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError("the saved byte budget is damaged; delete it to start with an empty one") from error
        numbers = [bucket._age_s, tokens, elapsed_off_s, *(end_s for end_s, _ in bins + month_bins)]
        if not all(math.isfinite(number) for number in numbers) or any(spent < 0 for _, spent in bins + month_bins):
            raise ValueError("the saved byte budget is damaged; delete it to start with an empty one")
        if limits.burst_bytes is not None:
            bucket._tokens = min(tokens, float(limits.burst_bytes)) if had_rate else 0.0
        bucket._day = RollingSum(DAY_S, _DAY_BIN_S, bins)
        bucket._month = RollingSum(MONTH_S, _MONTH_BIN_S, month_bins)
        bucket._elapse(max(0.0, elapsed_off_s))
        return bucket

    @classmethod
    def exhausted(cls, limits: ByteLimits, now_s: float) -> TokenBucket:
        """An empty bucket with the whole day and month spent: the safe start when the saved state is lost."""
        bucket = cls(limits, now_s)
        bucket._tokens = 0.0
        bucket._record(max(limits.most_in_a_day or 0, limits.bytes_per_month or 0))
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
        self._day.forget(self._age_s)
        self._month.forget(self._age_s)

    def _record(self, size_bytes: int) -> None:
        self._day.add(self._age_s, size_bytes)
        self._month.add(self._age_s, size_bytes)

    def _caps(self, *, is_control: bool = False) -> list[tuple[RollingSum, int]]:
        limits = self.limits
        caps = (
            (self._day, limits.most_in_a_day, limits.control_bytes),
            (self._month, limits.bytes_per_month, limits.control_in_a_month),
        )
        return [(window, max(0, cap - (0 if is_control else kept))) for window, cap, kept in caps if cap is not None]

    def _left_of_caps(self) -> list[int]:
        left = [cap - window.spent_bytes - self.promised_bytes for window, cap in self._caps()]
        left += [cap - spent - self.promised_bytes for _, cap, spent in self._carried()]
        return left

    def _carried(self, *, is_control: bool = False) -> list[tuple[int, int, int]]:
        """(n, cap of n days, bytes spent in them) where carrying over makes days depend on each other."""
        limits = self.limits
        if not limits.carry_over_bytes or limits.bytes_per_day is None:
            return []
        kept = 0 if is_control else limits.control_bytes
        return [
            (days, days * limits.bytes_per_day + limits.carry_over_bytes - kept, spent)
            for days, spent in self._month.spent_within(self._age_s, DAY_S, 2)
        ]

    def _wait_for_caps(self, size_bytes: int, *, is_control: bool = False) -> float:
        wait = 0.0
        size = size_bytes + self.promised_bytes
        for window, cap in self._caps(is_control=is_control):
            if size_bytes > cap:
                return math.inf
            wait = max(wait, window.wait_s(self._age_s, window.spent_bytes + size - cap))
        for days, cap, spent in self._carried(is_control=is_control):
            if spent + size > cap:
                wait = max(wait, self._month.wait_s(self._age_s, spent + size - cap, days * DAY_S))
        # Only what was promised stands in the way: it comes, or lapses.
        return _PROMISED_WAIT_S if wait == math.inf else wait
