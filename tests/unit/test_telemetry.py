"""The short numbers of health, and what is made of them at both ends."""

from __future__ import annotations

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bowerbird_agent.health.counters import Counters
from bowerbird_agent.health.metrics_text import device_metrics
from bowerbird_agent.health.telemetry import Readings, count_frame, plain
from bowerbird_agent.link.estimate import LinkEstimate
from bowerbird_wire.messages import Health
from bowerbird_wire.telemetry import read


def test_every_frame_is_in_one_bin_of_each_histogram() -> None:
    counters = Counters()
    for took_ms, score in ((4.9, 0.0), (5.0, 0.05), (5000.0, 1.0), (30.0, 0.35)):
        count_frame(counters, took_ms, score)
    told = read(plain(counters, Readings()))
    assert {end: count for end, count in told.latency.items() if count} == {"5": 1, "10": 1, "50": 1, "inf": 1}
    assert {begin: count for begin, count in told.scores.items() if count} == {"0.0": 2, "0.3": 1, "0.9": 1}


def test_what_is_not_known_takes_no_bytes_and_the_whole_is_short() -> None:
    counters = Counters()
    assert plain(counters, Readings()) == {}
    for i in range(1000):
        count_frame(counters, i % 600, (i % 100) / 100)
    assert len(cbor2.dumps(plain(counters, Readings(0.25, 3, 61.4)))) < 75


def test_the_readings_come_back_in_words() -> None:
    told = read(plain(Counters(), Readings(0.25, 3, 61.4)))
    assert (told.rtt_ms, told.reconnects, told.hottest_c, told.latency, told.scores) == (250.0, 3, 61.0, {}, {})


@given(
    st.recursive(
        st.none() | st.text(max_size=3) | st.integers() | st.floats(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from("rncls"), inner),
    )
)
def test_whatever_a_device_says_is_read_or_left_out(said: object) -> None:
    try:
        told = read(said)
    except OverflowError:
        pytest.fail("a number too large")
    assert told.reconnects >= 0 or isinstance(told.reconnects, int)


def test_a_device_tells_prometheus_its_round_trip_and_histograms() -> None:
    counters = Counters()
    count_frame(counters, 30.0, 0.35)
    health = Health("b", 1, extra={"tm": plain(counters, Readings(0.25, 3))})
    found = {m.name: m for m in device_metrics(health, version="1", connected=True, hottest_c=None, guard_share=1.0)}
    assert found["bowerbird_agent_round_trip_seconds"].samples == [({}, 0.25)]
    assert found["bowerbird_agent_reconnects"].samples == [({}, 3.0)]
    assert ({"ms": "50"}, 1.0) in found["bowerbird_agent_frames_by_latency"].samples
    assert ({"score": "0.3"}, 1.0) in found["bowerbird_agent_frames_by_score"].samples


def test_a_round_trip_is_not_told_before_it_was_measured() -> None:
    estimate = LinkEstimate()
    assert estimate.measured_rtt_s is None
    estimate.connected(0.4)
    assert estimate.measured_rtt_s == 0.4
