"""What a device tells Prometheus: its numbers in the text exposition format (version 0.0.4), written by hand.

In: a health message and what it leaves out. Out: text. Pure. The format is small enough that no library is worth its place on a
device; tests read the text with Prometheus' own parser.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bowerbird_wire.messages import Health
from bowerbird_wire.spent import kinds_of
from bowerbird_wire.telemetry import read

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Fields of the health message that only grow, over restarts too -> what they count.
COUNTERS: Mapping[str, str] = {
    "frames_seen": "Frames that the cameras gave.",
    "frames_scored": "Frames that the model looked at.",
    "frames_selected": "Frames chosen to be sent.",
    "frames_committed": "Frames with a receipt.",
    "frames_dropped": "Frames lost before they were scored.",
    "bytes_sent": "Bytes of MQTT sent, resends and control included.",
    "bytes_received": "Bytes of MQTT received.",
}
_WINDOWS = ("24h", "31d")


@dataclass(frozen=True)
class Metric:
    """One metric with its samples.

    Args:
        name: without the ending `_total` of counters.
        kind: "counter" or "gauge".
        text: what it is, one sentence.
        samples: (label -> value of the label, number) pairs.
    """

    name: str
    kind: str
    text: str
    samples: Sequence[tuple[Mapping[str, str], float]]

    def lines(self) -> Iterator[str]:
        """The metric's lines; none without samples."""
        if not self.samples:
            return
        name = f"{self.name}_total" if self.kind == "counter" else self.name
        yield f"# HELP {name} {_escaped(self.text)}"
        yield f"# TYPE {name} {self.kind}"
        for labels, number in self.samples:
            shown = ",".join(f'{key}="{_escaped(value, quoted=True)}"' for key, value in labels.items())
            yield f"{name}{{{shown}}} {_number(number)}" if shown else f"{name} {_number(number)}"


def exposition(metrics: Iterable[Metric]) -> str:
    """The text of all metrics."""
    return "".join(f"{line}\n" for metric in metrics for line in metric.lines())


def device_metrics(
    health: Health, *, version: str, connected: bool, hottest_c: float | None, guard_share: float
) -> list[Metric]:
    """The numbers of a device.

    Args:
        health: as of now.
        version: of the agent.
        connected: whether the broker has accepted us.
        hottest_c: degrees Celsius of the hottest sensor, None for none.
        guard_share: share of the frame rate that the guard allows.
    """
    extra = health.extra
    metrics = [
        _gauge("info", "What runs here.", [({"version": version, "model": health.model_digest[:12]}, 1.0)]),
        _gauge("connected", "1 while the broker has accepted this device.", [({}, float(connected))]),
    ]
    metrics += [_counter(name, text, [({}, float(getattr(health, name)))]) for name, text in COUNTERS.items()]
    metrics += [
        _counter(
            "bytes", "Bytes of MQTT in both directions by what they were spent on.", _by("kind", kinds_of(extra.get("spent")))
        ),
        _counter("reference_frames", "Frames sent as references to their twins.", _once(extra.get("references"))),
        _gauge("frame_rate", "Frames a second that the model looks at.", [({}, health.fps)]),
        _gauge("inference_seconds", "Time of the model for a frame.", [({}, health.inference_ms / 1000)]),
        _gauge("spool_frames", "Frames in the spool.", _by("state", health.spool)),
        _counter("evicted_frames", "Frames that a full spool gave up.", _by("reason", health.evicted)),
        _gauge(
            "camera_up",
            "1 for a camera without complaint.",
            [({"camera": c}, float(s == "ok")) for c, s in health.cameras.items()],
        ),
        _counter(
            "camera_dropped_frames", "Frames of the camera that were lost.", _by("camera", extra.get("camera_dropped", {}))
        ),
        _gauge("guard_share", "Share of the frame rate that the guard allows.", [({}, guard_share)]),
        _gauge("temperature_celsius", "The hottest sensor.", [] if hottest_c is None else [({}, hottest_c)]),
    ]
    told = read(extra.get("tm"))
    metrics += [
        _gauge("round_trip_seconds", "To the broker and back.", [] if told.rtt_ms is None else [({}, told.rtt_ms / 1000)]),
        _counter("reconnects", "Connections after the first since the start.", [({}, float(told.reconnects))]),
        _counter("frames_by_latency", "Frames by time of the model: upper end in milliseconds.", _by("ms", told.latency)),
        _counter("frames_by_score", "Frames by score of their best box: lower end of a tenth.", _by("score", told.scores)),
    ]
    return metrics + _uplink(extra.get("uplink", {}))


def _uplink(uplink: Mapping[str, Any]) -> list[Metric]:
    spent, caps = [], []
    for budget in ("total", "metered"):
        row = uplink.get(budget)
        for i, window in enumerate(_WINDOWS):
            if row is not None and row[2 * i + 1] is not None:
                labels = {"budget": budget, "window": window}
                spent.append((labels, float(row[2 * i])))
                caps.append((labels, float(row[2 * i + 1])))
    return [
        _gauge("budget_spent_bytes", "Bytes of the rolling window.", spent),
        _gauge("budget_cap_bytes", "Most bytes in the rolling window.", caps),
        _gauge("quiet", "1 in quiet hours.", [({}, float(bool(uplink.get("quiet"))))]),
    ]


def _gauge(name: str, text: str, samples: Sequence[tuple[Mapping[str, str], float]]) -> Metric:
    return Metric(f"bowerbird_agent_{name}", "gauge", text, samples)


def _counter(name: str, text: str, samples: Sequence[tuple[Mapping[str, str], float]]) -> Metric:
    return Metric(f"bowerbird_agent_{name}", "counter", text, samples)


def _once(count: Any) -> list[tuple[Mapping[str, str], float]]:
    return [({}, float(count))] if count else []


def _by(label: str, counts: Mapping[str, int]) -> list[tuple[Mapping[str, str], float]]:
    return [({label: key}, float(count)) for key, count in sorted(counts.items())]


def _escaped(text: str, *, quoted: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quoted else text


def _number(number: float) -> str:
    if math.isfinite(number):
        return str(int(number)) if number == int(number) else repr(float(number))
    return "NaN" if math.isnan(number) else "+Inf" if number > 0 else "-Inf"
