"""How much may be on the link at once, and in what pieces. Pure rules over the link's estimate.

In: rate, round trip and what is on its way (`link/estimate.py`), the connection's keep-alive. Out: the size of a chunk, whether a
packet fits, whether a message goes whole. It keeps nothing, and knows neither frames nor budgets.
"""

from __future__ import annotations

import math

from bowerbird_agent.link.estimate import LinkEstimate
from bowerbird_wire.transfer import BLOCK_BYTES, CHUNK_S, chunk_bytes, window_bytes


class LinkWindow:
    """The window of one device.

    Args:
        link: the estimate; None for a link without limits.
        keepalive_s: of the connection; nothing may occupy the link for longer than a quarter of it.
    """

    def __init__(self, link: LinkEstimate | None, keepalive_s: float) -> None:
        self._link = link
        self._keepalive_s = keepalive_s

    def chunk_bytes(self, max_payload_bytes: int | None) -> int:
        """The data of the next chunk, 0 when the broker does not take one block.

        At most half of the window: one chunk is on the link while the last is acknowledged, and a broken link costs less.
        """
        if self._link is None:
            return chunk_bytes(math.inf, keepalive_s=self._keepalive_s, max_payload_bytes=max_payload_bytes)
        chunk = chunk_bytes(self._link.rate, keepalive_s=self._keepalive_s, max_payload_bytes=max_payload_bytes)
        half = self._window_bytes(self._link) // 2 // BLOCK_BYTES * BLOCK_BYTES
        return min(chunk, max(half, BLOCK_BYTES))

    def has_slot(self, max_packets: int) -> bool:
        """Whether the broker takes one more packet before it has acknowledged another."""
        return self._link is None or self._link.in_flight_packets < max_packets

    def fits(self, packet_bytes: int, max_packets: int) -> bool:
        """Whether so many bytes more may be on the link; the first packet always may."""
        link = self._link
        if link is None or link.in_flight_packets == 0:
            return True
        return self.has_slot(max_packets) and link.in_flight_bytes + packet_bytes <= self._window_bytes(link)

    def carries_whole(self, message_bytes: int) -> bool:
        """Whether the link carries the message in the time of a chunk."""
        if self._link is None or message_bytes <= BLOCK_BYTES:
            return True
        return message_bytes <= self._link.rate * min(CHUNK_S, self._keepalive_s / 4)

    def _window_bytes(self, link: LinkEstimate) -> int:
        return window_bytes(link.rate, link.rtt_s, chunk_bytes(link.rate, keepalive_s=self._keepalive_s))
