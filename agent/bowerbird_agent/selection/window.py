"""The open selection window: how many frames it has judged, what may be sent when it closes, and what the spool thread is then told.

In: the counters, what the server wants in all, what the byte budget leaves. Out: one `Promote` a window. Which candidates win is
`select.py`'s and `pace.py`'s word; what was promoted is the spool thread's to count, and until it has, the window keeps it reserved.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from bowerbird_agent.health import counters as names
from bowerbird_agent.selection.pace import Pace, close_window
from bowerbird_agent.storing.storing import Promote

if TYPE_CHECKING:
    from collections.abc import Callable

    from bowerbird_agent.health.counters import Counters
    from bowerbird_agent.selection.dry_run import DryRun
    from bowerbird_agent.selection.select import Selector
    from bowerbird_agent.storing.storing import StoringThread

logger = logging.getLogger(__name__)


class SelectionWindow:
    """The inference thread owns it; `set_desired`, `frames_left` and `settle` belong to any.

    Args:
        storing: the spool thread.
        counters: totals that survive.
        bytes_left: bytes that the caps leave for more frames, None for no limit; must not block.
        even_bytes_per_s: rate at which the tightest cap is spent evenly, None for no such cap; must not block.
        on_promoted: called in the spool thread when frames became ready to send.
    """

    def __init__(
        self,
        storing: StoringThread,
        counters: Counters,
        *,
        bytes_left: Callable[[], int | None],
        even_bytes_per_s: Callable[[], float | None],
        on_promoted: Callable[[], None],
    ) -> None:
        self._storing, self._counters = storing, counters
        self._bytes_left, self._even_bytes_per_s, self._on_promoted = bytes_left, even_bytes_per_s, on_promoted
        self.frames = 0  # judged since the last window was closed
        # Without a model nothing goes that no server has asked for: nobody may be there to label it.
        self.needs_wish = True
        self.pace = Pace()
        self._lock = threading.Lock()
        self._reserved = 0  # chosen, and not yet counted by the spool thread
        storing.on_promoted = self.settle

    def set_desired(self, version: int, frames_total: int | None) -> bool:
        """Write down what the server wants; False for a version that is not newer. Arguments as `Inference.set_desired`."""
        if version <= self._counters.value(names.DESIRED_VERSION):
            return False
        frames = 0 if frames_total is None else frames_total + 1
        # The new version with the old round's counters would tell the server that the new round is over, after a kill as well.
        before = self._counters.value(names.CAMPAIGN_FRAMES)
        self._counters.begin_round(
            {names.DESIRED_VERSION: version, names.DESIRED_FRAMES: frames, names.CAMPAIGN_FRAMES_BEFORE: before}
        )
        return True

    @property
    def frames_left(self) -> int | None:
        """Frames that may still be sent, None for no limit; none without a model before a server has asked for some."""
        limit = self._counters.value(names.DESIRED_FRAMES)
        if limit == 0:
            return 0 if self.needs_wish and not self._counters.value(names.DESIRED_VERSION) else None
        with self._lock:
            # What campaigns took since then is not of this wish.
            apart = self._counters.value(names.CAMPAIGN_FRAMES) - self._counters.value(names.CAMPAIGN_FRAMES_BEFORE)
            return max(0, limit - 1 - (self._counters.value(names.FRAMES_SELECTED) - apart) - self._reserved)

    def close(self, selector: Selector, dry_run: DryRun | None, *, round_number: int, is_last: bool = False) -> None:
        """Choose among the candidates; the selector and its trial begin the next window."""
        frames_left, bytes_left = self.frames_left, self._bytes_left()
        rate = None if is_last else self._even_bytes_per_s()  # nothing comes after the last window that bytes could be kept for
        result = close_window(selector, self.pace, frames_left=frames_left, bytes_left=bytes_left, even_bytes_per_s=rate)
        with self._lock:
            self._reserved += len(result.chosen)
        state = selector.to_state()
        self._storing.submit(
            Promote(
                result.chosen,
                result.dropped,
                round_number=round_number,
                selector_state=state,
                frames_left=frames_left,
                bytes_left=bytes_left,
                explore_share=result.explore_share,
            )
        )
        if dry_run is not None:
            dry_run.sent(result.chosen)
        if result.chosen:
            logger.info("window of %d frames closed: %d chosen", self.frames, len(result.chosen))
        self.frames = 0

    def settle(self, wanted: int) -> None:
        """The spool thread has promoted a window's frames and counted those that were really there."""
        with self._lock:
            self._reserved -= wanted
        if wanted:
            self._on_promoted()
