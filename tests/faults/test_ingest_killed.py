"""Ingest and broker killed in mid-flow: every frame is committed once, whatever dies where."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bowerbird_server.blobs import LocalBlobs
from bowerbird_server.broker.embedded import BrokerAddress
from bowerbird_server.catalogue import Catalogue, fleet, references
from bowerbird_server.catalogue.records import decode_headers
from bowerbird_server.ingest.ingest import POINTS
from bowerbird_server.layout import DataFolder
from bowerbird_testing.broker import Mosquitto
from bowerbird_testing.frame_messages import audit_message, frame_message, reference_to
from bowerbird_testing.mqtt_device import MqttDevice, wait_for_ingest, wait_until
from bowerbird_wire.codec import encode_frame, encode_reference
from bowerbird_wire.messages import FrameMessage
from bowerbird_wire.topics import ReferenceTopic

pytestmark = pytest.mark.broker

FRAMES = 60


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    made = DataFolder(tmp_path / "data").make()
    with Catalogue(made.catalogue) as cat:
        fleet.add_device(cat, "cam-01", "demo", "test")
    return made


@contextmanager
def ingest_process(folder: DataFolder, broker: Mosquitto, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-m", "bowerbird_testing.ingest_child", str(folder.root), broker.host, str(broker.port), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(argv, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def send_until_committed(device: MqttDevice, frames: list[FrameMessage], alive: Callable[[], None] = lambda: None) -> None:
    """The agent's part: send, and send again what has no receipt after two seconds."""
    deadline = time.monotonic() + 60
    while missing := [m for m in frames if m.header.frame_id not in device.committed()]:
        assert time.monotonic() < deadline, f"{len(missing)} frames without a receipt"
        alive()
        for message in missing:
            device.client.publish(f"bowerbird/v1/demo/up/{device.device}/frame", encode_frame(message), 1)
        until = time.monotonic() + 2
        while time.monotonic() < until and any(m.header.frame_id not in device.committed() for m in frames):
            time.sleep(0.02)


def assert_once(folder: DataFolder, frames: list[FrameMessage]) -> None:
    """Every frame has one row and a whole blob, and there is nothing else."""
    blobs = LocalBlobs(folder.blobs)
    with Catalogue(folder.catalogue) as cat:
        rows = cat.rows("SELECT id, blob, (SELECT count(*) FROM detection WHERE frame = frame.id) AS boxes FROM frame")
    assert sorted(row["id"] for row in rows) == sorted(m.header.frame_id for m in frames)
    assert all(blobs.verify(row["blob"]) and row["boxes"] == 1 for row in rows)
    records = [blobs.read(digest) for digest in set(blobs.digests()) - {row["blob"] for row in rows}]
    assert {header.frame_id for record in records for _, header, _ in decode_headers(record).frames} == {
        row["id"] for row in rows
    }


@pytest.mark.parametrize("point", POINTS)
def test_ingest_killed_after(point: str, folder: DataFolder, broker: Mosquitto) -> None:
    """Killed at this point of a group, and started again: every frame has one row, blob and receipt."""
    frames = [frame_message(sequence=n) for n in range(FRAMES)]
    with Catalogue(folder.catalogue) as cat:
        fleet.add_device(cat, "probe", "demo", "test")
    address = BrokerAddress(broker.host, broker.port)
    # The probe that waits for ingest makes the first groups; the session must exist before a frame can wait in it.
    with ingest_process(folder, broker):
        wait_for_ingest(address)
    with MqttDevice(address, "cam-01") as device:
        for message in frames[:40]:
            device.send_frame(message)
        with ingest_process(folder, broker, point) as first:
            assert first.wait(30) == -signal.SIGKILL
        with ingest_process(folder, broker):
            # What was acknowledged to the device and not committed is still in the session: no sending again.
            wait_until(lambda: set(device.committed()) >= {m.header.frame_id for m in frames[32:40]}, "the second group")
            send_until_committed(device, frames)
    assert_once(folder, frames)


@pytest.mark.parametrize("point", POINTS)
def test_ingest_killed_with_a_reference_after(point: str, folder: DataFolder, broker: Mosquitto) -> None:
    """Killed at this point of a reference's group, and started again: one row that shows the twin's picture, and a receipt."""
    with Catalogue(folder.catalogue) as cat:
        fleet.add_device(cat, "probe", "demo", "test")
    address = BrokerAddress(broker.host, broker.port)
    twin = audit_message(1)
    later = reference_to(twin, 2)
    topic = str(ReferenceTopic("demo", "cam-01"))
    with MqttDevice(address, "cam-01") as device:
        with ingest_process(folder, broker):
            wait_for_ingest(address)
            device.send_frame(twin)
            wait_until(lambda: twin.header.frame_id in device.committed(), "the twin")
        device.publish(topic, encode_reference(later.header))
        with ingest_process(folder, broker, point) as first:
            assert first.wait(30) == -signal.SIGKILL
        with ingest_process(folder, broker):
            device.publish(topic, encode_reference(later.header))  # and once more, as after a question
            wait_until(lambda: later.header.frame_id in device.committed(), "the reference")
    with Catalogue(folder.catalogue) as cat:
        rows = cat.rows("SELECT id, blob, bytes, (SELECT count(*) FROM detection WHERE frame = frame.id) AS boxes FROM frame")
        assert references.twin_of(cat, later.header.frame_id) == twin.header.frame_id
    assert {row["id"]: (row["blob"], row["bytes"], row["boxes"]) for row in rows} == {
        twin.header.frame_id: (twin.header.image_sha256, len(twin.image), 1),
        later.header.frame_id: (twin.header.image_sha256, 0, 1),
    }
    assert device.refused() == {}


def test_broker_killed_again_and_again(folder: DataFolder, broker: Mosquitto) -> None:
    """The broker forgets all it held each time: receipts, not its disk, decide what is sent again."""
    frames = [frame_message(sequence=n) for n in range(FRAMES)]
    kills = iter(range(3))

    def kill_broker() -> None:
        if next(kills, None) is not None:
            broker.restart()

    address = BrokerAddress(broker.host, broker.port)
    with ingest_process(folder, broker):
        wait_for_ingest(address)
        with MqttDevice(address, "cam-01") as device:
            for part in range(0, FRAMES, 15):
                for message in frames[part : part + 15]:
                    device.client.publish("bowerbird/v1/demo/up/cam-01/frame", encode_frame(message), 1)
                kill_broker()
            send_until_committed(device, frames)
    assert_once(folder, frames)
