"""What has passed the link, carried into the counters that survive a restart: both directions, by kind, and how many references.

In: the totals since the process began. Out: counters. They only grow: a total that fell behind its older value adds nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bowerbird_agent.health import counters as names

if TYPE_CHECKING:
    from bowerbird_agent.health.counters import Counters
    from bowerbird_agent.link.mqtt_link import MqttLink
    from bowerbird_agent.link.reference_sending import ReferenceSending


class LinkCounts:
    """One thread owns it."""

    def __init__(self, link: MqttLink, references: ReferenceSending, counters: Counters) -> None:
        self._link, self._references, self._counters = link, references, counters
        self._counted: dict[str, int] = {}  # counter -> what of the total is in it already

    def count(self) -> None:
        """Add what has passed since the last time."""
        sent, received = self._link.bytes_sent, self._link.bytes_received
        for kind, total in self._link.spending.by_kind(sent + received).items():
            self._add(names.spent_on(kind), total)
        self._add(names.BYTES_SENT, sent)
        self._add(names.BYTES_RECEIVED, received)
        self._add(names.REFERENCES_SENT, self._references.sent)

    def _add(self, name: str, total: int) -> None:
        before = self._counted.get(name, 0)
        if total > before:
            self._counters.add(name, total - before)
            self._counted[name] = total
