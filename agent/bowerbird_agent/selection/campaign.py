"""A campaign's conditions and its lifetime on the device. Pure.

In: the wire's `Campaign`, a frame's detections, times. Out: whether the frame is one that is looked for, and whether the campaign is
over. A condition is a small set of typed fields; nothing from the network is evaluated. Shares are kept in `campaign_book.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from bowerbird_agent.budget.tariff import QuietHours
from bowerbird_wire.errors import TopicError
from bowerbird_wire.topics import check_name

if TYPE_CHECKING:
    from bowerbird_models.detections import Detections
    from bowerbird_wire.messages import Campaign

ARM: Final = "campaign"
REASON = "campaign:"  # + the campaign's id, first among a frame's reasons
_DAY_S = 86_400
_MOST_NAMES = 100


@dataclass(frozen=True)
class Condition:
    """What is looked for.

    Args:
        class_name: of the boxes that count; "" any.
        at_least, below: scores of the boxes that count, `at_least` <= score < `below`; None for no upper bound.
        count_min, count_max: how many of them; None for no upper bound. 0 and 0 finds frames without any.
        cameras: names; () all.
        hours: times of day; () always.
    """

    class_name: str = ""
    at_least: float = 0.25
    below: float | None = None
    count_min: int = 1
    count_max: int | None = None
    cameras: tuple[str, ...] = ()
    hours: tuple[QuietHours, ...] = ()

    def holds(
        self, camera: str, detections: Detections, class_names: Sequence[str], *, wall_s: float, utc_offset_s: float
    ) -> bool:
        """Whether a frame is one that is looked for.

        Args:
            camera: its name.
            detections: of the model, at its decode confidence.
            class_names: by class id.
            wall_s: UTC seconds since the epoch when it was captured.
            utc_offset_s: of the device's local time.
        """
        if self.cameras and camera not in self.cameras:
            return False
        if self.hours and not any(
            each.left_s((wall_s + (0.0 if each.is_utc else utc_offset_s)) % _DAY_S) > 0.0 for each in self.hours
        ):
            return False
        counts = detections.scores >= self.at_least
        if self.below is not None:
            counts &= detections.scores < self.below
        if self.class_name:
            ids = [number for number, name in enumerate(class_names) if name == self.class_name]
            counts &= np.isin(detections.class_ids, ids)
        number = int(np.count_nonzero(counts))
        return self.count_min <= number and (self.count_max is None or number <= self.count_max)


@dataclass(frozen=True)
class Term:
    """One campaign as this device has taken it up.

    Args:
        campaign: its id.
        frames, bytes: this device's share, totals since it began.
        until_ms: UTC of its end.
        condition: what is looked for.
        gap_s: how long a camera waits after a frame that was taken.
    """

    campaign: str
    frames: int
    bytes: int
    until_ms: int
    condition: Condition
    gap_s: float = 1.0

    @classmethod
    def of(cls, wished: Campaign) -> Term:
        """The checked form of a wish.

        Raises:
            ValueError: it makes no sense; all faults are told.
        """
        faults: list[str] = []
        try:
            check_name(wished.campaign, "campaign")
        except TopicError as error:
            faults.append(str(error))
        for name in ("frames", "bytes", "count_min"):
            if getattr(wished, name) < 0:
                faults.append(f"{name} is {getattr(wished, name)}; it must not be negative")
        if not 0 <= wished.at_least <= 1:
            faults.append(f"at_least is {wished.at_least}; it must be 0 to 1")
        if wished.below is not None and not wished.at_least < wished.below <= 1:
            faults.append(f"below is {wished.below}; it must be above at_least ({wished.at_least}) and at most 1")
        if wished.count_max is not None and wished.count_max < wished.count_min:
            faults.append(f"count_max {wished.count_max} is below count_min {wished.count_min}")
        if not (math.isfinite(wished.gap_s) and 0 <= wished.gap_s <= 86_400):
            faults.append(f"gap_s is {wished.gap_s}; it must be 0 to 86400")
        if max(len(wished.cameras), len(wished.hours)) > _MOST_NAMES or len(wished.class_name) > 200:
            faults.append("it names too much")
        hours = []
        for text in wished.hours[:_MOST_NAMES]:
            try:
                hours.append(QuietHours.parse(text))
            except ValueError as error:
                faults.append(str(error))
        if wished.extra:
            # A condition that is not understood must not be passed over: more would be taken than was asked for.
            faults.append(f"it has conditions that this release does not know: {', '.join(sorted(wished.extra))[:100]}")
        if faults:
            raise ValueError("; ".join(faults))
        condition = Condition(
            wished.class_name,
            wished.at_least,
            wished.below,
            wished.count_min,
            wished.count_max,
            wished.cameras,
            tuple(hours),
        )
        return cls(wished.campaign, wished.frames, wished.bytes, wished.until_ms, condition, wished.gap_s)


@dataclass
class Lifetime:
    """When a campaign ends on a device that may be offline, with a clock that may be wrong.

    It ends when the wall clock says so, or when as much time has passed while the agent ran as was left when the clock was first
    good: whichever comes first. Until the clock has been good once, it does not begin.

    Args:
        until_ms: UTC of the end.
        left_s: time left as of `since_s`, None while the clock has not been good.
        since_s: monotonic.
    """

    until_ms: int
    left_s: float | None = None
    since_s: float = 0.0

    def runs(self, now_s: float, wall_ms: int, *, clock_ok: bool) -> bool:
        """Whether frames may be taken now."""
        if self.left_s is None:
            if not clock_ok:
                return False
            self.left_s, self.since_s = (self.until_ms - wall_ms) / 1000.0, now_s
        if now_s - self.since_s >= self.left_s:
            return False
        return not clock_ok or wall_ms < self.until_ms

    def left_at(self, now_s: float) -> float | None:
        """What to keep for the next start."""
        return None if self.left_s is None else max(0.0, self.left_s - (now_s - self.since_s))
