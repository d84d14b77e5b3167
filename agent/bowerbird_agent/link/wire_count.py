"""What a connection has cost on its interface: what the kernel counted, and the headers around it.

In: a connected socket, with TLS or without. Out: bytes both ways at the link; resent segments, acknowledgements, handshakes count.
Linux counts segments and payload for each connection (`TCP_INFO`); here come the headers: Ethernet, IP, TCP with time stamps. Over a
link without Ethernet headers that is up to 1 % too much, never too little. What the kernel does not count (the end of a connection, a
connection that never came about) is allowed for. Name look-ups and the link's own chatter (ARP) are not ours and not counted.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass
from typing import Any, Protocol

_ETHERNET, _IPV4, _IPV6, _TCP, _TIMESTAMPS = 14, 20, 40, 20, 12
_SYN_OPTIONS = 8  # window scale, SACK and largest segment, on top of time stamps
_CLOSING_SEGMENTS = 3  # each way: after the last look come FIN, its acknowledgement, perhaps RST
# Acknowledgements that come in a burst are not all counted: up to 35 of 270 were missing at 256 kbit/s. One for so many segments sent.
_UNCOUNTED_ACKS = 4
_SELECTIVE_ACKS = 4  # bytes a segment, on average and at most: where segments are lost, some carry 12 or more
_SYN_TRIES = 4  # in the ten seconds that an attempt may take
_HAS_TIMESTAMPS = 1
_OPTIONS_AT, _RECEIVED_AT, _SEGMENTS_AT, _SENT_AT, _NEEDED_BYTES = 5, 128, 136, 200, 208
# For a kernel that does not tell: segments of an ordinary size, an acknowledgement for two of them, a TLS record for each write.
_SEGMENT_BYTES, _RECORD_BYTES = 1400, 29


@dataclass(frozen=True)
class OnWire:
    """Bytes at the link."""

    sent: int = 0
    received: int = 0

    def __add__(self, other: OnWire) -> OnWire:
        return OnWire(self.sent + other.sent, self.received + other.received)


class Connection(Protocol):
    """What is asked of a socket."""

    family: Any

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes:
        """As `socket.socket.getsockopt`."""


def of_connection(sock: Connection) -> OnWire | None:
    """What a connection has cost so far, its end included; None when the kernel does not tell (or the socket is closed)."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        if len(info) >= _NEEDED_BYTES:
            return _of_info(info, sock.family == socket.AF_INET6)
    return None


def _of_info(info: bytes, is_ipv6: bool) -> OnWire:
    (received,) = struct.unpack_from("=Q", info, _RECEIVED_AT)
    segments_out, segments_in = struct.unpack_from("=II", info, _SEGMENTS_AT)
    (sent,) = struct.unpack_from("=Q", info, _SENT_AT)
    header = _ETHERNET + (_IPV6 if is_ipv6 else _IPV4) + _TCP + (_TIMESTAMPS if info[_OPTIONS_AT] & _HAS_TIMESTAMPS else 0)
    return OnWire(
        sent + segments_out * (header + _SELECTIVE_ACKS) + _CLOSING_SEGMENTS * header + _SYN_OPTIONS,
        received + (segments_in + segments_out // _UNCOUNTED_ACKS + _CLOSING_SEGMENTS) * header + _SYN_OPTIONS,
    )


def of_failed_attempt() -> OnWire:
    """What it costs, at most, to find nobody."""
    header = _ETHERNET + _IPV6 + _TCP + _TIMESTAMPS
    return OnWire(_SYN_TRIES * (header + _SYN_OPTIONS), header)


def estimate(sent: int, received: int, writes: int, reads: int) -> OnWire:
    """For a kernel that does not tell: from the bytes above TCP and how often they were written and read."""
    header = _ETHERNET + _IPV6 + _TCP + _TIMESTAMPS
    out, back = sent // _SEGMENT_BYTES + writes, received // _SEGMENT_BYTES + reads
    return OnWire(
        sent + writes * _RECORD_BYTES + (out + back // 2 + 1) * header,
        received + reads * _RECORD_BYTES + (back + out // 2 + 1) * header,
    )


def overhead_bytes(size_bytes: int) -> int:
    """Headers of so many bytes that are yet to be sent, at most."""
    return (size_bytes // _SEGMENT_BYTES + 1) * (_ETHERNET + _IPV4 + _TCP + _TIMESTAMPS) + _RECORD_BYTES
