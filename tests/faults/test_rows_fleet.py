"""Rows of the fault table: more devices than one, and devices that are not let in."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bowerbird_agent.mqtt_link import BrokerSettings, LinkDown, LinkUp, MqttLink
from bowerbird_server.broker import SERVER_USER, BrokerAddress, access_rules
from bowerbird_testing.broker import Mosquitto
from bowerbird_testing.fault_device import Promises, captured
from bowerbird_testing.fault_rows import row
from bowerbird_testing.fault_site import FaultSite, run_checker
from bowerbird_testing.mqtt_device import wait_until
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
    taken_over = 0
    with site.serving():
        with (
            uploading(tmp_path / "north", site.broker.host, site.broker.port, seed=1) as north,
            uploading(tmp_path / "south", site.broker.host, site.broker.port, seed=2) as south,
        ):
            until_s = time.monotonic() + 90
            while any(sum(device.spool.counts().values()) for device in (north, south)):
                assert time.monotonic() < until_s, (north.spool.ledger(), south.spool.ledger())
                north.step(0.02)
                south.step(0.02)
            taken_over = sum("taken over" in e.reason for d in (north, south) for e in d.seen if isinstance(e, LinkDown))
    assert taken_over >= 2
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


@row("five_hundred_agents_reconnect_at_once")
def test_five_hundred_agents_reconnect_at_once(tmp_path: Path, broker: Mosquitto) -> None:
    """Their links are the product's; twenty of them have frames to send at the same time."""
    names = [f"cam-{number:03}" for number in range(500)]
    site = FaultSite(tmp_path / "site", broker, names[:20])
    for name in site.devices:
        site.fill(5, name)
    stack = threading.stack_size(256 * 1024)  # a thousand threads
    events: queue.Queue[Any] = queue.Queue()
    links = [
        MqttLink(
            BrokerSettings(broker.host, broker.port, connect_timeout_s=30.0),
            "demo",
            name,
            events,
            online=lambda: Status("online"),
            offline=Status("offline"),
        )
        for name in names[20:]
    ]
    devices: list[UploadingDevice] = []
    try:
        with site.serving():
            for link in links:
                link.start()
            wait_until(lambda: all(link.connected for link in links), "480 connections", 60)
            broker.restart()
            for name in site.devices:
                device = UploadingDevice(site.spools[name], broker.host, broker.port, device=name, connect_timeout_s=30.0)
                device.link.start()
                devices.append(device)
            until_s = time.monotonic() + 90
            while any(sum(device.spool.counts().values()) for device in devices) or not all(link.connected for link in links):
                assert time.monotonic() < until_s, [device.spool.ledger() for device in devices]
                for device in devices:
                    device.step(0.005)
    finally:
        threading.stack_size(stack)
        ending = [threading.Thread(target=link.stop) for link in links]
        for thread in ending:
            thread.start()
        for device in devices:
            device.close()
        for thread in ending:
            thread.join(30)
    ups = sum(isinstance(event, LinkUp) for event in list(events.queue))
    assert ups >= 2 * 480
    assert site.check()["rows"] == 100
