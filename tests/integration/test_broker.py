"""The embedded broker: its files, its certificates, its names. What it lets whom do: tests/security/test_broker_delivery.py."""

from __future__ import annotations

import re
import socket
import stat
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bowerbird_server.broker.address import BrokerAddress
from bowerbird_server.broker.certificates import read_leaf
from bowerbird_server.broker.embedded import EmbeddedBroker, find_program
from bowerbird_server.broker.mqtt_session import check_broker
from bowerbird_server.errors import BadInput, Conflict, EnvironmentFault
from bowerbird_server.identity.authority import Authority, common_name
from bowerbird_testing.mqtt_device import MqttDevice, wait_until
from bowerbird_testing.tls_broker import WATCHER, TlsBroker

pytestmark = pytest.mark.broker

DEVICES = {"cam-01": "demo", "cam-02": "demo"}


@pytest.fixture(params=["mosquitto", "iotcore"])
def started(request: pytest.FixtureRequest, tmp_path: Path, authority: Path) -> Iterator[TlsBroker]:
    if request.param == "mosquitto" and find_program("mosquitto") is None:
        pytest.skip("mosquitto is not installed: apt-get install mosquitto")
    if request.param == "iotcore":
        pytest.importorskip("iotcore")
    with TlsBroker(tmp_path, DEVICES, authority=authority, program=request.param) as running:
        yield running


@pytest.fixture
def mosquitto(tmp_path: Path, authority: Path) -> Iterator[TlsBroker]:
    if find_program("mosquitto") is None:
        pytest.skip("mosquitto is not installed: apt-get install mosquitto")
    with TlsBroker(tmp_path, DEVICES, authority=authority) as running:
        yield running


def test_server_and_device_hear_each_other_and_who_shows_nothing_is_refused(started: TlsBroker) -> None:
    """A large message and its answer pass; without certificate or password, and with wrong ones, the way is shut, and why is told."""
    address = started.address("cam-01")
    with MqttDevice(started.server, WATCHER) as server, MqttDevice(address, "cam-01") as device:
        server.subscribe("bowerbird/v1/demo/up/+/frame")
        device.publish("bowerbird/v1/demo/up/cam-01/frame", b"x" * 300_000)
        wait_until(lambda: any(len(payload) == 300_000 for _, payload, _ in server.messages), "a large message")
        server.publish("bowerbird/v1/demo/down/cam-01/receipt", b"ok")
        wait_until(lambda: any(payload == b"ok" for _, payload, _ in device.messages), "an answer")
    nothing = replace(address, certificate="", username="", password="")
    for wrong in (nothing, replace(nothing, username="cam-01", password="wrong")):
        with pytest.raises(EnvironmentFault, match=r"password|auth|certificate"):
            check_broker(wrong, "cam-01")
    check_broker(address, "cam-01")


def test_iotcore_lets_in_a_device_that_was_added_and_not_one_that_was_removed(tmp_path: Path) -> None:
    """It ends at each change, and its supervisor starts it anew."""
    pytest.importorskip("iotcore")
    with TlsBroker(tmp_path, DEVICES, program="iotcore") as started:
        removed = started.address("cam-02")
        started.devices["cam-03"] = "demo"
        started.passwords["cam-03"] = started.broker.add_device("cam-03", started.devices)
        started.broker.remove_device("cam-02", started.devices)
        assert started.process is not None
        started.process.wait(10)
        started.restart()
        wait_until(lambda: _accepted(started.address("cam-03")), "the new device to be let in")
        assert not _accepted(removed)
        assert _accepted(started.address("cam-01"))


def _accepted(address: BrokerAddress) -> bool:
    try:
        check_broker(address)
    except EnvironmentFault:
        return False
    return True


def test_port_and_names_stay_and_no_key_can_be_read(tmp_path: Path, authority: Path) -> None:
    """Preparing again changes nothing that others were told; every file is private; nothing says what another site could guess."""
    if find_program("mosquitto") is None:
        pytest.skip("mosquitto is not installed: apt-get install mosquitto")

    def broker() -> EmbeddedBroker:
        return EmbeddedBroker(tmp_path / "broker", program="mosquitto", authority=authority)

    address = broker().prepare({})
    names = broker().certificates.names()
    assert broker().add_device("cam-01", {"cam-01": "demo"}) is None
    # A process that asked the catalogue before cam-01 was added must not take its rules away.
    assert broker().prepare({}, clients=("bowerbird-ingest",), afresh=True) == address
    assert "user cam-01" in (tmp_path / "broker" / "acl").read_text()
    assert broker().certificates.names() == names
    assert all(re.fullmatch(r"svc-(ingest|delivery)-[0-9a-f]{32}", name) for name in names)
    for file in (tmp_path / "broker").rglob("*"):
        assert stat.S_IMODE(file.stat().st_mode) == (0o700 if file.is_dir() else 0o600)
    broker().prepare({}, exact=True)
    assert "user cam-01" not in (tmp_path / "broker" / "acl").read_text()


