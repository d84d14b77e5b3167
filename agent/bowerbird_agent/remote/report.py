"""The control thread's side of what is set from afar: wishes in, `Reported` out.

In: `Desired` messages, what stands. Out: the next `Reported` when it says something new. Small on the wire: it is sent when it
changes, at each connection, and the progress of campaigns at most once a minute unless a share is used up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from bowerbird_agent.remote.runner import digest_of
from bowerbird_agent.remote.wish import Standing
from bowerbird_wire.messages import Reported

if TYPE_CHECKING:
    from bowerbird_agent.remote.runner import RemoteWishes
    from bowerbird_agent.selection.boost import BoostWatch
    from bowerbird_agent.selection.campaign_book import CampaignBook
    from bowerbird_wire.messages import Desired

_PROGRESS_EVERY_S = 60.0


class RemoteReports:
    """What the control thread holds.

    Args:
        wishes: None where the configuration cannot be set from afar (no file).
        campaigns: of this device.
        on_wish: wakes the main thread, which judges a wish.
        now_ms: UTC.
        boost: told of the wish for more exploration; None where nobody takes one.
    """

    def __init__(
        self,
        wishes: RemoteWishes | None,
        campaigns: CampaignBook,
        on_wish: Callable[[], None],
        now_ms: Callable[[], int],
        boost: BoostWatch | None = None,
    ) -> None:
        self._boost = boost
        self._wishes, self._campaigns, self._on_wish, self._now_ms = wishes, campaigns, on_wish, now_ms
        self._said: Reported | None = None
        self._said_s = -math.inf

    def desired(self, desired: Desired) -> None:
        """Hand the parts of a wish to those who judge them."""
        if self._wishes is not None and self._wishes.offer(desired.config_version, desired.config):
            self._on_wish()
        self._campaigns.take_up(desired.campaigns_version, desired.campaigns)
        if self._boost is not None:
            self._boost.take(desired.boost)

    def connected(self) -> None:
        """The broker may have lost what it retained: say it again."""
        self._said = None

    def due(self, now_s: float) -> Reported | None:
        """What to tell the server now; None for nothing new."""
        self._campaigns.keep_if_due()
        news = self._now()
        if not (news.config_version or news.campaigns_version):
            return None
        said = self._said
        if said is not None:
            if news == said:
                return None
            is_progress_only = replace(news, campaigns=said.campaigns) == said
            if is_progress_only and not self._campaigns.is_hungry() and now_s - self._said_s < _PROGRESS_EVERY_S:
                return None
        self._said, self._said_s = news, now_s
        return replace(news, at_ms=self._now_ms())

    def _now(self) -> Reported:
        standing = Standing() if self._wishes is None else self._wishes.standing
        return Reported(
            standing.seen,
            standing.version,
            standing.state,
            digest_of(standing),
            standing.faults,
            standing.differs,
            self._campaigns.version,
            self._campaigns.taken(),
            self._campaigns.faults(),
        )
