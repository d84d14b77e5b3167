"""Which frame is sent next of those that wait: the most valuable, but every so often the freshest or the oldest. Pure.

In: how often it was asked. Out: by what the next frame is chosen. Of ten frames seven go by value, two because they are the freshest
(an operator who looks sees what happens now) and one because it is the oldest (nothing waits for ever behind better frames). What is
worth most stands in the index (`spool_index.send_value`). It knows no frame.
"""

from __future__ import annotations

from enum import Enum


class Turn(Enum):
    """By what the next frame is chosen."""

    VALUE = "value"
    FRESHEST = "freshest"
    OLDEST = "oldest"


_ROUND = "VVFVVOVVFV"
_TURNS = {"V": Turn.VALUE, "F": Turn.FRESHEST, "O": Turn.OLDEST}


def turn(number: int) -> Turn:
    """The turn of the frame that is sent as number `number`, counted from 0: 20 % freshest, 10 % oldest, else by value."""
    return _TURNS[_ROUND[number % len(_ROUND)]]
