"""The embedded broker: what it lets a device do, by what is *delivered* (a SUBACK is granted even where nothing ever comes)."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bowerbird_server.broker import BrokerAddress, EmbeddedBroker, find_program
from bowerbird_server.errors import BadInput, Conflict, EnvironmentFault
from bowerbird_server.mqtt_session import check_broker
from bowerbird_server.supervisor import die_with_parent
from bowerbird_testing.mqtt_device import MqttDevice, wait_until
from bowerbird_wire.topics import DOWN, LOCAL, UP, CreditTopic

pytestmark = pytest.mark.broker

DEVICES = {"cam-01": "demo", "cam-02": "demo"}


class Started:
    """An embedded broker that runs, with addresses of the server and of two devices."""

    def __init__(self, folder: Path, program: str) -> None:
        self.broker = EmbeddedBroker(folder, program=program)
        self.server = self.broker.prepare(DEVICES)
        self.devices = {
            name: replace(self.server, username=name, password=self.broker.add_device(name, DEVICES)) for name in DEVICES
        }
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(self.broker.argv(), preexec_fn=die_with_parent())  # noqa: PLW1509 - see supervisor.py
        # Another object of the same folder: a supervisor need not be what prepared it.
        wait_until(EmbeddedBroker(self.broker.folder, program=self.broker.program).ready, "the broker")
        return process

    def restart(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process = self._start()


@pytest.fixture(params=["mosquitto", "iotcore"])
def started(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Started]:
    if request.param == "mosquitto" and find_program("mosquitto") is None:
        pytest.skip("mosquitto is not installed: apt-get install mosquitto")
    if request.param == "iotcore":
        pytest.importorskip("iotcore")
    running = Started(tmp_path / "broker", request.param)
    yield running
    running.process.kill()
    running.process.wait()


def server_device(started: Started) -> MqttDevice:
    """A connection as the server's user, under another client id."""
    return MqttDevice(started.server, "watcher")


def test_server_and_device_hear_each_other_and_passwords_count(started: Started) -> None:
    """The right password opens the way in both directions; a wrong one, and none, are refused with a clear message."""
    address = started.devices["cam-01"]
    with server_device(started) as server, MqttDevice(address, "cam-01") as device:
        server.subscribe("bowerbird/v1/demo/up/+/frame")
        device.publish("bowerbird/v1/demo/up/cam-01/frame", b"x" * 300_000)
        wait_until(lambda: any(len(payload) == 300_000 for _, payload, _ in server.messages), "a large message")
        server.publish("bowerbird/v1/demo/down/cam-01/receipt", b"ok")
        wait_until(lambda: any(payload == b"ok" for _, payload, _ in device.messages), "an answer")
    for wrong in (replace(address, password="wrong"), BrokerAddress(address.host, address.port)):
        with pytest.raises(EnvironmentFault, match=r"password|auth"):
            check_broker(wrong)
    check_broker(address)


def test_a_device_added_later_gets_in_and_a_removed_one_does_not(started: Started) -> None:
    """mosquitto reads its files again by a signal; iotcore ends and is started again."""
    devices = {**DEVICES, "cam-03": "demo"}
    password = started.broker.add_device("cam-03", devices)
    started.broker.remove_device("cam-02", devices)
    if started.broker.program == "iotcore":
        started.process.wait(10)
        started.restart()
    new = replace(started.server, username="cam-03", password=password)
    wait_until(lambda: _accepted(new), "the new device to be let in")
    assert not _accepted(started.devices["cam-02"])
    assert _accepted(started.devices["cam-01"])


def _accepted(address: BrokerAddress) -> bool:
    try:
        check_broker(address)
    except EnvironmentFault:
        return False
    return True


@pytest.mark.skipif(find_program("mosquitto") is None, reason="mosquitto is not installed: apt-get install mosquitto")
def test_no_device_can_publish_or_read_anything_of_another(tmp_path: Path) -> None:
    """cam-01 subscribes to all and publishes as cam-02: neither of them hears any of it; each topic type is tried."""
    started = Started(tmp_path / "broker", "mosquitto")
    try:
        with (
            server_device(started) as server,
            MqttDevice(started.devices["cam-01"], "cam-01") as spy,
            MqttDevice(started.devices["cam-02"], "cam-02") as victim,
        ):
            server.subscribe("bowerbird/#")
            spy.subscribe("#", "bowerbird/v1/demo/down/cam-02/+", "$share/x/bowerbird/v1/demo/up/+/frame")
            for kind in UP + DOWN:
                spy.publish(str(kind("demo", "cam-02")), b"forged")
            for kind in DOWN:
                spy.publish(str(kind("demo", "cam-01")), b"forged")
                server.publish(str(kind("demo", "cam-02")), b"for cam-02", retain=True)
            for kind in UP:
                victim.publish(str(kind("demo", "cam-02")), b"from cam-02", retain=True)
                spy.publish(str(kind("demo", "cam-01")), b"from cam-01")
            # What comes behind all of the above, so that its absence is not just lateness.
            server.publish("bowerbird/v1/demo/down/cam-01/receipt", b"end")
            wait_until(lambda: any(payload == b"end" for _, payload, _ in spy.messages), "the end")
            wait_until(lambda: len(victim.messages) >= len(DOWN), "the victim's own messages")
            wait_until(lambda: sum(payload == b"from cam-01" for _, payload, _ in server.messages) == len(UP), "its own")
            assert {payload for _, payload, _ in spy.messages} == {b"end"}
            assert {payload for _, payload, _ in victim.messages} == {b"for cam-02"}
            assert b"forged" not in {payload for _, payload, _ in server.messages}
            assert sum(payload == b"from cam-02" for _, payload, _ in server.messages) == len(UP)
    finally:
        started.process.kill()
        started.process.wait()


