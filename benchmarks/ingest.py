"""Frames per second of ingest, as a share of what a bare subscriber reaches that writes and syncs the same bytes in the same
groups.

    python benchmarks/ingest.py [--quick] [--folder DIR] [--workers N]

In: nothing; it starts its own broker and publisher for each pass, which speak TLS as a site does, both arms alike. Out: both
rates, and the figure as a last line of JSON: the median over rounds of passes of ingest's rate over the bare subscriber's (goal:
at least 0.7). Frames are JPEGs of 60 kB, QoS 1; a pass ends with the last committed row, of the bare subscriber with the last
acknowledged message. The bare subscriber is paho as its manual has it (`PahoSession`); it takes the same messages in the same groups
(32 frames or 50 ms), writes each image to a file, flushes the file system once a group, as ingest does, and acknowledges; it verifies
nothing, keeps no rows and sends no receipts. Passes alternate, since disks drift, and nothing is deleted before the last: ext4
searches for inodes around those that were freed a moment ago, which cost the next pass 100 us a frame and more.

Beside the figure: the same bare subscriber on the server's own MQTT session, which reads and acknowledges for less than paho does (a
stricter baseline); the CPU time of each arm, user and system, which other work on the machine disturbs least; the 99th percentile
of the time from publishing a frame to its receipt at half of ingest's own rate; and with `--workers N` the rate of N processes that
share the frames out, over that of one such process.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from figure import report

from bowerbird_server.blobs import LocalBlobs
from bowerbird_server.broker.mqtt_session import Arrived, Event, MqttSession
from bowerbird_server.catalogue import Catalogue, fleet
from bowerbird_server.catalogue.frames import blobs_of
from bowerbird_server.ingest import ingest
from bowerbird_server.ingest.share import client_ids
from bowerbird_server.layout import DataFolder
from bowerbird_testing.frame_messages import frame_message, jpeg
from bowerbird_testing.mqtt_device import MqttDevice
from bowerbird_testing.tls_broker import TlsBroker
from bowerbird_wire.codec import decode, decode_frame_header, encode_frame
from bowerbird_wire.messages import Receipt

GOAL = 0.7
ARMS = ("bare", "bare on our session", "ingest")
FRAMES = "bowerbird/v1/+/up/+/frame"
FRAME_WH = (264, 192)  # noise: 60 kB
BROKER_SETTINGS = ["max_queued_messages 100000", "max_queued_bytes 0"]
PUBLISHER = """
import sys, pathlib, paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
client = mqtt.Client(CallbackAPIVersion.VERSION2, 'cam-01', protocol=mqtt.MQTTv5)
client.tls_set(ca_certs=sys.argv[3], certfile=sys.argv[4], keyfile=sys.argv[4])
client.connect('127.0.0.1', int(sys.argv[1])); client.loop_start()
last = None
for path in sorted(pathlib.Path(sys.argv[2]).iterdir()):
    last = client.publish('bowerbird/v1/demo/up/cam-01/frame', path.read_bytes(), 1)
last.wait_for_publish(600)
"""


def broker_in(folder: Path, clients: Sequence[str] = ()) -> TlsBroker:
    """The server's own broker, whose queues hold whatever a pass sends."""
    folder.mkdir()
    return TlsBroker(folder, {"cam-01": "demo"}, clients=("bare", *clients), settings=BROKER_SETTINGS)


def publish(site: TlsBroker, messages: Path) -> subprocess.Popen[bytes]:
    """The frames of a folder, as fast as the broker takes them, from a process of its own."""
    address = site.address("cam-01")
    return subprocess.Popen(
        [sys.executable, "-c", PUBLISHER, str(address.port), str(messages), address.ca_file, address.certificate]
    )


def timed(start: Callable[[], None], count: Callable[[], int], frames: int) -> float:
    """Seconds from the first message sent until `count()` reaches `frames`; notes what CPU time this process took for it."""
    began, cpu_s = time.monotonic(), time.process_time()
    start()
    while count() < frames:
        if time.monotonic() - began > 600:
            raise SystemExit("gave up after ten minutes")
        time.sleep(0.02)
    cpu_of_passes_s.append(time.process_time() - cpu_s)
    return time.monotonic() - began


