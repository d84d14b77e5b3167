"""Rows of the fault table: more devices than one, and devices that are not let in."""

from __future__ import annotations

import queue
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from bowerbird_agent.link.link_events import BrokerSettings, LinkDown, LinkUp
from bowerbird_agent.link.mqtt_link import MqttLink
from bowerbird_server.broker.embedded import SERVER_USER, BrokerAddress, access_rules
from bowerbird_server.identity.authority import Authority, key_pem
from bowerbird_testing import fault_processes
from bowerbird_testing.broker import Mosquitto, free_port
from bowerbird_testing.fault_device import Promises, captured
from bowerbird_testing.fault_rows import row
from bowerbird_testing.fault_site import FaultSite, run_checker
from bowerbird_testing.mqtt_device import MqttDevice, wait_until
from bowerbird_testing.uploading_device import UploadingDevice, drain, uploading
from bowerbird_wire.messages import Status

pytestmark = pytest.mark.broker


@row("two_devices_with_one_identity")
def test_two_devices_with_one_identity(tmp_path: Path, site: FaultSite) -> None:
    """Each new connection ends the other's, and each hears receipts for the other's frames: both get through all the same."""
    sides = ("north", "south")
    cases: list[dict[str, Any]] = []
    for side in sides:
        spool = tmp_path / side
        with uploading(spool, site.broker.host, 1) as device:  # nobody listens there
            promises = Promises(tmp_path / f"{side}.accepted")
            for number in range(40):
                assert promises.put(device.spool, *captured(number, camera=side))
            promises.close()
        cases.append(
            {"device": "cam-01", "spool": str(spool), "accepted": str(tmp_path / f"{side}.accepted"), "must_be_empty": True}
        )
    with (
        site.serving(),
        uploading(tmp_path / "north", site.broker.host, site.broker.port, seed=1) as north,
        uploading(tmp_path / "south", site.broker.host, site.broker.port, seed=2) as south,
    ):
        until_s = time.monotonic() + 90
        while any(sum(device.spool.counts().values()) for device in (north, south)):
            assert time.monotonic() < until_s, (north.spool.ledger(), south.spool.ledger())
            north.step(0.02)
            south.step(0.02)
        ends = [event.reason for device in (north, south) for event in device.seen if isinstance(event, LinkDown)]
    assert len(ends) >= 2, ends
    whole = {**site.case(), "devices": cases}
    (numbers,) = run_checker([whole], tmp_path / "check")
    assert numbers["rows"] == 80


@row("access_rules_deny_the_device")
def test_access_rules_deny_the_device(tmp_path: Path, start_broker: Callable[..., Mosquitto]) -> None:
    """A denial is an answer of the broker, not of the server: the frames stay, and are sent when the rules are mended."""
    users = {SERVER_USER: "s", "cam-01": "c", "probe": "p"}
    right = access_rules({"cam-01": "demo", "probe": "demo"})
    wrong = right.replace("topic write bowerbird/v1/demo/up/cam-01/frame\n", "")
    wrong = wrong.replace("topic write bowerbird/v1/demo/up/cam-01/offer\n", "")
    assert wrong != right
    broker = start_broker(users=users, acl=wrong)

    class WithLogin(FaultSite):
        """The server's login."""

        @property
        def address(self) -> BrokerAddress:
            return BrokerAddress(broker.host, broker.port, SERVER_USER, "s")

    site = WithLogin(tmp_path / "site", broker)
    site.fill(20)
    with site.serving(), site.device(username="cam-01", password="c") as device:
        until_s = time.monotonic() + 3.0
        device.run(lambda: time.monotonic() > until_s)
        assert device.spool.ledger().committed == 0
        assert sum(device.spool.counts().values()) == 20
        broker.reload(acl=right)
        drain(device)
    assert site.check()["rows"] == 20


