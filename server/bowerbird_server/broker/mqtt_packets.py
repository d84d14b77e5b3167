"""MQTT 5 packets out of a stream of bytes, each message copied once. Pure.

In: bytes, received straight into `PacketStream.space`. Out: packets as (first byte, body), and `Publish` out of the body of one.
paho asks its socket for one byte, then for another, and copies a message five times; here a frame of 60 kB costs as many reads as
it has TLS records. It sends nothing and answers nothing.

Source: MQTT 5.0, sections 1.5.5 (variable byte integers), 2.1 (fixed header), 3.3 (PUBLISH).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

ROOM_BYTES = 256 * 1024  # what is received at a time, at most
RECORD_BYTES = 16 * 1024  # of a TLS record, at most
_MOST_LENGTH_BYTES = 4
_U16 = struct.Struct(">H")


class MalformedPacket(ValueError):
    """Bytes that are no MQTT 5 packet; the connection is of no more use."""


@dataclass(frozen=True, slots=True)
class Publish:
    """A message as the broker delivers it; `mid` is 0 at QoS 0."""

    topic: str
    payload: bytes
    mid: int
    qos: int


class PacketStream:
    """One connection's bytes, cut into packets.

    Receive into `space`, tell `received` how much it was, then take `packets`, all of them, before receiving again if it says so.

    Args:
        most_bytes: of a packet, as announced to the broker.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._data = bytearray(ROOM_BYTES)
        self._begin = self._end = 0  # of what is received and not taken
        self._lacking = 0  # bytes that the packet at the beginning still lacks, as far as its length is known

    def space(self) -> memoryview:
        """Where the next bytes belong: at least what the packet that has begun lacks, and a TLS record."""
        held = self._end - self._begin
        needed = held + max(self._lacking, RECORD_BYTES)
        if held == 0:
            self._begin = self._end = 0
            if len(self._data) > ROOM_BYTES:  # a large packet is through
                self._data = bytearray(ROOM_BYTES)
        elif self._begin + needed > len(self._data):
            kept = self._data[self._begin : self._end]
            if needed > len(self._data):
                self._data = bytearray(needed)
            self._data[:held] = kept
            self._begin, self._end = 0, held
        return memoryview(self._data)[self._end :]

    def received(self, count: int) -> bool:
        """So many bytes were put into `space`; whether `packets` may have one. A frame comes in four pieces."""
        self._end += count
        self._lacking -= count
        return self._lacking <= 0

    def packets(self) -> Iterator[tuple[int, memoryview]]:
        """The whole packets that are there: first byte and body, which is valid until the next bytes are received.

        Raises:
            MalformedPacket: a length that is none, or one above what was announced.
        """
        data = memoryview(self._data)
        self._lacking = 0
        while self._end - self._begin > 1:
            found = _length(data[self._begin + 1 : self._end])
            if found is None:
                return
            length, taken = found
            if length > self._most_bytes:
                raise MalformedPacket(f"a packet of {length} bytes; at most {self._most_bytes} were announced")
            start = self._begin + 1 + taken
            self._lacking = max(0, start + length - self._end)
            if self._lacking:
                return
            first = data[self._begin]
            self._begin = start + length
            yield first, data[start : self._begin]


def _length(data: memoryview) -> tuple[int, int] | None:
    """A variable byte integer and how many bytes it takes; None when it is not all there."""
    value = 0
    for at, byte in enumerate(data[:_MOST_LENGTH_BYTES]):
        value |= (byte & 0x7F) << (7 * at)
        if not byte & 0x80:
            return value, at + 1
    if len(data) >= _MOST_LENGTH_BYTES:
        raise MalformedPacket("a length of more than four bytes")
    return None


def publish_of(first: int, body: memoryview) -> Publish:
    """The message in a PUBLISH packet; its properties are of no use here and are skipped.

    Raises:
        MalformedPacket: lengths that lie, or a topic that is not UTF-8.
    """
    qos = first >> 1 & 0x03
    try:
        (topic_bytes,) = _U16.unpack_from(body)
        at = 2 + topic_bytes
        if qos:
            (mid,) = _U16.unpack_from(body, at)
            at += 2
        else:
            mid = 0
        topic = str(body[2 : 2 + topic_bytes], "utf-8")
    except (struct.error, UnicodeDecodeError) as error:
        raise MalformedPacket(f"a PUBLISH packet without a topic: {error}") from error
    properties = _length(body[at:])
    if properties is None or at + sum(properties) > len(body):
        raise MalformedPacket("a PUBLISH packet whose properties do not end")
    return Publish(topic, bytes(body[at + sum(properties) :]), mid, qos)