class PahoSession:
    """A subscriber of frames as one writes it with paho: messages on a queue, each acknowledged by `ack`."""

    def __init__(self, site: TlsBroker) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._address = site.server
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, "bare", protocol=mqtt.MQTTv5, manual_ack=True)
        context = site.server.tls_context("bare")
        assert context is not None
        self.client.tls_set_context(context)
        self.client.on_connect = lambda client, *_: client.subscribe(FRAMES, 1)
        self.client.on_message = lambda _client, _data, message: self.events.put(
            Arrived(1, message.topic, message.payload, message.mid, message.qos)
        )

    def start(self) -> None:
        """Connect."""
        properties = Properties(PacketTypes.CONNECT)
        properties.ReceiveMaximum = ingest.RECEIVE_MAXIMUM
        self.client.connect(self._address.host, self._address.port, properties=properties)
        self.client.loop_start()

    def stop(self) -> None:
        """Disconnect."""
        self.client.disconnect()
        self.client.loop_stop()

    def acknowledge_all(self, group: Sequence[Arrived]) -> bool:
        """Each by itself."""
        for arrived in group:
            self.client.ack(arrived.mid, arrived.qos)
        return True

    def is_current(self, _arrived: Arrived) -> bool:
        """It never connects again."""
        return True


def bare(site: TlsBroker, folder: Path, messages: Path, frames: int, session: PahoSession | MqttSession) -> float:
    """The baseline."""
    stop, taken = threading.Event(), [0]
    syncfs = ctypes.CDLL(None, use_errno=True).syncfs
    handle = os.open(folder, os.O_RDONLY)

    def take() -> None:
        for group in ingest.groups(session, stop):
            if not group:
                continue
            for arrived in group:
                (folder / str(taken[0])).write_bytes(arrived.payload)
                taken[0] += 1
            if syncfs(handle) != 0:
                raise SystemExit("syncfs failed")
            session.acknowledge_all(group)

    thread = threading.Thread(target=take)
    session.start()
    thread.start()
    time.sleep(1.5)
    seconds = timed(lambda: publishers.append(publish(site, messages)), lambda: taken[0], frames)
    stop.set()
    thread.join()
    session.stop()
    os.close(handle)
    return seconds


@contextmanager
def processes(site: TlsBroker, root: Path, workers: int) -> Iterator[DataFolder]:
    """Ingest as so many processes of their own, all of them subscribed."""
    folder = DataFolder(root).make()
    with Catalogue(folder.catalogue) as cat:
        fleet.add_device(cat, "cam-01", "demo", "benchmark")
    address = f"@{site.broker.address_path}"
    argv = [sys.executable, "-m", "bowerbird_testing.ingest_child", str(folder.root), address, "0", "-", "1"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "tests")}
    running = [
        subprocess.Popen([*argv, str(number), str(workers)], env=environment, stderr=subprocess.DEVNULL)
        for number in range(1, workers + 1)
    ]
    time.sleep(4)
    try:
        yield folder
    finally:
        for process in running:
            process.kill()
            process.wait()


def rate_of_processes(site: TlsBroker, root: Path, messages: Path, frames: int, workers: int) -> float:
    """Frames per second of `workers` processes."""
    with processes(site, root, workers) as folder, Catalogue(folder.catalogue) as cat:
        seconds = timed(
            lambda: publishers.append(publish(site, messages)),
            lambda: int(cat.value("SELECT count(*) FROM frame")),
            frames,
        )
    return frames / seconds


def receipt_p99_s(site: TlsBroker, root: Path, messages: Path, per_s: float) -> float:
    """99th percentile of the time from publishing a frame to its receipt, at a steady rate."""
    sent, answered = {}, {}
    with processes(site, root, 1), MqttDevice(site.address("cam-01"), "cam-01") as device:
        receive = device.client.on_message

        def on_message(client: Any, data: Any, message: Any) -> None:
            now_s = time.monotonic()
            for frame in decode(Receipt, message.payload).committed:
                answered.setdefault(frame, now_s)
            receive(client, data, message)

        device.client.on_message = on_message
        began = time.monotonic()
        for number, path in enumerate(sorted(messages.iterdir())):
            payload = path.read_bytes()
            time.sleep(max(0.0, began + number / per_s - time.monotonic()))
            sent[decode_frame_header(payload)[0].frame_id] = time.monotonic()
            device.client.publish("bowerbird/v1/demo/up/cam-01/frame", payload, 1)
        until = time.monotonic() + 60
        while len(answered) < len(sent) and time.monotonic() < until:
            time.sleep(0.05)
    waits = sorted(answered[frame] - at_s for frame, at_s in sent.items())
    return waits[int(0.99 * (len(waits) - 1))]


def is_committed(cat: Catalogue, frame: str) -> bool:
    """Whether the last frame sent has its row: one publisher's frames come in order. Counting rows would be charged to ingest."""
    return cat.value("SELECT 1 FROM frame WHERE id = ?", frame) is not None


