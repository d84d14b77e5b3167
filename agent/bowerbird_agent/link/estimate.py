"""How fast the uplink is, from what the broker acknowledges and when. Pure: no clock, no socket.

In: packets handed to the link and acknowledged, monotonic seconds, round trips that were measured on connecting. Out: rate, round trip,
and what is on its way. A PUBACK proves nothing about the server, but it does prove that the bytes have crossed the link. It decides
nothing; the uploader sizes chunks and window by it.

Source: the delivery rate sample of BBR (Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 14(5), 2016): bytes
delivered between a packet's sending and its acknowledgement, over the time since the delivery before it; the largest of the newest few
counts, since a sender that had little to send measures too little.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

FIRST_RATE = 8192.0  # bytes per second, until something is known
FIRST_RTT_S = 0.2
_SAMPLES = 8
_SAMPLE_BYTES = 4096  # a smaller packet measures the round trip, not the rate
_SLOWEST = 64.0


@dataclass(frozen=True)
class _OnItsWay:
    size_bytes: int
    sent_s: float
    delivered: int  # bytes acknowledged when it was sent
    delivered_s: float  # and when


class LinkEstimate:
    """The estimate of one device's uplink; it outlives connections. Not thread-safe: one thread owns it."""

    def __init__(self) -> None:
        self._on_their_way: dict[int, _OnItsWay] = {}
        self._in_flight_bytes = 0
        self._delivered = 0
        self._delivered_s = 0.0
        self._rates: deque[float] = deque(maxlen=_SAMPLES)
        self._rtts: deque[float] = deque(maxlen=_SAMPLES)
        self._got_through = False  # on this connection

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return max(self._rates, default=FIRST_RATE)

    @property
    def rtt_s(self) -> float:
        """Round trip without a queue, seconds."""
        return min(self._rtts, default=FIRST_RTT_S)

    @property
    def measured_rtt_s(self) -> float | None:
        """The same, None before anything was measured."""
        return min(self._rtts, default=None)

    @property
    def in_flight_bytes(self) -> int:
        """Handed to the link and not acknowledged by the broker."""
        return self._in_flight_bytes

    @property
    def in_flight_packets(self) -> int:
        """The same in packets."""
        return len(self._on_their_way)

    def connected(self, rtt_s: float) -> None:
        """A new connection, on which a small packet and its answer took so long (0: not measured)."""
        self.lost()
        if rtt_s > 0:
            self._rtts.append(rtt_s)

    def sent(self, token: int, size_bytes: int, now_s: float) -> None:
        """A packet was handed to the link."""
        if not self._on_their_way:
            self._delivered_s = now_s  # the link was idle until now
        self._on_their_way[token] = _OnItsWay(size_bytes, now_s, self._delivered, self._delivered_s)
        self._in_flight_bytes += size_bytes

    def acknowledged(self, token: int, now_s: float) -> None:
        """The broker has it. A token that is not known is not ours."""
        packet = self._on_their_way.pop(token, None)
        if packet is None:
            return
        alone = self._in_flight_bytes == packet.size_bytes
        self._in_flight_bytes -= packet.size_bytes
        self._delivered += packet.size_bytes
        self._delivered_s = now_s
        self._got_through = True
        if packet.size_bytes < _SAMPLE_BYTES // 8 and alone:
            self._rtts.append(max(now_s - packet.sent_s, 1e-4))
        elif packet.size_bytes >= _SAMPLE_BYTES:
            took_s = max(now_s - packet.delivered_s, 1e-4)
            self._rates.append((self._delivered - packet.delivered) / took_s)

    def lost(self) -> None:
        """The connection ended; nothing is on its way. If it carried nothing at all, the link is thought half as fast."""
        if self._on_their_way and not self._got_through:
            slower = max(_SLOWEST, self.rate / 2)
            self._rates.clear()
            self._rates.append(slower)
        self._on_their_way.clear()
        self._in_flight_bytes = 0
        self._got_through = False
