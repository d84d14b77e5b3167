"""Watches what devices say at each connection, and suspends those of which there are two.

In: statuses as they arrive, the catalogue, the server's time. Out: rows, and a call when a device has been suspended, so that the
broker shuts it out. Which of the two is the right one nobody can tell from here: a person decides. The rules are `clones.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from bowerbird_server.catalogue import fleet
from bowerbird_server.catalogue import identity as rows
from bowerbird_server.catalogue.core import Catalogue
from bowerbird_server.identity.clones import Sighting, judge
from bowerbird_server.identity.states import Happening, State
from bowerbird_wire.messages import Status

log = logging.getLogger(__name__)
_ACTOR = "identity"


class CloneWatch:
    """Judges sightings.

    Args:
        cat: the catalogue, of the calling thread.
        on_suspended: told the device; shuts it out at the broker.
        clock_s: seconds since 1970.
    """

    def __init__(
        self, cat: Catalogue, on_suspended: Callable[[str], None], *, clock_s: Callable[[], float] = time.time
    ) -> None:
        self._cat, self._on_suspended, self._clock_s = cat, on_suspended, clock_s

    def saw(self, device: str, status: Status) -> bool:
        """A device has said that it is there; False when it was suspended for it."""
        if status.state != "online":
            return True  # the broker's word, as old as the connection that it ends
        facts = status.extra.get("identity")
        facts = facts if isinstance(facts, Mapping) else {}
        start = facts.get("start")
        where = f"{status.boot_id}/{start[:32]}" if isinstance(start, str) else status.boot_id
        link = facts.get("link")
        seen = Sighting(
            self._clock_s(),
            where,
            _count(facts, "generation"),
            _count(facts, "take_overs"),
            _count(facts, "connection"),
            link[:32] if isinstance(link, str) else "",
        )
        with self._cat.transaction():
            if fleet.get(self._cat, device)["state"] != State.ACTIVE:
                return False
            newest = rows.newest_certificate(self._cat, device)
            current, since_s = (
                (0, 0.0) if newest is None else (newest["generation"], rows.time_of(newest["issued_at"]).timestamp())
            )
            known = rows.remembered(self._cat, device)
            what, why = judge(known, seen, current=current, current_since_s=since_s)
            if what != known:
                rows.remember(self._cat, device, what)
            if seen.generation:
                rows.note_seen(self._cat, device, seen.generation)
            if why:
                rows.change_state(self._cat, device, Happening.SUSPECTED, _ACTOR, why)
                rows.alarm(self._cat, device, why)
        if why:
            log.warning("device %s is suspended: %s", device, why)
            self._on_suspended(device)
        return not why


def _count(facts: Mapping[str, object], key: str) -> int:
    value = facts.get(key, 0)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else 0
