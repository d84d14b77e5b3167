"""Why somebody does not come in, read from the broker's own log: a real mosquitto, and clients that are wrong in one thing each."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from bowerbird_server.broker.embedded import find_program
from bowerbird_server.broker.refusals import Refused, recent
from bowerbird_server.identity.authority import Authority
from bowerbird_server.layout import DataFolder
from bowerbird_server.web.app import create_app
from bowerbird_testing.mqtt_device import wait_until
from bowerbird_testing.tls_broker import TlsBroker, device_certificate

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_program("mosquitto") is None, reason="mosquitto is not installed: apt-get install mosquitto"),
]
TOKEN = "refusals-test-token-0123456789"


@pytest.fixture
def site(tmp_path: Path, authority: Path) -> Iterator[TlsBroker]:
    with TlsBroker(tmp_path, {"cam-01": "demo"}, authority=authority) as running:
        yield running


def knock(site: TlsBroker, *, ca: str = "", certificate: Path | None = None, host: str = "127.0.0.1") -> None:
    """One connection that ends at the handshake, or with its first bytes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca or site.server.ca_file)
    if certificate is not None:
        context.load_cert_chain(certificate)
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", site.server.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=host) as stream,
    ):
        stream.sendall(b"\x10\x13\x00\x04MQTT\x05\x02\x00\x1e\x00\x00\x06cam-01")
        stream.recv(10)


def of_another_ca(site: TlsBroker, folder: Path) -> None:
    other = Authority.open(folder / "other")
    (folder / "other.pem").write_bytes(other.root_pem)
    knock(site, ca=str(folder / "other.pem"), certificate=own(site, folder))


def own(site: TlsBroker, folder: Path, **life: timedelta) -> Path:
    return device_certificate(folder, site.authority, "cam-01", **life)


KNOCKS: dict[str, tuple[Callable[[TlsBroker, Path], None], str]] = {
    "wrong_ca": (of_another_ca, "knows another CA"),
    "wrong_host": (lambda site, folder: knock(site, certificate=own(site, folder), host="broker.example"), "broker.names"),
    "expired": (lambda site, folder: knock(site, certificate=own(site, folder, life=timedelta(seconds=-5))), "it has expired"),
    "not_yet_valid": (
        lambda site, folder: knock(site, certificate=own(site, folder, starts_in=timedelta(days=3))),
        "is not valid yet",
    ),
    "no_certificate": (lambda site, _: knock(site), "enrol that device"),
}


@pytest.mark.parametrize("fault", KNOCKS)
def test_what_keeps_somebody_out_is_said_with_the_address_and_what_to_do(site: TlsBroker, tmp_path: Path, fault: str) -> None:
    do, words = KNOCKS[fault]
    for _ in range(2):
        do(site, tmp_path)
    found: list[Refused] = []

    def is_told() -> bool:
        found[:] = [each for each in recent(site.log_path, now=datetime.now(tz=UTC)) if each.count == 2]
        return bool(found)

    wait_until(is_told, "the broker's word")
    assert [(each.address, words in each.why) for each in found] == [("127.0.0.1", True)]
    assert recent(site.log_path, now=datetime.now(tz=UTC) + timedelta(hours=2)) == []


def test_who_comes_in_is_not_among_them(site: TlsBroker, tmp_path: Path) -> None:
    knock(site, certificate=own(site, tmp_path))
    wait_until(lambda: "New client connected" in site.log_path.read_text(), "the client")
    assert recent(site.log_path, now=datetime.now(tz=UTC)) == []


def test_the_dashboard_says_it_to_those_who_are_let_in_everywhere(site: TlsBroker, tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data").make()
    web = TestClient(create_app(folder, TOKEN), base_url="http://127.0.0.1")
    web.headers["Authorization"] = f"Bearer {TOKEN}"
    assert "Refused at the broker" not in web.get("/").text
    of_another_ca(site, tmp_path)
    wait_until(lambda: bool(recent(site.log_path, now=datetime.now(tz=UTC))), "the broker's word")
    (folder.logs / "broker.log").write_bytes(site.log_path.read_bytes())
    page = web.get("/").text
    assert "Refused at the broker" in page
    assert "somebody at 127.0.0.1" in page
    assert "knows another CA" in page
