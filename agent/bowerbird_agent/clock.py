"""Whether the wall clock has been set: a board without a battery wakes up in 1970.

In: UTC seconds. Out: yes or no. It sets no clock and measures no time; what waits for a clock that is set is its own business.
"""

from __future__ import annotations

import time

# A clock before the first release of this software has not been set yet.
CLOCK_OK_FROM_S = 1_767_225_600  # 2026-01-01T00:00:00Z


def clock_ok() -> bool:
    """Whether the clock of this machine has been set."""
    return time.time() >= CLOCK_OK_FROM_S
