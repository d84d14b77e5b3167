"""The server's MQTT connections: a session that comes back by itself and acknowledges by hand.

In: broker address, client id, subscriptions. Out: events on one queue. Each connection gets a client of its own, so nothing that an
old connection queued or received can be sent or acknowledged on a new one. Callbacks only put events on the queue; what a message
means is not known here.
"""

from __future__ import annotations

import logging
import queue
import random
import ssl
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from bowerbird_server.broker.address import BrokerAddress
from bowerbird_server.broker.config import MAX_PACKET_BYTES
from bowerbird_server.broker.mqtt_client import TlsClient
from bowerbird_server.broker.mqtt_packets import Publish
from bowerbird_server.errors import EnvironmentFault
from bowerbird_wire.tls_faults import explain_tls

log = logging.getLogger(__name__)

SESSION_EXPIRY_S = 600
RECEIVE_MAXIMUM = 32
KEEPALIVE_S = 30
CONNECT_TIMEOUT_S = 10.0
RETRY_MAX_S = 15.0


@dataclass(frozen=True)
class Connected:
    """The session stands; what should be retained must be published again."""

    epoch: int


@dataclass(frozen=True)
class Arrived:
    """A message, not acknowledged yet. `epoch` names the connection that brought it."""

    epoch: int
    topic: str
    payload: bytes
    mid: int
    qos: int


Event = Connected | Arrived


def explain_refusal(address: BrokerAddress, reason: str) -> str:
    """What to do when the broker answers a connection with `reason`."""
    where = f"the broker at {address.host}:{address.port}"
    if address.tls and not address.password:
        return f"{where} refuses this process's certificate or its rights: {reason}. See the broker's log."
    if "auth" in reason.lower() or "password" in reason.lower():
        return f"{where} refuses user {address.username!r}: wrong password or user. Put the right one into the broker's URL or file."
    return f"{where} refuses the connection: {reason}. Check its log, and that it speaks MQTT 5."


class MqttSession:
    """One persistent session (fixed client id, expiry 10 minutes) with a bounded number of unacknowledged messages.

    Args:
        address: of the broker.
        client_id: fixed, so that the broker keeps what arrives while this process restarts.
        filters: subscriptions, QoS 1.
        receive_maximum: messages that the broker sends before it waits for acknowledgements.
    """

    def __init__(
        self, address: BrokerAddress, client_id: str, filters: Sequence[str], *, receive_maximum: int = RECEIVE_MAXIMUM
    ) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._address = address
        self._client_id = client_id
        self._filters = list(filters)
        self._receive_maximum = receive_maximum
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._client: TlsClient | None = None  # of the connection that stands
        self._epoch = 0
        self._thread = threading.Thread(target=self._run, name=f"mqtt {client_id}", daemon=True)
        self._complained = False

    def start(self) -> None:
        """Connect, and again whenever the connection ends."""
        self._thread.start()

    def stop(self) -> None:
        """Disconnect; the broker keeps the session until it expires."""
        self._stop.set()
        self._thread.join(CONNECT_TIMEOUT_S + 5)

    @property
    def is_connected(self) -> bool:
        """Whether a connection stands."""
        return self._client is not None

    def is_current(self, arrived: Arrived) -> bool:
        """Whether the connection that brought a message still stands; else the broker brings the message again."""
        return self._client is not None and arrived.epoch == self._epoch

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        """Hand a message to the connection that stands; False when there is none."""
        client = self._client
        return client is not None and client.publish(topic, payload, qos, retain).rc == MQTTErrorCode.MQTT_ERR_SUCCESS

    def acknowledge(self, arrived: Arrived) -> bool:
        """Acknowledge a message on the connection that brought it; False when that is gone."""
        return self.acknowledge_all([arrived])

    def acknowledge_all(self, group: Sequence[Arrived]) -> bool:
        """Acknowledge messages with one write, each on the connection that brought it; False when that is gone for any of them."""
        with self._lock:
            if self._client is None:
                return False
            mids = [arrived.mid for arrived in group if arrived.epoch == self._epoch and arrived.qos]
            sent = not mids or self._client.acknowledge(mids)
            return sent and all(arrived.epoch == self._epoch for arrived in group)

    def _run(self) -> None:
        retry_s = 0.2
        while not self._stop.is_set():
            if self._connect_once():
                retry_s = 0.2
            # Jitter, so that the processes of one server do not come back in step.
            self._stop.wait(retry_s * random.uniform(0.7, 1.3))  # noqa: S311 - not for secrets
            retry_s = min(retry_s * 2, RETRY_MAX_S)

    def _connect_once(self) -> bool:
        """Connect and stay until the connection ends; whether it ever stood."""
        self._epoch += 1
        epoch = self._epoch
        stood, gone = threading.Event(), threading.Event()
        try:
            client = new_client(self._address, self._client_id)
        except EnvironmentFault as error:
            self._complain(f"{error}. Trying again.")
            return False

        def on_connect(_client: mqtt.Client, _data: object, _flags: object, reason: ReasonCode, _props: object) -> None:
            if reason.is_failure:
                self._complain(explain_refusal(self._address, str(reason)))
                gone.set()
                return
            self._client = client
            stood.set()
            self._complained = False
            log.info("%s connected to the broker at %s:%s", self._client_id, self._address.host, self._address.port)
            if self._filters:
                client.subscribe([(text, SubscribeOptions(qos=1)) for text in self._filters])
            self.events.put(Connected(epoch))

        def on_publish_packet(message: Publish) -> None:
            self.events.put(Arrived(epoch, message.topic, message.payload, message.mid, message.qos))

        def on_disconnect(*_: object) -> None:
            gone.set()

        client.on_connect = on_connect
        client.on_publish_packet = on_publish_packet
        client.on_disconnect = on_disconnect
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho has no annotation here
        properties.SessionExpiryInterval = SESSION_EXPIRY_S
        properties.ReceiveMaximum = self._receive_maximum
        properties.MaximumPacketSize = MAX_PACKET_BYTES
        try:
            client.connect(self._address.host, self._address.port, KEEPALIVE_S, clean_start=False, properties=properties)
        except (OSError, ValueError) as error:
            self._complain(f"{_why_not(self._address, error)} Trying again.")
            return False
        client.loop_start()
        while not self._stop.is_set() and not gone.wait(0.2):
            pass
        with self._lock:
            self._client = None
        if self._stop.is_set():
            client.disconnect()
        elif stood.is_set():
            log.warning("%s lost the broker at %s:%s; reconnecting", self._client_id, self._address.host, self._address.port)
        else:
            self._complain(closed_early(self._address, client.tls_fault))
        client.loop_stop()
        return stood.is_set()

    def _complain(self, text: str) -> None:
        log.log(logging.DEBUG if self._complained else logging.WARNING, "%s: %s", self._client_id, text)
        self._complained = True


