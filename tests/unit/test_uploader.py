"""The uploader's rules against time that the test sets, and against a simulated server that loses everything it can."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bowerbird_agent.budget.budget import ByteLimits, TokenBucket
from bowerbird_agent.link.estimate import LinkEstimate
from bowerbird_agent.link.reconnect import ReconnectDelay
from bowerbird_agent.link.upload_events import (
    TRANSITIONS,
    Acknowledged,
    ChunkTaken,
    CreditChanged,
    Down,
    Event,
    Flight,
    FrameReady,
    Held,
    NotTaken,
    OfferTaken,
    Publish,
    PublishChunk,
    PublishOffer,
    PublishReference,
    Settled,
    Stuck,
    Taken,
    Tick,
    Up,
    Vanished,
    Wait,
    Wanted,
)
from bowerbird_agent.link.upload_limits import UploadLimits, WireSizes
from bowerbird_agent.link.uploader import Uploader
from bowerbird_wire.transfer import BLOCK_BYTES, Receiving, run_bytes, to_bitmap

LIMITS = UploadLimits(
    max_frames=4,
    max_bytes=10_000,
    receipt_timeout_s=20.0,
    resend_s=5.0,
    resend_max_s=40.0,
    relink_s=1.0,
    retry_s=0.5,
    stuck_s=60.0,
)


ASK_BYTES = 40
SIZES = WireSizes(offer=lambda first: ASK_BYTES + 600 * first)
REFERENCE_BYTES = 300


def machine(limits: ByteLimits | None = None, *, up: Up | None = None) -> Uploader:
    uploader = Uploader(TokenBucket(limits or ByteLimits(), 0.0), LIMITS, sizes=SIZES)
    if up is not None:
        uploader.handle(up, 0.0)
    return uploader


def send(uploader: Uploader, frame_id: str, size: int, now_s: float) -> None:
    """Offer a frame and let it be published."""
    uploader.handle(FrameReady(frame_id, size), now_s)
    assert uploader.decide(now_s) == Publish(frame_id)
    uploader.handle(Taken(frame_id, size), now_s)


def ask(uploader: Uploader, frame_id: str, now_s: float) -> None:
    """Let the question about a frame be published."""
    assert uploader.decide(now_s) == PublishOffer(frame_id)
    uploader.handle(OfferTaken(frame_id, ASK_BYTES), now_s)


def test_nothing_is_sent_before_the_link_is_up() -> None:
    uploader = machine()
    assert not uploader.wants_frame
    uploader.handle(FrameReady("a", 10), 0.0)
    assert uploader.decide(0.0) == Wait(math.inf)
    uploader.handle(Up(), 1.0)
    assert uploader.decide(1.0) == Publish("a")


def test_the_window_in_frames_holds_until_a_receipt_comes() -> None:
    uploader = machine(up=Up())
    for number in range(4):
        send(uploader, f"f{number}", 10, 0.0)
    assert not uploader.wants_frame
    uploader.handle(Acknowledged("f0"), 1.0)
    assert not uploader.wants_frame, "a PUBACK proves nothing"
    uploader.handle(Settled(("f0",)), 1.0)
    assert uploader.wants_frame


def test_the_window_in_bytes_holds_but_one_frame_is_always_allowed() -> None:
    uploader = machine(up=Up())
    send(uploader, "large", 50_000, 0.0)
    assert not uploader.wants_frame
    uploader.handle(Settled(("large",)), 1.0)
    send(uploader, "a", 6000, 1.0)
    uploader.handle(FrameReady("b", 6000), 1.0)
    assert isinstance(uploader.decide(1.0), Wait)
    uploader.handle(Settled(("a",)), 2.0)
    assert uploader.decide(2.0) == Publish("b")


def test_a_receipt_that_does_not_come_puts_the_frame_in_doubt_and_it_is_asked_about_with_back_off() -> None:
    uploader = machine(up=Up())
    send(uploader, "a", 10, 0.0)
    assert uploader.decide(0.0) == Wait(20.0)
    assert uploader.handle(Tick(), 20.0) == ("a",)
    now_s, waits = 20.0, []
    for _ in range(5):
        ask(uploader, "a", now_s)
        decision = uploader.decide(now_s)
        assert isinstance(decision, Wait | Stuck)
        waits.append(decision.until_s - now_s)
        now_s = decision.until_s
    assert waits == [5.0, 10.0, 20.0, 40.0, 40.0]


def test_a_frame_in_doubt_is_sent_again_only_when_the_server_wants_it() -> None:
    uploader = machine(up=Up())
    send(uploader, "a", 10, 0.0)
    uploader.handle(Tick(), 20.0)
    uploader.handle(Wanted("a"), 21.0)
    assert uploader.decide(21.0) == Publish("a")
    uploader.handle(Taken("a", 10), 21.0)
    uploader.handle(Wanted("a"), 22.0)
    assert uploader.decide(22.0) == Wait(41.0), "the same answer again is about what was sent before it"


def test_after_the_link_is_back_everything_sent_is_in_doubt_and_asked_about_soon() -> None:
    uploader = machine(up=Up())
    send(uploader, "a", 10, 0.0)
    send(uploader, "b", 10, 0.0)
    assert set(uploader.handle(Down(), 1.0)) == {"a", "b"}
    assert uploader.decide(100.0) == Wait(math.inf)
    uploader.handle(Up(), 100.0)
    assert uploader.flights()[Flight.IN_DOUBT] == 2
    assert uploader.decide(100.0) == Wait(101.0)
    ask(uploader, "a", 101.0)
    ask(uploader, "b", 101.0)
    assert uploader.decide(101.0) == Wait(106.0)


def test_a_new_link_without_a_word_about_the_end_of_the_old_one_counts_as_one() -> None:
    uploader = machine(up=Up())
    send(uploader, "a", 10, 0.0)
    assert uploader.handle(Up(), 5.0) == ("a",)


def test_questions_go_before_new_frames() -> None:
    uploader = machine(up=Up())
    send(uploader, "old", 10, 0.0)
    uploader.handle(Up(), 5.0)
    uploader.handle(FrameReady("new", 10), 6.0)
    ask(uploader, "old", 6.0)
    assert uploader.decide(6.0) == Publish("new")


def test_when_a_silent_server_is_back_the_long_waits_end() -> None:
    uploader = machine(up=Up())
    send(uploader, "a", 10, 0.0)
    send(uploader, "b", 10, 0.0)
    uploader.handle(Tick(), 20.0)
    for now_s in (20.0, 25.0, 35.0):
        ask(uploader, "a", now_s)
        ask(uploader, "b", now_s)
    assert uploader.decide(35.0) == Wait(55.0)
    uploader.handle(Settled(("a",)), 36.0)
    assert uploader.decide(36.0) == Wait(41.0)


def test_the_budget_is_asked_before_every_publish_resends_included() -> None:
    uploader = machine(ByteLimits(bytes_per_s=10.0, burst_bytes=1000), up=Up())
    send(uploader, "a", 900, 0.0)
    uploader.handle(FrameReady("b", 500), 0.0)
    decision = uploader.decide(0.0)
    assert isinstance(decision, Wait)
    assert decision.until_s == pytest.approx(20.0), "its receipt is due before the budget allows the next"
    uploader.handle(Vanished("b"), 0.0)
    uploader.handle(Down(), 1.0)
    uploader.handle(Up(), 2.0)
    ask(uploader, "a", 3.0)
    uploader.handle(Wanted("a"), 4.0)
    decision = uploader.decide(4.0)
    assert isinstance(decision, Wait), "the resend waits for the budget as well, and pays for the question"
    assert decision.until_s == pytest.approx(84.0)


def test_a_frame_that_the_budget_can_never_allow_is_reported_and_does_not_block_the_others() -> None:
    uploader = machine(ByteLimits(bytes_per_s=10.0, burst_bytes=1000), up=Up())
    uploader.handle(FrameReady("large", 2000), 0.0)
    decision = uploader.decide(0.0)
    assert isinstance(decision, Stuck)
    assert decision.frame_id == "large"
    assert "budget.burst_bytes" in decision.reason
    send(uploader, "small", 100, 0.0)
    assert "large" in uploader.known


def test_a_frame_above_the_burst_goes_in_chunks_that_fit_it() -> None:
    uploader = machine(ByteLimits(bytes_per_s=1000.0, burst_bytes=10_000), up=Up())
    uploader.handle(FrameReady("large", 50_000), 0.0)
    assert uploader.decide(0.0) == PublishChunk("large", 0, 1), "13 blocks, 6, 3: only 1 fits"


def test_a_frame_above_the_packet_limit_goes_in_chunks_below_it() -> None:
    uploader = machine(up=Up(max_packet_bytes=9000))
    uploader.handle(FrameReady("large", 20_000), 0.0)
    sent = []
    while isinstance(decision := uploader.decide(0.0), PublishChunk):
        sent.append((decision.first_block, decision.blocks))
        uploader.handle(ChunkTaken("large", decision.first_block, decision.blocks, 8192), 0.0)
    assert sent == [(0, 2), (2, 2), (4, 1)]
    assert decision == Wait(20.0)
    assert uploader.flights()[Flight.SENT] == 1


def test_a_packet_limit_below_one_block_parks_what_is_larger_until_it_changes() -> None:
    uploader = machine(up=Up(max_packet_bytes=1000))
    uploader.handle(FrameReady("large", 2000), 0.0)
    decision = uploader.decide(0.0)
    assert isinstance(decision, Stuck)
    assert "at most 1000 bytes" in decision.reason
    assert uploader.wants_frame, "the others go on"
    uploader.handle(Up(max_packet_bytes=5000), 10.0)
    ask(uploader, "large", 11.0)
    uploader.handle(Wanted("large"), 12.0)
    assert uploader.decide(12.0) == Publish("large")


def half_sent(up: Up | None = None) -> Uploader:
    """A frame of four blocks, of which two are sent."""
    uploader = machine(up=up or Up(max_packet_bytes=9000))
    uploader.handle(FrameReady("a", 4 * BLOCK_BYTES), 0.0)
    assert uploader.decide(0.0) == PublishChunk("a", 0, 2)
    uploader.handle(ChunkTaken("a", 0, 2, 8192), 0.0)
    return uploader


def test_a_half_sent_frame_goes_on_over_a_new_link_and_what_was_sent_is_asked_about() -> None:
    uploader = half_sent()
    uploader.handle(Down(), 1.0)
    uploader.handle(Up(max_packet_bytes=9000), 2.0)
    assert uploader.decide(2.0) == PublishChunk("a", 2, 2), "nothing is in doubt about what was not sent"
    ask(uploader, "a", 3.0)
    uploader.handle(Wanted("a", to_bitmap({0}, 4)), 4.0)
    assert uploader.decide(4.0) == PublishChunk("a", 1, 2), "block 1 is missing; the others were never sent"
    uploader.handle(ChunkTaken("a", 1, 2, 8192), 4.0)
    uploader.handle(ChunkTaken("a", 3, 1, 4096), 4.0)
    assert uploader.decide(4.0) == Wait(24.0)


def test_a_half_sent_frame_of_which_nothing_has_arrived_begins_again_once() -> None:
    uploader = half_sent()
    uploader.handle(Up(), 2.0)
    ask(uploader, "a", 3.0)
    uploader.handle(Wanted("a"), 4.0)
    assert uploader.decide(4.0) == PublishChunk("a", 0, 4)
    uploader.handle(ChunkTaken("a", 0, 4, 16_384), 4.0)
    assert uploader.decide(4.0) == Wait(24.0)


def test_a_frame_in_parts_that_are_all_lost_may_go_whole() -> None:
    uploader = half_sent()
    uploader.handle(ChunkTaken("a", 2, 2, 8192), 0.0)
    uploader.handle(Up(), 2.0)
    ask(uploader, "a", 3.0)
    uploader.handle(Wanted("a"), 4.0)
    assert uploader.decide(4.0) == Publish("a")
    uploader.handle(Taken("a", 16_384), 4.0)
    assert uploader.decide(4.0) == Wait(24.0)


def test_the_chunk_size_follows_the_packet_limit_in_mid_transfer() -> None:
    uploader = half_sent()
    uploader.handle(Up(max_packet_bytes=5000), 2.0)
    assert uploader.decide(2.0) == PublishChunk("a", 2, 1)


def test_after_a_restart_a_frame_goes_on_from_the_servers_bitmap() -> None:
    uploader = machine(up=Up())
    uploader.handle(FrameReady("a", 4 * BLOCK_BYTES, in_doubt=True), 0.0)
    ask(uploader, "a", 0.0)
    uploader.handle(Wanted("a", to_bitmap({0, 1, 3}, 4)), 1.0)
    assert uploader.decide(1.0) == PublishChunk("a", 2, 1)


def test_a_frame_goes_whole_on_a_fast_link_and_in_chunks_on_a_thin_one() -> None:
    for rate, expected in ((1_000_000.0, Publish), (16_000.0, PublishChunk)):
        link = LinkEstimate()
        link.sent(1, 10_000, 0.0)
        link.acknowledged(1, 10_000 / rate)
        uploader = Uploader(TokenBucket(ByteLimits(), 0.0), link=link)
        uploader.handle(Up(), 1.0)
        uploader.handle(FrameReady("a", 60_000), 1.0)
        assert isinstance(uploader.decide(1.0), expected)


def test_the_links_window_holds_until_the_broker_acknowledges() -> None:
    link = LinkEstimate()
    link.connected(0.2)
    link.sent(0, 16_000, 0.0)
    link.acknowledged(0, 1.0)
    uploader = Uploader(TokenBucket(ByteLimits(), 0.0), link=link)
    uploader.handle(Up(), 1.0)
    uploader.handle(FrameReady("a", 400_000), 1.0)
    for token in (1, 2):
        decision = uploader.decide(1.0)
        assert isinstance(decision, PublishChunk)
        size = decision.blocks * BLOCK_BYTES
        link.sent(token, size, 1.0)
        uploader.handle(ChunkTaken("a", decision.first_block, decision.blocks, size), 1.0)
    assert isinstance(uploader.decide(1.0), Wait), "two chunks fill the window of 2 x rate x RTT + chunk"
    assert link.in_flight_bytes <= 2 * 16_000 * 0.2 + 32_000
    link.acknowledged(1, 2.0)
    assert isinstance(uploader.decide(2.0), PublishChunk)


def test_questions_wait_for_the_brokers_receive_maximum_too() -> None:
    link = LinkEstimate()
    uploader = Uploader(TokenBucket(ByteLimits(), 0.0), LIMITS, sizes=SIZES, link=link)
    for number in range(4):
        uploader.handle(FrameReady(f"f{number}", 10, in_doubt=True), 0.0)
    uploader.handle(Up(receive_maximum=4), 0.0)
    for token in (1, 2):
        decision = uploader.decide(2.0)
        assert isinstance(decision, PublishOffer)
        link.sent(token, ASK_BYTES, 2.0)
        uploader.handle(OfferTaken(decision.frame_id, ASK_BYTES), 2.0)
    assert isinstance(uploader.decide(2.0), Wait)
    link.acknowledged(1, 2.5)
    assert isinstance(uploader.decide(2.5), PublishOffer)


def test_a_large_frame_is_offered_first_on_a_thin_link_and_sent_when_it_is_wanted() -> None:
    uploader = Uploader(TokenBucket(ByteLimits(), 0.0), LIMITS, sizes=SIZES, link=LinkEstimate())
    uploader.handle(Up(), 0.0)
    uploader.handle(FrameReady("a", 100_000, ask=True), 0.0)
    assert uploader.decide(0.0) == PublishOffer("a", first=True)
    uploader.handle(OfferTaken("a", 640), 0.0)
    assert uploader.decide(0.0) == Wait(5.0)
    assert uploader.handle(Tick(), 5.0) == (), "a frame that was not sent is not in doubt"
    assert uploader.decide(5.0) == PublishOffer("a", first=True)
    uploader.handle(OfferTaken("a", 640), 5.0)
    uploader.handle(Wanted("a"), 6.0)
    assert isinstance(uploader.decide(6.0), PublishChunk)


def test_without_credit_nothing_is_sent_or_asked_until_it_comes_or_a_new_link_brings_none() -> None:
    uploader = machine(up=Up())
    send(uploader, "a", 10, 0.0)
    uploader.handle(CreditChanged(0), 1.0)
    uploader.handle(FrameReady("b", 10), 1.0)
    assert not uploader.wants_frame
    decision = uploader.decide(1.0)
    assert isinstance(decision, Stuck)
    assert "no frames now" in decision.reason
    uploader.handle(Tick(), 25.0)
    assert isinstance(uploader.decide(25.0), Stuck), "questions wait as well"
    uploader.handle(Up(), 30.0)
    assert isinstance(uploader.decide(31.0), Stuck), "what was said on the old link holds a while"
    assert uploader.decide(60.0) == PublishOffer("a")
    uploader.handle(CreditChanged(0), 61.0)
    uploader.handle(CreditChanged(500_000), 62.0)
    assert uploader.decide(62.0) == PublishOffer("a")


def test_a_device_over_its_limit_sends_and_asks_nothing_until_the_time_is_over_also_on_a_new_link() -> None:
    uploader = machine(up=Up())
    send(uploader, "a", 100, 0.0)
    uploader.handle(Held(60.0), 1.0)
    uploader.handle(FrameReady("b", 100), 1.0)
    assert not uploader.wants_frame
    stuck = uploader.decide(30.0)
    assert isinstance(stuck, Stuck)
    assert "limit" in stuck.reason
    uploader.handle(Down(), 31.0)
    uploader.handle(Up(), 32.0)
    assert isinstance(uploader.decide(60.0), Stuck)
    assert uploader.decide(61.0) == PublishOffer("a"), "what was in doubt is asked about first"


def test_a_small_credit_narrows_what_may_be_out() -> None:
    uploader = machine(up=Up())
    uploader.handle(CreditChanged(3000), 0.0)
    send(uploader, "a", 2000, 0.0)
    uploader.handle(FrameReady("b", 2000), 0.0)
    assert isinstance(uploader.decide(0.0), Wait)


def test_a_link_that_does_not_take_a_frame_is_asked_again_later_and_the_budget_is_not_charged() -> None:
    uploader = machine(ByteLimits(bytes_per_s=1.0, burst_bytes=100), up=Up())
    uploader.handle(FrameReady("a", 100), 0.0)
    assert uploader.decide(0.0) == Publish("a")
    uploader.handle(NotTaken("a"), 0.0)
    assert uploader.decide(0.0) == Wait(0.5)
    assert uploader.decide(0.5) == Publish("a")


def test_a_refused_puback_puts_the_frame_in_doubt_and_it_is_asked_about_later() -> None:
    uploader = machine(up=Up())
    send(uploader, "a", 10, 0.0)
    assert uploader.handle(Acknowledged("a", accepted=False), 1.0) == ("a",)
    assert uploader.decide(1.0) == Wait(6.0)


def test_a_server_that_sends_no_receipts_is_reported() -> None:
    uploader = machine(up=Up())
    send(uploader, "a", 10, 0.0)
    uploader.handle(Tick(), 61.0)
    ask(uploader, "a", 61.0)
    decision = uploader.decide(61.0)
    assert isinstance(decision, Stuck)
    assert "ingest" in decision.reason


def test_two_packets_are_left_for_control_below_the_brokers_receive_maximum() -> None:
    link, uploader = with_receive_maximum(4)
    for token, frame_id in enumerate(("a", "b")):
        send(uploader, frame_id, 10, 0.0)
        link.sent(token, 10, 0.0)
    uploader.handle(FrameReady("c", 10), 0.0)
    assert isinstance(uploader.decide(0.0), Wait)


def test_a_puback_makes_room_below_the_receive_maximum_and_only_receipts_do_in_the_devices_own_window() -> None:
    link, uploader = with_receive_maximum(4)
    for token, frame_id in enumerate(("a", "b", "c", "d")):
        send(uploader, frame_id, 10, 0.0)
        link.sent(token, 10, 0.0)
        link.acknowledged(token, 0.1)
    assert not uploader.wants_frame, "four frames are out without a receipt"
    uploader.handle(Settled(("a",)), 1.0)
    assert uploader.wants_frame


def referred(uploader: Uploader, frame_id: str = "a", size: int = 40_000) -> None:
    """Offer a frame that has a twin at the server and let the reference be published."""
    uploader.handle(FrameReady(frame_id, size, reference_bytes=REFERENCE_BYTES), 0.0)
    assert uploader.decide(0.0) == PublishReference(frame_id)
    uploader.handle(Taken(frame_id, REFERENCE_BYTES), 0.0)


def test_a_frame_whose_twin_the_server_has_goes_as_a_reference_and_is_gone_with_its_receipt() -> None:
    uploader = machine(up=Up())
    referred(uploader)
    assert uploader.decide(0.0) == Wait(20.0), "its receipt is awaited as any other"
    uploader.handle(Settled(("a",)), 1.0)
    assert not uploader.known


def test_a_reference_whose_twin_the_server_lacks_goes_whole_at_once() -> None:
    uploader = machine(up=Up())
    referred(uploader)
    uploader.handle(Wanted("a"), 1.0)
    assert uploader.decide(1.0) == Publish("a")
    uploader.handle(Taken("a", 40_000), 1.0)
    uploader.handle(Wanted("a"), 2.0)
    assert uploader.decide(2.0) == Wait(21.0), "the same answer again is about the reference"


def test_a_reference_without_a_receipt_is_asked_about_and_goes_whole_when_it_is_wanted() -> None:
    uploader = machine(up=Up())
    referred(uploader)
    assert uploader.handle(Down(), 1.0) == ("a",)
    uploader.handle(Up(), 2.0)
    ask(uploader, "a", 3.0)
    uploader.handle(Wanted("a"), 4.0)
    assert uploader.decide(4.0) == Publish("a")


def test_a_frame_that_waited_over_a_break_of_the_link_goes_whole() -> None:
    """Whoever answers on the new one may not know what a reference is."""
    uploader = machine(up=Up())
    uploader.handle(FrameReady("a", 40_000, reference_bytes=REFERENCE_BYTES), 0.0)
    uploader.handle(Down(), 1.0)
    uploader.handle(Up(), 2.0)
    assert uploader.decide(2.0) == Publish("a")


def test_budget_and_windows_count_what_a_reference_weighs() -> None:
    """Thirty frames of 40 kB, as references: the budget is asked for 300 bytes each, and four are out at a time, not one."""
    bucket = TokenBucket(ByteLimits(bytes_per_s=1.0, burst_bytes=9000), 0.0)
    uploader = Uploader(bucket, LIMITS, sizes=SIZES)
    uploader.handle(Up(), 0.0)
    for number in range(0, 28, 4):
        for frame_id in (names := [f"f{number + i}" for i in range(4)]):
            referred(uploader, frame_id)
        assert not uploader.wants_frame
        uploader.handle(Settled(tuple(names)), 0.0)
    referred(uploader, "f28")
    referred(uploader, "f29")
    assert bucket.wait_s(0.0, 1) > 0.0, "the burst of 9000 bytes is spent to the last"


def test_a_reference_above_the_brokers_packet_limit_is_none() -> None:
    uploader = machine(up=Up(max_packet_bytes=9000))
    uploader.handle(FrameReady("a", 20_000, reference_bytes=9001), 0.0)
    assert uploader.decide(0.0) == PublishChunk("a", 0, 2)


def with_receive_maximum(packets: int) -> tuple[LinkEstimate, Uploader]:
    """A machine whose broker takes so many packets, and the link that counts them."""
    link = LinkEstimate()
    link.connected(0.1)
    uploader = Uploader(TokenBucket(ByteLimits(), 0.0), LIMITS, sizes=SIZES, link=link)
    uploader.handle(Up(receive_maximum=packets), 0.0)
    return link, uploader


def test_the_table_never_brings_a_frame_back_or_loses_one_without_a_receipt() -> None:
    assert all(before is not Flight.GONE for before, _ in TRANSITIONS)
    assert {event for (_, event), after in TRANSITIONS.items() if after is Flight.GONE} == {Settled, Vanished}
    assert {before for (before, _), after in TRANSITIONS.items() if after is Flight.READY} == {Flight.ASKED, Flight.IN_DOUBT}
    assert {before for before, event in TRANSITIONS if event is Settled} == set(Flight) - {Flight.GONE}


def test_late_and_unknown_events_change_nothing() -> None:
    uploader = machine(up=Up())
    events: tuple[Event, ...] = (
        Taken("x", 0),
        ChunkTaken("x", 0, 1, 0),
        OfferTaken("x", 0),
        Vanished("x"),
        Acknowledged("x", accepted=False),
        Settled(("x",)),
        Wanted("x", b"\xff"),
        NotTaken("x"),
    )
    for event in events:
        assert uploader.handle(event, 0.0) == ()
    assert not uploader.known


def test_retries_start_at_once_after_progress_and_grow_without() -> None:
    delay = ReconnectDelay(random.Random(1).random, max_s=120.0)
    assert all(0.0 <= delay.after(progress=True) <= 1.0 for _ in range(50))
    waits = [delay.after(progress=False) for _ in range(12)]
    for wait_s, ceiling_s in zip(waits, [1, 2, 4, 8, 16, 32, 64, 120, 120, 120, 120, 120], strict=True):
        assert ceiling_s / 2 <= wait_s <= ceiling_s
    assert delay.after(progress=True) <= 1.0
    assert delay.after(progress=False) <= 1.0, "progress forgets the failures"


class LossyServer(RuleBasedStateMachine):
    """Frames, chunks, questions, answers and links are lost at will; every byte that leaves is held against the budget, every packet
    against the broker's Receive Maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.bucket = TokenBucket(ByteLimits(bytes_per_s=500.0, burst_bytes=30_000, bytes_per_day=4_000_000), 0.0)
        self.link = LinkEstimate()
        self.uploader = Uploader(self.bucket, LIMITS, sizes=SIZES, link=self.link)
        self.spool: dict[str, int] = {}
        self.made = 0
        self.token = 0
        self.up = False
        self.limit: int | None = None
        self.receive_maximum = 65_535
        self.unacknowledged: set[int] = set()  # tokens of packets without a PUBACK
        self.in_network: list[tuple[int, str, tuple[int, int] | str]] = []  # token, frame, run of blocks, "whole" or "ask"
        self.answers: list[Settled | Wanted] = []
        self.parts: dict[str, Receiving] = {}
        self.committed: set[str] = set()
        self.have_twins: set[str] = set()  # frames that may go as references
        self.twins_are_here = True
        self.wanted: set[str] = set()
        self.sent: list[tuple[float, int]] = []
        self.published: set[str] = set()
        self.wanted_at_restart = 0
        self.is_stopped = False  # no credit on this link
        self.credit = 600_000
        self.held_until_s = 0.0

    @initialize()
    def connect(self) -> None:
        self.link_up(None, 65_535)

    @rule(size=st.integers(1, 3900) | st.integers(1, 60_000), frames=st.integers(1, 4), have_twins=st.booleans())
    def spool_frames(self, size: int, frames: int, have_twins: bool) -> None:
        for _ in range(frames):
            self.made += 1
            self.spool[f"f{self.made}"] = size
            if have_twins and size > REFERENCE_BYTES:
                self.have_twins.add(f"f{self.made}")

    @rule(here=st.booleans())
    def the_server_loses_all_twins_or_finds_them(self, here: bool) -> None:
        self.twins_are_here = here

    @rule(limit=st.none() | st.integers(4200, 20_000), receive_maximum=st.sampled_from([65_535, 1, 3, 4, 5]))
    def link_up(self, limit: int | None, receive_maximum: int) -> None:
        self.up, self.limit, self.receive_maximum, self.is_stopped = True, limit, receive_maximum, False
        self.unacknowledged.clear()
        self.in_network.clear()
        self.answers.clear()
        self.link.connected(0.1)
        self.uploader.handle(Up(limit, receive_maximum), self.now_s)

    @rule()
    def link_down(self) -> None:
        self.up = False
        self.unacknowledged.clear()
        self.in_network.clear()
        self.answers.clear()
        self.link.lost()
        self.uploader.handle(Down(), self.now_s)

    @rule(bytes_in_flight=st.sampled_from([0, 0, 5_000, 600_000]))
    @precondition(lambda self: self.up)
    def the_servers_disk_fills_or_empties(self, bytes_in_flight: int) -> None:
        self.uploader.handle(CreditChanged(bytes_in_flight), self.now_s)
        self.is_stopped, self.credit = bytes_in_flight == 0, bytes_in_flight

    @rule(seconds=st.floats(0.1, 60.0))
    @precondition(lambda self: self.up)
    def the_device_is_over_its_limit_at_the_server(self, seconds: float) -> None:
        self.uploader.handle(Held(seconds), self.now_s)
        self.held_until_s = self.now_s + seconds

    @rule(seconds=st.floats(0.0, 40.0), steps=st.integers(1, 6))
    def time_passes(self, seconds: float, steps: int) -> None:
        for _ in range(steps):
            self.now_s += seconds / steps
            self.pump()

    @rule(data=st.data())
    @precondition(lambda self: self.in_network)
    def something_is_lost_behind_the_broker(self, data: st.DataObject) -> None:
        token, _, _ = self.in_network.pop(data.draw(st.integers(0, len(self.in_network) - 1)))
        self.puback(token)

    @rule(data=st.data())
    @precondition(lambda self: self.unacknowledged)
    def the_broker_acknowledges(self, data: st.DataObject) -> None:
        """Which says nothing about the server."""
        self.puback(data.draw(st.sampled_from(sorted(self.unacknowledged))))

    @rule()
    def the_broker_acknowledges_everything(self) -> None:
        for token in sorted(self.unacknowledged):
            self.puback(token)
        self.pump()

    def puback(self, token: int) -> None:
        self.unacknowledged.discard(token)
        self.link.acknowledged(token, self.now_s)

    @rule(data=st.data(), answer_is_lost=st.booleans(), twice=st.booleans())
    @precondition(lambda self: self.in_network)
    def something_arrives(self, data: st.DataObject, answer_is_lost: bool, twice: bool) -> None:
        self.arrive(data.draw(st.integers(0, len(self.in_network) - 1)), answer_is_lost, twice)

    def arrive(self, at: int, answer_is_lost: bool, twice: bool) -> None:
        token, frame_id, what = self.in_network.pop(at)
        self.puback(token)
        for _ in range(1 + twice):
            answer = self.take(frame_id, what)
            if answer is not None and not answer_is_lost:
                self.answers.append(answer)

    def take(self, frame_id: str, what: tuple[int, int] | str) -> Settled | Wanted | None:
        """The server: exactly once in effect, whatever comes."""
        if what == "whole" or (what == "reference" and self.twins_are_here):
            self.committed.add(frame_id)
        elif isinstance(what, tuple) and frame_id not in self.committed:
            parts = self.parts.setdefault(frame_id, Receiving(self.spool[frame_id]))
            parts.add(*what)
            if parts.complete:
                self.committed.add(frame_id)
                del self.parts[frame_id]
        if frame_id in self.committed:
            return Settled((frame_id,))
        known = self.parts.get(frame_id)
        is_asked = what in ("ask", "reference")
        return Wanted(frame_id, known.bitmap() if known is not None and what == "ask" else b"") if is_asked else None

    @rule(twice=st.booleans())
    @precondition(lambda self: self.answers)
    def an_answer_arrives(self, twice: bool) -> None:
        answer = self.answers.pop(0)
        for frame_id in answer.frame_ids if isinstance(answer, Settled) else ():
            self.spool.pop(frame_id, None)
            self.in_network = [entry for entry in self.in_network if entry[1] != frame_id]
        if isinstance(answer, Wanted):
            self.wanted.add(answer.frame_id)
        for _ in range(1 + twice):
            self.uploader.handle(answer, self.now_s)

    @rule()
    @precondition(lambda self: self.parts)
    def the_server_gives_parts_up(self) -> None:
        self.parts.popitem()

    @rule(data=st.data())
    @precondition(lambda self: self.spool)
    def the_spool_evicts(self, data: st.DataObject) -> None:
        frame_id = data.draw(st.sampled_from(sorted(self.spool)))
        if frame_id not in self.uploader.known:
            del self.spool[frame_id]

    @rule()
    def the_agent_is_restarted(self) -> None:
        """It remembers which frames were sent, and nothing else."""
        sent = {f for f in self.spool if f in self.uploader.known and f in self.published}
        # What the server wanted again was not out, and is in doubt after a restart.
        self.wanted_at_restart += self.uploader.flights()[Flight.READY]
        self.link_down()
        self.link = LinkEstimate()
        self.held_until_s, self.credit = 0.0, 600_000  # it will be told again
        self.uploader = Uploader(self.bucket, LIMITS, sizes=SIZES, link=self.link)
        for frame_id in sent:
            self.uploader.handle(FrameReady(frame_id, self.spool[frame_id], in_doubt=True), self.now_s)
        self.link_up(self.limit, self.receive_maximum)

    def pump(self) -> None:
        self.uploader.handle(Tick(), self.now_s)
        for _ in range(200):
            if self.uploader.wants_frame:
                fresh = next((f for f in self.spool if f not in self.uploader.known), None)
                if fresh is not None:
                    self.uploader.handle(self.ready(fresh), self.now_s)
            decision = self.uploader.decide(self.now_s)
            if isinstance(decision, Wait) or (isinstance(decision, Stuck) and not decision.frame_id):
                self.check_that_it_waits_for_something()
                return
            assert not isinstance(decision, Stuck), decision
            assert self.up, "published without a link"
            self.publish(decision)
        raise AssertionError("the machine publishes for ever")

    def ready(self, frame_id: str) -> FrameReady:
        size, has_twin = self.spool[frame_id], frame_id in self.have_twins
        return FrameReady(
            frame_id, size, ask=size > 30_000 and not has_twin, reference_bytes=REFERENCE_BYTES if has_twin else 0
        )

    def check_that_it_waits_for_something(self) -> None:
        """With nothing on the link and room in the device's own window, only the server and the budget keep a frame back."""
        uploader, flights = self.uploader, self.uploader.flights()
        if not self.up or self.credit == 0 or self.now_s < self.held_until_s or self.unacknowledged:
            return
        if flights[Flight.SENDING] > 0:
            return  # it has its turn first, and its own parts to wait for
        begins = [f for f in self.spool if f not in uploader.known]
        if flights[Flight.READY] > 0:
            begins = [f for f in self.spool if f in uploader.known]  # one of them has its turn; the largest may
        out = sum(flights[flight] for flight in (Flight.SENT, Flight.ASKED, Flight.IN_DOUBT))
        out_bytes = sum(self.spool[f] for f in uploader.known if f in self.spool)
        size = max((self.spool[f] for f in begins), default=0)
        if not begins or self.bucket.wait_s(self.now_s, min(30_000, max(700, size))) > 0.0:
            return
        room = min(LIMITS.max_bytes, self.credit) - (size if flights[Flight.READY] else 1)
        assert out >= LIMITS.max_frames or out_bytes > room, f"a frame waits for nothing: {flights}"

    def publish(self, decision: Publish | PublishReference | PublishChunk | PublishOffer) -> None:
        frame_id = decision.frame_id
        if isinstance(decision, PublishReference):
            assert frame_id in self.have_twins
            assert frame_id not in self.wanted, "the server wanted it whole"
        total = self.spool[frame_id]
        size, what, event = self.packet(decision, total)
        assert self.limit is None or size <= self.limit, "above the broker's limit"
        assert not self.is_stopped, "published without credit"
        assert self.now_s >= self.held_until_s, "published although the server asked to wait"
        self.token += 1
        assert len(self.unacknowledged) < max(1, self.receive_maximum - 2), "above the broker's Receive Maximum, with control"
        self.unacknowledged.add(self.token)
        self.link.sent(self.token, size, self.now_s)
        self.sent.append((self.now_s, size))
        if what != "ask":
            self.published.add(frame_id)
        self.in_network.append((self.token, frame_id, what))
        self.uploader.handle(event, self.now_s)

    @staticmethod
    def packet(
        decision: Publish | PublishReference | PublishChunk | PublishOffer, total: int
    ) -> tuple[int, tuple[int, int] | str, Event]:
        frame_id = decision.frame_id
        if isinstance(decision, PublishReference):
            return REFERENCE_BYTES, "reference", Taken(frame_id, REFERENCE_BYTES)
        if isinstance(decision, PublishOffer):
            size = SIZES.offer(decision.first)
            return size, "ask", OfferTaken(frame_id, size)
        if isinstance(decision, PublishChunk):
            size = run_bytes(total, decision.first_block, decision.blocks)
            return (
                size,
                (decision.first_block, decision.blocks),
                ChunkTaken(frame_id, decision.first_block, decision.blocks, size),
            )
        return total, "whole", Taken(frame_id, total)

    @invariant()
    def the_window_holds(self) -> None:
        flights = self.uploader.flights()
        out = flights[Flight.SENT] + flights[Flight.IN_DOUBT] + flights[Flight.SENDING] + flights[Flight.ASKED]
        assert out <= LIMITS.max_frames + self.wanted_at_restart

    @invariant()
    def the_budget_holds(self) -> None:
        spent = 0.0
        for at_s, size in self.sent:
            spent += size
            assert spent <= 30_000 + 500.0 * at_s + 1e-3

    @invariant()
    def nothing_is_forgotten(self) -> None:
        """What was sent and has no receipt is still known, hence will be asked about."""
        unsettled = {frame_id for _, frame_id, _ in self.in_network} & set(self.spool)
        assert unsettled <= set(self.uploader.known)

    def teardown(self) -> None:
        """Once the network is kind, everything that is in the spool is committed."""
        self.link_up(None, 65_535)
        self.the_servers_disk_fills_or_empties(600_000)
        for _ in range(1500):
            if not self.spool:
                break
            self.now_s += 10.0
            self.pump()
            while self.in_network:
                self.arrive(0, answer_is_lost=False, twice=False)
            while self.answers:
                self.an_answer_arrives(twice=False)
        assert not self.spool, f"a frame was never sent: {self.uploader.flights()}"


LossyServer.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLossyServer = LossyServer.TestCase
