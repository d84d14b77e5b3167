"""Frames per second of ingest against a bare subscriber that writes and syncs the same bytes, in the same run.

`python benchmarks/ingest.py [--quick]` starts its own mosquitto and publisher. The last line is JSON: both rates and their ratio.
The baseline takes the same messages from the same broker, writes each image to a file and syncs it before acknowledging; it
verifies nothing and keeps no rows.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from bowerbird_server import ingest
from bowerbird_server.blobs import LocalBlobs
from bowerbird_server.broker import BrokerAddress
from bowerbird_server.catalogue import Catalogue, fleet
from bowerbird_server.layout import DataFolder
from bowerbird_server.mqtt_session import Arrived, MqttSession
from bowerbird_testing.broker import Mosquitto
from bowerbird_testing.frame_messages import frame_message, jpeg
from bowerbird_wire.codec import encode_frame

PUBLISHER = """
import sys, pathlib, paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
client = mqtt.Client(CallbackAPIVersion.VERSION2, 'cam-01', protocol=mqtt.MQTTv5)
client.connect('127.0.0.1', int(sys.argv[1])); client.loop_start()
last = None
for path in sorted(pathlib.Path(sys.argv[2]).iterdir()):
    last = client.publish('bowerbird/v1/demo/up/cam-01/frame', path.read_bytes(), 1)
last.wait_for_publish(600)
"""


def publish(port: int, messages: Path) -> subprocess.Popen[bytes]:
    """The frames of a folder, as fast as the broker takes them, from a process of its own."""
    return subprocess.Popen([sys.executable, "-c", PUBLISHER, str(port), str(messages)])


def timed(start: Callable[[], None], count: Callable[[], int], frames: int) -> float:
    """Seconds from the first message sent until `count()` reaches `frames`."""
    began = time.monotonic()
    start()
    while count() < frames:
        if time.monotonic() - began > 600:
            raise SystemExit("gave up after ten minutes")
        time.sleep(0.01)
    return time.monotonic() - began


def bare(address: BrokerAddress, folder: Path, messages: Path, frames: int) -> float:
    """The baseline."""
    session = MqttSession(address, "bare", ["bowerbird/v1/+/up/+/frame"])
    stop, taken = threading.Event(), [0]
    ready = threading.Event()

    def take() -> None:
        while not stop.is_set():
            try:
                event = session.events.get(timeout=0.2)
            except Exception:  # noqa: S112 - an empty queue
                continue
            ready.set()
            if isinstance(event, Arrived):
                with (folder / str(taken[0])).open("wb") as file:
                    file.write(event.payload)
                    file.flush()
                    os.fsync(file.fileno())
                session.acknowledge(event)
                taken[0] += 1

    thread = threading.Thread(target=take)
    session.start()
    thread.start()
    ready.wait(10)
    time.sleep(0.5)
    seconds = timed(lambda: publishers.append(publish(address.port, messages)), lambda: taken[0], frames)
    stop.set()
    thread.join()
    session.stop()
    return seconds


def ours(address: BrokerAddress, folder: DataFolder, messages: Path, frames: int) -> float:
    """Ingest as it is, to the committed row."""
    with Catalogue(folder.catalogue) as cat:
        fleet.add_device(cat, "cam-01", "demo", "benchmark")
        stop = threading.Event()
        thread = threading.Thread(target=ingest.run, args=(folder, address, stop))
        thread.start()
        time.sleep(1.5)
        seconds = timed(
            lambda: publishers.append(publish(address.port, messages)),
            lambda: int(cat.value("SELECT count(*) FROM frame")),
            frames,
        )
        stop.set()
        thread.join()
    blobs = LocalBlobs(folder.blobs)
    assert sum(1 for _ in blobs.digests()) == frames
    return seconds


publishers: list[subprocess.Popen[bytes]] = []


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="300 frames instead of 3000")
    parser.add_argument("--folder", type=Path, help="where to write; a disk that is really a disk")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    frames = 300 if options.quick else 3000
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        root = Path(scratch)
        messages, plain = root / "messages", root / "plain"
        messages.mkdir()
        plain.mkdir()
        for n in range(frames):
            image = jpeg(n, 320, 240)
            (messages / f"{n:06}").write_bytes(encode_frame(frame_message(sequence=n, image=image, width=320, height=240)))
        size = sum(file.stat().st_size for file in messages.iterdir())
        print(f"{frames} frames of {size / frames / 1000:.0f} kB")
        settings = ["max_queued_messages 100000", "max_queued_bytes 0"]
        with Mosquitto(root / "broker-1", settings=settings) as broker:
            bare_s = bare(BrokerAddress(broker.host, broker.port), plain, messages, frames)
        print(f"bare subscriber, write and sync: {frames / bare_s:.0f} frames/s")
        with Mosquitto(root / "broker-2", settings=settings) as broker:
            ours_s = ours(BrokerAddress(broker.host, broker.port), DataFolder(root / "data").make(), messages, frames)
        print(f"ingest, to the committed row:    {frames / ours_s:.0f} frames/s")
        for process in publishers:
            process.wait()
    result = {"frames": frames, "bytes": size, "bare_per_s": frames / bare_s, "ingest_per_s": frames / ours_s}
    print(json.dumps({**result, "ratio": bare_s / ours_s}))


if __name__ == "__main__":
    main()
