"""The server's MQTT connection at a real broker, over TLS and plain: what is read at once is what paho reads one by one."""

from __future__ import annotations

import queue
import random
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from bowerbird_server.broker.address import BrokerAddress
from bowerbird_server.broker.embedded import find_program
from bowerbird_server.broker.mqtt_session import Arrived, MqttSession
from bowerbird_testing.broker import Mosquitto
from bowerbird_testing.mqtt_device import MqttDevice, wait_until
from bowerbird_testing.tls_broker import TlsBroker

pytestmark = pytest.mark.broker

TOPIC = "bowerbird/v1/demo/up/cam-01/frame"
CONNACK = b"\x20\x03\x00\x00\x00"
WINDOW = 8


@pytest.fixture(params=["tls", "plain"])
def addresses(request: pytest.FixtureRequest, tmp_path: Path, authority: Path) -> Iterator[tuple[BrokerAddress, BrokerAddress]]:
    """Of the server and of the device."""
    if request.param == "plain":
        plain: Mosquitto = request.getfixturevalue("broker")
        yield (BrokerAddress(plain.host, plain.port),) * 2
        return
    if find_program("mosquitto") is None:
        pytest.skip("mosquitto is not installed: apt-get install mosquitto")
    with TlsBroker(tmp_path, {"cam-01": "demo"}, authority=authority) as site:
        yield site.server, site.address("cam-01")


def arrivals(session: MqttSession, count: int) -> list[Arrived]:
    """The next messages, not acknowledged."""
    out: list[Arrived] = []
    while len(out) < count:
        event = session.events.get(timeout=30)
        if isinstance(event, Arrived):
            out.append(event)
    return out


def until_subscribed(session: MqttSession, device: MqttDevice) -> None:
    """The CONNACK says nothing of the subscription: until that stands, the broker drops what is published."""
    for number in range(100):
        device.publish(TOPIC, b"probe %d" % number)
        with suppress(queue.Empty):
            while True:
                event = session.events.get(timeout=0.2)
                if isinstance(event, Arrived):
                    session.acknowledge(event)
                    if event.payload == b"probe %d" % number:
                        return
    raise AssertionError("no message arrived")


def test_messages_of_every_size_arrive_whole_and_in_order(addresses: tuple[BrokerAddress, BrokerAddress]) -> None:
    """Acknowledged in groups of the window: without that the broker would send no more."""
    server, device_address = addresses
    dice = random.Random(5)
    sizes = [0, 1, 120, 127, 128, 16_300, 16_384, 16_385, 60_000, 262_144, 300_000, 1_500_000] + [
        dice.randrange(90_000) for _ in range(28)
    ]
    payloads = [dice.randbytes(size) for size in sizes]
    session = MqttSession(server, "bowerbird-ingest", ["bowerbird/v1/+/up/+/frame"], receive_maximum=WINDOW)
    session.start()
    try:
        with MqttDevice(device_address, "cam-01") as device:
            until_subscribed(session, device)
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call] # paho has no annotation here
            properties.UserProperty = [("seen", "by nobody")] * 9
            for number, payload in enumerate(payloads):
                device.client.publish(TOPIC, payload, 1, properties=properties if number % 3 else None)
            taken: list[Arrived] = []
            while len(taken) < len(payloads):
                group = arrivals(session, min(WINDOW, len(payloads) - len(taken)))
                assert session.acknowledge_all(group)
                taken += group
            device.publish(TOPIC, b"the last")
            (last,) = arrivals(session, 1)
    finally:
        session.stop()
    assert [(one.topic, one.qos) for one in taken] == [(TOPIC, 1)] * len(payloads)
    assert [one.payload for one in taken] == payloads
    assert last.payload == b"the last"


def test_messages_of_a_connection_that_has_ended_are_not_acknowledged_on_the_next_one(broker: Mosquitto) -> None:
    address = BrokerAddress(broker.host, broker.port)
    session = MqttSession(address, "bowerbird-ingest", ["bowerbird/v1/+/up/+/frame"])
    session.start()
    try:
        with MqttDevice(address, "cam-01") as device:
            until_subscribed(session, device)
            device.publish(TOPIC, b"first")
            (before,) = arrivals(session, 1)
        broker.kill()
        wait_until(lambda: not session.is_current(before), "the end of the connection")
        broker.start()
        wait_until(lambda: session.is_connected, "a new connection", timeout_s=30)
        assert not session.acknowledge_all([before])
        assert session.acknowledge_all([])
    finally:
        session.stop()


class StrangeBroker:
    """Lets one connection after the other in, and says to each what a test wants after the CONNACK."""

    def __init__(self, sayings: Sequence[bytes]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.ended: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._sayings = sayings
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for saying in self._sayings:
            connection, _ = self._listener.accept()
            with connection:
                connection.settimeout(10)
                connection.recv(4096)
                connection.sendall(CONNACK + saying)
                try:
                    while connection.recv(4096):
                        pass
                except ConnectionResetError:
                    pass
            self.ended.put(saying)
        self._listener.close()


def test_bytes_that_are_no_mqtt_end_the_connection_and_not_the_process() -> None:
    """A length of five bytes, a packet beyond all limits, a message without a topic: each time a new connection is made."""
    sayings = [b"\x30\xff\xff\xff\xff\x01", b"\x30\xff\xff\xff\x7f", b"\x32\x04\x00\x09ab"]
    strange = StrangeBroker(sayings)
    session = MqttSession(BrokerAddress("127.0.0.1", strange.port), "bowerbird-ingest", [])
    session.start()
    try:
        assert [strange.ended.get(timeout=30) for _ in sayings] == sayings
    finally:
        session.stop()
