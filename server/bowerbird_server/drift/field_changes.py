"""When recall in the field changed: ADWIN over the audit's frames in their order.

In: audited frames of one camera and model. Out: changes, each with the rate before and after. It estimates no rate for a report
(`field_metrics.py` does): a window that adapts itself has no interval.
Source: Bifet and Gavalda, "Learning from time-changing data with adaptive windowing" (SDM 2007), as `river` implements it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bowerbird_server.drift.field_metrics import Audited

_DELTA = 0.002  # chance of a change that is none, for each look


@dataclass(frozen=True)
class Change:
    """Recall was `before` until some time before `noticed_s` (UTC seconds) and is `after` since."""

    noticed_s: float
    before: float
    after: float


def changes(audited: Iterable[Audited]) -> list[Change]:
    """Every change, oldest first; frames without a drawn box say nothing of recall."""
    from river.drift import ADWIN  # a second to import, for one command

    watch = ADWIN(delta=_DELTA)
    found: list[Change] = []
    before = 0.0
    for frame in sorted(audited, key=lambda one: one.captured_s):
        if not frame.drawn:
            continue
        watch.update(frame.right / frame.drawn)
        if watch.drift_detected:
            found.append(Change(frame.captured_s, before, float(watch.estimation)))
        before = float(watch.estimation)
    return found
