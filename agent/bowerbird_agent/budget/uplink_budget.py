"""The byte budgets of the uplink as one: everything on the wire, and what goes over a metered interface.

In: monotonic seconds, byte counts, and whether the uplink is metered now. Out: yes or no, how long to wait, what is left. All bytes
count in the first bucket; on a metered uplink they count in the second one too, and both must allow what can wait. Pure, as
`budget.py` is; which interface is metered is `tariff.py`'s word.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bowerbird_agent.budget.budget import BudgetExceeded, ByteLimits, TokenBucket

# A frame that does not fit the metered budget is not hopeless: the uplink may change.
_METERED_NEVER_S = 3600.0


class UplinkBudget:
    """Bytes that may pass now. Not thread-safe: one thread owns it. `now_s` is monotonic seconds everywhere.

    Args:
        total: of all bytes.
        metered: of those over a metered uplink; None for no limit.
    """

    def __init__(self, total: TokenBucket, metered: TokenBucket | None = None) -> None:
        self.total = total
        self.metered = metered or TokenBucket(ByteLimits(), 0.0)
        self.is_metered = False  # whether the uplink is a metered one now

    @property
    def _active(self) -> tuple[TokenBucket, ...]:
        return (self.total, self.metered) if self.is_metered else (self.total,)

    @property
    def has_limits(self) -> bool:
        """Whether there is anything to write down."""
        return self.total.limits.has_any or self.metered.limits.has_any

    @property
    def caps(self) -> list[int]:
        """All caps in bytes, of bucket, days and months."""
        both = (self.total.limits, self.metered.limits)
        caps = [cap for limits in both for cap in (limits.burst_bytes, limits.bytes_per_day, limits.bytes_per_month)]
        return [cap for cap in caps if cap is not None]

    def wait_s(self, now_s: float, size_bytes: int) -> float:
        """Seconds until `size_bytes` may be sent: 0 for now, infinity for never."""
        wait_s = self.total.wait_s(now_s, size_bytes)
        if self.is_metered:
            wait_s = max(wait_s, min(_METERED_NEVER_S, self.metered.wait_s(now_s, size_bytes)))
        return wait_s

    def cap_wait_s(self, now_s: float, size_bytes: int, *, is_control: bool = False) -> float:
        """As `wait_s`, for bytes that only the caps of days and months bind (`TokenBucket.cap_wait_s`)."""
        return max(bucket.cap_wait_s(now_s, size_bytes, is_control=is_control) for bucket in self._active)

    def left_today_bytes(self, now_s: float) -> int | None:
        """Bytes left of all caps of days and months; None without them. What a selection window may plan with."""
        left = [bucket.left_today_bytes(now_s) for bucket in self._active]
        return min((each for each in left if each is not None), default=None)

    @property
    def even_bytes_per_s(self) -> float | None:
        """Rate at which the tightest cap of a day or month that holds now is spent evenly; None without them."""
        rates = [bucket.limits.even_bytes_per_s for bucket in self._active]
        return min((rate for rate in rates if rate is not None), default=None)

    def spent_of_caps(self, now_s: float) -> dict[str, object]:
        """What day and month have cost of their caps, for health: `total`, and `metered` while the uplink is a metered one.

        Returns:
            [bytes today, cap of a day, bytes this month, cap of a month] each; a bucket without such caps is left out.
        """
        found: dict[str, object] = {}
        for name, bucket in zip(("total", "metered"), self._active, strict=False):
            limits = bucket.limits
            if (limits.bytes_per_day, limits.bytes_per_month) != (None, None):
                today, month = bucket.spent_today_bytes(now_s), bucket.spent_month_bytes(now_s)
                found[name] = [today, limits.bytes_per_day, month, limits.bytes_per_month]
        return found

    def has_room_beside(self, now_s: float, size_bytes: int, waiting_bytes: int) -> bool:
        """Whether `size_bytes` may go that no frame pays for: half of each cap and the bytes of a waiting frame are left alone."""
        return all(_has_room_beside(bucket, now_s, size_bytes, waiting_bytes) for bucket in self._active)

    def spend(self, now_s: float, size_bytes: int) -> None:
        """Record bytes about to be sent, resends included.

        Raises:
            BudgetExceeded: they do not fit now; nothing is recorded.
        """
        if self.wait_s(now_s, size_bytes) > 0.0:
            raise BudgetExceeded(f"{size_bytes} bytes do not fit the byte budgets now; ask `wait_s` first")
        self.charge(now_s, size_bytes)

    def charge(self, now_s: float, size_bytes: int, *, is_download: bool = False) -> None:
        """Record bytes that passed without asking (`TokenBucket.charge`)."""
        for bucket in self._active:
            bucket.charge(now_s, size_bytes, is_download=is_download)

    def refund(self, now_s: float, size_bytes: int) -> int:
        """Take back what never left (`TokenBucket.refund`); returns how much.

        Of the metered bytes none come back: the uplink may have been another one when they were spent.
        """
        return self.total.refund(now_s, size_bytes)

    @property
    def promised_bytes(self) -> int:
        """Bytes that were asked for and are not here yet; the caps keep room for them."""
        return self.total.promised_bytes

    @promised_bytes.setter
    def promised_bytes(self, size_bytes: int) -> None:
        self.total.promised_bytes = self.metered.promised_bytes = size_bytes

    def change_limits(self, total: ByteLimits, metered: ByteLimits, now_s: float) -> None:
        """Other caps from now on; what was spent stays spent."""
        self.total.change_limits(total, now_s)
        self.metered.change_limits(metered, now_s)

    @property
    def needs_save(self) -> bool:
        """True when more was spent than the saved state accounts for: save before the next byte leaves."""
        return self.total.needs_save or self.metered.needs_save

    def to_state(self, *, ahead_bytes: int = 0) -> dict[str, Any]:
        """What to persist, plain numbers only; `ahead_bytes` as in `TokenBucket.to_state`, in both buckets."""
        return {
            "version": 3,
            "total": self.total.to_state(ahead_bytes=ahead_bytes),
            "metered": self.metered.to_state(ahead_bytes=ahead_bytes),
        }

    @classmethod
    def from_state(
        cls, total: ByteLimits, metered: ByteLimits, state: Mapping[str, Any], now_s: float, *, elapsed_off_s: float = 0.0
    ) -> UplinkBudget:
        """The budgets as they were saved, `elapsed_off_s` later; arguments as in `TokenBucket.from_state`.

        Raises:
            ValueError: the state is damaged; start with `UplinkBudget.exhausted` then.
        """
        if "total" not in state:  # from before there was a metered one
            one = TokenBucket.from_state(total, state, now_s, elapsed_off_s=elapsed_off_s)
            return cls(one, TokenBucket(metered, now_s))
        if not isinstance(state["total"], Mapping) or not isinstance(state.get("metered"), Mapping):
            raise ValueError("the saved byte budget is damaged; delete it to start with an empty one")
        return cls(
            TokenBucket.from_state(total, state["total"], now_s, elapsed_off_s=elapsed_off_s),
            TokenBucket.from_state(metered, state["metered"], now_s, elapsed_off_s=elapsed_off_s),
        )

    @classmethod
    def exhausted(cls, total: ByteLimits, metered: ByteLimits, now_s: float) -> UplinkBudget:
        """Both with everything spent: the safe start when the saved state is lost."""
        return cls(TokenBucket.exhausted(total, now_s), TokenBucket.exhausted(metered, now_s))


def _has_room_beside(bucket: TokenBucket, now_s: float, size_bytes: int, waiting_bytes: int) -> bool:
    left, left_today, limits = bucket.left_bytes(now_s), bucket.left_today_bytes(now_s), bucket.limits
    day_caps = [cap for cap in (limits.bytes_per_day, limits.bytes_per_month) if cap is not None]
    caps = day_caps + ([] if limits.burst_bytes is None else [limits.burst_bytes])
    if left is None or not caps:
        return True
    if left_today is not None and left_today - size_bytes < min(day_caps) // 2:
        return False
    return left - size_bytes >= max(min(caps) // 2, waiting_bytes)


def ahead_bytes(budget: UplinkBudget, most: int) -> int:
    """How much to count as spent in advance on disk: at most `most`, and never more than a twentieth of a cap."""
    return math.floor(min([most, *(cap // 20 for cap in budget.caps)]))
