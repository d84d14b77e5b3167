"""What the key `tm` of a health message holds: how link, board and model are. Short, since health comes often.

In: nothing. Out: the meaning of its keys, read leniently: a device of another release may say more or less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Upper ends of the latency histogram's bins, milliseconds; the last bin has none.
LATENCY_MS = (5, 10, 20, 50, 100, 200, 500)
# Equal bins of the best box's score in [0, 1]; a frame without a box is in the first.
SCORE_BINS = 10
_MOST = 2**63  # what is more counts nothing that there is


@dataclass(frozen=True)
class Telemetry:
    """The map in words.

    Args:
        rtt_ms: `r`, round trip to the broker; None when not measured.
        reconnects: `n`, connections after the first since the process began.
        hottest_c: `c`, degrees Celsius of the hottest sensor; None for none.
        latency: `l`, upper end in milliseconds ("inf" for the last) -> frames since the agent's first start.
        scores: `s`, lower end of the bin, e.g. "0.3" -> frames whose best box lies in it.
    """

    rtt_ms: float | None
    reconnects: int
    hottest_c: float | None
    latency: Mapping[str, int]
    scores: Mapping[str, int]


def read(plain: Any) -> Telemetry:
    """What a device says; what it does not say, or says in a way that is not understood, is left out."""
    found = plain if isinstance(plain, Mapping) else {}
    ends = [*(str(end) for end in LATENCY_MS), "inf"]
    begins = [f"{number / SCORE_BINS:.1f}" for number in range(SCORE_BINS)]
    return Telemetry(
        _number(found.get("r")),
        int(_number(found.get("n")) or 0),
        _number(found.get("c")),
        _counts(found.get("l"), ends),
        _counts(found.get("s"), begins),
    )


def _number(value: Any) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e9:
        return None
    return float(value)


def _counts(values: Any, names: list[str]) -> dict[str, int]:
    if not isinstance(values, list | tuple) or len(values) != len(names):
        return {}
    if not all(isinstance(value, int) and 0 <= value < _MOST for value in values):
        return {}
    return dict(zip(names, values, strict=True))
