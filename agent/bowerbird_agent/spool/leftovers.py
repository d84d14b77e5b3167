"""What is given up of a spool without having been sent: candidates of a run that was cut short, frames that waited for too long.

In: the spool, the selector that goes on, and the clock. Out: frames dropped or expired in the spool, counted there and told to the
server. What makes way in a full spool is `spool/eviction.py`'s business.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from bowerbird_agent.clock import CLOCK_OK_FROM_S
from bowerbird_agent.spool.spool import FrameState

if TYPE_CHECKING:
    from bowerbird_agent.selection.select import Selector
    from bowerbird_agent.spool.spool import Spool

logger = logging.getLogger(__name__)


def give_up_candidates(spool: Spool, selector: Selector) -> None:
    """What waited for a later window goes on waiting. Candidates of a window that was cut short are counted: their judgements are not
    known any more."""
    here = {frame.frame_id for frame in spool.frames(FrameState.CANDIDATE)}
    selector.keep_waiting(here)
    left = sorted(here.difference(selector.candidates))
    if left:
        logger.info("%d candidates of a selection window that was cut short are given up", len(left))
        spool.drop(left, "window_cut_short")


def give_up_old_frames(spool: Spool, max_age_days: float | None, now_ms: int) -> None:
    """Nothing waits on the device for longer than is allowed; ages are known only while the clock is.

    Args:
        max_age_days: None: everything is kept until it is sent.
        now_ms: UTC milliseconds.
    """
    if max_age_days is None or now_ms < CLOCK_OK_FROM_S * 1000:
        return
    gone = spool.expire(now_ms - int(max_age_days * 86_400_000), not_before_ms=CLOCK_OK_FROM_S * 1000)
    if gone:
        logger.warning("%d frames that were not sent within %g days are given up", gone, max_age_days)
