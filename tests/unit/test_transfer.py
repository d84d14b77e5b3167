"""Transfers in parts: over a channel that loses, doubles, reorders and breaks, every message arrives whole and is committed once."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from bowerbird_wire import codec
from bowerbird_wire.codec import MAX_FRAME_BYTES
from bowerbird_wire.errors import BlockError, LengthError
from bowerbird_wire.messages import Chunk
from bowerbird_wire.transfer import (
    BLOCK_BYTES,
    CHUNK_HEADER_BYTES,
    MAX_CHUNK_BYTES,
    MAX_WINDOW_BYTES,
    TRANSITIONS,
    Block,
    BlockEvent,
    Receiving,
    Sending,
    block_count,
    check_chunk,
    chunk_bytes,
    from_bitmap,
    run_bytes,
    to_bitmap,
    transfer_id,
    window_bytes,
)

KIB = 1024
sizes = st.integers(1, 40 * BLOCK_BYTES)


@pytest.mark.parametrize(
    ("rate_kbit", "keepalive_s", "expected_kib"),
    [(128, 30, 28), (9.6, 30, 4), (1, 30, 4), (10_000, 30, 128), (128, 5, 16), (64, 30, 12), (512, 30, 124)],
)
def test_a_chunk_is_what_the_link_carries_in_two_seconds(rate_kbit: float, keepalive_s: float, expected_kib: int) -> None:
    assert chunk_bytes(rate_kbit * 125, keepalive_s=keepalive_s) == expected_kib * KIB


def test_a_chunk_stays_below_the_brokers_limit_and_is_nothing_when_not_even_a_block_fits() -> None:
    limit = 20_000
    size = chunk_bytes(1e9, keepalive_s=30, max_payload_bytes=limit)
    assert size == 16 * KIB
    largest = Chunk(bytes(16), MAX_FRAME_BYTES, MAX_FRAME_BYTES // BLOCK_BYTES, bytes(size))
    assert len(codec.encode(largest)) <= limit
    assert chunk_bytes(1e9, keepalive_s=30, max_payload_bytes=BLOCK_BYTES) == 0


def test_the_declared_bound_of_a_chunks_header_holds() -> None:
    largest = Chunk(bytes(16), MAX_FRAME_BYTES, MAX_FRAME_BYTES // BLOCK_BYTES, bytes(MAX_CHUNK_BYTES))
    assert len(codec.encode(largest)) <= MAX_CHUNK_BYTES + CHUNK_HEADER_BYTES


@given(st.floats(1, 1e9), st.floats(0, 30), st.integers(1, 32).map(lambda n: n * BLOCK_BYTES))
def test_the_window_lies_between_a_chunk_and_half_a_mebibyte(rate: float, rtt_s: float, chunk: int) -> None:
    window = window_bytes(rate, rtt_s, chunk)
    assert chunk <= window <= max(chunk, MAX_WINDOW_BYTES)
    assert window == chunk + int(2 * rate * rtt_s) or window == MAX_WINDOW_BYTES


@given(st.integers(0, 300).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)) if n else st.just(set()))))
def test_a_bitmap_reads_back_as_itself(case: tuple[int, set[int]]) -> None:
    count, blocks = case
    assert from_bitmap(to_bitmap(blocks, count), count) == blocks


@given(st.binary(max_size=40), st.integers(0, 100))
def test_any_bytes_are_a_bitmap_of_blocks_that_exist(bitmap: bytes, count: int) -> None:
    assert all(0 <= block < count for block in from_bitmap(bitmap, count))


@pytest.mark.parametrize(
    ("chunk", "fault"),
    [
        (Chunk(bytes(15), 10, 0, bytes(10)), LengthError),
        (Chunk(bytes(16), 0, 0, bytes(10)), LengthError),
        (Chunk(bytes(16), MAX_FRAME_BYTES + 1, 0, bytes(BLOCK_BYTES)), LengthError),
        (Chunk(bytes(16), 10, 0, b""), LengthError),
        (Chunk(bytes(16), MAX_FRAME_BYTES, 0, bytes(MAX_CHUNK_BYTES + BLOCK_BYTES)), LengthError),
        (Chunk(bytes(16), 10, -1, bytes(10)), BlockError),
        (Chunk(bytes(16), 10, 2**62, bytes(10)), BlockError),
        (Chunk(bytes(16), 10, 0, bytes(11)), BlockError),
        (Chunk(bytes(16), 9000, 0, bytes(5000)), BlockError),
        (Chunk(bytes(16), 9000, 3, bytes(1)), BlockError),
    ],
)
def test_a_chunk_that_cannot_be_is_named(chunk: Chunk, fault: type[Exception]) -> None:
    with pytest.raises(fault):
        check_chunk(chunk)


@given(sizes, st.integers(1, 200_000))
def test_the_runs_of_a_fresh_transfer_cover_the_message_once(total: int, max_bytes: int) -> None:
    sending, covered = Sending(total), 0
    while (run := sending.next_run(max_bytes)) is not None:
        first, count = run
        assert first * BLOCK_BYTES == covered
        covered += run_bytes(total, first, count)
        assert run_bytes(total, first, count) <= max(max_bytes, BLOCK_BYTES)
        sending.taken(first, count)
    assert covered == total


def test_what_was_sent_after_the_question_is_not_sent_again_by_its_answer() -> None:
    sending = Sending(4 * BLOCK_BYTES)
    sending.taken(0, 2)
    sending.doubt()  # asked here
    sending.taken(2, 1)
    sending.answer(to_bitmap({0}, 4))
    assert sending.next_run(BLOCK_BYTES) == (1, 1)
    sending.taken(1, 1)
    assert sending.next_run(BLOCK_BYTES) == (3, 1)


def test_parts_that_the_server_gave_up_are_sent_again() -> None:
    sending = Sending(2 * BLOCK_BYTES)
    sending.answer(to_bitmap({0, 1}, 2))
    assert sending.next_run(99_999) is None
    sending.answer(b"")
    assert sending.next_run(99_999) == (0, 2)


def test_the_table_knows_a_block_as_held_only_from_the_server() -> None:
    assert {event for (_, event), after in TRANSITIONS.items() if after is Block.HELD} == {BlockEvent.HAS}
    assert {before for (before, _), after in TRANSITIONS.items() if after is Block.UNSENT} == {Block.DOUBTFUL, Block.HELD}


class LossyChannel(RuleBasedStateMachine):
    """A sender and a receiver that both may be restarted, with a channel between them that does its worst."""

    def __init__(self) -> None:
        super().__init__()
        self.random = random.Random(1)
        self.messages: list[bytes] = []
        self.senders: dict[bytes, Sending] = {}
        self.network: list[Chunk] = []
        self.answers: list[tuple[bytes, bytes]] = []  # transfer, bitmap
        self.disk: dict[bytes, dict[int, bytes]] = {}  # the receiver's parts, which survive its restarts
        self.committed: set[bytes] = set()

    @rule(size=sizes)
    def a_message_is_made(self, size: int) -> None:
        message = self.random.randbytes(size)
        self.messages.append(message)
        self.senders[transfer_id(message)] = Sending(size)

    def unfinished(self) -> list[bytes]:
        return [message for message in self.messages if transfer_id(message) not in self.committed]

    @rule(data=st.data(), max_bytes=st.integers(BLOCK_BYTES, MAX_CHUNK_BYTES))
    @precondition(lambda self: self.unfinished())
    def a_chunk_is_sent(self, data: st.DataObject, max_bytes: int) -> None:
        self.send(data.draw(st.sampled_from(self.unfinished())), max_bytes)

    def send(self, message: bytes, max_bytes: int) -> bool:
        name = transfer_id(message)
        run = self.senders[name].next_run(max_bytes)
        if run is None:
            return False
        first, count = run
        at = first * BLOCK_BYTES
        chunk = Chunk(name, len(message), first, message[at : at + run_bytes(len(message), first, count)])
        check_chunk(chunk)
        self.network.append(chunk)
        self.senders[name].taken(first, count)
        return True

    @rule(data=st.data(), fate=st.sampled_from(["arrives", "twice", "lost"]))
    @precondition(lambda self: self.network)
    def a_chunk_meets_its_fate(self, data: st.DataObject, fate: str) -> None:
        chunk = self.network.pop(data.draw(st.integers(0, len(self.network) - 1)))
        for _ in range({"arrives": 1, "twice": 2, "lost": 0}[fate]):
            self.receive(chunk)

    def receive(self, chunk: Chunk) -> None:
        parts = self.disk.setdefault(chunk.transfer, {})
        if len(chunk.data) > len(parts.get(chunk.first_block, b"")):
            parts[chunk.first_block] = chunk.data
        if self.receiving(chunk.transfer, chunk.total_bytes).complete:
            whole = bytearray(chunk.total_bytes)
            for first, part in parts.items():
                whole[first * BLOCK_BYTES : first * BLOCK_BYTES + len(part)] = part
            assert hashlib.sha256(whole).digest()[:16] == chunk.transfer
            assert bytes(whole) in self.messages
            self.committed.add(chunk.transfer)  # by content: a second time changes nothing
            del self.disk[chunk.transfer]

    def receiving(self, name: bytes, total: int) -> Receiving:
        runs = [(first, block_count(len(part))) for first, part in self.disk.get(name, {}).items()]
        return Receiving(total, runs)

    @rule()
    def the_link_breaks(self) -> None:
        self.network.clear()
        self.answers.clear()
        for sending in self.senders.values():
            sending.doubt()

    @rule(data=st.data())
    @precondition(lambda self: self.unfinished())
    def the_server_is_asked(self, data: st.DataObject) -> None:
        self.ask(data.draw(st.sampled_from(self.unfinished())))

    def ask(self, message: bytes) -> None:
        name = transfer_id(message)
        self.senders[name].doubt()
        self.answers.append((name, self.receiving(name, len(message)).bitmap()))

    @rule(data=st.data(), lost=st.booleans())
    @precondition(lambda self: self.answers)
    def an_answer_arrives_or_not(self, data: st.DataObject, lost: bool) -> None:
        name, bitmap = self.answers.pop(data.draw(st.integers(0, len(self.answers) - 1)))
        if not lost:
            self.senders[name].answer(bitmap)

    @rule()
    def the_sender_is_restarted(self) -> None:
        """It remembers nothing of a transfer but that the message was sent before: it asks first."""
        self.senders = {transfer_id(message): Sending(len(message)) for message in self.messages}
        for message in self.unfinished():
            self.ask(message)

    @rule(data=st.data())
    @precondition(lambda self: self.disk)
    def the_receiver_gives_parts_up(self, data: st.DataObject) -> None:
        del self.disk[data.draw(st.sampled_from(sorted(self.disk)))]

    def teardown(self) -> None:
        """Over a kind channel everything is whole after a question and its answer, twice for what a late answer has spoilt."""
        self.the_link_breaks()
        for _ in range(3):
            for message in self.unfinished():
                self.ask(message)
                name, bitmap = self.answers.pop()
                self.senders[name].answer(bitmap)
                while self.send(message, MAX_CHUNK_BYTES):
                    self.receive(self.network.pop())
        assert {transfer_id(message) for message in self.messages} == self.committed


LossyChannel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLossyChannel = LossyChannel.TestCase
