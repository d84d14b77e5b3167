"""Bytes that an idle device costs in a day at IP level, over TLS with a certificate: a connection, keep-alives, health, the hours'
histograms, the server's wishes with the fleet's sketch and the model's calibration table.

    python benchmarks/idle_day.py [--quick] [--minutes N]

In: nothing; it starts the server's own broker and `bowerbird-agent run`, with a camera that shows nothing worth keeping, in a network
namespace (needs root). Out: bytes a day, and as a last line of JSON the same (goal: at most 100,000). What is counted is what the
namespace's interface counts, less the 14 bytes of each Ethernet header: IP packets both ways, acknowledgements and handshakes included.

The run is as delivered, for an hour and a minute, so that each hourly thing comes once; times 24, and a connection with all that it
brings, and a wish that changes. `--quick` makes intervals short and counts what one health message and one keep-alive cost (the median
of the bursts on the interface), and multiplies by how often they come in a day with the intervals of a new device; an hour's histograms
are reckoned there: a health message's burst, more by the difference of the two payloads. The poll for updates costs nothing: jobs are
retained messages.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
from figure import report

from bowerbird_agent.config import HealthConfig
from bowerbird_agent.health.health import idle_interval_s
from bowerbird_agent.health.hour_counts import HourCounts
from bowerbird_agent.link.config import BrokerConfig
from bowerbird_agent.link.link_events import packet_bytes
from bowerbird_models.detections import Detections
from bowerbird_testing.agent_process import AgentProcess, write_config
from bowerbird_testing.network_namespace import Namespace, NoNamespace
from bowerbird_testing.site_server import SiteServer
from bowerbird_testing.tls_broker import TlsBroker
from bowerbird_wire import calibration_table, codec, fleet_sketch
from bowerbird_wire.histograms import Histograms
from bowerbird_wire.messages import Desired
from bowerbird_wire.topics import HealthTopic, HistogramsTopic

GOAL = 100_000
DAY_S, HOUR_S = 86_400.0, 3600.0
FPS = 2
CAMERA = f'[[cameras]]\nname = "gate"\nsource = "synthetic:?seed=1&fps={FPS}"\nfps = {FPS}.0\n'
SERVER = "site-server"
_LOOK_EVERY_S = 0.02
_SILENCE_S = 0.8  # between two bursts
_SETTLE_S = 6.0
_QUICK_KEEPALIVE_S, _QUICK_HEALTH_S, _QUICK_S = 5, 7.5, 24.0


@dataclass
class Burst:
    """IP bytes that passed the interface with no silence between them."""

    first_s: float
    last_s: float
    bytes: int
    packets: int
    health: int = 0  # health messages that came with it


@dataclass
class Watch:
    """Looks at the interface and at what the server has heard, all the time, in a thread of its own."""

    namespace: Namespace
    server: SiteServer
    bursts: list[Burst] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Until `stop`."""
        before, heard = self.namespace.ip_counters(), len(self.server.health)
        while not self.stop.wait(_LOOK_EVERY_S):
            now, said = self.namespace.ip_counters(), len(self.server.health)
            at_s = time.monotonic()
            if now != before:
                if not self.bursts or at_s - self.bursts[-1].last_s > _SILENCE_S:
                    self.bursts.append(Burst(at_s, at_s, 0, 0))
                burst = self.bursts[-1]
                burst.last_s, burst.bytes, burst.packets = (
                    at_s,
                    burst.bytes + now[0] - before[0],
                    burst.packets + now[1] - before[1],
                )
            if self.bursts and said > heard:
                self.bursts[-1].health += said - heard
            before, heard = now, said

    def since(self, at_s: float) -> list[Burst]:
        """The bursts that began after that."""
        return [burst for burst in self.bursts if burst.first_s > at_s]


def sketch() -> bytes:
    """The largest that a server makes: 48 centres."""
    dice = np.random.default_rng(1)
    centres = dice.normal(0.0, 1.0, (fleet_sketch.MAX_CENTRES, fleet_sketch.DIMENSIONS)).astype(np.float32)
    radii = np.full(fleet_sketch.MAX_CENTRES, 0.1, np.float32)
    return fleet_sketch.encode(fleet_sketch.FleetSketch(bytes(fleet_sketch.MODEL_BYTES), 256, centres, radii))


def table() -> bytes:
    """Of ten classes, as a server makes it."""
    one = calibration_table.ClassCalibration(calibration_table.middles(), 1.1)
    return calibration_table.encode(
        calibration_table.CalibrationTable(bytes(calibration_table.MODEL_BYTES), dict.fromkeys(range(10), one))
    )


