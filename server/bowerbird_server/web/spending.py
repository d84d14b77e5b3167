"""What a device has spent on the network, in words for its row of the dashboard.

In: `extra` of its last health message, which the device wrote and nobody vouches for. Out: two short texts. It limits nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bowerbird_wire.spent import kinds_of


@dataclass(frozen=True)
class Spent:
    """`kinds`: what the bytes were spent on; `caps`: what of day and month is gone, and what holds now. "" for nothing to say."""

    kinds: str
    caps: str


def spent(extra: Mapping[str, Any], size: Callable[[int], str]) -> Spent:
    """The texts; `size` writes a number of bytes."""
    kinds = ", ".join(f"{kind} {size(count)}" for kind, count in kinds_of(extra.get("spent")).items())
    uplink = extra.get("uplink")
    if not isinstance(uplink, Mapping):
        return Spent(kinds, "")
    parts = [text for name in ("total", "metered") for text in _caps(name, uplink.get(name), size)]
    if uplink.get("quiet") is True:
        parts.append("quiet hours")
    return Spent(kinds, ", ".join(parts))


def _caps(name: str, row: object, size: Callable[[int], str]) -> list[str]:
    """Like "1 MB of 5 MB in 24 h", for each cap that there is."""
    if not isinstance(row, Sequence) or isinstance(row, str | bytes) or len(row) != 4:
        return []
    where = "" if name == "total" else f"{name} "
    return [
        f"{where}{size(used)} of {size(cap)} in {window}"
        for used, cap, window in ((row[0], row[1], "24 h"), (row[2], row[3], "31 d"))
        if _is_count(used) and _is_count(cap)
    ]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
