"""When to try the broker again. Pure: no clock, no socket; the random number comes in as an argument.

In: how the last connection ended. Out: seconds to wait. A connection that moved data is a working link that broke: try at once.
Without progress the wait doubles up to a limit, jittered so that a fleet does not come back in one wave.
"""

from __future__ import annotations

from collections.abc import Callable

FIRST_S = 1.0


class ReconnectDelay:
    """The waits between attempts.

    Args:
        random: -> [0, 1), e.g. `random.Random().random`.
        max_s: the longest wait, seconds.
    """

    def __init__(self, random: Callable[[], float], *, max_s: float = 120.0) -> None:
        self._random = random
        self._max_s = max_s
        self._failures = 0

    def after(self, *, progress: bool) -> float:
        """Seconds to wait after a connection, or an attempt at one, has ended.

        Returns:
            0..1 s after progress, else between half and the whole of 1, 2, 4 … max_s seconds.
        """
        if progress:
            self._failures = 0
            return min(self._random() * FIRST_S, self._max_s)
        ceiling = min(self._max_s, FIRST_S * 2.0 ** min(self._failures, 30))
        self._failures += 1
        return ceiling * (0.5 + self._random() / 2)
