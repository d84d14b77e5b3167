"""Delivery against a real broker: wishes and jobs out, presence and reports in, blocks on request."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bowerbird_server.broker.embedded import BrokerAddress
from bowerbird_server.catalogue import Catalogue, fleet, rollouts
from bowerbird_server.fleet import delivery
from bowerbird_server.fleet.rollout import Settings
from bowerbird_server.layout import DataFolder
from bowerbird_server.releases.repository import Repository
from bowerbird_testing.broker import Mosquitto
from bowerbird_testing.mqtt_device import MqttDevice, wait_until
from bowerbird_wire.codec import decode, encode
from bowerbird_wire.messages import Block, BlockRequest, Credit, Desired, Health, Job, Report, Status
from bowerbird_wire.topics import (
    BlockRequestTopic,
    BlocksTopic,
    CreditTopic,
    DesiredTopic,
    HealthTopic,
    JobTopic,
    ReportTopic,
    StatusTopic,
)

pytestmark = pytest.mark.broker

DEVICES = ("cam-01", "cam-02")
MODEL = "a" * 64


class Site:
    """A data folder with two devices and a model, a running delivery, and the test's own catalogue connection."""

    def __init__(self, root: Path, broker: Mosquitto) -> None:
        self.folder = DataFolder(root).make()
        Repository(self.folder.repository, self.folder.keys).create("automatic")
        self.cat = Catalogue(self.folder.catalogue)
        for device in DEVICES:
            fleet.add_device(self.cat, device, "demo", "test")
        model = {"digest": MODEL, "created_at": "2026-01-01T00:00:00.000Z", "origin": "imported", "state": "champion"}
        self.cat.insert("model", {**model, "onnx_sha256": "b" * 64, "manifest": "{}", "class_names": "[]"})
        self.address = BrokerAddress(broker.host, broker.port)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=delivery.run, args=(self.folder, self.address, self.stop))
        self.thread.start()

    def close(self) -> None:
        self.stop.set()
        self.thread.join(20)
        self.cat.close()
        assert not self.thread.is_alive()

    def execution(self, device: str) -> tuple[str, str]:
        row = self.cat.row("SELECT state, code FROM execution WHERE device = ? ORDER BY rollout DESC LIMIT 1", device)
        assert row is not None
        return row["state"], row["code"]


@pytest.fixture
def site(tmp_path: Path, broker: Mosquitto) -> Iterator[Site]:
    made = Site(tmp_path / "data", broker)
    yield made
    made.close()


def newest(device: MqttDevice, topic: object) -> bytes | None:
    return next((payload for t, payload, _ in reversed(device.messages) if t == str(topic)), None)


def test_a_wish_is_retained_and_survives_the_broker(site: Site, broker: Mosquitto) -> None:
    """A device that connects later reads it, also after the broker has forgotten everything."""
    fleet.set_frames_total(site.cat, "cam-01", 40)
    for _ in range(2):
        with MqttDevice(site.address, "cam-01") as device:
            wait_until(lambda d=device: newest(d, DesiredTopic("demo", "cam-01")) is not None, "the wish")  # type: ignore[misc]
            payload = newest(device, DesiredTopic("demo", "cam-01"))
            assert payload is not None
            assert decode(Desired, payload) == Desired(1, 40)
        broker.restart()


def test_a_device_that_left_while_nobody_looked_is_not_online(site: Site, broker: Mosquitto) -> None:
    """Its will was lost with the broker; the device that is still there stays online, without an event."""
    online = encode(Status("online", "boot", "1.0", MODEL))
    with MqttDevice(site.address, "cam-01") as first, MqttDevice(site.address, "cam-02") as second:
        for name, device in (("cam-01", first), ("cam-02", second)):
            device.publish(str(StatusTopic("demo", name)), online, retain=True)
        wait_until(lambda: site.cat.value("SELECT count(*) FROM device WHERE online = 1") == 2, "both online")
    broker.restart()
    with MqttDevice(site.address, "cam-01") as device:
        device.publish(str(StatusTopic("demo", "cam-01")), online, retain=True)
        wait_until(lambda: site.cat.value("SELECT online FROM device WHERE id = 'cam-02'") == 0, "cam-02 to be called offline")
        assert site.cat.value("SELECT online FROM device WHERE id = 'cam-01'") == 1
    events = site.cat.rows("SELECT subject FROM event WHERE kind = 'device offline'")
    assert [event["subject"] for event in events] == ["cam-02"]


def test_presence_and_health_reach_the_catalogue(site: Site) -> None:
    """Status sets online and the model, Health the counters; a message of no device of ours changes nothing."""
    with MqttDevice(site.address, "cam-01") as device:
        for _ in range(2):  # the first may come before delivery has subscribed; a retained one is read all the same
            device.publish(str(StatusTopic("demo", "cam-01")), encode(Status("online", "boot", "0.1", MODEL)), retain=True)
        wait_until(lambda: fleet.get(site.cat, "cam-01")["online"] == 1, "presence")
        device.publish(str(HealthTopic("demo", "stranger")), encode(Health("boot", 1)))
        device.publish(str(HealthTopic("demo", "cam-01")), b"\xff not CBOR")
        device.publish(str(HealthTopic("demo", "cam-01")), encode(Health("boot", 1, MODEL, frames_seen=77, bytes_sent=5)))
        wait_until(lambda: fleet.get(site.cat, "cam-01")["health"].get("frames_seen") == 77, "health")
        device.publish(str(StatusTopic("demo", "cam-01")), encode(Status("offline")), retain=True)
        wait_until(lambda: fleet.get(site.cat, "cam-01")["online"] == 0, "absence")
    row = fleet.get(site.cat, "cam-01")
    assert (row["boot_id"], row["agent_version"], row["model_digest"]) == ("boot", "0.1", MODEL)
    assert [event["counters"]["bytes_sent"] for event in fleet.health_history(site.cat, "cam-01")] == [5]


