"""The small numbers of health that say how link, board and model are: round trip, reconnects, temperature, two histograms.

In: counters and a few readings. Out: one short map for the health message, and its names again for Prometheus. Histograms are counts
since the agent's first start, so that a message that is lost takes nothing with it. It measures nothing itself.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bowerbird_wire.telemetry import LATENCY_MS, SCORE_BINS

if TYPE_CHECKING:
    from bowerbird_agent.health.counters import Counters


@dataclass(frozen=True)
class Readings:
    """What is read as of now.

    Args:
        rtt_s: round trip to the broker without a queue, None before it was measured.
        reconnects: connections after the first since the process began.
        hottest_c: degrees Celsius of the hottest sensor, None for none.
    """

    rtt_s: float | None = None
    reconnects: int = 0
    hottest_c: float | None = None


def count_frame(counters: Counters, inference_ms: float, top_score: float) -> None:
    """One frame that the model looked at.

    Args:
        inference_ms: time of the model.
        top_score: of its best box, 0 without any.
    """
    counters.add(_latency(bisect_right(LATENCY_MS, inference_ms)))
    counters.add(_score(min(SCORE_BINS - 1, int(top_score * SCORE_BINS))))


def plain(counters: Counters, readings: Readings) -> dict[str, Any]:
    """For health, keys as in `bowerbird_wire.telemetry`; nothing that says nothing."""
    latency = [counters.value(_latency(i)) for i in range(len(LATENCY_MS) + 1)]
    scores = [counters.value(_score(i)) for i in range(SCORE_BINS)]
    found: dict[str, Any] = {}
    if readings.rtt_s is not None:
        found["r"] = round(readings.rtt_s * 1000)
    if readings.reconnects:
        found["n"] = readings.reconnects
    if readings.hottest_c is not None:
        found["c"] = round(readings.hottest_c)
    if any(scores):
        found["l"], found["s"] = latency, scores
    return found


def _latency(number: int) -> str:
    return f"latency.{number}"


def _score(number: int) -> str:
    return f"top_score.{number}"
