"""Bytes at the link, from what the kernel says of a connection."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

import pytest

from bowerbird_agent.link.paho_client import Traffic
from bowerbird_agent.link.wire_count import OnWire, estimate, of_connection, overhead_bytes


@dataclass
class Kernel:
    """A socket as far as the count asks: `TCP_INFO` as Linux lays it out."""

    sent: int
    received: int
    segments_out: int
    segments_in: int
    timestamps: bool = True
    family: int = socket.AF_INET
    info_bytes: int = 256

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes:
        assert (level, option) == (socket.IPPROTO_TCP, socket.TCP_INFO)
        info = bytearray(self.info_bytes)
        if self.info_bytes < 208:
            return bytes(info)
        info[5] = int(self.timestamps)
        struct.pack_into("=Q", info, 128, self.received)
        struct.pack_into("=II", info, 136, self.segments_out, self.segments_in)
        struct.pack_into("=Q", info, 200, self.sent)
        return bytes(info[:size])


def test_every_segment_has_the_headers_of_ethernet_ip_and_tcp() -> None:
    one = of_connection(Kernel(1000, 500, 10, 8))
    more = of_connection(Kernel(1000, 500, 11, 8))
    assert one is not None
    assert more is not None
    assert more.sent - one.sent == 14 + 20 + 20 + 12 + 4, "and options of selective acknowledgements"
    assert 1000 + 10 * 66 <= one.sent <= 1000 + 15 * 66
    assert one.received >= 500 + 8 * 66


def test_an_address_of_version_six_and_a_peer_without_time_stamps_change_the_headers() -> None:
    plain, six = Kernel(0, 0, 100, 0), Kernel(0, 0, 100, 0, family=socket.AF_INET6)
    bare = Kernel(0, 0, 100, 0, timestamps=False)
    sent = [found.sent for kernel in (plain, six, bare) if (found := of_connection(kernel)) is not None]
    assert sent[1] - sent[0] == 103 * 20
    assert sent[0] - sent[2] == 103 * 12


def test_a_kernel_that_does_not_tell_is_no_answer_and_the_estimate_is_above_the_payload() -> None:
    assert of_connection(Kernel(1, 1, 1, 1, info_bytes=104)) is None
    guess = estimate(1_000_000, 10_000, 20, 100)
    assert 1_000_000 * 1.04 < guess.sent < 1_000_000 * 1.15
    assert guess.received > 10_000


def test_a_closed_socket_is_no_answer() -> None:
    sock = socket.socket()
    sock.close()
    assert of_connection(sock) is None


@pytest.mark.parametrize("size", [1, 1000, 60_000, 1_000_000])
def test_what_is_around_a_packet_is_never_below_its_segments_headers(size: int) -> None:
    assert overhead_bytes(size) >= -(-size // 1448) * 66


def test_the_count_never_falls_and_goes_on_over_connections() -> None:
    traffic = Traffic()
    traffic.look(OnWire(100, 50))
    traffic.look(OnWire(80, 60))
    assert traffic.on_wire == OnWire(100, 60)
    traffic.end()
    traffic.look(OnWire(10, 5))
    assert traffic.on_wire == OnWire(110, 65)
