"""Tells the server what left the spool unsent: counts every so often, names until it has noted them.

In: the spool's account and its tombstones, what the server has noted. Out: messages for the outbox. Counts alone are worth a message an
hour and only when they have changed; a device that loses nothing says nothing. It decides nothing about the spool.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from bowerbird_agent.errors import SpoolError
from bowerbird_wire import codec
from bowerbird_wire.messages import Tombstones
from bowerbird_wire.topics import TombstonesTopic

if TYPE_CHECKING:
    from bowerbird_agent.link.outbox import Outbox
    from bowerbird_agent.spool.spool import Spool

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 60.0
_COUNTS_EVERY_S = 3600.0
_AGAIN_S = 600.0  # names of which the server has said nothing
_NAMES_A_MESSAGE = 100


class TombstoneSender:
    """One thread owns it.

    Args:
        outbox: where messages go.
        topic: of the device.
    """

    def __init__(self, spool: Spool, outbox: Outbox, topic: TombstonesTopic) -> None:
        self._spool, self._outbox, self._topic = spool, outbox, topic
        self._look_at_s = -math.inf
        self._counts_at_s = -math.inf
        self._said_at_s = -math.inf
        self._said: tuple[dict[str, int], dict[str, int]] = ({}, {})
        self._last_number = 0

    def link_up(self, now_s: float) -> None:
        """What was said on an older connection may be lost."""
        self._look_at_s = now_s
        self._said_at_s = -math.inf

    def buried(self, number: int, now_s: float) -> None:
        """The server has noted all names up to this number."""
        try:
            if self._spool.forget_tombstones(number):
                self._said_at_s, self._look_at_s = -math.inf, now_s
        except SpoolError as error:
            log.debug("the server's word about tombstones cannot be kept, they are said again: %s", error)

    def pump(self, now_s: float, now_ms: int) -> None:
        """Say what is due."""
        if now_s < self._look_at_s:
            return
        self._look_at_s = now_s + _LOOK_EVERY_S
        try:
            named = self._spool.tombstones(_NAMES_A_MESSAGE)
            ledger = self._spool.ledger()
        except SpoolError as error:
            log.debug("tombstones wait, the spool cannot be read: %s", error)
            return
        counts = dict(ledger.evicted), {reason: count for reason, count in ledger.dropped.items() if "." in reason}
        is_new = bool(named) and named[-1].number > self._last_number
        names_due = bool(named) and (is_new or now_s - self._said_at_s >= _AGAIN_S)
        counts_due = counts != self._said and now_s - self._counts_at_s >= _COUNTS_EVERY_S
        if not (names_due or counts_due):
            return
        self._outbox.put("tombstones", self._topic, codec.encode(Tombstones(now_ms, *counts, named)))
        self._said, self._counts_at_s, self._said_at_s = counts, now_s, now_s
        self._last_number = named[-1].number if named else self._last_number