@pytest.mark.skipif(find_program("mosquitto") is None, reason="mosquitto is not installed: apt-get install mosquitto")
def test_a_reader_hears_what_the_cameras_of_its_site_see_and_nothing_else(tmp_path: Path) -> None:
    """Nor can it, or another device, speak in a camera's name; removed, it hears nothing at all."""
    started = Started(tmp_path / "broker", "mosquitto")
    try:
        password = started.broker.add_reader("barrier", "demo", DEVICES)
        # Whoever prepares the folder again, knowing devices only, must not take the reader's rules away.
        EmbeddedBroker(started.broker.folder, program="mosquitto").prepare(DEVICES)
        assert started.broker.readers() == {"barrier": "demo"}
        address = replace(started.server, username="barrier", password=password)
        wait_until(lambda: _accepted(address), "the reader to be let in")
        with (
            MqttDevice(address, "reader") as reader,
            MqttDevice(started.devices["cam-01"], "cam-01") as device,
            MqttDevice(started.devices["cam-02"], "cam-02") as other,
        ):
            reader.subscribe("#")
            other.subscribe("#")
            for kind in LOCAL:
                reader.publish(str(kind("demo", "cam-01", "gate")), b"forged")
                other.publish(str(kind("demo", "cam-01", "gate")), b"forged")
            for up in UP:
                device.publish(str(up("demo", "cam-01")), b"for the server")
            for kind in LOCAL:
                device.publish(str(kind("demo", "cam-01", "gate")), b"seen")
            wait_until(lambda: len(reader.messages) >= len(LOCAL), "what the camera saw")
            assert {payload for _, payload, _ in reader.messages} == {b"seen"}
            assert other.messages == []
        with pytest.raises(Conflict):
            started.broker.add_reader("cam-01", "demo", DEVICES)
        started.broker.remove_device("barrier", DEVICES)
        wait_until(lambda: not _accepted(address), "the reader to be turned away")
        assert started.broker.readers() == {}
    finally:
        started.process.kill()
        started.process.wait()


def test_port_and_passwords_stay_and_no_password_can_be_read(tmp_path: Path) -> None:
    """Preparing again changes nothing that a device was told; files are private, hashes only."""
    if find_program("mosquitto") is None:
        pytest.skip("mosquitto is not installed: apt-get install mosquitto")
    first = EmbeddedBroker(tmp_path / "broker", program="mosquitto")
    address = first.prepare({})
    password = first.add_device("cam-01", {"cam-01": "demo"})
    hashes = (tmp_path / "broker" / "passwords").read_text()
    # A process that asked the catalogue before cam-01 was added must not take its rules away.
    assert EmbeddedBroker(tmp_path / "broker", program="mosquitto").prepare({}) == address
    assert "user cam-01" in (tmp_path / "broker" / "acl").read_text()
    assert (tmp_path / "broker" / "passwords").read_text() == hashes
    for file in (tmp_path / "broker").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert password not in file.read_text()
    assert password not in repr(replace(address, password=password))


def test_iotcore_is_refused_beyond_loopback(tmp_path: Path) -> None:
    """It has no access rules."""
    with pytest.raises(EnvironmentFault, match="mosquitto"):
        EmbeddedBroker(tmp_path, host="192.0.2.1", program="iotcore")


def test_nothing_there_is_said_so() -> None:
    """The message names host and port."""
    with pytest.raises(EnvironmentFault, match=r"no broker at 127\.0\.0\.1:9"):
        check_broker(BrokerAddress("127.0.0.1", 9))


@pytest.mark.parametrize("url", ["http://h:1", "mqtt://", "mqtt://h:port", "h:1883"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    """With the form that is expected."""
    with pytest.raises(BadInput, match="mqtt://"):
        BrokerAddress.from_url(url)


def test_a_url_gives_all_parts() -> None:
    """User and password are percent-decoded; mqtts means TLS and its port."""
    assert BrokerAddress.from_url("mqtts://a%40b:p%3Aw@host") == BrokerAddress("host", 8883, "a@b", "p:w", tls=True)


@pytest.mark.skipif(find_program("mosquitto") is None, reason="mosquitto is not installed: apt-get install mosquitto")
def test_a_device_hears_its_sites_credit_and_cannot_give_one(tmp_path: Path) -> None:
    """A device that could would stop all others, or send them to a full disk."""
    started = Started(tmp_path / "broker", "mosquitto")
    try:
        with server_device(started) as server, MqttDevice(started.devices["cam-01"], "cam-01") as device:
            topic = str(CreditTopic("demo"))
            server.subscribe(topic)
            device.subscribe(topic)
            device.publish(topic, b"forged", retain=True)
            server.publish(topic, b"ours", retain=True)
            wait_until(lambda: any(payload == b"ours" for _, payload, _ in device.messages), "the credit")
            assert {payload for _, payload, _ in server.messages} == {b"ours"}
    finally:
        started.process.kill()
        started.process.wait()