def new_client(address: BrokerAddress, client_id: str) -> TlsClient:
    """A paho client that acknowledges by hand and does not reconnect by itself. Certificates are read from disk now.

    Raises:
        EnvironmentFault: a certificate cannot be used.
    """
    client = TlsClient(
        CallbackAPIVersion.VERSION2, client_id, protocol=mqtt.MQTTv5, manual_ack=True, reconnect_on_failure=False
    )
    client.connect_timeout = CONNECT_TIMEOUT_S
    if address.username:
        client.username_pw_set(address.username, address.password)
    context = address.tls_context(client_id)
    if context is not None:
        client.tls_set_context(context)
    return client


def closed_early(address: BrokerAddress, fault: ssl.SSLError | None) -> str:
    """What it means that the broker closed a connection before it answered."""
    where = f"the broker at {address.host}:{address.port}"
    if fault is not None:
        return f"{where}: {explain_tls(fault)}"
    if address.tls:
        return f"{where} closed the connection before it answered: it may not accept this certificate; see the broker's log."
    return f"{where} closed the connection: wrong password, or it wants TLS (mqtts://)?"


def _why_not(address: BrokerAddress, error: Exception) -> str:
    where = f"{address.host}:{address.port}"
    if isinstance(error, ssl.SSLError):
        return f"the broker at {where}: {explain_tls(error)}"
    return f"no broker at {where}: {error}. Is it running?"


def check_broker(address: BrokerAddress, client_id: str = "", *, timeout_s: float = 5.0) -> None:
    """Log in once and leave.

    Raises:
        EnvironmentFault: nothing listens there, the password is wrong, or it is no MQTT 5 broker; the text says which.
    """
    answers: queue.Queue[str] = queue.Queue()
    client = new_client(address, client_id)
    client.on_connect = lambda _c, _d, _f, reason, _p: answers.put(str(reason) if reason.is_failure else "")
    client.on_disconnect = lambda *_: answers.put(closed_early(address, client.tls_fault))
    try:
        client.connect(address.host, address.port, KEEPALIVE_S)
    except (OSError, ValueError) as error:
        raise EnvironmentFault(f"{_why_not(address, error)} Start it, or correct the address.") from error
    client.loop_start()
    try:
        answer = answers.get(timeout=timeout_s)
    except queue.Empty:
        answer = f"no answer within {timeout_s:g} s"
    client.disconnect()
    client.loop_stop()
    if answer:
        raise EnvironmentFault(answer if answer.startswith("the broker at ") else explain_refusal(address, answer))
