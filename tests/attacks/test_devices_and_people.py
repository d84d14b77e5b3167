"""Whoever holds a device's certificate is a device and nothing else: not somebody on the pages, not a process of the server."""

from __future__ import annotations

import socket
import ssl
import time
from pathlib import Path

import httpx
import pytest

from bowerbird_server.broker.embedded import find_program
from bowerbird_server.config import WebConfig
from bowerbird_server.identity.authority import Authority
from bowerbird_server.layout import DataFolder
from bowerbird_server.web.permissions import NEEDS
from bowerbird_testing.free_client import FreeClient
from bowerbird_testing.serving import serving
from bowerbird_testing.tls_broker import WATCHER, TlsBroker, device_certificate
from bowerbird_wire.topics import FrameTopic, ReceiptTopic

needs_mosquitto = pytest.mark.skipif(
    find_program("mosquitto") is None, reason="mosquitto is not installed: apt-get install mosquitto"
)


def test_a_devices_certificate_opens_no_page_and_no_address_of_the_api(tmp_path: Path) -> None:
    """The pages trust the same authority's root, and a certificate of it is no log-in."""
    folder = DataFolder(tmp_path / "data").make()
    Authority.open(folder.identity)
    with serving(folder, WebConfig(tls="site", names=["bird.example"])) as port:
        context = ssl.create_default_context(cafile=str(folder.identity / "root.pem"))
        context.load_cert_chain(device_certificate(tmp_path, folder.identity, "cam-01"))
        with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=context) as device:
            for (method, path), need in NEEDS.items():
                if need.role is not None:
                    answer = device.request(method, path.replace("{", "").replace("}", ""))
                    assert answer.status_code in {401, 303}, (method, path)
                    assert answer.status_code == 401 or answer.headers["location"].startswith("/login")


@pytest.mark.broker
@needs_mosquitto
def test_half_open_connections_keep_nobody_from_the_broker(tmp_path: Path, authority: Path) -> None:
    """Two hundred that never finish their handshake, or finish it and say nothing: a device is heard all the while."""
    with TlsBroker(tmp_path, {"cam-01": "demo"}, authority=authority) as site:
        context = site.address("cam-01").tls_context("x")
        assert context is not None
        silent: list[socket.socket] = [socket.create_connection((site.server.host, site.server.port)) for _ in range(200)]
        silent += [
            context.wrap_socket(
                socket.create_connection((site.server.host, site.server.port)), server_hostname=site.server.host
            )
            for _ in range(20)
        ]
        try:
            began_s = time.monotonic()
            with FreeClient(site.server, WATCHER) as server, FreeClient(site.address("cam-01"), "cam-01") as device:
                server.subscribe("bowerbird/#")
                assert device.publish(str(FrameTopic("demo", "cam-01")), b"heard") == 0
                deadline_s = time.monotonic() + 10
                while b"heard" not in server.payloads() and time.monotonic() < deadline_s:
                    time.sleep(0.01)
                assert server.payloads() == [b"heard"]
            assert time.monotonic() - began_s < 20
        finally:
            for each in silent:
                each.close()


@pytest.mark.broker
@needs_mosquitto
def test_a_response_topic_makes_the_broker_deliver_nothing_elsewhere(tmp_path: Path, authority: Path) -> None:
    """MQTT 5 lets a message say where the answer should go; whoever may not hear the message does not hear it by that."""
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    with TlsBroker(tmp_path, {"cam-01": "demo", "cam-02": "demo"}, authority=authority) as site:
        aimed = Properties(PacketTypes.PUBLISH)
        aimed.ResponseTopic = str(ReceiptTopic("demo", "cam-02"))
        with FreeClient(site.address("cam-02"), "cam-02") as victim, FreeClient(site.address("cam-01"), "cam-01") as device:
            victim.subscribe(str(ReceiptTopic("demo", "cam-02")))
            device.client.publish(str(FrameTopic("demo", "cam-01")), b"aimed", 1, properties=aimed).wait_for_publish(5)
            with FreeClient(site.server, WATCHER) as server:
                assert server.publish(str(ReceiptTopic("demo", "cam-02")), b"last") < 128
                deadline_s = time.monotonic() + 10
                while not victim.payloads() and time.monotonic() < deadline_s:
                    time.sleep(0.01)
            assert victim.payloads() == [b"last"]