def test_a_rollout_goes_wave_by_wave_to_completion_and_notices_a_device_that_goes_back(site: Site) -> None:
    """The second device gets its job after the first succeeded; later heartbeats are checked against what was committed."""
    rollout = rollouts.start_rollout(site.cat, MODEL, 1, DEVICES, "test", settings=Settings(wave_shares=(0.5, 1.0)))
    first, second = (row["device"] for row in rollouts.executions(site.cat, rollout))
    with MqttDevice(site.address, first) as one, MqttDevice(site.address, second) as two:
        for device, other in ((one, two), (two, None)):
            topic = JobTopic("demo", device.device)
            wait_until(lambda d=device, t=topic: newest(d, t) is not None, "the job")  # type: ignore[misc]
            job = decode(Job, newest(device, topic) or b"")
            assert (job.model_digest, job.release, job.action) == (MODEL, 1, "install")
            assert job.signature
            assert other is None or newest(other, JobTopic("demo", other.device)) is None
            for state in ("fetching", "trial", "committed", "committed"):
                report = Report(job.job_id, state, MODEL if state != "fetching" else "", model_digest=MODEL, at_ms=1000)
                device.publish(str(ReportTopic("demo", device.device)), encode(report))
        wait_until(lambda: rollouts.get(site.cat, rollout)["state"] == "completed", "completion")
        assert fleet.get(site.cat, first)["model_digest"] == MODEL
        one.publish(str(HealthTopic("demo", first)), encode(Health("b", 900, "f" * 64)))  # made before the report
        one.publish(str(HealthTopic("demo", first)), encode(Health("b", 1100, MODEL)))
        two.publish(str(HealthTopic("demo", second)), encode(Health("b", 1100, "f" * 64)))
        wait_until(lambda: site.execution(second) == ("failed", "reverted"), "the device that went back")
        assert site.execution(first) == ("succeeded", "")


def test_a_failure_pauses_and_an_abort_withdraws_the_job(site: Site) -> None:
    """The other device under way is told to cancel by a signed job."""
    rollout = rollouts.start_rollout(site.cat, MODEL, 1, DEVICES, "test", settings=Settings(wave_shares=(1.0,)))
    with MqttDevice(site.address, "cam-01") as one, MqttDevice(site.address, "cam-02") as two:
        topic = JobTopic("demo", "cam-02")
        wait_until(lambda: newest(one, JobTopic("demo", "cam-01")) is not None and newest(two, topic) is not None, "jobs")
        job = decode(Job, newest(one, JobTopic("demo", "cam-01")) or b"")
        one.publish(
            str(ReportTopic("demo", "cam-01")),
            encode(Report(job.job_id, "rolled_back", "", model_digest=MODEL, code="bad_frames")),
        )
        wait_until(lambda: rollouts.get(site.cat, rollout)["state"] == "paused", "the pause")
        assert site.execution("cam-01") == ("failed", "bad_frames")
        rollouts.steer(site.cat, rollout, "abort", "test")
        wait_until(lambda: decode(Job, newest(two, topic) or b"").action == "cancel", "the cancel")
        assert decode(Job, newest(two, topic) or b"").signature


def test_blocks_of_the_repository_come_on_request(site: Site) -> None:
    """Metadata by blocks to the device that asked; a path outside gets an error."""
    expected = (site.folder.repository / "metadata" / "timestamp.json").read_bytes()
    with MqttDevice(site.address, "cam-01") as device:

        def block_of(path: str) -> Block | None:
            device.publish(str(BlockRequestTopic("demo", "cam-01")), encode(BlockRequest(path, 0, 8, 4096)))
            blocks = [decode(Block, p) for t, p, _ in list(device.messages) if t == str(BlocksTopic("demo", "cam-01"))]
            return next((block for block in blocks if block.path == path), None)

        wait_until(lambda: block_of("metadata/timestamp.json") is not None, "a block")
        block = block_of("metadata/timestamp.json")
        assert block is not None
        assert (block.data, block.total_bytes) == (expected, len(expected))
        wait_until(lambda: block_of("../catalogue.db") is not None, "an error")
        refused = block_of("../catalogue.db")
        assert refused is not None
        assert (refused.data, refused.error) == (b"", "not_found")


def test_the_credit_follows_the_disk_and_is_told_again_to_a_new_broker(
    site: Site, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing while the disk is full, and a device that connects later reads it too; the log names the disk and the setting."""
    free = [10 * 1024**3]
    usage = delivery.shutil.disk_usage
    monkeypatch.setattr(delivery.shutil, "disk_usage", lambda path: usage(path)._replace(free=free[0]))

    def credit_of_a_new_device(expected: int) -> None:
        with MqttDevice(site.address, "cam-01") as device:
            device.subscribe(str(CreditTopic("demo")))

            def told() -> int | None:
                payload = newest(device, CreditTopic("demo"))
                return None if payload is None else decode(Credit, payload).bytes_in_flight

            wait_until(lambda: told() == expected, f"a credit of {expected}")

    credit_of_a_new_device(512 * 1024)
    free[0] = 100 * 1024**2
    credit_of_a_new_device(0)
    assert "less free than ingest.stop_below_free_mib" in caplog.text
    broker.restart()
    credit_of_a_new_device(0)
    free[0] = 10 * 1024**3
    credit_of_a_new_device(512 * 1024)
