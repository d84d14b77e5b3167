"""Committed image bytes over what a thin link allows: 128 kbit/s, 200 ms round trip, a reset every 15 s on average.

    python benchmarks/thin_link.py [--quick] [--seconds N] [--seeds N]

In: nothing; for each arm it starts a mosquitto, an ingest and a link of its own (`bowerbird_testing/thin_link.py`). Out: per
arm and frame size the share of rate x time that arrived as images of committed frames, and as a last line of JSON the smallest
of ours over the sizes, each the mean of its seeds (goal: at least 0.75). Ours is the agent's spool, uploader and link as they
are; the baseline is what one writes first: paho, QoS 1, its own reconnect, whole messages, four of them out. The same seed
resets both at the same seconds. All arms of a seed run at the same time, since they share nothing and need little.

Both arms speak TLS 1.3 with a certificate each, to the server's own broker, and pay a whole handshake after every reset.
`--quick` runs 45 s once; a frame of 1 MB needs 62 s even on a link without faults, so its figure there is what is durable at
the server in parts, and is not part of the value.
"""

from __future__ import annotations

import argparse
import logging
import ssl
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import cv2
import numpy as np
import paho.mqtt.client as mqtt
from figure import report
from paho.mqtt.enums import CallbackAPIVersion

from bowerbird_agent.link.upload_limits import UploadLimits
from bowerbird_server.broker.address import BrokerAddress
from bowerbird_server.catalogue import Catalogue, fleet
from bowerbird_server.ingest import ingest
from bowerbird_server.layout import DataFolder
from bowerbird_testing.frame_messages import frame_message
from bowerbird_testing.thin_link import ThinLink
from bowerbird_testing.tls_broker import TlsBroker, device_certificate
from bowerbird_testing.uploading_device import UploadingDevice
from bowerbird_wire.codec import encode_frame
from bowerbird_wire.messages import FrameMessage

GOAL = 0.75
BYTES_PER_S = 128_000 / 8
RTT_S = 0.2
RESET_EVERY_S = 15.0
SIZES = {"60 kB": (264, 192), "1 MB": (1090, 780)}  # noise of so many pixels
NAIVE_OUT = 4


def frames(size_wh: tuple[int, int], seconds: float) -> list[FrameMessage]:
    """More frames than the link can carry, each of its own looks."""
    width, height = size_wh
    made: list[FrameMessage] = []
    total = 0
    while total < 1.2 * BYTES_PER_S * seconds or len(made) < 2:
        dice = np.random.default_rng(len(made))
        looks = cv2.resize(dice.integers(60, 190, (6, 8, 3), dtype=np.uint8), size_wh, interpolation=cv2.INTER_CUBIC)
        noisy = looks.astype(np.int16) + dice.integers(-128, 128, looks.shape)
        image = bytes(cv2.imencode(".jpg", np.clip(noisy, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 95])[1])
        made.append(frame_message(sequence=len(made), image=image, width=width, height=height))
        total += len(image)
    return made


@dataclass
class Outcome:
    """What one arm reached."""

    arm: str
    size: str
    seed: int
    share: float
    durable_share: float  # with parts of frames that are not whole yet
    frames: int
    resets: int
    carried: int


def context_of(address: BrokerAddress) -> ssl.SSLContext:
    """As the device speaks TLS."""
    context = address.tls_context("cam-01")
    assert context is not None
    return context


def ours(folder: Path, link: ThinLink, address: BrokerAddress, messages: list[FrameMessage], until_s: float, seed: int) -> None:
    """The agent's own parts."""
    device = UploadingDevice(
        folder,
        link.host,
        link.port,
        limits=UploadLimits(),
        seed=seed,
        connect_timeout_s=10.0,
        max_retry_s=120.0,
        tls=lambda: context_of(address),
    )
    for message in messages:
        device.spool.put(message.header, message.image, "new")
    device.link.start()
    while time.monotonic() < until_s:
        device.step()
        device.seen.clear()
    device.close()


def naive(
    folder: Path, link: ThinLink, address: BrokerAddress, messages: list[FrameMessage], until_s: float, seed: int
) -> None:
    """What one writes first."""
    del folder, seed
    client = mqtt.Client(CallbackAPIVersion.VERSION2, "cam-01", protocol=mqtt.MQTTv5)
    client.tls_set_context(context_of(address))
    client.reconnect_delay_set(1, 30)
    taken: list[int] = []
    client.on_publish = lambda _c, _u, mid, _r, _p: taken.append(mid)
    client.connect_async(link.host, link.port, 30)
    client.loop_start()
    waiting = [encode_frame(message) for message in messages]
    handed_over = 0
    while time.monotonic() < until_s:
        while waiting and handed_over - len(taken) < NAIVE_OUT:
            client.publish("bowerbird/v1/demo/up/cam-01/frame", waiting.pop(0), 1)
            handed_over += 1
        time.sleep(0.05)
    client.disconnect()
    client.loop_stop()


