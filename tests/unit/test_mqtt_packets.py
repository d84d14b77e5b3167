"""Packets out of a stream, however it is cut, and messages out of packets, against the standard's definitions and limits."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bowerbird_server.broker.mqtt_packets import RECORD_BYTES, ROOM_BYTES, MalformedPacket, PacketStream, Publish, publish_of

MOST_BYTES = 1_000_000


def varint(value: int) -> bytes:
    """MQTT 5.0, section 1.5.5."""
    out = bytearray()
    while True:
        value, byte = divmod(value, 128)
        out.append(byte | (0x80 if value else 0))
        if not value:
            return bytes(out)


def packet(first: int, body: bytes) -> bytes:
    return bytes([first]) + varint(len(body)) + body


def publish(topic: bytes, payload: bytes, mid: int = 7, qos: int = 1, properties: bytes = b"") -> bytes:
    name = struct.pack(">H", len(topic)) + topic
    return name + (struct.pack(">H", mid) if qos else b"") + varint(len(properties)) + properties + payload


def feed(stream: PacketStream, data: bytes, piece_bytes: int) -> list[tuple[int, bytes]]:
    """What comes out when `data` arrives in pieces of at most so many bytes."""
    out = []
    while data:
        space = stream.space()
        count = min(piece_bytes, len(space), len(data))
        space[:count] = data[:count]
        stream.received(count)
        data = data[count:]
        out += [(first, bytes(body)) for first, body in stream.packets()]
    return out


@given(
    st.lists(
        st.tuples(st.integers(1, 255), st.one_of(st.binary(max_size=300), st.integers(0, 200_000).map(bytes))), max_size=6
    ),
    st.sampled_from([1, 2, 3, 1000, RECORD_BYTES, ROOM_BYTES]),
)
@settings(max_examples=60, deadline=None)
def test_packets_come_out_as_they_went_in_however_the_stream_is_cut(packets: list[tuple[int, bytes]], piece_bytes: int) -> None:
    if piece_bytes < RECORD_BYTES:  # byte by byte only what is short
        packets = [(first, body[:2000]) for first, body in packets]
    data = b"".join(packet(first, body) for first, body in packets)
    assert feed(PacketStream(MOST_BYTES), data, piece_bytes) == packets


def test_a_packet_larger_than_the_room_gets_more_and_gives_it_back() -> None:
    stream = PacketStream(MOST_BYTES)
    large = bytes(range(256)) * 3900  # close to the most
    packets = [(0x30, b"before"), (0x32, large), (0xD0, b""), (0x32, b"after")]
    assert feed(stream, b"".join(packet(*one) for one in packets), 50_000) == packets
    assert len(stream.space()) == ROOM_BYTES


def test_there_is_always_space_for_a_record() -> None:
    stream = PacketStream(MOST_BYTES)
    for _ in range(3):
        data = packet(0x30, bytes(ROOM_BYTES - 10))
        for start in range(0, len(data), 10_000):
            space = stream.space()
            assert len(space) >= RECORD_BYTES
            piece = data[start : start + 10_000]
            space[: len(piece)] = piece
            stream.received(len(piece))
            list(stream.packets())


def test_a_length_of_five_bytes_is_refused() -> None:
    with pytest.raises(MalformedPacket, match="four bytes"):
        feed(PacketStream(MOST_BYTES), b"\x30\xff\xff\xff\xff\x01", 100)


def test_a_packet_larger_than_announced_is_refused_before_there_is_room_for_it() -> None:
    stream = PacketStream(MOST_BYTES)
    with pytest.raises(MalformedPacket, match="announced"):
        feed(stream, b"\x30" + varint(MOST_BYTES + 1), 100)
    assert feed(PacketStream(MOST_BYTES), packet(0x30, bytes(MOST_BYTES)), ROOM_BYTES) == [(0x30, bytes(MOST_BYTES))]


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("properties", [b"", b"\x26\x00\x01k\x00\x01v" * 40])
def test_a_message_has_its_topic_and_its_payload_whatever_its_properties(qos: int, properties: bytes) -> None:
    body = publish("bowerbird/v1/süd/up/cam-01/frame".encode(), b"\x00\xffpicture", 513, qos, properties)
    expected = Publish("bowerbird/v1/süd/up/cam-01/frame", b"\x00\xffpicture", 513 if qos else 0, qos)
    assert publish_of(0x30 | qos << 1, memoryview(body)) == expected


def test_a_message_may_be_empty() -> None:
    assert publish_of(0x32, memoryview(publish(b"t", b""))).payload == b""


def test_every_message_that_is_cut_short_before_its_payload_is_refused() -> None:
    head = publish(b"topic", b"", properties=b"\x26\x00\x01k\x00\x01v")
    for length in range(len(head)):
        with pytest.raises(MalformedPacket):
            publish_of(0x32, memoryview(head[:length]))


def test_a_topic_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(MalformedPacket, match="topic"):
        publish_of(0x32, memoryview(publish(b"\xff\xfe", b"x")))


def test_a_payload_outlives_the_room_it_came_in() -> None:
    stream = PacketStream(MOST_BYTES)
    space = stream.space()
    data = packet(0x32, publish(b"t", b"payload"))
    space[: len(data)] = data
    stream.received(len(data))
    ((first, body),) = stream.packets()
    message = publish_of(first, body)
    stream.space()[: len(data)] = bytes(len(data))
    assert message.payload == b"payload"
