"""A device's words for a line of the log, which they must neither leave nor fill.

In: any text that came over the network, or an error that quotes some. Out: one short line without signs that steer a terminal. It logs
nothing itself.
"""

from __future__ import annotations


def one_line(said: object, at_most: int = 200) -> str:
    """What was said, cut, with everything that is no plain character written as an escape."""
    text = str(said)[:at_most]
    return text if text.isprintable() else text.encode("unicode_escape").decode()
