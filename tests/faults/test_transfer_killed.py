"""A transfer in parts, and all that can die in its middle: each frame is committed once, what had arrived is not sent again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bowerbird_agent.budget.budget import ByteLimits
from bowerbird_agent.link.link_events import LinkDown, LinkUp, MessageIn
from bowerbird_agent.link.upload_limits import UploadLimits
from bowerbird_agent.spool.spool import Spool
from bowerbird_server.blobs import LocalBlobs
from bowerbird_server.broker.embedded import BrokerAddress
from bowerbird_server.catalogue import Catalogue, fleet
from bowerbird_server.ingest import ingest
from bowerbird_server.ingest.ingest import POINTS
from bowerbird_server.layout import DataFolder
from bowerbird_testing.broker import Mosquitto
from bowerbird_testing.frame_messages import frame_message, jpeg
from bowerbird_testing.mqtt_device import MqttDevice, wait_for_ingest, wait_until
from bowerbird_testing.thin_link import ThinLink
from bowerbird_testing.uploading_device import uploading
from bowerbird_wire.codec import encode
from bowerbird_wire.messages import Desired, FrameMessage
from bowerbird_wire.topics import DesiredTopic

pytestmark = pytest.mark.broker

FRAMES = 6
THIN = 60_000.0  # bytes a second: a frame takes a second


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    made = DataFolder(tmp_path / "data").make()
    with Catalogue(made.catalogue) as cat:
        fleet.add_device(cat, "cam-01", "demo", "test")
    return made


@pytest.fixture
def sent(tmp_path: Path) -> list[FrameMessage]:
    """Frames of about 60 kB in the device's spool."""
    made = [frame_message(sequence=n, image=jpeg(n, 264, 192), width=264, height=192) for n in range(FRAMES)]
    spool = Spool(tmp_path / "spool", max_bytes=50_000_000)
    for message in made:
        assert spool.put(message.header, message.image, "new")
    spool.close()
    return made


