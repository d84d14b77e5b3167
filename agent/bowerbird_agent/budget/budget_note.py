"""The byte budgets over a restart: the spool keeps them as a note.

In: the note of the last run. Out: the budgets as they were left. `upload_runner.py` writes the note while it sends.
"""

from __future__ import annotations

import json
import logging

from bowerbird_agent.budget.budget import ByteLimits, TokenBucket
from bowerbird_agent.budget.uplink_budget import UplinkBudget
from bowerbird_agent.spool.spool import Spool

log = logging.getLogger(__name__)

BUDGET_NOTE = "budget"


def restore_budget(
    spool: Spool, limits: ByteLimits, now_s: float, *, metered: ByteLimits | None = None, elapsed_off_s: float = 0.0
) -> UplinkBudget:
    """The byte budgets as the last run left them; damaged ones start empty, so that damage buys no bytes."""
    metered = metered or ByteLimits()
    saved = spool.note(BUDGET_NOTE)
    if saved is None:
        return UplinkBudget(TokenBucket(limits, now_s), TokenBucket(metered, now_s))
    try:
        return UplinkBudget.from_state(limits, metered, json.loads(saved), now_s, elapsed_off_s=elapsed_off_s)
    except (ValueError, TypeError, AttributeError):
        log.warning("the saved byte budget is damaged; starting with an empty one: frames wait until its days have passed")
        return UplinkBudget.exhausted(limits, metered, now_s)
