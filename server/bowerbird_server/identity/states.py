"""The life of a device as a table: PENDING -> ACTIVE <-> SUSPENDED -> RETIRED.

In: a state and what happens. Out: the next state, or None where that cannot happen. It stores nothing; `catalogue/identity.py`
does.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class State(StrEnum):
    """`device.state` in the catalogue. Only an active device has access rules at the broker."""

    PENDING = "pending"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    RETIRED = "retired"


class Happening(StrEnum):
    """What changes a device's state."""

    APPROVED = "approved"  # by the list of an invitation, or by a person
    SUSPECTED = "suspected"  # a clone
    SUSPENDED = "suspended"  # by a person
    RESUMED = "resumed"
    RETIRED = "retired"


TRANSITIONS: Mapping[tuple[State, Happening], State] = {
    (State.PENDING, Happening.APPROVED): State.ACTIVE,
    (State.PENDING, Happening.RETIRED): State.RETIRED,
    (State.ACTIVE, Happening.SUSPECTED): State.SUSPENDED,
    (State.ACTIVE, Happening.SUSPENDED): State.SUSPENDED,
    (State.ACTIVE, Happening.RETIRED): State.RETIRED,
    (State.SUSPENDED, Happening.SUSPECTED): State.SUSPENDED,
    (State.SUSPENDED, Happening.SUSPENDED): State.SUSPENDED,  # again, for a broker that did not hear of it
    (State.SUSPENDED, Happening.RESUMED): State.ACTIVE,
    (State.SUSPENDED, Happening.RETIRED): State.RETIRED,
}


def after(state: str, happening: Happening) -> State | None:
    """The next state, None where it cannot happen: nothing brings a retired device back."""
    return TRANSITIONS.get((State(state), happening))
