"""The MQTT connection of a device: paho does the bytes, this contains its faults.

In: payloads to publish. Out: events on one queue (`LinkUp`, `LinkDown`, `Published`, `MessageIn`) and two byte counters. Every
connection is a new paho client, so nothing that paho queued survives into the next one: what was not acknowledged is the
uploader's business. It does not retry messages, keeps nothing on disk, and decodes no payload.

Contained here and in `connection.py`: paho's callbacks only put events on the queue (an exception in one would end its thread
unseen); a message above the broker's packet limit is refused instead of blocking everything behind it; the broker's Receive Maximum
holds on every connection; a watchdog ends a connection on which no byte moves; no lock of ours is held in a callback.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import random
import secrets
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from bowerbird_agent.budget.spending import Spending
from bowerbird_agent.errors import AgentError
from bowerbird_agent.link.connection import Connection
from bowerbird_agent.link.link_events import DENIED, BrokerSettings, LinkDown, LinkEvent, packet_bytes
from bowerbird_agent.link.paho_client import Traffic
from bowerbird_agent.link.reconnect import ReconnectDelay
from bowerbird_agent.link.wire_count import of_failed_attempt
from bowerbird_wire import codec
from bowerbird_wire.messages import Status
from bowerbird_wire.tls_faults import OTHER, explain_tls, tls_fault
from bowerbird_wire.topics import DeviceTopic

log = logging.getLogger(__name__)

_BUSY_STALL_S = 90.0  # with packets on their way; an idle link is only asked at every keep-alive
_DISCONNECT_WITH_WILL = 4


class MqttLink:
    """Keeps one device connected. `start` returns at once; everything that happens arrives on `on_event`.

    Args:
        broker: where and as whom.
        site, device: names in the topics; the device is the client id as well.
        on_event: unbounded queue of `LinkEvent`.
        online: -> what to say when connected; called in paho's thread, must not block.
        offline: the will: what the broker says when the connection is lost.
        seed: of the jitter; None for a random one.
    """

    def __init__(
        self,
        broker: BrokerSettings,
        site: str,
        device: str,
        on_event: queue.Queue[Any],
        *,
        online: Callable[[], Status],
        offline: Status,
        seed: int | None = None,
    ) -> None:
        self.broker = broker
        self.site = site
        self.device = device
        self.traffic = Traffic()
        self.spending = Spending()
        self._events = on_event
        self._online = online
        self._offline = offline
        self._delay = ReconnectDelay(random.Random(seed).random, max_s=broker.max_retry_s)  # noqa: S311 - jitter, not a secret
        self._stopping = threading.Event()
        self._publishing = threading.Lock()  # held by publishers only, never in a callback
        self._connection: Connection | None = None
        self._thread: threading.Thread | None = None
        self._connections = 0
        self._warned = False
        self._told_fault = ""
        self.link_id = ""  # of the connection that there is, or is tried: a random word
        self.take_overs = 0  # connections that were up and ended because another one has this device's name

    # -- for the agent

    def start(self) -> None:
        """Begin to connect, in a thread of its own."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name=f"link-{self.device}", daemon=True)
        self._thread.start()

    def stop(self, *, timeout_s: float = 5.0) -> None:
        """Say good-bye (the broker then publishes the will) and end the thread."""
        self._stopping.set()
        deadline_s = time.monotonic() + timeout_s
        connection = self._connection
        if connection is not None:
            if connection.up:
                with contextlib.suppress(OSError, ValueError):
                    connection.client.disconnect(ReasonCode(PacketTypes.DISCONNECT, identifier=_DISCONNECT_WITH_WILL))
                connection.ended.wait(timeout_s / 2)
            connection.ended.set()
        if self._thread is not None:
            self._thread.join(max(0.0, deadline_s - time.monotonic()))
            self._thread = None

    def reconnect(self, why: str) -> None:
        """End the connection that there is and make the next one at once; what was under way is sent again."""
        connection = self._connection
        if connection is not None and connection.up:
            connection.progress, connection.reason = True, why
            connection.ended.set()

    @property
    def denied(self) -> bool:
        """Whether the broker lets this device in and passes nothing of it on."""
        return self._told_fault == DENIED and not self.connected

    @property
    def attempt(self) -> tuple[int, str]:
        """The connection that there is, or is tried: its number since the start, and a random word."""
        return self._connections, self.link_id

    @property
    def connected(self) -> bool:
        """Whether a publish has a chance. True only after the broker has accepted connection and subscriptions."""
        connection = self._connection
        return connection is not None and connection.up and not connection.ended.is_set()

    @property
    def in_flight(self) -> int:
        """Packets handed to the connection that are neither acknowledged nor, for QoS 0, written yet."""
        connection = self._connection
        return 0 if connection is None else connection.issued - connection.taken

    @property
    def bytes_sent(self) -> int:
        """Bytes that left over the network since the start, at the link: every packet, resends, keep-alives and headers included."""
        self._look()
        return self.traffic.on_wire.sent

    @property
    def bytes_received(self) -> int:
        """Bytes that came over the network since the start, at the link."""
        self._look()
        return self.traffic.on_wire.received

    def _look(self) -> None:
        connection = self._connection
        if connection is not None:
            connection.client.look()

    def publish(
        self, topic: DeviceTopic, payload: bytes, *, qos: int = 1, retain: bool = False, kind: str | None = None
    ) -> int:
        """Hand a packet to the connection. `kind`: what its bytes are spent on, None for what the topic says.

        Returns:
            A token that a `Published` event will carry (never 0). 0: not taken, because the link is down, too many packets are
            unacknowledged, or the packet is larger than the broker allows. Nothing is queued then; a token is no promise either.
        """
        with self._publishing:
            connection = self._connection
            if connection is None or not self.connected:
                return 0
            if connection.issued - connection.taken >= connection.receive_maximum:
                return 0
            limit = connection.max_packet_bytes
            if limit is not None and packet_bytes(topic, len(payload), qos=qos) > limit:
                log.debug("%s: a message of %s bytes is above the broker's packet limit of %s", topic, len(payload), limit)
                return 0
            connection.issued += 1
            try:
                sent = connection.client.publish(str(topic), payload, qos=qos, retain=retain)
            except (OSError, ValueError, RuntimeError) as error:
                log.debug("publish on %s failed: %s", topic, error)
                return 0
            if sent.rc != paho.MQTT_ERR_SUCCESS:
                return 0
            self.spending.packet(topic, packet_bytes(topic, len(payload), qos=qos), kind)
            return connection.token(sent.mid)

    # -- for the connection

    def put(self, event: LinkEvent) -> None:
        """Queue an event; called in paho's thread."""
        self._events.put_nowait(event)

    def online_payload(self) -> bytes:
        """The retained status while connected."""
        try:
            return codec.encode(self._online())
        except Exception:  # the agent's own fault must not keep it off the air
            log.exception("device %s: the status cannot be made; it is sent without details", self.device)
            return codec.encode(Status("online"))

    def offline_payload(self) -> bytes:
        """The will."""
        return codec.encode(self._offline)

    # -- the thread

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._connections += 1
            self.link_id = secrets.token_hex(4)
            connection = Connection(self, self._connections)
            try:
                connection.open()
            except ssl.SSLError as error:
                connection.fault, connection.reason = tls_fault(error), explain_tls(error)
            except (OSError, ValueError) as error:
                connection.reason = f"{type(error).__name__}: {error}"
            except AgentError as error:
                connection.fault, connection.reason = OTHER, str(error)
                self.traffic.look(of_failed_attempt())
            else:
                self._connection = connection
                if self._stopping.is_set():
                    connection.ended.set()
                self._watch(connection)
            self._connection = None
            self._look_for_refusal(connection)
            connection.client.abandon()
            progress = connection.progress and not connection.taken_over
            retry_in_s = self._delay.after(progress=progress)
            if not self._stopping.is_set():
                self._tell(connection, retry_in_s)
            self.put(LinkDown(connection.reason or "closed", connection.refused, retry_in_s, connection.fault))
            self._stopping.wait(retry_in_s)

    def _watch(self, connection: Connection) -> None:
        """Wait for the end of a connection, and make it end when no byte moves any more."""
        broker = self.broker
        stall_s = broker.stall_s if broker.stall_s is not None else 3.0 * broker.keepalive_s
        limit_s = broker.connect_timeout_s  # until it is up
        received, since = -1, time.monotonic()
        busy_since: float | None = None  # since when packets wait for an answer
        while not connection.ended.wait(min(1.0, limit_s / 4)):
            if connection.up:
                self._warned = False
                limit_s = stall_s
            if self.traffic.received != received:
                received, since = self.traffic.received, time.monotonic()
            now_s = time.monotonic()
            busy_since = None if not self.in_flight else busy_since or now_s
            silent_s = now_s - since
            if busy_since is not None and connection.up:
                limit_s = min(stall_s, _BUSY_STALL_S)
                silent_s = now_s - max(since, busy_since)
            if silent_s > limit_s:
                connection.reason = f"no byte from the broker for {limit_s:.0f} s"
                return
            if not connection.client.thread_alive():
                connection.reason = connection.reason or "the network thread ended"
                return

    def _look_for_refusal(self, connection: Connection) -> None:
        """With TLS 1.3 a refused certificate looks like a connection that was made and lost at once."""
        fault = connection.client.tls_fault
        if fault is not None:
            connection.fault, connection.reason, connection.refused = tls_fault(fault), explain_tls(fault), True

    def _tell(self, connection: Connection, retry_in_s: float) -> None:
        """The first failure of a kind is a warning that says what to do, the repeats are for the curious."""
        level = logging.DEBUG if self._warned and connection.fault == self._told_fault else logging.WARNING
        self._warned, self._told_fault = True, connection.fault
        where = f"{self.broker.host}:{self.broker.port}"
        if connection.fault == DENIED:
            what = (
                f"broker {where} passes nothing of device {self.device} on: it was suspended or retired, or waits for approval"
            )
            advice = "ask who runs the server (`bowerbird devices list`); frames wait in the spool"
        elif connection.fault:
            what = f"no TLS with broker {where}: {connection.reason.rstrip('.')}"
            advice = "frames wait in the spool"
        elif connection.refused:
            what = f"broker {where} refuses device {self.device} ({connection.reason})"
            advice = "check the certificate, or broker.username and broker.password_file, and that the server knows the device"
        elif connection.taken_over:
            what = f"broker {where} has a newer connection with the name {self.device}"
            advice = "two agents run with one device.id: give each its own"
        elif connection.up:
            what = f"connection to broker {where} lost ({connection.reason})"
            advice = "frames wait in the spool"
        else:
            what = f"broker {where} cannot be reached ({connection.reason})"
            advice = "check broker.host and broker.port, and that the server runs"
        log.log(level, "%s: %s; next attempt in %.1f s", what, advice, retry_in_s)
