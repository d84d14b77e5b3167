"""More exploration and a higher target rate for a day, when the server says that what a camera shows has changed.

In: the wish's `Boost`, two clocks. Out: the policy that holds meanwhile. Caps stay what they are: of bytes, and of frames that the
server wants in all. It ends by itself, also on a device that is offline; after a restart it waits for the server to say it again.
"""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from bowerbird_agent.campaign import Lifetime

if TYPE_CHECKING:
    from bowerbird_agent.policy import Policy
    from bowerbird_wire.messages import Boost

MAX_FACTOR = 4.0
MAX_S = 7 * 86_400.0  # whatever a server says, it ends after a week


def boosted(policy: Policy, factor: float) -> Policy:
    """The policy with the audit's share and the frames of a window multiplied; what is 0 or unlimited stays so.

    Args:
        factor: at least 1.
    """
    epsilon = min(1.0, policy.epsilon * factor)
    frames = policy.frames_per_window
    return replace(policy, epsilon=epsilon, frames_per_window=None if frames is None else round(frames * factor))


class BoostWatch:
    """Whether the boost holds. `take` may be called from any thread; one thread calls `step`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wished: Boost | None = None
        self._life: Lifetime | None = None
        self._began_s = 0.0
        self._factor = 1.0

    def take(self, boost: Boost | None) -> None:
        """What the server wants now; the same again changes nothing."""
        with self._lock:
            if boost == self._wished:
                return
            self._wished = boost
            self._life = None if boost is None else Lifetime(boost.until_ms)
            self._began_s = math.nan

    def step(self, now_s: float, wall_ms: int, *, clock_ok: bool, allowed: bool) -> bool:
        """Look at the clocks; True when the factor has changed.

        Args:
            allowed: whether agent.toml lets the selection be set from afar.
        """
        with self._lock:
            factor = 1.0
            if self._life is not None and self._wished is not None:
                if math.isnan(self._began_s):
                    self._began_s = now_s
                runs = self._life.runs(now_s, wall_ms, clock_ok=clock_ok) and now_s - self._began_s < MAX_S
                if runs and allowed:
                    factor = min(MAX_FACTOR, max(1.0, self._wished.factor))
            changed, self._factor = factor != self._factor, factor
            return changed

    def over(self, policy: Policy) -> Policy:
        """The policy that holds."""
        return policy if self._factor == 1.0 else boosted(policy, self._factor)

    def facts(self) -> dict[str, object]:
        """For health; {} while nothing is boosted."""
        wished = self._wished
        if self._factor == 1.0 or wished is None:
            return {}
        return {"factor": self._factor, "until_ms": wished.until_ms}
