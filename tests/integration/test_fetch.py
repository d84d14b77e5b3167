"""More of a frame, from the wish at the server to the linked frame in the catalogue: a real agent, a real broker, the real server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bowerbird_server.batches.batch import build_batch
from bowerbird_server.blobs import LocalBlobs
from bowerbird_server.broker.embedded import BrokerAddress
from bowerbird_server.catalogue import Catalogue, fetches, fleet, frames, unsent
from bowerbird_server.catalogue.record_keeping import delete_frames
from bowerbird_server.errors import BadInput, Conflict
from bowerbird_server.fleet import delivery
from bowerbird_server.ingest import ingest
from bowerbird_server.ingest.device_limits import DeviceLimit, DeviceLimits
from bowerbird_server.layout import DataFolder
from bowerbird_server.releases.repository import Repository
from bowerbird_testing.agent_process import AgentProcess, write_config
from bowerbird_testing.broker import Mosquitto
from bowerbird_testing.frame_messages import frame_message
from bowerbird_testing.mqtt_device import MqttDevice, wait_for_ingest, wait_until
from bowerbird_wire.codec import encode
from bowerbird_wire.linked import ORIGINAL_OF
from bowerbird_wire.messages import Status, Tombstone, Tombstones
from bowerbird_wire.topics import StatusTopic, TombstonesTopic

pytestmark = pytest.mark.broker

CAMERA = '[[cameras]]\nname = "gate"\nsource = "synthetic:?seed=3&fps=8"\nfps = 8.0\n'


class Site:
    """A server's ingest and delivery in threads."""

    def __init__(self, root: Path, broker: Mosquitto, limit: DeviceLimit | None = None) -> None:
        self.folder = DataFolder(root).make()
        Repository(self.folder.repository, self.folder.keys).create("automatic")
        self.cat = Catalogue(self.folder.catalogue)
        fleet.add_device(self.cat, "cam-01", "demo", "test")
        self.address = BrokerAddress(broker.host, broker.port)
        self.stop = threading.Event()
        self.threads = [
            threading.Thread(target=ingest.run, args=(self.folder, self.address, self.stop), kwargs={"limit": limit}),
            threading.Thread(target=delivery.run, args=(self.folder, self.address, self.stop)),
        ]
        for thread in self.threads:
            thread.start()
        wait_for_ingest(self.address)

    def close(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(20)
        self.cat.close()

    def states(self, frame: str) -> dict[str, str]:
        return {row["kind"]: row["state"] for row in fetches.of_frame(self.cat, frame)}


@pytest.fixture
def site(tmp_path: Path, broker: Mosquitto) -> Iterator[Site]:
    made = Site(tmp_path / "data", broker)
    yield made
    made.close()


def test_original_and_surroundings_arrive_as_linked_frames_and_no_statistic_counts_them(
    site: Site, tmp_path: Path, broker: Mosquitto
) -> None:
    overrides = {
        "image": {"long_side": 160},
        "selection": {"window_frames": 40, "frames_per_window": 2},
        "fetch": {"around_fps": 4.0, "originals_max_bytes": 50_000_000},
    }
    config = write_config(tmp_path / "agent", port=broker.port, cameras=CAMERA, overrides=overrides)
    with AgentProcess(config):
        wait_until(lambda: frames.list_frames(site.cat, limit=1).rows, "a frame", timeout_s=60)
        frame = frames.list_frames(site.cat, limit=1).rows[0]["id"]
        fetches.ask(site.cat, frame, "original", "Ada")
        fetches.ask(site.cat, frame, "around", "Ada", seconds=10.0)
        wait_until(
            lambda: site.states(frame) == {"original": "arrived", "around": "arrived"},
            "what was asked",
            timeout_s=60,
        )
    linked = fetches.linked(site.cat, frame)
    kinds = [row["kind"] for row in linked]
    assert kinds.count("original") == 1
    assert kinds.count("around") >= 2
    original = next(row for row in linked if row["kind"] == "original")
    assert original["width"] == original["source_width"] > 160
    assert fetches.parent(site.cat, original["id"]) == {"of_frame": frame, "kind": "original"}
    everything = site.cat.value("SELECT count(*) FROM frame")
    assert sum(frames.count_by_state(site.cat, device="cam-01").values()) == everything - len(linked)
    build_batch(site.cat, frames=1000)
    queued = {row["id"] for row in site.cat.rows("SELECT id FROM frame WHERE state = 'queued'")}
    assert queued.isdisjoint(row["id"] for row in linked)
    delete_frames(site.cat, LocalBlobs(site.folder.blobs), [frame], "Ada", "asked for")
    assert fetches.linked(site.cat, frame) == [], "what belongs to a deleted frame is deleted with it"


def test_a_wish_waits_for_a_device_that_is_away_and_is_said_again_when_it_comes_back(site: Site) -> None:
    wanted = frame_message(sequence=1)
    with MqttDevice(site.address, "cam-01") as device:
        device.send_frame(wanted)
        wait_until(lambda: wanted.header.frame_id in device.committed(), "a receipt")
    fetches.ask(site.cat, wanted.header.frame_id, "original", "Ada")
    for _ in range(2):  # it went away without an answer
        with MqttDevice(site.address, "cam-01") as device:
            device.publish(str(StatusTopic("demo", "cam-01")), encode(Status("online", "b")), retain=True)
            wait_until(lambda d=device: any(r.fetch for r in d.receipts()), "the wish")  # type: ignore[misc]
            asked = next(r.fetch[0] for r in device.receipts() if r.fetch)
            assert (asked.frame.hex(), asked.kind) == (wanted.header.frame_id, "original")
            assert asked.extra == {"cam": "gate", "t": wanted.header.captured_at_ms}
            device.publish(str(StatusTopic("demo", "cam-01")), encode(Status("offline", "b")), retain=True)


def test_what_cannot_be_fetched_is_refused_before_anybody_is_asked(site: Site) -> None:
    same_size = frame_message(sequence=2, source_width=64, source_height=48)
    with MqttDevice(site.address, "cam-01") as device:
        device.send_frame(same_size)
        wait_until(lambda: same_size.header.frame_id in device.committed(), "a receipt")
    with pytest.raises(Conflict, match="no larger original"):
        fetches.ask(site.cat, same_size.header.frame_id, "original", "Ada")
    with pytest.raises(BadInput, match="out of range"):
        fetches.ask(site.cat, same_size.header.frame_id, "around", "Ada", seconds=1e6)


def test_a_frame_that_claims_a_link_without_having_been_fetched_is_refused(site: Site) -> None:
    liar = frame_message(sequence=3, extra={ORIGINAL_OF: "ab" * 32})
    with MqttDevice(site.address, "cam-01") as device:
        device.send_frame(liar)
        wait_until(lambda: liar.header.frame_id in device.refused(), "a refusal")


def test_tombstones_are_noted_once_and_the_device_is_told(site: Site) -> None:
    named = tuple(Tombstone(n, bytes([n]) * 32, "explore", "evicted:spool_full", 0.5, 0.05, "gate", 1000) for n in (3, 4))
    message = Tombstones(1, {"spool_full.explore.0.5": 2}, {"weaker.policy.0.1": 9}, named)
    with MqttDevice(site.address, "cam-01") as device:
        for _ in range(2):
            device.publish(str(TombstonesTopic("demo", "cam-01")), encode(message))
        wait_until(lambda: [r.buried for r in device.receipts()].count(4) == 2, "two answers")
    found = unsent.of_device(site.cat, "cam-01")
    assert (found["evicted"], found["named"]) == ({"spool_full.explore.0.5": 2}, {"explore": 2})
    assert {row["inclusion_probability"] for row in unsent.named(site.cat, "cam-01", arm="explore")} == {0.05}


def test_a_device_over_its_limit_is_told_and_its_frames_are_not_taken(tmp_path: Path, broker: Mosquitto) -> None:
    site = Site(tmp_path / "limited", broker, DeviceLimit(frames_per_day=2))
    try:
        sent = [frame_message(sequence=n) for n in range(4)]
        with MqttDevice(site.address, "cam-01") as device:
            for message in sent:
                device.send_frame(message)
                wait_until(
                    lambda m=message: m.header.frame_id in device.committed() or _held(device),  # type: ignore[misc]
                    "a word about it",
                )
            device.send_frame(sent[0])
            wait_until(lambda: device.committed().count(sent[0].header.frame_id) == 2, "a receipt for what is here already")
            assert device.refused() == {}
        assert site.cat.value("SELECT count(*) FROM frame") == 2
        limits = DeviceLimits(site.cat, DeviceLimit(bytes_per_day=1), lambda: 0.0)
        assert limits.hold_s("cam-01") > 0
        assert limits.hold_s("cam-02") == 0
    finally:
        site.close()


def _held(device: MqttDevice) -> bool:
    return any(receipt.hold_s > 0 for receipt in device.receipts())
