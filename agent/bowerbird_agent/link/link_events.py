"""Where the broker is, what happens on a connection to it, and how large a packet is there. Values only.

In: nothing. Out: `BrokerSettings`, the events that `mqtt_link.py` puts on the agent's queue, `packet_bytes`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bowerbird_wire.topics import CreditTopic, DeviceTopic

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

DENIED = "denied"  # a fault, beside the codes of tls_faults.py: the broker passes nothing of this device on


@dataclass(frozen=True)
class BrokerSettings:
    """How to reach the broker.

    Args:
        keepalive_s: MQTT keep-alive, whole seconds.
        max_retry_s: the longest wait between two attempts.
        stall_s: a connection on which no byte arrives for this long is given up; None for three keep-alives.
        tls: -> the context for the next connection, so that a renewed certificate is used from then on; None for plain TCP.
    """

    host: str
    port: int = 1883
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    keepalive_s: int = 30
    connect_timeout_s: float = 10.0
    max_retry_s: float = 120.0
    stall_s: float | None = None
    tls: Callable[[], ssl.SSLContext] | None = None


@dataclass(frozen=True)
class LinkUp:
    """Connected and subscribed. Limits of the broker: largest packet (None: none), packets that may be unacknowledged.

    `rtt_s` is the round trip of the subscription, with nothing else on the link.
    """

    max_packet_bytes: int | None
    receive_maximum: int
    rtt_s: float = 0.0


@dataclass(frozen=True)
class LinkDown:
    """The connection ended or could not be made. `refused`: the broker is there and does not want this device.

    `fault` is a code of `tls_faults.py` where TLS failed, "denied" where the broker passes nothing of this device on; else empty.
    """

    reason: str
    refused: bool = False
    retry_in_s: float = 0.0
    fault: str = ""


@dataclass(frozen=True)
class Published:
    """The broker has taken a packet (PUBACK; QoS 0: written). It proves nothing about the server."""

    token: int
    accepted: bool = True


@dataclass(frozen=True)
class MessageIn:
    """A message for this device, not yet decoded."""

    topic: DeviceTopic | CreditTopic
    payload: bytes


LinkEvent = LinkUp | LinkDown | Published | MessageIn


def packet_bytes(topic: DeviceTopic | CreditTopic, payload_bytes: int, *, qos: int = 1) -> int:
    """Size of the PUBLISH packet on the wire, MQTT 5 without properties."""
    rest = 2 + len(str(topic)) + (2 if qos else 0) + 1 + payload_bytes
    length_digits = 1 + (rest > 127) + (rest > 16_383) + (rest > 2_097_151)
    return 1 + length_digits + rest
