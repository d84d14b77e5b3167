"""Frames that belong to another frame: its original, and the frames around it. Keys of their headers, and how to read them.

In: headers. Out: which frame one belongs to and as what. Such a frame has the arm `fetched`: nobody chose it, a person asked for it
(or a rule kept it), so it is no part of what the selection is judged by. It fetches nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from bowerbird_wire.messages import FrameHeader

FETCHED = "fetched"
ORIGINAL, AROUND = "original", "around"
KINDS = (ORIGINAL, AROUND)
ORIGINAL_OF, AROUND_OF = "original_of", "around"
MAX_AROUND_S = 60.0


@dataclass(frozen=True)
class Link:
    """The frame that another one belongs to, and whether as its original or as one around it."""

    of: str
    kind: str


def link_of(header: FrameHeader) -> Link | None:
    """What a header says; None for a frame that stands alone, or one whose link cannot be read."""
    for key, kind in ((ORIGINAL_OF, ORIGINAL), (AROUND_OF, AROUND)):
        of = header.extra.get(key)
        if isinstance(of, str) and len(of) == 64 and set(of) <= set("0123456789abcdef"):
            return Link(of, kind)
    return None
