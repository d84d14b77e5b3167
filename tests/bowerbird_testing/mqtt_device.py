"""A device reduced to its MQTT connection: publishes what a test tells it to and remembers what it receives.

In: broker address, site and device name. Out: `publish`, and the receipts and messages that came. It keeps no spool and resends
nothing by itself; a test does that when it plays the agent's part.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from bowerbird_server.broker.address import BrokerAddress
from bowerbird_wire.codec import decode, encode_frame
from bowerbird_wire.messages import FrameMessage, Receipt
from bowerbird_wire.topics import FrameTopic, ReceiptTopic


class MqttDevice:
    """A connected device; a context manager."""

    def __init__(self, address: BrokerAddress, device: str, *, site: str = "demo", username: str | None = None) -> None:
        self.site, self.device = site, device
        self.messages: list[tuple[str, bytes, bool]] = []  # topic, payload, retained
        self._lock = threading.Lock()
        self._subscribed = threading.Event()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, device, protocol=mqtt.MQTTv5)
        context = address.tls_context(device)
        if context is not None:
            self.client.tls_set_context(context)
        if context is None or address.password:
            self.client.username_pw_set(username or address.username or device, address.password)
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = lambda client, *_: client.subscribe(f"bowerbird/v1/{site}/down/{device}/+", 1)
        self.client.on_subscribe = lambda *_: self._subscribed.set()
        self.client.on_message = self._received
        self._address = address

    def __enter__(self) -> MqttDevice:
        self.client.connect(self._address.host, self._address.port)
        self.client.loop_start()
        assert self._subscribed.wait(10), "the broker did not accept the device"
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def _received(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        with self._lock:
            self.messages.append((message.topic, bytes(message.payload), message.retain))

    def subscribe(self, *filters: str) -> None:
        """Subscribe and wait for the SUBACK."""
        self._subscribed.clear()
        self.client.subscribe([(text, 1) for text in filters])
        assert self._subscribed.wait(20), "no SUBACK"

    def send_frame(self, message: FrameMessage) -> None:
        """Publish a frame and wait for the PUBACK."""
        self.publish(str(FrameTopic(self.site, self.device)), encode_frame(message))

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish with QoS 1 and wait for the PUBACK."""
        self.client.publish(topic, payload, 1, retain).wait_for_publish(20)

    def receipts(self) -> list[Receipt]:
        """All receipts so far."""
        topic = str(ReceiptTopic(self.site, self.device))
        with self._lock:
            return [decode(Receipt, payload) for t, payload, _ in self.messages if t == topic]

    def committed(self) -> list[str]:
        """Ids that receipts called committed, in order, repeats included."""
        return [frame for receipt in self.receipts() for frame in receipt.committed]

    def refused(self) -> dict[str, str]:
        """Frame id -> code of the refusals so far."""
        return {no.frame_id: no.code for receipt in self.receipts() for no in receipt.refused}


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    """Return as soon as `condition()` holds; fail with `what` when it never does."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"timed out: {what}"
        time.sleep(0.02)


def wait_for_ingest(address: BrokerAddress) -> None:
    """Return once an ingest answers: before it has subscribed for the first time a broker keeps nothing for it."""
    with MqttDevice(address, "probe") as probe:
        topic = str(FrameTopic("demo", "probe"))

        def answered() -> bool:
            probe.publish(topic, b"?")
            return bool(probe.receipts())

        wait_until(answered, "an answer from ingest")
