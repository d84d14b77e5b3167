"""An MQTT 5 client without manners: any client id, any will, any session, any certificate; it notes everything that the broker says.

In: an address, what to claim. Out: what came back: reason codes, messages, why TLS ended. It never reconnects.
"""

from __future__ import annotations

import queue
import ssl
import threading
import time
from dataclasses import dataclass, field

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from bowerbird_server.broker.address import BrokerAddress
from bowerbird_server.broker.mqtt_session import new_client
from bowerbird_wire.tls_faults import tls_fault


@dataclass
class Heard:
    """What the broker said."""

    accepted: bool = False
    session_present: bool = False
    tls: str = ""  # a code of tls_faults.py
    messages: list[tuple[str, bytes]] = field(default_factory=list)


class FreeClient:
    """One connection; a context manager. Entering it waits until the broker has accepted or refused.

    Args:
        client_id: what it calls itself, the certificate's name notwithstanding.
        will: topic of a retained will.
        expiry_s: how long the broker should keep the session; with `clean=False` it continues one.
        tls_max: the newest TLS version it offers.
    """

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        *,
        will: str | None = None,
        clean: bool = True,
        expiry_s: int = 0,
        tls_max: ssl.TLSVersion | None = None,
    ) -> None:
        self.heard = Heard()
        self._address, self._clean, self._expiry_s = address, clean, expiry_s
        self._over, self._answered = threading.Event(), threading.Event()
        self._codes: queue.Queue[int] = queue.Queue()
        self.client = new_client(address, client_id)
        self.client.manual_ack_set(False)
        if tls_max is not None:
            assert self.client._ssl_context is not None
            self.client._ssl_context.maximum_version = tls_max
        if will is not None:
            self.client.will_set(will, b"will", 1, retain=True)
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = lambda *_: (self._over.set(), self._answered.set())
        self.client.on_message = lambda _c, _d, message: self.heard.messages.append((message.topic, bytes(message.payload)))
        self.client.on_publish = lambda _c, _d, _mid, reason, _p: self._codes.put(reason.value)
        self.client.on_subscribe = lambda _c, _d, _mid, reasons, _p: self._codes.put(reasons[0].value)

    def __enter__(self) -> FreeClient:
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = self._expiry_s
        try:
            self.client.connect(self._address.host, self._address.port, 30, clean_start=self._clean, properties=properties)
        except ssl.SSLError as error:
            self.heard.tls = tls_fault(error)
            self._over.set()
            return self
        except OSError:
            self._over.set()
            return self
        self.client.loop_start()
        assert self._answered.wait(10), "the broker said nothing"
        if self.client.tls_fault is not None:
            self.heard.tls = tls_fault(self.client.tls_fault)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def _on_connect(self, _c: object, _d: object, flags: mqtt.ConnectFlags, reason: object, _p: object) -> None:
        self.heard.accepted = not reason.is_failure  # type: ignore[attr-defined]
        self.heard.session_present = flags.session_present
        self._answered.set()

    @property
    def over(self) -> bool:
        """Whether the connection has ended."""
        return self._over.is_set()

    def vanish(self) -> None:
        """Cut the line without a good-bye: the broker keeps the session and publishes the will."""
        self.client._sock_close()
        self.client.loop_stop()

    def publish(self, topic: str, payload: bytes = b"x", *, retain: bool = False, timeout_s: float = 5.0) -> int:
        """The reason code of the PUBACK (135: not authorised); -1 when none came."""
        return self._code(lambda: self.client.publish(topic, payload, 1, retain), timeout_s)

    def subscribe(self, topic: str) -> int:
        """The reason code of the SUBACK; it says nothing about what will be delivered."""
        return self._code(lambda: self.client.subscribe(topic, 1), 5.0)

    def _code(self, ask: object, timeout_s: float) -> int:
        while not self._codes.empty():
            self._codes.get_nowait()
        ask()  # type: ignore[operator]
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s and not self.over:
            try:
                return self._codes.get(timeout=0.05)
            except queue.Empty:
                continue
        return -1

    def payloads(self) -> list[bytes]:
        """Of the messages that came, in order."""
        return [payload for _, payload in self.heard.messages]
