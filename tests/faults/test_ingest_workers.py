"""Several ingest processes on one catalogue and a shared subscription: every frame is committed once and answered, whoever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bowerbird_server.blobs import LocalBlobs
from bowerbird_server.broker.embedded import BrokerAddress
from bowerbird_server.broker.mqtt_session import Arrived, MqttSession
from bowerbird_server.catalogue import Catalogue, fleet
from bowerbird_server.cli.app import app
from bowerbird_server.cli.serve import _children
from bowerbird_server.ingest.share import Share, client_ids, give_up_unused
from bowerbird_server.layout import DataFolder
from bowerbird_server.site import Site
from bowerbird_testing.broker import Mosquitto
from bowerbird_testing.frame_messages import frame_message
from bowerbird_testing.mqtt_device import MqttDevice, wait_until
from bowerbird_wire.codec import encode_frame
from bowerbird_wire.messages import FrameMessage

pytestmark = pytest.mark.broker

WORKERS = 3
FRAMES = 120


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    made = DataFolder(tmp_path / "data").make()
    with Catalogue(made.catalogue) as cat:
        fleet.add_device(cat, "cam-01", "demo", "test")
    return made


@contextmanager
def worker(
    folder: DataFolder, broker: Mosquitto, number: int, point: str = "-", group: int = 1
) -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-m", "bowerbird_testing.ingest_child", str(folder.root), broker.host, str(broker.port)]
    argv += [point, str(group), str(number), str(WORKERS)]
    process = subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def subscribe_all(address: BrokerAddress) -> None:
    """Make the sessions of all workers, so that the broker keeps their shares from the first frame on."""
    for number in range(1, WORKERS + 1):
        share = Share(number, WORKERS)
        session = MqttSession(address, share.client_id, share.filters("+"))
        session.start()
        wait_until(lambda session=session: not session.events.empty(), "a connection")  # type: ignore[misc]
        with MqttDevice(address, "after-subscribe"):
            pass  # the broker has worked through what the session sent before it
        session.stop()


def send(device: MqttDevice, frames: list[FrameMessage]) -> None:
    for message in frames:
        device.client.publish("bowerbird/v1/demo/up/cam-01/frame", encode_frame(message), 1)


def assert_once(folder: DataFolder, frames: list[FrameMessage]) -> None:
    blobs = LocalBlobs(folder.blobs)
    with Catalogue(folder.catalogue) as cat:
        rows = cat.rows("SELECT id, blob, (SELECT count(*) FROM detection WHERE frame = frame.id) AS boxes FROM frame")
    assert sorted(row["id"] for row in rows) == sorted(m.header.frame_id for m in frames)
    assert all(blobs.verify(row["blob"]) and row["boxes"] == 1 for row in rows)


@pytest.mark.parametrize("point", ["receive", "commit", "receipt"])
def test_one_worker_dies_with_unacknowledged_messages(point: str, folder: DataFolder, broker: Mosquitto) -> None:
    """It is started again, as its supervisor does: all frames, each sent twice, have one row and a receipt without being sent again."""
    frames = [frame_message(sequence=n) for n in range(FRAMES)]
    address = BrokerAddress(broker.host, broker.port)
    subscribe_all(address)
    with MqttDevice(address, "cam-01") as device, ExitStack() as running:
        send(device, frames)
        send(device, list(reversed(frames)))
        for number in (1, 2):
            running.enter_context(worker(folder, broker, number))
        with worker(folder, broker, 3, point) as dying:
            assert dying.wait(30) == -signal.SIGKILL
        running.enter_context(worker(folder, broker, 3))
        wait_until(lambda: set(device.committed()) == {m.header.frame_id for m in frames}, "a receipt for every frame", 60)
    assert_once(folder, frames)


def test_workers_share_the_frames_out(folder: DataFolder, broker: Mosquitto) -> None:
    """No frame goes to two of them, none to nobody."""
    address = BrokerAddress(broker.host, broker.port)
    shares = [Share(number, WORKERS) for number in range(1, WORKERS + 1)]
    sessions = [MqttSession(address, share.client_id, share.filters("+")) for share in shares]
    for session in sessions:
        session.start()
        wait_until(lambda session=session: not session.events.empty(), "a connection")  # type: ignore[misc]
    try:
        with MqttDevice(address, "cam-01") as device:
            for n in range(30):
                device.publish("bowerbird/v1/demo/up/cam-01/frame", b"%d" % n)
            wait_until(lambda: sum(session.events.qsize() for session in sessions) == 30 + WORKERS, "thirty messages")
        taken = [[event.payload for event in _drain(session) if isinstance(event, Arrived)] for session in sessions]
    finally:
        for session in sessions:
            session.stop()
    assert sorted(payload for share in taken for payload in share) == sorted(b"%d" % n for n in range(30))
    assert all(taken)


def _drain(session: MqttSession) -> list[object]:
    return [session.events.get() for _ in range(session.events.qsize())]


def test_the_session_of_a_worker_that_is_no_more_gets_no_share(tmp_path: Path, broker: Mosquitto) -> None:
    """From three workers to one: nothing is kept for the two that are gone."""
    address = BrokerAddress(broker.host, broker.port)
    note = tmp_path / "ingest-workers.json"
    assert give_up_unused(note, WORKERS, address) == []
    subscribe_all(address)
    assert give_up_unused(note, 1, address) == client_ids(WORKERS)
    assert give_up_unused(note, 1, address) == []
    session = MqttSession(address, Share().client_id, Share().filters("+"))
    session.start()
    try:
        wait_until(lambda: not session.events.empty(), "a connection")
        with MqttDevice(address, "cam-01") as device:
            for n in range(12):
                device.publish("bowerbird/v1/demo/up/cam-01/frame", b"%d" % n)
            wait_until(lambda: session.events.qsize() == 13, "twelve messages")
        returning = MqttSession(address, Share(2, WORKERS).client_id, [])
        returning.start()
        wait_until(lambda: not returning.events.empty(), "a connection")
        with MqttDevice(address, "after-connect"):
            pass
        returning.stop()
        assert not [event for event in _drain(returning) if isinstance(event, Arrived)]
    finally:
        session.stop()


def test_serve_starts_as_many_workers_as_it_is_told(tmp_path: Path) -> None:
    """Each knows its number and how many there are; one alone keeps the name that logs and tools know."""
    with Site.open(tmp_path / "data") as site:
        several = [child for child in _children(site, None, WORKERS) if child.name.startswith("ingest")]
        (alone,) = [child for child in _children(site, None, 1) if child.name.startswith("ingest")]
    assert [child.name for child in several] == ["ingest-1", "ingest-2", "ingest-3"]
    assert [list(child.argv)[-4:] for child in several] == [["--worker", str(n), "--workers", "3"] for n in (1, 2, 3)]
    assert (alone.name, "--workers" in alone.argv) == ("ingest", False)


def test_a_worker_beyond_the_number_of_workers_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["ingest", "--worker", "3", "--workers", "2", "--data", str(tmp_path)])
    assert "no worker 3 of 2" in str(result.exception)