def test_the_brokers_certificate_is_renewed_before_it_ends_and_without_a_word_when_it_is_good(mosquitto: TlsBroker) -> None:
    """The running broker shows the new one, and connections stand; a name under which devices reach it comes in at once."""
    now = datetime.now(tz=UTC)
    assert not mosquitto.broker.upkeep(now)
    # Back-dated by a day, so that one of an hour has little left.
    ends_soon = Authority.open(mosquitto.authority).server_certificate(
        ["127.0.0.1", "localhost"], now=now, life=timedelta(hours=1)
    )
    mosquitto.broker.certificates.server_file.write_bytes(ends_soon)
    mosquitto.restart()
    with MqttDevice(mosquitto.address("cam-01"), "cam-01") as device:
        first = _shown(mosquitto)
        assert mosquitto.broker.upkeep(now)
        wait_until(lambda: _shown(mosquitto)["serialNumber"] != first["serialNumber"], "the new certificate")
        mosquitto.broker.be_known_as("bowerbird.example", DEVICES)
        wait_until(lambda: ("DNS", "bowerbird.example") in _shown(mosquitto)["subjectAltName"], "the new name")
        assert device.client.is_connected()
    again = EmbeddedBroker(mosquitto.broker.folder, program="mosquitto", authority=mosquitto.authority)
    assert not again.upkeep(now), "the name is remembered"


def _shown(started: TlsBroker) -> dict[str, Any]:
    """The certificate that the broker shows."""
    context = started.address("cam-01").tls_context("cam-01")
    assert context is not None
    with (
        socket.create_connection((started.server.host, started.server.port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname=started.server.host) as secure,
    ):
        return dict(secure.getpeercert() or {})


def test_a_process_of_the_server_keeps_its_name_and_gets_new_certificates(tmp_path: Path, authority: Path) -> None:
    """At each start, and before the old one ends; a session hangs on the name."""
    if find_program("mosquitto") is None:
        pytest.skip("mosquitto is not installed: apt-get install mosquitto")
    broker = EmbeddedBroker(tmp_path / "broker", program="mosquitto", authority=authority)
    address = broker.prepare({})
    file = address.certificate_for("bowerbird-ingest")
    assert file is not None

    def shown() -> tuple[str, int]:
        leaf = read_leaf(file)
        assert leaf is not None
        return common_name(leaf), leaf.serial_number

    name, first = shown()
    broker.prepare({}, clients=["bowerbird-ingest"], afresh=True)
    assert shown()[0] == name
    assert shown()[1] != first
    second = shown()
    broker.upkeep(datetime.now(tz=UTC))
    assert shown() == second
    broker.upkeep(datetime.now(tz=UTC) + timedelta(days=31))
    assert shown()[0] == name
    assert shown()[1] != second[1]


def test_a_folder_whose_path_is_too_long_for_a_socket_serves_as_well(tmp_path: Path, authority: Path) -> None:
    """A unix socket's path has fewer than 108 characters."""
    if find_program("mosquitto") is None:
        pytest.skip("mosquitto is not installed: apt-get install mosquitto")
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    with TlsBroker(folder, DEVICES, authority=authority) as started:
        started.broker.remove_device("cam-01", {"cam-02": "demo"})
        started.restart()
        started.broker.add_device("cam-01", DEVICES)


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
    with pytest.raises(BadInput, match="mqtts://"):
        BrokerAddress.from_url(url)


def test_a_url_gives_all_parts() -> None:
    """User and password are percent-decoded; mqtts means TLS and its port."""
    assert BrokerAddress.from_url("mqtts://a%40b:p%3Aw@host") == BrokerAddress("host", 8883, "a@b", "p:w", tls=True)


@pytest.mark.parametrize("name", ["svc-ingest-1", "bowerbird-server", "admin"])
def test_a_name_of_the_servers_own_is_nobody_elses(tmp_path: Path, authority: Path, name: str) -> None:
    """Neither a device nor a reader can be called so."""
    if find_program("mosquitto") is None:
        pytest.skip("mosquitto is not installed: apt-get install mosquitto")
    broker = EmbeddedBroker(tmp_path / "broker", program="mosquitto", authority=authority)
    for attempt in (lambda: broker.add_device(name, {name: "demo"}), lambda: broker.add_reader(name, "demo", {})):
        with pytest.raises(Conflict):
            attempt()
