"""The MQTT side that the fake servers share: a client that subscribes before anything else happens and comes back after the broker.

In: the broker's address, what to subscribe to, who is told of a message. Out: messages, in the client's own thread. It understands no
message and decides nothing; that is what the servers are for.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Sequence
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion


class BrokerClient:
    """Connected from `start` to `stop`.

    Args:
        name: client id, and what an error calls it.
        filters: what is subscribed to, with quality of service 1.
        on_message: told of each message, as paho tells it.
    """

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        filters: Sequence[str],
        on_message: Callable[[mqtt.Client, Any, mqtt.MQTTMessage], None],
        *,
        username: str = "",
        password: str = "",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._name, self._address = name, (host, port)
        self._ready = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5)
        if username:
            self._client.username_pw_set(username, password)
        if tls is not None:
            self._client.tls_set_context(tls)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe([(each, 1) for each in filters])
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = on_message

    def start(self) -> None:
        """Connect, and wait until what is sent from now on arrives."""
        self._client.connect(*self._address)
        self._client.loop_start()
        if not self._ready.wait(15):
            raise TimeoutError(f"the broker did not answer the {self._name}")

    def stop(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Send a message."""
        self._client.publish(topic, payload, qos=qos, retain=retain)
