"""How long each part of an orderly end may take, and what happens when it takes longer.

In: the moment at which the end begins. Out: time limits, and as a last resort an end that waits for nobody. Ending early loses nothing
that matters: the process may be killed at any time. It stops no part itself (`device.py` does).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

# From the request to the end of the process.
BUDGET_S = 2.0
# What each part may take of it, in the order in which they end; the rest is for what does not wait.
STAGE_S: Mapping[str, float] = MappingProxyType({"update": 0.3, "link": 0.5, "threads": 0.7, "spool": 0.2})


class LastResort:
    """Ends the process when its orderly end hangs (a disk that does not answer holds the spool's lock, say).

    Args:
        give_up: ends the process at once with an exit code, as `os._exit` does; None to wait for ever.
    """

    def __init__(self, give_up: Callable[[int], None] | None) -> None:
        self._give_up = give_up
        self._over = threading.Event()

    def arm(self, exit_code: int, timeout_s: float = BUDGET_S) -> None:
        """From now on `timeout_s` seconds are left."""
        give_up = self._give_up
        if give_up is None:
            return

        def wait() -> None:
            if not self._over.wait(timeout_s):
                logger.warning("the orderly end took more than %.0f s; ending without it", timeout_s)
                give_up(exit_code)

        threading.Thread(target=wait, name="last-resort", daemon=True).start()

    def disarm(self) -> None:
        """The orderly end is through."""
        self._over.set()
