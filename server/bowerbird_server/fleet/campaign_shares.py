"""Divides a campaign's quota among devices, and divides it again as they deliver. Pure.

In: what each device holds and has taken. Out: new shares. It reads no table (`catalogue/campaigns.py` does) and sends nothing.

A share is a total since the campaign began. A device may be offline and act upon an old, larger share for as long as it has not
acknowledged a smaller one: until then the larger counts as given. So the quota is never exceeded, whatever is lost or late:
the sum over all devices of max(held, taken) never rises above it.

Shares are small at first and grow where frames are found; what idle devices hold goes to those that have used theirs up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Holder:
    """One device's part, in frames or in bytes.

    Args:
        device: its name.
        share: as it was told last.
        held: the most that it may act upon until it has acknowledged `share`; at least `share`.
        taken: as it said last.
        acked: whether it has `share`.
        gave: whether part of its share was taken back and nothing given since; such a device is idle, not hungry.
    """

    device: str
    share: int = 0
    held: int = 0
    taken: int = 0
    acked: bool = True
    gave: bool = False

    @property
    def bound(self) -> int:
        """What counts as given to it."""
        return max(self.held, self.share, self.taken)


def divide(quota: int, holders: Sequence[Holder], *, unit: int = 1, low: int = 0, turn: bool = False) -> dict[str, int]:
    """The shares that change now; tell them, and ask again when something was acknowledged or taken.

    Args:
        quota: of all devices together.
        holders: every device that has or may get a share.
        unit: least that is given, while there is so much.
        low: a device with no more than this left of its share is hungry.
        turn: give idle devices a turn as well: now and then, since what they look at changes.
    """
    pool = quota - sum(holder.bound for holder in holders)
    hungry = [h for h in holders if h.acked and h.share - h.taken <= low and not h.gave]
    hungry.sort(key=lambda h: (h.share, h.device))
    idle = sorted((h for h in holders if h.acked and h.gave and h.share - h.taken <= low), key=lambda h: (h.share, h.device))
    wanting = hungry or idle
    new: dict[str, int] = {}
    if pool > 0:
        each = max(unit, pool // (2 * len(holders))) if holders else 0
        for holder in wanting:
            if pool <= 0:
                break
            # A rest that is smaller than a unit is of no use to anybody else.
            given = pool if pool < 2 * unit else min(each, pool)
            new[holder.device] = holder.share + given
            pool -= given
        return new
    asking = hungry + (idle if turn else [])
    rich = [h for h in holders if h.acked and h.share - h.taken > low]
    rich.sort(key=lambda h: (h.taken - h.share, h.device))
    for _, holder in zip(asking, rich, strict=False):
        left = (holder.share - holder.taken) // 2
        new[holder.device] = holder.taken + (left if left > low else 0)
    return new