ARMS = {"bowerbird": ours, "naive": naive}


def measure(arm: str, size: str, seed: int, root: Path, messages: list[FrameMessage], seconds: float) -> Outcome:
    """One arm from its first byte to the end of its time."""
    folder = DataFolder(root / "data").make()
    stop = threading.Event()
    with ExitStack() as running:
        cat = running.enter_context(Catalogue(folder.catalogue))
        fleet.add_device(cat, "cam-01", "demo", "benchmark")
        broker = running.enter_context(TlsBroker(root, {"cam-01": "demo"})).server
        device = replace(broker, certificate=str(device_certificate(root, root / "identity", "cam-01")))
        thread = threading.Thread(target=ingest.run, args=(folder, broker, stop))
        thread.start()
        time.sleep(1.5)  # until it has subscribed
        link = running.enter_context(
            ThinLink(broker.host, broker.port, bytes_per_s=BYTES_PER_S, rtt_s=RTT_S, reset_every_s=RESET_EVERY_S, seed=seed)
        )
        ARMS[arm](root / "spool", link, device, messages, time.monotonic() + seconds, seed)
        time.sleep(0.5)
        count, committed = cat.connection.execute("SELECT count(*), coalesce(sum(bytes), 0) FROM frame").fetchone()
        parts = sum(path.stat().st_size for path in folder.parts.rglob("*-*") if path.is_file())
        allowed = BYTES_PER_S * seconds
        done = Outcome(arm, size, seed, committed / allowed, (committed + parts) / allowed, count, link.resets, link.carried_up)
        stop.set()
        thread.join()
    print(
        f"seed {seed}  {size:6} {arm:10} {done.share:6.1%} of the link in {count} frames, {done.durable_share:6.1%} with parts; "
        f"{done.resets} resets, {done.carried / allowed:6.1%} carried",
        flush=True,
    )
    return done


def run_seed(seed: int, root: Path, made: dict[str, list[FrameMessage]], seconds: float) -> list[Outcome]:
    """All arms of a seed at the same time."""
    done: list[Outcome] = []

    def work(arm: str, size: str) -> None:
        done.append(measure(arm, size, seed, root / f"{arm}-{size[0]}-{seed}", made[size], seconds))

    threads = [threading.Thread(target=work, args=(arm, size)) for size in SIZES for arm in ARMS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(done) != len(threads):
        raise SystemExit("an arm failed; what it said stands above")
    return done


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed of 45 seconds")
    parser.add_argument("--seconds", type=float, default=1200.0, help="how long each seed runs")
    parser.add_argument("--seeds", type=int, default=3, help="how many, one after the other")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    seconds, seeds = (45.0, 1) if options.quick else (options.seconds, options.seeds)
    made = {size: frames(size_wh, seconds) for size, size_wh in SIZES.items()}
    for size, messages in made.items():
        mean = sum(len(message.image) for message in messages) / len(messages)
        print(f"{size}: {mean / 1000:.0f} kB a frame")
    with tempfile.TemporaryDirectory() as scratch:
        outcomes = [one for seed in range(1, seeds + 1) for one in run_seed(seed, Path(scratch), made, seconds)]

    def mean_of(arm: str, size: str, field: str = "share") -> float:
        found = [getattr(one, field) for one in outcomes if (one.arm, one.size) == (arm, size)]
        return float(np.mean(found))

    counted = ["60 kB"] if options.quick else list(SIZES)
    details = {
        "committed": {size: {arm: round(mean_of(arm, size), 4) for arm in ARMS} for size in counted},
        "durable_with_parts": {size: {arm: round(mean_of(arm, size, "durable_share"), 4) for arm in ARMS} for size in SIZES},
        "seconds": seconds,
        "seeds": seeds,
        "resets": {one.seed: one.resets for one in outcomes},
        "transport": "TLS 1.3, client certificates",
    }
    value = min(mean_of("bowerbird", size) for size in counted)
    return report("thin_link", value, GOAL, "committed image bytes over rate x time", at_least=True, details=details)


if __name__ == "__main__":
    sys.exit(main())
