"""Tells the server how the device is: soon when there is news, seldom when there is none, and hardly ever when the caps are used up.

In: the vital signs, the spool's account, the byte budgets. Out: health messages. A message that the link or the budget does not take is
made anew later, so none is ever kept. What is news is `health.news_of`'s word; it collects no number itself.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from bowerbird_agent.errors import SpoolError
from bowerbird_agent.health.health import news_of
from bowerbird_agent.link.link_events import packet_bytes
from bowerbird_wire import codec
from bowerbird_wire.topics import HealthTopic

if TYPE_CHECKING:
    from bowerbird_agent.budget.uplink_budget import UplinkBudget
    from bowerbird_agent.health.health import Vitals
    from bowerbird_agent.link.mqtt_link import MqttLink
    from bowerbird_agent.spool.spool import Spool

logger = logging.getLogger(__name__)

_AGAIN_S = 0.5
# With the caps used up health comes so seldom that the part which frames leave to control lasts.
_SELDOM_HEALTH_S = 1800.0


class HealthSender:
    """One thread owns it.

    Args:
        every_s: seconds between two messages.
        idle_s: the same while they have no news.
    """

    def __init__(
        self, link: MqttLink, spool: Spool, budget: UplinkBudget, vitals: Vitals, *, every_s: float, idle_s: float
    ) -> None:
        self._link, self._spool, self._budget, self._vitals = link, spool, budget, vitals
        self._topic = HealthTopic(link.site, link.device)
        self.every_s, self.idle_s = every_s, idle_s
        self._due_s = 0.0
        self._sent_s = -math.inf
        self._news: tuple[object, ...] | None = None  # as last sent; None: whatever it says now is news

    @property
    def due_s(self) -> float:
        """When the next message is due, in monotonic seconds."""
        return self._due_s

    def say(self, at_s: float) -> None:
        """Send one at that moment: whatever it says then, it is news."""
        self._due_s, self._news = at_s, None

    def pump(self, now_s: float) -> None:
        """Send what is due and has news, or has had none for long."""
        if now_s < self._due_s:
            return
        try:
            ledger = self._spool.ledger()
        except SpoolError as error:
            logger.debug("health waits, the spool cannot be read: %s", error)
            self._due_s = now_s + _AGAIN_S
            return
        health = self._vitals.health(ledger)
        news = news_of(health)
        if news == self._news and now_s < self._sent_s + self.idle_s:
            self._due_s = min(now_s + self.every_s, self._sent_s + self.idle_s)
            return
        payload = codec.encode(health)
        size = packet_bytes(self._topic, len(payload))
        is_seldom = now_s - self._sent_s >= _SELDOM_HEALTH_S
        wait_s = self._budget.cap_wait_s(now_s, size, is_control=is_seldom)
        if wait_s > 0.0:
            self._due_s = now_s + min(_SELDOM_HEALTH_S / 10, wait_s)
        elif self._link.publish(self._topic, payload):
            self._due_s, self._sent_s, self._news = now_s + self.every_s, now_s, news
        else:
            self._due_s = now_s + _AGAIN_S

    def last_words(self) -> None:
        """A last message on the way out; the link may not take it."""
        try:
            payload = codec.encode(self._vitals.health(self._spool.ledger()))
        except SpoolError:
            return
        self._link.publish(self._topic, payload)
