"""The uploader's rules against time that the test sets, and against a simulated server that loses everything it can."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bowerbird_agent.budget import ByteLimits, TokenBucket
from bowerbird_agent.reconnect import ReconnectDelay
from bowerbird_agent.uploader import (
    TRANSITIONS,
    Acknowledged,
    Down,
    Event,
    Flight,
    FrameReady,
    NotTaken,
    Publish,
    Settled,
    Stuck,
    Taken,
    Tick,
    Up,
    Uploader,
    UploadLimits,
    Vanished,
    Wait,
)

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


def machine(limits: ByteLimits | None = None, *, up: Up | None = None) -> Uploader:
    uploader = Uploader(TokenBucket(limits or ByteLimits(), 0.0), LIMITS)
    if up is not None:
        uploader.handle(up, 0.0)
    return uploader


def send(uploader: Uploader, frame_id: str, size: int, now_s: float) -> None:
    """Offer a frame and let it be published."""
    uploader.handle(FrameReady(frame_id, size), now_s)
    assert uploader.decide(now_s) == Publish(frame_id)
    uploader.handle(Taken(frame_id), now_s)


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


def test_a_receipt_that_does_not_come_puts_the_frame_in_doubt_and_it_is_sent_again_with_back_off() -> None:
    uploader = machine(up=Up())
    send(uploader, "a", 10, 0.0)
    assert uploader.decide(0.0) == Wait(20.0)
    now_s, waits = 0.0, []
    for _ in range(5):
        now_s += 20.0
        assert uploader.handle(Tick(), now_s) == ("a",)
        decision = uploader.decide(now_s)
        assert isinstance(decision, Wait | Stuck)
        waits.append(decision.until_s - now_s)
        now_s = decision.until_s
        assert uploader.decide(now_s) == Publish("a")
        uploader.handle(Taken("a"), now_s)
    assert waits == [5.0, 10.0, 20.0, 40.0, 40.0]


def test_after_the_link_is_back_everything_sent_is_in_doubt_and_goes_again_soon() -> None:
    uploader = machine(up=Up())
    send(uploader, "a", 10, 0.0)
    send(uploader, "b", 10, 0.0)
    assert set(uploader.handle(Down(), 1.0)) == {"a", "b"}
    assert uploader.decide(100.0) == Wait(math.inf)
    uploader.handle(Up(), 100.0)
    assert uploader.flights()[Flight.IN_DOUBT] == 2
    assert uploader.decide(100.0) == Wait(101.0)
    assert uploader.decide(101.0) == Publish("a")


def test_a_new_link_without_a_word_about_the_end_of_the_old_one_counts_as_one() -> None:
    uploader = machine(up=Up())
    send(uploader, "a", 10, 0.0)
    assert uploader.handle(Up(), 5.0) == ("a",)


def test_frames_in_doubt_go_before_new_ones() -> None:
    uploader = machine(up=Up())
    send(uploader, "old", 10, 0.0)
    uploader.handle(Up(), 5.0)
    uploader.handle(FrameReady("new", 10), 6.0)
    assert uploader.decide(6.0) == Publish("old")


def test_when_a_silent_server_is_back_the_long_waits_end() -> None:
    uploader = machine(up=Up())
    send(uploader, "a", 10, 0.0)
    send(uploader, "b", 10, 0.0)
    for overdue_s, again_s in ((20.0, 25.0), (45.0, 55.0)):
        uploader.handle(Tick(), overdue_s)
        for _ in range(2):
            decision = uploader.decide(again_s)
            assert isinstance(decision, Publish)
            uploader.handle(Taken(decision.frame_id), again_s)
    uploader.handle(Tick(), 75.0)
    decision = uploader.decide(75.0)
    assert isinstance(decision, Stuck)
    assert decision.until_s == 95.0
    uploader.handle(Settled(("a",)), 76.0)
    assert uploader.decide(76.0) == Wait(81.0)


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
    decision = uploader.decide(3.0)
    assert isinstance(decision, Wait), "the resend waits for the budget as well"
    assert decision.until_s == pytest.approx(80.0)


def test_a_frame_that_the_budget_can_never_allow_is_reported_and_does_not_block_the_others() -> None:
    uploader = machine(ByteLimits(bytes_per_s=10.0, burst_bytes=1000), up=Up())
    uploader.handle(FrameReady("large", 2000), 0.0)
    decision = uploader.decide(0.0)
    assert isinstance(decision, Stuck)
    assert decision.frame_id == "large"
    assert "budget.burst_bytes" in decision.reason
    send(uploader, "small", 100, 0.0)
    assert "large" in uploader.known


def test_a_frame_above_the_packet_limit_is_parked_until_the_limit_changes() -> None:
    uploader = machine(up=Up(max_packet_bytes=1000))
    uploader.handle(FrameReady("large", 2000), 0.0)
    decision = uploader.decide(0.0)
    assert isinstance(decision, Stuck)
    assert "at most 1000 bytes" in decision.reason
    assert uploader.wants_frame, "the others go on"
    uploader.handle(Up(max_packet_bytes=5000), 10.0)
    assert uploader.decide(11.0) == Publish("large")


def test_a_link_that_does_not_take_a_frame_is_asked_again_later_and_the_budget_is_not_charged() -> None:
    uploader = machine(ByteLimits(bytes_per_s=1.0, burst_bytes=100), up=Up())
    uploader.handle(FrameReady("a", 100), 0.0)
    assert uploader.decide(0.0) == Publish("a")
    uploader.handle(NotTaken("a"), 0.0)
    assert uploader.decide(0.0) == Wait(0.5)
    assert uploader.decide(0.5) == Publish("a")


def test_a_refused_puback_puts_the_frame_in_doubt_at_once() -> None:
    uploader = machine(up=Up())
    send(uploader, "a", 10, 0.0)
    assert uploader.handle(Acknowledged("a", accepted=False), 1.0) == ("a",)
    assert uploader.decide(1.0) == Wait(6.0)


def test_a_server_that_sends_no_receipts_is_reported() -> None:
    uploader = machine(up=Up())
    send(uploader, "a", 10, 0.0)
    uploader.handle(Tick(), 61.0)
    decision = uploader.decide(61.0)
    assert isinstance(decision, Stuck)
    assert "ingest" in decision.reason


def test_two_packets_are_left_for_control_below_the_brokers_receive_maximum() -> None:
    uploader = machine(up=Up(receive_maximum=4))
    send(uploader, "a", 10, 0.0)
    send(uploader, "b", 10, 0.0)
    assert not uploader.wants_frame


def test_the_table_never_brings_a_frame_back_or_loses_one_without_a_receipt() -> None:
    assert all(before is not Flight.GONE for before, _ in TRANSITIONS)
    assert {event for (_, event), after in TRANSITIONS.items() if after is Flight.GONE} == {Settled, Vanished}
    assert {before for before, event in TRANSITIONS if event is Settled} == set(Flight) - {Flight.GONE}


def test_late_and_unknown_events_change_nothing() -> None:
    uploader = machine(up=Up())
    events: tuple[Event, ...] = (Taken("x"), Vanished("x"), Acknowledged("x", accepted=False), Settled(("x",)), NotTaken("x"))
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
    """Frames, receipts and links are lost at will; every byte that leaves is held against the budget."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.bucket = TokenBucket(ByteLimits(bytes_per_s=500.0, burst_bytes=4000, bytes_per_day=400_000), 0.0)
        self.uploader = Uploader(self.bucket, LIMITS)
        self.spool: dict[str, int] = {}
        self.made = 0
        self.up = False
        self.in_network: list[str] = []
        self.receipts: list[str] = []
        self.committed: set[str] = set()
        self.sent: list[tuple[float, int]] = []

    @initialize()
    def connect(self) -> None:
        self.link_up()

    @rule(size=st.integers(1, 3900))
    def spool_frame(self, size: int) -> None:
        self.made += 1
        self.spool[f"f{self.made}"] = size

    @rule()
    def link_up(self) -> None:
        self.up = True
        self.uploader.handle(Up(), self.now_s)

    @rule()
    def link_down(self) -> None:
        self.up = False
        self.in_network.clear()
        self.receipts.clear()
        self.uploader.handle(Down(), self.now_s)

    @rule(seconds=st.floats(0.0, 40.0), steps=st.integers(1, 6))
    def time_passes(self, seconds: float, steps: int) -> None:
        for _ in range(steps):
            self.now_s += seconds / steps
            self.pump()

    @rule(data=st.data())
    def a_frame_is_lost(self, data: st.DataObject) -> None:
        if self.in_network:
            self.in_network.remove(data.draw(st.sampled_from(self.in_network)))

    @rule(receipt_is_lost=st.booleans())
    @precondition(lambda self: self.in_network)
    def a_frame_arrives(self, receipt_is_lost: bool) -> None:
        frame_id = self.in_network.pop(0)
        self.committed.add(frame_id)
        if not receipt_is_lost:
            self.receipts.append(frame_id)

    @rule(twice=st.booleans())
    @precondition(lambda self: self.receipts)
    def a_receipt_arrives(self, twice: bool) -> None:
        frame_id = self.receipts.pop(0)
        self.spool.pop(frame_id, None)
        for _ in range(1 + twice):
            self.uploader.handle(Settled((frame_id,)), self.now_s)

    @rule(data=st.data())
    @precondition(lambda self: self.spool)
    def the_spool_evicts(self, data: st.DataObject) -> None:
        frame_id = data.draw(st.sampled_from(sorted(self.spool)))
        if frame_id not in self.uploader.known:
            del self.spool[frame_id]

    def pump(self) -> None:
        self.uploader.handle(Tick(), self.now_s)
        for _ in range(100):
            if self.uploader.wants_frame:
                fresh = next((f for f in self.spool if f not in self.uploader.known), None)
                if fresh is not None:
                    self.uploader.handle(FrameReady(fresh, self.spool[fresh]), self.now_s)
            decision = self.uploader.decide(self.now_s)
            if not isinstance(decision, Publish):
                return
            assert self.up, "published without a link"
            size = self.spool[decision.frame_id]
            self.sent.append((self.now_s, size))
            self.in_network.append(decision.frame_id)
            self.uploader.handle(Taken(decision.frame_id), self.now_s)
        raise AssertionError("the machine publishes for ever")

    @invariant()
    def the_window_holds(self) -> None:
        flights = self.uploader.flights()
        assert flights[Flight.SENT] + flights[Flight.IN_DOUBT] <= LIMITS.max_frames

    @invariant()
    def the_budget_holds(self) -> None:
        spent = 0.0
        for at_s, size in self.sent:
            spent += size
            assert spent <= 4000 + 500.0 * at_s + 1e-3

    @invariant()
    def nothing_is_forgotten(self) -> None:
        """What was sent and has no receipt is still known, hence will be sent again."""
        unsettled = set(self.in_network) & set(self.spool)
        assert unsettled <= set(self.uploader.known)

    def teardown(self) -> None:
        """Once the network is kind, everything that is in the spool is committed."""
        self.link_up()
        for _ in range(400):
            if not self.spool:
                break
            self.now_s += 30.0
            self.pump()
            while self.in_network:
                self.a_frame_arrives(receipt_is_lost=False)
            while self.receipts:
                self.a_receipt_arrives(twice=False)
        assert not self.spool, "a frame was never sent again"


LossyServer.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLossyServer = LossyServer.TestCase