def start(module: str, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", f"bowerbird_testing.{module}", *arguments], env=environment)


@contextmanager
def process(module: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    running = start(module, *arguments)
    try:
        yield running
    finally:
        running.kill()
        running.wait()


@contextmanager
def serving(folder: DataFolder, broker: Mosquitto) -> Iterator[None]:
    """An ingest in this process."""
    address = BrokerAddress(broker.host, broker.port)
    stop = threading.Event()
    thread = threading.Thread(target=ingest.run, args=(folder, address, stop))
    thread.start()
    try:
        wait_for_ingest(address)
        yield
    finally:
        stop.set()
        thread.join(20)


def assert_once(folder: DataFolder, spool: Path, sent: list[FrameMessage]) -> None:
    """Every frame has one row and a whole blob, no part is left, and the device's account is balanced."""
    blobs = LocalBlobs(folder.blobs)
    with Catalogue(folder.catalogue) as cat:
        rows = cat.rows("SELECT id, blob FROM frame")
    assert sorted(row["id"] for row in rows) == sorted(message.header.frame_id for message in sent)
    assert all(blobs.verify(row["blob"]) for row in rows)
    ledger_of = Spool(spool, max_bytes=50_000_000)
    ledger = ledger_of.ledger()
    ledger_of.close()
    assert ledger.balanced
    assert ledger.committed == len(sent)


def parts_here(folder: DataFolder) -> int:
    return sum(path.is_file() for path in folder.parts.rglob("*-*"))


def test_agent_killed_in_mid_transfer(tmp_path: Path, folder: DataFolder, broker: Mosquitto, sent: list[FrameMessage]) -> None:
    """Its successor knows only that the frame was sent, asks, and sends what is missing: hardly a byte twice."""
    with serving(folder, broker), ThinLink(broker.host, broker.port, bytes_per_s=THIN, rtt_s=0.05) as thin:
        arguments = (str(tmp_path / "spool"), thin.host, str(thin.port))
        for kill in range(4):
            with process("uploading_device", *arguments) as agent:
                wait_until(lambda k=kill: parts_here(folder) >= 2, "parts at the server")  # type: ignore[misc]
                agent.send_signal(signal.SIGKILL)
        with process("uploading_device", *arguments) as agent:
            assert agent.wait(60) == 0
        carried = thin.carried_up
    assert_once(folder, tmp_path / "spool", sent)
    whole = sum(len(message.image) for message in sent)
    # A kill loses what was on the link: at most a window of two seconds.
    assert carried < whole + 4 * 2 * THIN


@pytest.mark.parametrize("point", POINTS)
def test_ingest_killed_in_mid_transfer_after(
    point: str, tmp_path: Path, folder: DataFolder, broker: Mosquitto, sent: list[FrameMessage]
) -> None:
    """Parts are on its disk before they are acknowledged: the next process goes on with them."""
    ingest_arguments = (str(folder.root), broker.host, str(broker.port))
    with process("ingest_child", *ingest_arguments):
        wait_for_ingest(BrokerAddress(broker.host, broker.port))
    with (
        ThinLink(broker.host, broker.port, bytes_per_s=2 * THIN, rtt_s=0.02) as thin,
        process("uploading_device", str(tmp_path / "spool"), thin.host, str(thin.port)) as agent,
    ):
        for group in (4, 2, 7):
            with process("ingest_child", *ingest_arguments, point, str(group)) as dying:
                wait_until(lambda d=dying: d.poll() is not None or agent.poll() is not None, "its death", 60)  # type: ignore[misc]
                assert dying.poll() in (-signal.SIGKILL, None)
        with process("ingest_child", *ingest_arguments):
            assert agent.wait(90) == 0
    assert_once(folder, tmp_path / "spool", sent)


@pytest.mark.parametrize("point", ["receive", "row", "receipt"])
def test_one_of_two_workers_dies_in_mid_transfer(
    point: str, tmp_path: Path, folder: DataFolder, broker: Mosquitto, sent: list[FrameMessage]
) -> None:
    """Both put parts of the same frames; whoever finds one whole commits it, also what the other has left."""
    address = (str(folder.root), broker.host, str(broker.port))
    with (
        process("ingest_child", *address, "-", "1", "1", "2"),
        ThinLink(broker.host, broker.port, bytes_per_s=2 * THIN, rtt_s=0.02) as thin,
        process("uploading_device", str(tmp_path / "spool"), thin.host, str(thin.port)) as agent,
    ):
        for group in ("2", "3"):
            with process("ingest_child", *address, point, group, "2", "2") as dying:
                wait_until(lambda d=dying: d.poll() is not None or agent.poll() is not None, "its death", 60)  # type: ignore[misc]
        with process("ingest_child", *address, "-", "1", "2", "2"):
            assert agent.wait(90) == 0
    assert_once(folder, tmp_path / "spool", sent)


def test_broker_killed_in_mid_transfer(tmp_path: Path, folder: DataFolder, broker: Mosquitto, sent: list[FrameMessage]) -> None:
    """It forgets chunks that it has acknowledged; the bitmap says which."""
    with (
        serving(folder, broker),
        ThinLink(broker.host, broker.port, bytes_per_s=THIN, rtt_s=0.02) as thin,
        process("uploading_device", str(tmp_path / "spool"), thin.host, str(thin.port)) as agent,
    ):
        for _ in range(4):
            wait_until(lambda: parts_here(folder) >= 2 or agent.poll() is not None, "parts at the server")
            broker.restart()
            time.sleep(0.2)
        assert agent.wait(90) == 0
    assert_once(folder, tmp_path / "spool", sent)


def test_flapping_link_at_128_kbit_commits_everything_once(
    tmp_path: Path, folder: DataFolder, broker: Mosquitto, sent: list[FrameMessage]
) -> None:
    with (
        serving(folder, broker),
        ThinLink(broker.host, broker.port, bytes_per_s=16_000, rtt_s=0.2, reset_every_s=3.0, seed=5) as thin,
    ):
        with uploading(tmp_path / "spool", thin.host, thin.port) as device:
            device.run(lambda: device.spool.ledger().committed == FRAMES, timeout_s=150.0)
        assert thin.resets >= 3
    assert_once(folder, tmp_path / "spool", sent)


def test_silent_partition_ends_and_the_transfer_goes_on(
    tmp_path: Path, folder: DataFolder, broker: Mosquitto, sent: list[FrameMessage]
) -> None:
    with (
        serving(folder, broker),
        ThinLink(broker.host, broker.port, bytes_per_s=4 * THIN, rtt_s=0.02) as thin,
        uploading(tmp_path / "spool", thin.host, thin.port, stall_s=2.0) as device,
    ):
        device.run(lambda: device.spool.ledger().committed >= 1)
        thin.pause(True)
        stand_still_until = time.monotonic() + 3.0
        device.run(lambda: time.monotonic() > stand_still_until)
        thin.pause(False)
        device.run(lambda: device.spool.ledger().committed == FRAMES, timeout_s=60.0)
    assert_once(folder, tmp_path / "spool", sent)


def test_at_9600_bit_and_1500_ms_nobody_hangs_up_and_a_command_comes_through(
    tmp_path: Path, folder: DataFolder, broker: Mosquitto, sent: list[FrameMessage]
) -> None:
    """No piece occupies the link for longer than a quarter of the keep-alive, once the link is known."""
    with (
        serving(folder, broker),
        ThinLink(broker.host, broker.port, bytes_per_s=1200, rtt_s=1.5) as thin,
        uploading(
            tmp_path / "spool", thin.host, thin.port, keepalive_s=15, connect_timeout_s=20.0, limits=UploadLimits()
        ) as device,
    ):
        device.run(lambda: parts_here(folder) >= 2, timeout_s=60.0)
        with MqttDevice(BrokerAddress(broker.host, broker.port), "server") as server:
            server.publish(str(DesiredTopic("demo", "cam-01")), encode(Desired(1, 40)))
        device.run(
            lambda: any(isinstance(e, MessageIn) and isinstance(e.topic, DesiredTopic) for e in device.seen), timeout_s=20.0
        )
        device.run(lambda: parts_here(folder) >= 8, timeout_s=90.0)
        assert sum(isinstance(event, LinkUp) for event in device.seen) == 1
        assert not any(isinstance(event, LinkDown) for event in device.seen)


def test_the_budget_holds_on_the_wire_over_broken_links(
    tmp_path: Path, folder: DataFolder, broker: Mosquitto, sent: list[FrameMessage]
) -> None:
    """Chunks, questions, resends, keep-alives and what a reset drops: all of it is paid for."""
    cap = 200_000
    with (
        serving(folder, broker),
        ThinLink(broker.host, broker.port, bytes_per_s=THIN / 3, rtt_s=0.02) as thin,
        uploading(tmp_path / "spool", thin.host, thin.port, ByteLimits(bytes_per_day=cap)) as device,
    ):
        dice = random.Random(3)

        def idle() -> bool:
            return device.link.bytes_sent > cap - 20_000

        while not idle():
            until = time.monotonic() + dice.uniform(2.5, 4.0)
            device.run(lambda end=until: idle() or time.monotonic() > end)  # type: ignore[misc]
            thin.reset()
        until = time.monotonic() + 2.0
        device.run(lambda: time.monotonic() > until)
        # A new connection is not asked for: its hello, some hundred bytes, is charged after the fact.
        assert device.link.bytes_sent <= cap + 1000
        assert 1 <= device.spool.ledger().committed < FRAMES
