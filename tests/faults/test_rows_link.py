"""Rows of the fault table: the link between a device and its broker, slow, broken, silent in one direction or both, and paho on top."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from bowerbird_agent.link.connection import Connection
from bowerbird_agent.link.link_events import LinkDown, LinkUp, MessageIn
from bowerbird_agent.link.paho_client import CountingClient
from bowerbird_agent.link.uploader import UploadLimits
from bowerbird_testing.fault_rows import row
from bowerbird_testing.fault_site import FaultSite
from bowerbird_testing.mqtt_device import MqttDevice
from bowerbird_testing.packet_link import PacketLink, Shuffle, thrice
from bowerbird_testing.thin_link import ThinLink
from bowerbird_testing.uploading_device import UploadingDevice, drain
from bowerbird_wire.codec import encode
from bowerbird_wire.messages import Desired
from bowerbird_wire.topics import DesiredTopic

pytestmark = pytest.mark.broker


def count(device: UploadingDevice, kind: type[Any]) -> int:
    return sum(isinstance(event, kind) for event in device.seen)


def work_for(device: UploadingDevice, seconds: float) -> None:
    until_s = time.monotonic() + seconds
    device.run(lambda: time.monotonic() > until_s)


def parts_here(site: FaultSite) -> int:
    return sum(path.is_file() for path in site.folder.parts.rglob("*-*"))


@row("every_message_arrives_three_times")
def test_every_message_arrives_three_times(site: FaultSite) -> None:
    site.fill(60)
    site.fill(3, first=500, size=150_000)  # these go in parts
    with site.serving(), PacketLink(site.broker.host, site.broker.port, up=thrice, down=thrice) as link:
        with site.device(host=link.host, port=link.port) as device:
            drain(device)
        assert link.published_up >= 63
    assert site.check()["rows"] == 63


@row("messages_arrive_out_of_order")
def test_messages_arrive_out_of_order(site: FaultSite, fault_seed: int) -> None:
    site.fill(80)
    site.fill(3, first=500, size=150_000)
    shuffle = Shuffle(fault_seed)
    with site.serving(), PacketLink(site.broker.host, site.broker.port, up=shuffle) as link:
        with site.device(host=link.host, port=link.port) as device:
            drain(device)
        assert shuffle.overtaken > 10
    assert site.check()["rows"] == 83


def partition(site: FaultSite, seconds: float) -> int:
    """Silence in the middle of a transfer; returns how many connections it took."""
    site.fill(6, size=40_000)
    with site.serving(), ThinLink(site.broker.host, site.broker.port, bytes_per_s=120_000, rtt_s=0.02) as link:
        with site.device(host=link.host, port=link.port, stall_s=2.0) as device:
            device.run(lambda: device.spool.ledger().committed >= 1)
            link.pause(True)
            work_for(device, seconds)
            assert device.spool.ledger().committed < 6
            link.pause(False)
            drain(device)
        ups = count(device, LinkUp)
    assert site.check()["rows"] == 6
    return ups


@row("silent_partition_short")
def test_silent_partition_short(site: FaultSite) -> None:
    assert partition(site, 1.0) == 1


@row("silent_partition_long")
def test_silent_partition_long(site: FaultSite) -> None:
    assert partition(site, 4.0) >= 2


@row("link_flaps_with_resets_at_128_kbit")
def test_link_flaps_with_resets_at_128_kbit(site: FaultSite, fault_seed: int) -> None:
    """How much of the link arrives `benchmarks/thin_link.py` measures."""
    site.fill(4, size=60_000)
    options = {"bytes_per_s": 16_000, "rtt_s": 0.2, "reset_every_s": 3.0, "seed": fault_seed}
    with site.serving(), ThinLink(site.broker.host, site.broker.port, **options) as link:
        with site.device(host=link.host, port=link.port) as device:
            drain(device, timeout_s=120)
        assert link.resets >= 2
    assert site.check()["rows"] == 4


@row("link_of_9600_bit_and_1500_ms")
def test_link_of_9600_bit_and_1500_ms(tls_site: FaultSite) -> None:
    """The command is told from the moment at which the server has published it. With TLS, handshake included."""
    site = tls_site
    site.fill(2, size=40_000)
    with site.serving(), ThinLink(site.broker.host, site.broker.port, bytes_per_s=1200, rtt_s=1.5) as link:
        options = {"keepalive_s": 15, "connect_timeout_s": 20.0, "limits": UploadLimits()}
        with site.device(host=link.host, port=link.port, **options) as device:
            device.run(lambda: parts_here(site) >= 1, timeout_s=60)
            with MqttDevice(site.address, "server") as server:
                server.publish(str(DesiredTopic("demo", "cam-01")), encode(Desired(1, 40)))
            device.run(
                lambda: any(isinstance(e, MessageIn) and isinstance(e.topic, DesiredTopic) for e in device.seen), timeout_s=20
            )
            work_for(device, 4.0)
            assert (count(device, LinkUp), count(device, LinkDown)) == (1, 0)
    site.check(drained=False)


@row("uplink_passes_and_downlink_is_black_holed")
def test_uplink_passes_and_downlink_is_black_holed(site: FaultSite) -> None:
    site.fill(40)
    with (
        site.serving(),
        PacketLink(site.broker.host, site.broker.port) as link,
        site.device(host=link.host, port=link.port, stall_s=2.0) as device,
    ):
        device.run(lambda: device.spool.ledger().committed >= 5)
        link.deaf = True
        work_for(device, 4.0)
        known = device.spool.ledger().committed
        link.deaf = False
        sent = device.link.bytes_sent
        drain(device)
        assert count(device, LinkUp) >= 2
        # What had arrived in the meantime is asked about, not sent again.
        assert device.link.bytes_sent - sent < (40 - known) * 2200 + 20_000
    assert site.check()["rows"] == 40


@row("callback_exception_inside_paho")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_callback_exception_inside_paho(site: FaultSite, dice: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages and acknowledgements get lost in callbacks that raise; now and then the network thread itself dies."""

    def sometimes(original: Callable[..., Any], chance: float) -> Callable[..., Any]:
        def raising(*arguments: Any, **options: Any) -> Any:
            if dice.random() < chance:
                raise RuntimeError("a fault in a callback")
            return original(*arguments, **options)

        return raising

    site.fill(120)
    with site.serving():
        for name, chance in (("_on_message", 0.3), ("_on_publish", 0.05)):
            monkeypatch.setattr(Connection, name, sometimes(getattr(Connection, name), chance))
        monkeypatch.setattr(CountingClient, "_packet_handle", sometimes(CountingClient._packet_handle, 0.02))
        with site.device(stall_s=3.0) as device:
            drain(device, timeout_s=90)
            assert count(device, LinkUp) >= 2
    assert site.check()["rows"] == 120
