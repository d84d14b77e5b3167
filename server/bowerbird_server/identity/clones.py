"""When two machines are one device: rules over what a device says of itself at each connection.

In: sightings in the order in which they came, each with the machine's boot, the certificate's generation and how often a live
connection was taken over; what was remembered of earlier ones. Out: what to remember, and why it is a clone, or "". Pure;
`watch.py` stores it and suspends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

GRACE_S = 48 * 3600.0  # how long the old certificate stays good beside its successor
TAKE_OVERS = 3
TAKE_OVERS_WITHIN_S = 600.0
_BOOTS_KEPT = 8


@dataclass(frozen=True)
class Sighting:
    """A device's word at a connection.

    Args:
        at_s: when, seconds since 1970 by the server's clock.
        boot_id: of the machine, and of the agent's start on it where that is told; a new one takes the place of the old, which never
            comes back.
        generation: of its certificate; 0 from a device without one.
        take_overs: how often, since the agent's start, another connection with its name ended one of its own; only some brokers tell.
        connection: which connection this is since the agent's start, 0 where that is not told.
        link: a random word of this connection.
    """

    at_s: float
    boot_id: str
    generation: int = 0
    take_overs: int = 0
    connection: int = 0
    link: str = ""


@dataclass(frozen=True)
class Remembered:
    """What is kept of a device between sightings."""

    boots: tuple[str, ...] = ()  # newest last
    generation: int = 0  # the newest seen
    take_overs: int = 0  # as last told
    taken_over_at_s: tuple[float, ...] = ()
    connection: int = 0  # of the last sighting
    link: str = ""

    def to_plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "boots": list(self.boots),
            "generation": self.generation,
            "take_overs": self.take_overs,
            "taken_over_at_s": list(self.taken_over_at_s),
            "connection": self.connection,
            "link": self.link,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Remembered:
        """What `to_plain` gave; nothing from an empty mapping."""
        return cls(
            tuple(map(str, plain.get("boots", ()))),
            int(plain.get("generation", 0)),
            int(plain.get("take_overs", 0)),
            tuple(map(float, plain.get("taken_over_at_s", ()))),
            int(plain.get("connection", 0)),
            str(plain.get("link", "")),
        )


def judge(known: Remembered, seen: Sighting, *, current: int, current_since_s: float) -> tuple[Remembered, str]:
    """What to remember, and the reason for suspecting a clone, "" for none.

    Args:
        known: from the last call for this device.
        seen: now.
        current: the newest generation that was issued to it; 0 for none.
        current_since_s: when that was issued.
    """
    boots, why = _boots(known.boots, seen.boot_id)
    # Told numbers grow within one start of the agent, and each take-over is followed by a connection, that is by a sighting. What was
    # told before anything was remembered is old.
    more = 1 if known.boots and (seen.take_overs > known.take_overs or _is_anothers(known, seen)) else 0
    recent = tuple(at_s for at_s in known.taken_over_at_s if seen.at_s - at_s < TAKE_OVERS_WITHIN_S)
    recent = (*recent, *(seen.at_s,) * more)[-TAKE_OVERS:]
    remembered = replace(
        known,
        boots=boots,
        generation=max(known.generation, seen.generation),
        take_overs=seen.take_overs,
        taken_over_at_s=recent,
        connection=seen.connection,
        link=seen.link,
    )
    if not why and len(recent) >= TAKE_OVERS:
        why = f"{TAKE_OVERS} live connections were taken over within {TAKE_OVERS_WITHIN_S / 60:.0f} minutes"
    if not why and 0 < seen.generation < current and seen.at_s - current_since_s > GRACE_S:
        why = f"generation {seen.generation} of its certificate was seen {GRACE_S / 3600:.0f} h after generation {current} was issued"
    return remembered, why


def judge_renewal(*, generation: int, key: str, current: int, current_key: str, current_seen: bool) -> str:
    """Whether a renewal with an old generation's key is a retry ("") or the reason for suspecting a clone.

    Args:
        generation: of the certificate that asks.
        key: fingerprint of the new key that it offers.
        current: newest generation that was issued.
        current_key: fingerprint of that one's key.
        current_seen: whether the device has been seen with it.
    """
    if generation >= current:
        return ""
    if generation == current - 1 and (key == current_key or not current_seen):
        return ""  # the answer was lost, perhaps with the new key
    return f"generation {generation} of its certificate asks for a renewal while generation {current} is in use"


def _is_anothers(known: Remembered, seen: Sighting) -> bool:
    """Whether one start of an agent cannot have made this connection after the last one: its number would have grown.

    A broker that ends a connection for another of the same name need not say so (mosquitto 2.0.11 does not). A machine that was copied
    while it ran says the same boot and start, and counts its connections for itself.
    """
    if not known.boots or known.boots[-1] != seen.boot_id or not known.connection or not seen.connection:
        return False
    return seen.connection < known.connection or (seen.connection == known.connection and seen.link != known.link)


def _boots(known: tuple[str, ...], boot_id: str) -> tuple[tuple[str, ...], str]:
    if not boot_id or (known and known[-1] == boot_id):
        return known, ""
    if boot_id in known:
        others = tuple(each for each in known if each != boot_id)
        return (*others, boot_id), f"boots {known[-1]} and {boot_id} alternate: two agents use its identity"
    return (*known, boot_id)[-_BOOTS_KEPT:], ""
