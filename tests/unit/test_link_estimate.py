"""The link's estimate against a simulated link: a queue that drains at a rate, and answers after a round trip."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bowerbird_agent.link.estimate import FIRST_RATE, LinkEstimate
from bowerbird_agent.link.window import LinkWindow
from bowerbird_wire.transfer import BLOCK_BYTES, MAX_CHUNK_BYTES


def run_link(link: LinkEstimate, *, rate: float, rtt_s: float, packets: int, start_s: float = 0.0) -> float:
    """Send chunks as the window allows; returns the time at the end, seconds."""
    window = LinkWindow(link, 30.0)
    now_s, free_at_s = start_s, start_s
    on_way: list[tuple[float, int]] = []  # acknowledged at, token
    token = sent = 0
    while sent < packets or on_way:
        size = window.chunk_bytes(None)
        if sent < packets and window.fits(size, 62):
            sent, token = sent + 1, token + 1
            free_at_s = max(free_at_s, now_s) + size / rate
            link.sent(token, size, now_s)
            on_way.append((free_at_s + rtt_s, token))
            continue
        now_s, done = on_way.pop(0)
        link.acknowledged(done, now_s)
    return now_s


@pytest.mark.parametrize("kbit", [9.6, 128, 2000, 50_000])
@pytest.mark.parametrize("rtt_s", [0.002, 0.2, 1.5])
def test_the_rate_is_found_and_never_overestimated_much(kbit: float, rtt_s: float) -> None:
    link, rate = LinkEstimate(), kbit * 125
    link.connected(rtt_s)
    run_link(link, rate=rate, rtt_s=rtt_s, packets=40)
    # A window of half a mebibyte cannot fill a link that carries more in a round trip: then that is what is found.
    reachable = min(rate, 0.5 * 2**20 / rtt_s)
    assert 0.4 * reachable <= link.rate <= 1.3 * rate
    assert link.rtt_s == rtt_s


def test_a_thin_link_is_kept_busy() -> None:
    link = LinkEstimate()
    link.connected(0.2)
    run_link(link, rate=16_000, rtt_s=0.2, packets=10)
    packets, before_s = 40, 1000.0
    size = LinkWindow(link, 30.0).chunk_bytes(None)
    took_s = run_link(link, rate=16_000, rtt_s=0.2, packets=packets, start_s=before_s) - before_s
    assert packets * size / 16_000 / took_s > 0.9


def test_a_link_that_has_become_slow_is_believed_after_a_few_packets() -> None:
    link = LinkEstimate()
    link.connected(0.1)
    end_s = run_link(link, rate=500_000, rtt_s=0.1, packets=20)
    assert LinkWindow(link, 30.0).chunk_bytes(None) > MAX_CHUNK_BYTES * 3 // 4
    run_link(link, rate=8000, rtt_s=0.1, packets=12, start_s=end_s)
    assert link.rate < 12_000


def test_small_packets_say_nothing_about_the_rate_but_much_about_the_round_trip() -> None:
    link = LinkEstimate()
    link.sent(1, 100, 0.0)
    link.acknowledged(1, 0.7)
    assert link.rate == FIRST_RATE
    assert link.rtt_s == pytest.approx(0.7)


def test_connections_that_carry_nothing_make_the_pieces_smaller() -> None:
    link = LinkEstimate()
    link.sent(1, 100_000, 0.0)
    link.acknowledged(1, 1.0)
    chunks = []
    for token in range(2, 9):
        link.connected(0.2)
        link.sent(token, 50_000, 10.0)
        link.lost()
        chunks.append(LinkWindow(link, 30.0).chunk_bytes(None))
    assert chunks == sorted(chunks, reverse=True)
    assert chunks[-1] == BLOCK_BYTES
    assert link.in_flight_bytes == 0


def test_a_connection_that_carried_something_leaves_the_rate_as_it_is() -> None:
    link = LinkEstimate()
    link.sent(1, 16_000, 0.0)
    link.acknowledged(1, 1.0)
    link.sent(2, 16_000, 1.0)
    link.lost()
    assert link.rate == pytest.approx(16_000)


@given(st.lists(st.tuples(st.sampled_from(["sent", "acknowledged", "lost"]), st.integers(0, 5), st.integers(1, 10**6))))
def test_whatever_happens_what_is_in_flight_is_what_was_sent_and_not_acknowledged(steps: list[tuple[str, int, int]]) -> None:
    link, expected, now_s, token = LinkEstimate(), {}, 0.0, 100
    for what, which, size in steps:
        now_s += 0.01
        if what == "sent":
            token += 1
            link.sent(token, size, now_s)
            expected[token] = size
        elif what == "acknowledged":
            link.acknowledged(token - which, now_s)
            expected.pop(token - which, None)
        else:
            link.lost()
            expected.clear()
        assert (link.in_flight_bytes, link.in_flight_packets) == (sum(expected.values()), len(expected))
        assert link.rate > 0
