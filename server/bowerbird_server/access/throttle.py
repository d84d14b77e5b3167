"""How often somebody may try to log in: a few times at once, then slower and slower. Pure but for what it remembers.

In: keys (an address, an account) and the time. Out: seconds to wait. It sleeps never: who must wait is told so and sent away, since a
sleeping answer would hold a thread. A success forgets an account's failures, not those of the address.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

FREE_TRIES = 5
FORGET_S = 900.0
LONGEST_S = 300.0
_KEYS = 20_000


@dataclass
class _Tries:
    failures: int
    last_s: float


class Throttle:
    """Remembers failures by key; the oldest keys are forgotten when there are too many."""

    def __init__(self) -> None:
        self._tries: OrderedDict[str, _Tries] = OrderedDict()

    def wait_s(self, key: str, now_s: float) -> float:
        """How long until `key` may try again, 0 for now. After `FREE_TRIES` failures one second, doubled with each, to five minutes."""
        tries = self._tries.get(key)
        if tries is None or now_s - tries.last_s > FORGET_S or tries.failures < FREE_TRIES:
            return 0.0
        pause_s = min(2.0 ** min(tries.failures - FREE_TRIES, 20), LONGEST_S)
        return max(0.0, tries.last_s + pause_s - now_s)

    def failed(self, key: str, now_s: float) -> int:
        """Count a failure; returns how many there are."""
        tries = self._tries.pop(key, None)
        if tries is None or now_s - tries.last_s > FORGET_S:
            tries = _Tries(0, now_s)
        tries.failures, tries.last_s = tries.failures + 1, now_s
        self._tries[key] = tries
        while len(self._tries) > _KEYS:
            self._tries.popitem(last=False)
        return tries.failures

    def succeeded(self, key: str) -> None:
        """Forget the failures of `key`."""
        self._tries.pop(key, None)