class Certificates:
    """An authority, and the files that a broker with TLS reads."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._now = folder, datetime.now(tz=UTC)
        self.authority = Authority.open(folder / "identity", now=self._now - timedelta(days=200))
        self.root = folder / "root.pem"
        self.root.write_bytes(self.authority.root_pem)
        self.port = free_port()

    def listener(self, days_ago: int) -> list[str]:
        """Lines of mosquitto.conf for a port that asks for certificates; its own was made so many days ago."""
        file = self._folder / f"server-{days_ago}.pem"
        file.write_bytes(self.authority.server_certificate(["127.0.0.1"], now=self._now - timedelta(days=days_ago)))
        return [
            f"listener {self.port} 127.0.0.1",
            f"cafile {self.root}",
            f"certfile {file}",
            f"keyfile {file}",
            "require_certificate true",
            "use_identity_as_username true",
        ]

    def give(self, context: ssl.SSLContext, days_ago: int) -> None:
        """A certificate that was made so many days ago, for the next connections of a device; it is good for 45."""
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = self.authority.device_certificate(
            "cam-01", key.public_key(), generation=1, now=self._now - timedelta(days=days_ago)
        )
        file = self._folder / f"device-{days_ago}.pem"
        file.write_bytes(key_pem(key) + leaf)
        context.load_cert_chain(file)


@row("certificate_expired")
def test_certificate_expired(tmp_path: Path, start_broker: Callable[..., Mosquitto]) -> None:
    """First the device's, then the broker's: frames wait, nothing is sent past it, and a new certificate is all that it takes."""
    certificates = Certificates(tmp_path)
    broker = start_broker(settings=certificates.listener(0))
    site = FaultSite(tmp_path / "site", broker)
    site.fill(20)
    context = ssl.create_default_context(cafile=str(certificates.root))
    certificates.give(context, 60)

    def refused(device: UploadingDevice) -> None:
        before = len(device.seen)
        device.run(lambda: sum(isinstance(event, LinkDown) for event in device.seen[before:]) >= 2)
        assert not any(isinstance(event, LinkUp) for event in device.seen[before:])

    with site.serving(), site.device(port=certificates.port, tls=lambda: context) as device:
        refused(device)
        assert sum(device.spool.counts().values()) == 20
        certificates.give(context, 0)
        drain(device)
        broker.kill()
        promises = Promises(site.promises())
        for number in range(20, 40):
            assert promises.put(device.spool, *captured(number))
        promises.close()
        broker.settings = certificates.listener(60)
        broker.start()
        device.run(lambda: isinstance(device.seen[-1], LinkDown))
        refused(device)
        broker.settings = certificates.listener(0)
        broker.restart()
        drain(device)
    assert site.check()["rows"] == 40


def many_links(names: list[str], host: str, port: int) -> None:
    """A process with the links of many devices; paho's select(2) allows no more than some three hundred in one."""
    threading.stack_size(256 * 1024)
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    broker = BrokerSettings(host, port, connect_timeout_s=30.0)
    for name in names:
        link = MqttLink(
            broker,
            "demo",
            name,
            events,
            online=lambda: Status("online"),
            offline=Status("offline"),  # type: ignore[arg-type]
        )
        link.start()
    while True:
        events.get()


class Presence(MqttDevice):
    """Hears which devices say that they are online."""

    def online(self) -> int:
        """Devices that have said so since the broker began: it forgets what is retained when it dies."""
        topics = [topic for topic, payload, _ in list(self.messages) if topic.endswith("/status") and b"online" in payload]
        return len(set(topics))


@row("five_hundred_agents_reconnect_at_once")
def test_five_hundred_agents_reconnect_at_once(tmp_path: Path, broker: Mosquitto) -> None:
    """Their links are the product's; twenty of them have frames to send at the same time."""
    names = [f"cam-{number:03}" for number in range(500)]
    site = FaultSite(tmp_path / "site", broker, names[:20])
    for name in site.devices:
        site.fill(5, name)
    watched = "bowerbird/v1/demo/up/+/status"
    devices: list[UploadingDevice] = []
    with ExitStack() as running:
        for first in range(20, 500, 120):
            log = tmp_path / f"links-{first}.log"
            running.enter_context(
                fault_processes.running(log, many_links, names[first : first + 120], broker.host, broker.port)
            )
        with Presence(site.address, "before") as presence:
            presence.subscribe(watched)
            wait_until(lambda: presence.online() == 480, "480 devices that are online", 90)
        running.enter_context(site.serving())
        broker.restart()
        after = running.enter_context(Presence(site.address, "after"))
        after.subscribe(watched)
        for name in site.devices:
            device = UploadingDevice(site.spools[name], broker.host, broker.port, device=name, connect_timeout_s=30.0)
            running.callback(device.close)
            device.link.start()
            devices.append(device)
        until_s = time.monotonic() + 90
        while after.online() < 500 or any(sum(device.spool.counts().values()) for device in devices):
            assert time.monotonic() < until_s, (after.online(), [device.spool.ledger() for device in devices])
            for device in devices:
                device.step(0.005)
    assert site.check()["rows"] == 100