def busy_hour() -> int:
    """Bytes of the message with one camera's hour in which every frame showed something, of three classes."""
    dice = np.random.default_rng(2)
    hour = HourCounts("gate", bytes(range(8)), 5, 1_764_288_000_000, clock_ok=True)
    for number in range(FPS * int(HOUR_S)):
        many = int(dice.integers(1, 12))
        corners = dice.uniform(0.0, 500.0, (many, 2)).astype(np.float32)
        boxes = np.hstack([corners, corners + dice.uniform(10.0, 140.0, (many, 2)).astype(np.float32)])
        scores = np.sort(dice.uniform(0.05, 1.0, many).astype(np.float32))[::-1]
        found = Detections(boxes, scores, dice.integers(0, 3, many).astype(np.int64))
        hour.add(found, level=float(dice.uniform(40.0, 200.0)), size_wh=(640, 480), at_ms=hour.from_ms + number * 1000 // FPS)
    return len(codec.encode(Histograms((hour.message(),))))


def measure(root: Path, namespace: Namespace, *, quick: bool, seconds: float) -> dict[str, float]:
    """IP bytes of each thing, by its name."""
    keepalive_s = _QUICK_KEEPALIVE_S if quick else BrokerConfig("127.0.0.1").keepalive_s
    health: dict[str, Any] = (
        {"interval_s": 2.0, "idle_interval_s": _QUICK_HEALTH_S} if quick else {"interval_s": None, "idle_interval_s": None}
    )
    with TlsBroker(root / "broker", {"cam-01": "demo"}, host=namespace.host, clients=(SERVER,)) as site:
        address = site.address("cam-01")
        overrides: dict[str, dict[str, Any]] = {
            # Every frame is looked at and none is worth sending: what is left is what being there costs.
            "selection": {"frames_per_window": 0, "epsilon": 0.0, "cold_epsilon": 0.0},
            "broker": {
                "host": namespace.host,
                "tls": True,
                "ca_file": address.ca_file,
                "certificate_file": address.certificate,
                "keepalive_s": keepalive_s,
            },
            "health": health,
            "accounting": {"encode_everything": False},
        }
        config = write_config(root / "agent", port=address.port, cameras=CAMERA, overrides=overrides)
        with SiteServer(namespace.host, address.port, tls=site.server.tls_context(SERVER)) as server:
            server.wish("cam-01", Desired(1, None, enough=sketch(), calibration=table()))
            watch = Watch(namespace, server)
            thread = threading.Thread(target=watch.run, daemon=True)
            thread.start()
            with AgentProcess(config, prefix=namespace.prefix):
                server.wait(lambda: bool(server.health and server.health[-1].frames_scored), "a model", timeout_s=60.0)
                time.sleep(_SETTLE_S)  # whatever a start has to say is said
                settled_s = time.monotonic()
                connection = sum(burst.bytes for burst in watch.bursts)
                time.sleep(seconds)
                quiet = watch.since(settled_s)
                server.wish(
                    "cam-01", Desired(2, None, enough=sketch()[::-1], calibration=table())
                )  # of no model: taken, and of no use
                wished_s = time.monotonic()
                time.sleep(3.0)
                wish = max((burst.bytes for burst in watch.since(wished_s - 1.0)), default=0)
            watch.stop.set()
            thread.join()
            said = codec.encode(server.health[-1])
    found: dict[str, float] = {"connection": connection, "wish": wish, "between": sum(burst.bytes for burst in quiet)}
    if quick:
        a_health = [burst.bytes for burst in quiet if burst.health == 1]
        a_ping = [burst.bytes for burst in quiet if not burst.health]
        if not a_health or not a_ping:
            raise SystemExit(f"no health message or no keep-alive was seen alone, run it again: {quiet}")
        names = ("demo", "cam-01")
        more = packet_bytes(HistogramsTopic(*names), busy_hour()) - packet_bytes(HealthTopic(*names), len(said))
        found.update(health=statistics.median(a_health), keepalive=statistics.median(a_ping))
        found["histograms"] = found["health"] + more
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short intervals, multiplied; 45 s")
    parser.add_argument("--minutes", type=float, default=61.0, help="how long the run with real intervals takes")
    options = parser.parse_args()
    broker, health = BrokerConfig("127.0.0.1"), HealthConfig()
    a_day = {
        "connection": 1.0,
        "wish": 1.0,
        "health": DAY_S / idle_interval_s(health.interval_s, health.idle_interval_s),
        "histograms": DAY_S / HOUR_S,
        # Health and histograms come at unrelated minutes of an hour, and each begins the wait for the next keep-alive anew.
        "keepalive": DAY_S / HOUR_S * (HOUR_S // broker.keepalive_s - 1),
    }
    unit = "IP bytes a day"
    seconds = _QUICK_S if options.quick else options.minutes * 60.0
    try:
        with tempfile.TemporaryDirectory() as scratch, Namespace() as namespace:
            found = measure(Path(scratch), namespace, quick=options.quick, seconds=seconds)
    except NoNamespace as why:
        return report("idle_day", None, GOAL, unit, at_least=False, details={"why": str(why)})
    if options.quick:
        day = sum(found[name] * often for name, often in a_day.items())
    else:
        day = found["connection"] + found["wish"] + found["between"] * DAY_S / seconds
    for name, size in found.items():
        print(f"{name}: {size:.0f} bytes" + (f", {a_day[name]:.0f} a day" if name in a_day else ""))
    details = {
        "bytes_of_one": {name: round(size) for name, size in found.items()},
        "a_day": {name: round(often) for name, often in a_day.items()},
        "tls": "1.3 with a certificate each",
        "intervals": "short, multiplied" if options.quick else f"as delivered, for {seconds:.0f} s",
        "counted_by": "the counters of an interface in a network namespace, less Ethernet headers",
    }
    return report("idle_day", day, GOAL, unit, at_least=False, details=details)


if __name__ == "__main__":
    sys.exit(main())
