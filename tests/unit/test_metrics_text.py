"""The exposition, read with Prometheus' own parser."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from bowerbird_agent.health.metrics_endpoint import MetricsConfig
from bowerbird_agent.health.metrics_text import COUNTERS, Metric, device_metrics, exposition
from bowerbird_wire.messages import Health

HEALTH = Health(
    boot_id="b",
    at_ms=1,
    model_digest="a" * 64,
    frames_seen=900,
    bytes_sent=2_000,
    spool={"new": 4, "sent": 1},
    evicted={'low "score"': 7},
    cameras={"gate": "ok", "yard": "frozen"},
    fps=9.5,
    inference_ms=40.0,
    extra={
        "spent": {"f": 1500, "k": 600},
        "camera_dropped": {"yard": 3},
        "uplink": {"total": [10, 100, 20, None], "metered": [1, None, 2, 50], "quiet": True},
    },
)


def read(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = list(text_string_to_metric_families(text))
    names = [family.name for family in families]
    assert len(names) == len(set(names)), "each metric stands in one block"
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def told(health: Health = HEALTH, *, hottest_c: float | None = 61.5) -> dict[str, float]:
    text = exposition(device_metrics(health, version="0.1", connected=True, hottest_c=hottest_c, guard_share=0.5))
    return {
        name.removeprefix("bowerbird_agent_") + "".join(f" {key}={value}" for key, value in sorted(labels)): value
        for (name, labels), value in read(text).items()
    }


def test_prometheus_reads_every_number_of_a_device() -> None:
    numbers = told()
    assert numbers["info model=aaaaaaaaaaaa version=0.1"] == 1
    assert numbers["connected"] == 1
    assert numbers["frames_seen_total"] == 900
    assert numbers["bytes_total kind=frames"] == 1500
    assert numbers["bytes_total kind=control"] == 600
    assert numbers["spool_frames state=new"] == 4
    assert numbers['evicted_frames_total reason=low "score"'] == 7
    assert (numbers["camera_up camera=gate"], numbers["camera_up camera=yard"]) == (1, 0)
    assert numbers["camera_dropped_frames_total camera=yard"] == 3
    assert numbers["frame_rate"] == 9.5
    assert numbers["inference_seconds"] == pytest.approx(0.04)
    assert (numbers["guard_share"], numbers["temperature_celsius"], numbers["quiet"]) == (0.5, 61.5, 1)
    assert numbers["budget_spent_bytes budget=total window=24h"] == 10
    assert numbers["budget_cap_bytes budget=metered window=31d"] == 50
    assert "budget_cap_bytes budget=total window=31d" not in numbers
    assert {f"{name}_total" for name in COUNTERS} <= numbers.keys()


def test_what_is_not_known_is_left_out() -> None:
    numbers = told(Health("b", 1), hottest_c=None)
    assert not [name for name in numbers if name.startswith(("temperature", "budget", "camera", "spool", "bytes_total"))]
    assert numbers["quiet"] == 0


_text = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=20)


@given(st.dictionaries(_text, st.floats(allow_nan=False) | st.integers(-(2**53), 2**53), max_size=5), _text)
def test_any_label_and_number_reads_back(values: dict[str, float], help_text: str) -> None:
    samples = [({"key": key}, number) for key, number in values.items()]
    found = read(exposition([Metric("some_metric", "gauge", help_text, samples)]))
    assert found == {("some_metric", frozenset({("key", key)})): float(number) for key, number in values.items()}


def test_not_a_number_is_written_as_prometheus_writes_it() -> None:
    assert math.isnan(read(exposition([Metric("m", "gauge", "t", [({}, math.nan)])]))["m", frozenset()])


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        (None, None),
        ("127.0.0.1:9101", ("127.0.0.1", 9101)),
        (":9101", ("127.0.0.1", 9101)),
        ("[::1]:9101", ("::1", 9101)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),  # noqa: S104 - told to
    ],
)
def test_only_an_address_that_is_told_leaves_loopback(listen: str | None, address: tuple[str, int] | None) -> None:
    assert MetricsConfig(listen).address() == address


@pytest.mark.parametrize("listen", ["9101", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:99999", "::1:9101", "", "http://x:1"])
def test_what_is_no_address_is_refused_with_an_example(listen: str) -> None:
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:9101"):
        MetricsConfig(listen)
