"""One connection to the broker, from CONNECT to its end: what paho's callbacks saw of it.

In: a link that owns it (`mqtt_link.py`). Out: events on the link's queue, and fields that its thread reads. Callbacks run in paho's
thread: they note and queue, wait for nothing and hold no lock of ours. It does not decide when to connect again.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from bowerbird_agent.link.link_events import DENIED, LinkUp, MessageIn, Published, packet_bytes
from bowerbird_agent.link.paho_client import CountingClient
from bowerbird_wire.errors import TopicError
from bowerbird_wire.topics import DOWN, AgentJobTopic, BlocksTopic, CreditTopic, DeviceTopic, StatusTopic, parse_topic

if TYPE_CHECKING:
    from paho.mqtt.reasoncodes import ReasonCode

    from bowerbird_agent.link.mqtt_link import MqttLink

RECEIVE_MAXIMUM = 64  # packets of ours that may be unacknowledged; a broker may set a lower number
MAX_INCOMING_BYTES = 2 * 1024 * 1024
_TCP_NOTSENT_LOWAT = 25  # Linux; the socket module does not name it
_NOTSENT_BYTES = 16 * 1024
_SESSION_TAKEN_OVER = 142
_NOT_AUTHORIZED = 135


def _read_topic(text: str) -> DeviceTopic | CreditTopic:
    try:
        return parse_topic(text)
    except TopicError:
        return CreditTopic.parse(text)


class Connection:
    """One paho client from CONNECT to the end, and what its callbacks saw. Callbacks run in paho's thread and only note and queue."""

    def __init__(self, link: MqttLink, number: int) -> None:
        self.link = link
        self.number = number
        self.ended = threading.Event()
        self.reason = ""
        self.fault = ""
        self.refused = False
        self.up = False
        self.progress = False
        self.taken_over = False
        self.max_packet_bytes: int | None = None
        self.receive_maximum = RECEIVE_MAXIMUM
        self.subscribed_s = 0.0
        self.issued = 0  # packets given to paho: changed by publishers only
        self.taken = 0  # packets acknowledged or written: changed by paho's thread only
        self.client = self._build()

    def _build(self) -> CountingClient:
        link, broker = self.link, self.link.broker
        client = CountingClient(
            CallbackAPIVersion.VERSION2,
            client_id=link.device,
            protocol=paho.MQTTv5,
            reconnect_on_failure=False,
            traffic=link.traffic,
        )
        client.suppress_exceptions = True
        client.connect_timeout = broker.connect_timeout_s
        client.max_inflight_messages_set(0xFFFF)  # the limit is ours: paho forgets its own after a reconnect
        client.will_set(str(StatusTopic(link.site, link.device)), link.offline_payload(), qos=1, retain=True)
        if broker.username is not None:
            client.username_pw_set(broker.username, broker.password)
        client.on_socket_open = self._on_socket_open
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        client.on_disconnect = self._on_disconnect
        return client

    def open(self) -> None:
        """Connect and start paho's thread.

        Raises:
            OSError: nobody there, or TLS fails.
            AgentError: the certificate cannot be used.
        """
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho leaves it untyped
        properties.MaximumPacketSize = MAX_INCOMING_BYTES
        properties.SessionExpiryInterval = 0
        broker = self.link.broker
        if broker.tls is not None:
            self.client.tls_set_context(broker.tls())
        self.client.connect(broker.host, broker.port, broker.keepalive_s, clean_start=True, properties=properties)
        self.client.loop_start()

    def _on_socket_open(self, _client: object, _userdata: object, sock: Any) -> None:
        with contextlib.suppress(OSError, AttributeError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # What the kernel holds cannot be overtaken by a receipt or a command: let it hold little.
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _NOTSENT_BYTES)

    def _on_connect(self, _c: object, _u: object, _flags: object, reason: ReasonCode, properties: Properties | None) -> None:
        if reason.is_failure:
            self.refused, self.reason = True, str(reason)
            self.ended.set()
            return
        self.max_packet_bytes = getattr(properties, "MaximumPacketSize", None)
        self.receive_maximum = min(RECEIVE_MAXIMUM, getattr(properties, "ReceiveMaximum", RECEIVE_MAXIMUM))
        own = [(str(kind(self.link.site, self.link.device)), 0 if kind is BlocksTopic else 1) for kind in DOWN]
        topics = [*own, (str(CreditTopic(self.link.site)), 1)]
        self.subscribed_s = time.monotonic()
        self.client.subscribe([(topic, SubscribeOptions(qos=qos)) for topic, qos in topics])

    def _on_subscribe(self, _c: object, _u: object, _mid: int, reasons: list[ReasonCode], _p: object) -> None:
        # Access rules from before agents updated themselves do not know that topic: such a site does without, it is not cut off.
        spared = DOWN.index(AgentJobTopic)
        if any(reason.is_failure for place, reason in enumerate(reasons) if place != spared):
            self.refused, self.reason = True, f"subscription refused: {', '.join(str(reason) for reason in reasons)}"
            self.ended.set()
            return
        self.issued = 1
        self.up = True
        self.client.publish(str(StatusTopic(self.link.site, self.link.device)), self.link.online_payload(), qos=1, retain=True)
        self.link.put(LinkUp(self.max_packet_bytes, self.receive_maximum, time.monotonic() - self.subscribed_s))

    def _on_publish(self, _c: object, _u: object, mid: int, reason: ReasonCode, _p: object) -> None:
        self.taken += 1
        if self.taken == 1 and reason.value == _NOT_AUTHORIZED:
            # Connected and subscribed all the same: rules are looked at only when something is published.
            self.refused, self.fault, self.reason = True, DENIED, str(reason)
            self.ended.set()
            return
        self.progress = self.progress or self.taken > 1  # the first one is the status
        self.link.put(Published(self.token(mid), accepted=not reason.is_failure))

    def _on_message(self, _c: object, _u: object, message: paho.MQTTMessage) -> None:
        try:
            topic = _read_topic(message.topic)
        except (TopicError, UnicodeDecodeError):
            return  # a newer server may know more topics than we do
        if not message.retain:
            self.progress = True  # a retained message is a greeting: it comes on every connection
        self.link.spending.packet(topic, packet_bytes(topic, len(message.payload), qos=message.qos))
        self.link.put(MessageIn(topic, bytes(message.payload)))

    def _on_disconnect(self, _c: object, _u: object, _flags: object, reason: ReasonCode, _p: object) -> None:
        self.taken_over = reason.value == _SESSION_TAKEN_OVER
        self.link.take_overs += self.taken_over and self.up
        self.reason = self.reason or str(reason)
        self.ended.set()

    def token(self, mid: int) -> int:
        """A number for a packet that no other connection uses."""
        return (self.number << 16) | mid
