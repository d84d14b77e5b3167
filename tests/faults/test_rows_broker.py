"""Rows of the fault table: the broker. It may forget everything at any time, and nothing of what it says is proof."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from bowerbird_agent.errors import SpoolFull
from bowerbird_agent.link.link_events import LinkDown, LinkUp, Published
from bowerbird_agent.spool.spool import FrameState
from bowerbird_server.ingest import ingest
from bowerbird_testing.broker import Mosquitto
from bowerbird_testing.fault_device import Promises, captured
from bowerbird_testing.fault_rows import row
from bowerbird_testing.fault_site import FaultSite
from bowerbird_testing.uploading_device import drain

pytestmark = pytest.mark.broker


@row("broker_killed_every_few_seconds")
def test_broker_killed_every_few_seconds(site: FaultSite, dice: random.Random) -> None:
    with site.serving(), site.device_process(frames=300, end_when_empty=True) as device:
        for _ in range(5):
            device.join(dice.uniform(0.3, 1.2))
            site.broker.restart()
        device.join(60)
        assert device.exitcode == 0
    assert site.check()["rows"] == 300


@row("broker_killed_between_puback_and_delivery")
def test_broker_killed_between_puback_and_delivery(site: FaultSite) -> None:
    with site.serving():
        pass  # the session stands at the broker, which acknowledges what it keeps for it
    ids = site.fill(15)  # below the 20 that this broker lets a device have out
    with site.device() as device:
        device.run(lambda: sum(isinstance(event, Published) for event in device.seen) >= len(ids))  # all of it is acknowledged
        site.broker.kill()
        assert device.spool.counts()["new"] == 0
        assert len(device.spool.frames(FrameState.SENT)) + len(device.spool.frames(FrameState.IN_DOUBT)) == len(ids)
        site.broker.start()
        with site.serving():
            drain(device)
    assert site.check()["committed"] == 15


@row("broker_down_for_a_scaled_day")
def test_broker_down_for_a_scaled_day(site: FaultSite, dice: random.Random) -> None:
    site.broker.kill()
    promises = Promises(site.promises())
    refused = 0
    with site.device(max_bytes=3_000_000) as device:
        for number in range(600):
            header, image = captured(number, size=20_000, score=dice.random())
            try:
                promises.put(device.spool, header, image)
            except SpoolFull:
                refused += 1  # all that waits is worth more; it was never accepted
            if number % 50 == 0:
                device.step(0.0)
        kept = {frame.frame_id for frame in device.spool.frames(FrameState.NEW)}
        scores = [frame.score for frame in device.spool.frames(FrameState.NEW)]
        assert min(scores) > 0.5, "the best part of the day"
        site.broker.start()
        with site.serving():
            drain(device)
    promises.close()
    numbers = site.check()
    assert numbers["accepted"] == 600 - refused
    assert numbers["evicted"] == numbers["accepted"] - len(kept) > 0
    assert numbers["rows"] == len(kept)


@row("broker_lowers_its_packet_limit_at_run_time")
def test_broker_lowers_its_packet_limit_at_run_time(tmp_path: Path, start_broker: Callable[..., Mosquitto]) -> None:
    site = FaultSite(tmp_path / "site", start_broker(settings=["max_packet_size 300000"]))
    site.fill(4, size=30_000)
    promises = Promises(site.promises())
    with site.serving(), site.device() as device:
        device.run(lambda: device.spool.ledger().committed == 4)
        site.broker.kill()
        for number in range(4, 8):
            assert promises.put(device.spool, *captured(number, size=30_000))
        site.broker.settings = ["max_packet_size 6000"]
        site.broker.start()
        drain(device)
        limits = [event.max_packet_bytes for event in device.seen if isinstance(event, LinkUp)]
        assert (limits[0], limits[-1]) == (300_000, 6000)
    assert site.check()["rows"] == 8


@row("broker_enforces_receive_maximum_4_with_1000_spooled")
def test_broker_enforces_receive_maximum_4_with_1000_spooled(
    tmp_path: Path, start_broker: Callable[..., Mosquitto], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "GROUP_WAIT_S", 0.002)  # no group is larger than what is out
    site = FaultSite(tmp_path / "site", start_broker(settings=["max_inflight_messages 4"]))
    site.fill(1000, size=200)
    with site.serving(), site.device() as device:
        drain(device, timeout_s=180)
        assert next(event for event in device.seen if isinstance(event, LinkUp)).receive_maximum == 4
        assert not any(isinstance(event, LinkDown) for event in device.seen), "the broker ends connections that exceed it"
    assert site.check()["rows"] == 1000


@row("broker_queue_overflows")
def test_broker_queue_overflows(tmp_path: Path, start_broker: Callable[..., Mosquitto]) -> None:
    """Beyond its queue the broker acknowledges and drops; the device asks about each frame, and only those go again."""
    settings = ["max_inflight_messages 4", "max_queued_messages 5"]
    site = FaultSite(tmp_path / "site", start_broker(settings=settings))
    with site.serving():
        pass
    site.fill(40)
    with site.device() as device:
        device.run(lambda: sum(isinstance(event, Published) for event in device.seen) >= 30)
        assert "being dropped" in site.broker.log_path.read_text()
        with site.serving():
            drain(device)
    assert site.check()["rows"] == 40
