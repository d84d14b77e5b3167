"""What the bytes on the wire were spent on: by kind, both directions, every byte in one kind.

In: each packet as it is handed to the connection or has come, and the totals at the link. Out: bytes per kind since the process
started. What nothing else claims (headers of TCP and below, keep-alives, acknowledgements, connecting, receipts, commands) is control.
It limits nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import MappingProxyType

from bowerbird_wire import spent
from bowerbird_wire.topics import (
    BlocksTopic,
    ChunkTopic,
    CreditTopic,
    DetectionsTopic,
    DeviceTopic,
    FrameTopic,
    HealthTopic,
    OfferTopic,
    ReferenceTopic,
)

# Topics with a kind of their own.
_KINDS: Mapping[type, str] = MappingProxyType(
    {
        FrameTopic: spent.FRAMES,
        ChunkTopic: spent.CHUNKS,
        OfferTopic: spent.OFFERS,
        ReferenceTopic: spent.REFERENCES,
        HealthTopic: spent.HEALTH,
        DetectionsTopic: spent.DETECTIONS,
        BlocksTopic: spent.BLOCKS,
    }
)


class Spending:
    """Bytes by kind. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._named: dict[str, int] = {}
        self._control = 0

    def packet(self, topic: DeviceTopic | CreditTopic, packet_bytes: int, kind: str | None = None) -> None:
        """A packet that was handed over, or has come; of the topic's kind, or of the one that is given."""
        kind = kind or _KINDS.get(type(topic))
        if kind is not None:
            with self._lock:
                self._named[kind] = self._named.get(kind, 0) + packet_bytes

    def by_kind(self, total_bytes: int) -> dict[str, int]:
        """Bytes per kind; they never fall, and together they are never below the total.

        Args:
            total_bytes: sent and received at the socket so far.
        """
        with self._lock:
            # Packets are named before they leave, and some never do: then what is named is ahead of the total.
            self._control = max(self._control, total_bytes - sum(self._named.values()))
            return {**self._named, spent.CONTROL: self._control}