def ours(site: TlsBroker, root: Path, messages: Path, frames: int) -> float:
    """Ingest as it is, to the committed row."""
    folder = DataFolder(root).make()
    last = decode_frame_header(sorted(messages.iterdir())[-1].read_bytes())[0].frame_id
    with Catalogue(folder.catalogue) as cat:
        fleet.add_device(cat, "cam-01", "demo", "benchmark")
        stop = threading.Event()
        thread = threading.Thread(target=ingest.run, args=(folder, site.server, stop))
        thread.start()
        time.sleep(1.5)
        seconds = timed(
            lambda: publishers.append(publish(site, messages)),
            lambda: frames if is_committed(cat, last) else 0,
            frames,
        )
        stop.set()
        thread.join()
        assert cat.value("SELECT count(*) FROM frame") == frames
    blobs = LocalBlobs(folder.blobs)
    with Catalogue(folder.catalogue) as cat:
        assert all(blobs.exists(row["blob"]) for row in blobs_of(cat))
    return seconds


def run_arm(arm: str, site: TlsBroker, folder: Path, messages: Path, frames: int) -> float:
    """Seconds of one pass of one of `ARMS`."""
    if arm == "ingest":
        return ours(site, folder, messages, frames)
    quick = arm == "bare on our session"
    session = MqttSession(site.server, "bare", [FRAMES], receive_maximum=ingest.RECEIVE_MAXIMUM) if quick else PahoSession(site)
    return bare(site, folder, messages, frames, session)


def median_ratio(rates: Mapping[str, Sequence[float]], baseline: str) -> float:
    """Ingest's rate over a baseline's, pass by pass."""
    return statistics.median(mine / its for mine, its in zip(rates["ingest"], rates[baseline], strict=True))


publishers: list[subprocess.Popen[bytes]] = []
cpu_of_passes_s: list[float] = []


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of passes of 600 frames instead of three of 3000")
    parser.add_argument("--folder", type=Path, help="where to write; a disk that is really a disk")
    parser.add_argument("--workers", type=int, default=1, help="also measure so many ingest processes against one")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    frames, rounds = (600, 1) if options.quick else (3000, 3)
    rates: dict[str, list[float]] = {arm: [] for arm in ARMS}
    cpu_us: dict[str, list[float]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        root = Path(scratch)
        messages = root / "messages"
        messages.mkdir()
        for n in range(frames):
            image = jpeg(n, *FRAME_WH)
            message = frame_message(sequence=n, image=image, width=FRAME_WH[0], height=FRAME_WH[1])
            (messages / f"{n:06}").write_bytes(encode_frame(message))
        size = sum(file.stat().st_size for file in messages.iterdir())
        print(f"{frames} frames of {size / frames / 1000:.0f} kB")
        for number in range(rounds):
            for place, arm in enumerate(ARMS if number % 2 == 0 else ARMS[::-1]):
                folder = root / f"pass-{number}-{place}"
                folder.mkdir()
                with broker_in(root / f"broker-{number}-{place}") as site:
                    seconds = run_arm(arm, site, folder, messages, frames)
                rates[arm].append(frames / seconds)
                cpu_us[arm].append(1e6 * cpu_of_passes_s[-1] / frames)
                print(f"{arm:19} {frames / seconds:6.0f} frames/s, {cpu_us[arm][-1]:.0f} us of CPU a frame", flush=True)
        for process in publishers:
            process.wait()
        half = statistics.median(rates["ingest"]) / 2
        with broker_in(root / "broker-latency") as site:
            p99_s = receipt_p99_s(site, root / "latency", messages, half)
        shared = {}
        for number in (1, options.workers) if options.workers > 1 else ():
            with broker_in(root / f"broker-workers-{number}", client_ids(number)) as site:
                shared[number] = rate_of_processes(site, root / f"workers-{number}", messages, frames, number)
    details = {
        "ratio_to_bare_on_our_session": round(median_ratio(rates, "bare on our session"), 3),
        "frames": frames,
        "frame_bytes": round(size / frames),
        "receipt_p99_s_at_half_load": round(p99_s, 3),
        "half_load_per_s": round(half),
        "processes_per_s": {number: round(rate) for number, rate in shared.items()},
        "cpu_us_a_frame": {arm: round(statistics.median(seen)) for arm, seen in cpu_us.items()},
        "per_s": {arm: [round(rate) for rate in seen] for arm, seen in rates.items()},
    }
    return report(
        "ingest", median_ratio(rates, "bare"), GOAL, "ingest's rate over a bare subscriber's", at_least=True, details=details
    )


if __name__ == "__main__":
    sys.exit(main())
