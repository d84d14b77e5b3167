"""A still scene over a real broker: the device sends its first frame of the audit whole and the rest as references; server and people
know as much, for a fraction of the bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from bowerbird_agent.budget.budget import ByteLimits
from bowerbird_server.blobs import LocalBlobs
from bowerbird_server.broker.embedded import BrokerAddress
from bowerbird_server.catalogue import Catalogue, audited, fleet, frames, references
from bowerbird_server.catalogue.classes import add_classes
from bowerbird_server.catalogue.record_keeping import delete_frames
from bowerbird_server.catalogue.verify import verify
from bowerbird_server.fleet import delivery
from bowerbird_server.ingest import ingest
from bowerbird_server.labelling.backend import Box, submit_label
from bowerbird_server.layout import DataFolder
from bowerbird_testing.agent_process import AgentProcess, write_config
from bowerbird_testing.broker import Mosquitto
from bowerbird_testing.frame_messages import audit_message, jpeg, reference_to
from bowerbird_testing.judged_frames import textured
from bowerbird_testing.mqtt_device import wait_for_ingest, wait_until
from bowerbird_testing.receipt_server import ReceiptServer
from bowerbird_testing.uploading_device import UploadingDevice, drain, uploading
from bowerbird_wire.codec import encode_frame
from bowerbird_wire.messages import FrameMessage, WireDetection
from bowerbird_wire.spent import CHUNKS, FRAMES, OFFERS, REFERENCES

pytestmark = pytest.mark.broker

BIRD = (1.0, 2.0, 20.0, 30.0)
SIZE = {"width": 320, "height": 240}
STILL = 10


def picture(seed: int) -> bytes:
    return jpeg(seed, 320, 240)


TWIN = audit_message(0, image=picture(0), detections=(), **SIZE)
LATER = [
    reference_to(TWIN, n, image=picture(n), detections=(WireDetection(BIRD, 0.9, "bird"),), **SIZE) for n in range(1, 1 + STILL)
]


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    made = DataFolder(tmp_path / "data").make()
    with Catalogue(made.catalogue) as cat:
        fleet.add_device(cat, "cam-01", "demo", "test")
        add_classes(cat, ["bird"], "test")
    return made


@contextmanager
def serving(folder: DataFolder, broker: Mosquitto) -> Iterator[None]:
    """Ingest, and who says what the server takes."""
    address, stop = BrokerAddress(broker.host, broker.port), threading.Event()
    threads = [threading.Thread(target=run, args=(folder, address, stop)) for run in (ingest.run, delivery.run)]
    for thread in threads:
        thread.start()
    try:
        wait_for_ingest(address)
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()


def put(device: UploadingDevice, *messages: FrameMessage) -> None:
    for message in messages:
        assert device.spool.put(message.header, message.image, "new")


def hears(device: UploadingDevice) -> Callable[[], bool]:
    """Whether the server has said that it takes references: only then is it sure what follows."""
    return lambda: device.link.connected and device.runner.references.are_taken


def bytes_of(device: UploadingDevice, *kinds: str) -> int:
    spent = device.link.spending.by_kind(0)
    return sum(spent.get(kind, 0) for kind in kinds)


def test_a_still_scene_costs_one_picture_and_the_estimates_miss_nothing(
    tmp_path: Path, folder: DataFolder, broker: Mosquitto
) -> None:
    with serving(folder, broker), uploading(tmp_path / "spool", broker.host, broker.port) as device:
        device.run(hears(device))
        put(device, TWIN)
        drain(device)
        before = bytes_of(device, FRAMES, CHUNKS)
        put(device, *LATER)
        drain(device)
        assert device.spool.ledger().committed == 1 + STILL
        assert device.runner.references.sent == STILL
        assert bytes_of(device, FRAMES, CHUNKS) == before, "no picture beside the first"
        whole = sum(len(encode_frame(message)) for message in LATER)
        assert bytes_of(device, REFERENCES, OFFERS) < whole / 20
    with Catalogue(folder.catalogue) as cat:
        rows = [frames.get(cat, message.header.frame_id) for message in LATER]
        assert {row["blob"] for row in rows} == {TWIN.header.image_sha256}
        submit_label(cat, LocalBlobs(folder.blobs), TWIN.header.frame_id, "anna", "labelled", [Box("bird", BIRD)])
        (row,) = audited.metrics(cat, period="all", camera="cam-01/gate")[:1]
        assert (row["frames"], row["missing"]) == (1 + STILL, 0)
        assert row["recall"]["value"] == pytest.approx(STILL / (1 + STILL)), "missed in the first, seen in the others"


def test_the_budget_is_charged_for_what_is_sent(tmp_path: Path, folder: DataFolder, broker: Mosquitto) -> None:
    """Room for one picture and a half a day, and all ten frames arrive."""
    limits = ByteLimits(bytes_per_day=len(encode_frame(TWIN)) * 3 // 2 + 20_000)
    with serving(folder, broker), uploading(tmp_path / "spool", broker.host, broker.port, limits) as device:
        device.run(hears(device))
        put(device, TWIN)
        drain(device)
        put(device, *LATER)
        drain(device)
        assert device.spool.ledger().committed == 1 + STILL


def test_after_a_restart_the_device_still_knows_what_the_server_has(
    tmp_path: Path, folder: DataFolder, broker: Mosquitto
) -> None:
    with serving(folder, broker):
        with uploading(tmp_path / "spool", broker.host, broker.port) as device:
            put(device, TWIN)
            drain(device)
            put(device, LATER[0])
        with uploading(tmp_path / "spool", broker.host, broker.port) as again:
            again.run(hears(again))
            put(again, LATER[1])
            drain(again)
            assert again.runner.references.sent >= 1
    with Catalogue(folder.catalogue) as cat:
        assert references.twin_of(cat, LATER[1].header.frame_id) == TWIN.header.frame_id


def test_a_reference_to_a_frame_that_was_erased_meanwhile_arrives_whole(
    tmp_path: Path, folder: DataFolder, broker: Mosquitto
) -> None:
    with serving(folder, broker), uploading(tmp_path / "spool", broker.host, broker.port) as device:
        device.run(hears(device))
        put(device, TWIN)
        drain(device)
        with Catalogue(folder.catalogue) as cat:
            delete_frames(cat, LocalBlobs(folder.blobs), [TWIN.header.frame_id], "test", "asked")
        put(device, LATER[0])
        drain(device)
        assert device.runner.references.sent == 1
        assert device.spool.ledger().committed == 2
    with Catalogue(folder.catalogue) as cat:
        row = frames.get(cat, LATER[0].header.frame_id)
    assert (row["blob"], row["state"]) == (LATER[0].header.image_sha256, "received")
    assert LocalBlobs(folder.blobs).read(row["blob"]) == LATER[0].image


def test_a_frame_whose_twin_has_no_receipt_goes_whole(tmp_path: Path, folder: DataFolder, broker: Mosquitto) -> None:
    with serving(folder, broker), uploading(tmp_path / "spool", broker.host, broker.port) as device:
        device.run(hears(device))
        put(device, LATER[0])  # its twin was dropped, say
        drain(device)
        assert device.runner.references.sent == 0
        assert device.spool.ledger().committed == 1


def test_a_server_that_does_not_know_references_gets_every_frame_whole(tmp_path: Path, broker: Mosquitto) -> None:
    with ReceiptServer(broker.host, broker.port) as server, uploading(tmp_path / "spool", broker.host, broker.port) as device:
        server.credit(500_000)
        put(device, TWIN)
        drain(device)
        put(device, *LATER[:3])
        drain(device)
        assert set(server.committed) == {message.header.frame_id for message in (TWIN, *LATER[:3])}
        assert not server.faults
        assert bytes_of(device, REFERENCES) == 0


def film(path: Path, frames_: int) -> None:
    """A camera that looks at a wall: the same scene with the noise of a sensor, 15 frames a second."""
    scene = textured(1, width=320, height=240).astype(np.int16)
    rng = np.random.default_rng(1)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 15.0, (320, 240))
    for _ in range(frames_):
        writer.write(np.clip(scene + rng.normal(0, 2, scene.shape).round().astype(np.int16), 0, 255).astype(np.uint8))
    writer.release()


def test_an_agent_that_looks_at_a_wall_sends_one_picture_and_then_says_that_nothing_has_changed(
    tmp_path: Path, folder: DataFolder, broker: Mosquitto
) -> None:
    film(tmp_path / "wall.avi", 900)
    camera = f'[[cameras]]\nname = "gate"\nsource = "{tmp_path / "wall.avi"}"\npace = "realtime"'
    selection = {"epsilon": 1.0, "window_frames": 15, "frames_per_window": 2}
    config = write_config(tmp_path / "agent", port=broker.port, cameras=camera, overrides={"selection": selection})
    with serving(folder, broker), Catalogue(folder.catalogue) as cat, AgentProcess(config) as agent:
        wait_until(lambda: references.count(cat) >= 6, "six references", 90)
        code, _ = agent.terminate(timeout_s=60)
        assert code == 0, agent.log
        wait_until(lambda: fleet.get(cat, "cam-01")["health"]["extra"].get("references", 0) >= 6, "a health message")
        rows = cat.rows("SELECT id, blob, bytes, arm FROM frame")
        assert {row["arm"] for row in rows} == {"explore"}
        pictures = {row["blob"] for row in rows if row["bytes"]}
        assert {row["blob"] for row in rows if not row["bytes"]} <= pictures
        assert not verify(cat, LocalBlobs(folder.blobs)).faults
        spent = fleet.get(cat, "cam-01")["health"]["extra"]["spent"]
        of_reference = spent["r"] / sum(not row["bytes"] for row in rows)
        assert of_reference < 0.1 * sum(row["bytes"] for row in rows) / len(pictures)
    assert "Traceback" not in agent.log
