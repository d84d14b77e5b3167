"""By how much agent and ingest grow for each 10,000 frames, at the highest rate that the machine gives.

    python benchmarks/memory_slope.py [--quick] [--minutes N] [--only ingest|agent] [--folder DIR]

In: nothing; for each of the two it starts the server's own broker, over TLS with certificates. Ingest is a process of its own that
is sent new frames (4 kB, so that the disk holds them) as fast as it acknowledges; the agent is `bowerbird-agent run` with a tiny
model on a synthetic camera that waits for nobody, with 5 of 60 frames sent, each answered with a receipt. Out: MB of 10^6 bytes a
10,000 frames, and as a last line of JSON the larger of the two (goal: below 1).

Memory is what the process has for itself (`RssAnon`: caches of files and mapped libraries come and go), of the agent with all its
children, looked at twice a second. The slope is Theil and Sen's (the median of the slopes of all pairs), which a single step does not
move, after a warm-up of a fifth of the run; the two halves are told beside it, since a cache that fills is steep at first and flat
later. `--quick` sees some thousand frames in 18 s each, while caches still fill: its value is that of the second half, which tells a
gross leak from none and no more; `short` in the details says so.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
from figure import report

from bowerbird_server.catalogue import Catalogue, fleet
from bowerbird_server.layout import DataFolder
from bowerbird_testing.agent_process import AgentProcess, write_config
from bowerbird_testing.site_server import SiteServer
from bowerbird_testing.tls_broker import TlsBroker

GOAL_MB = 1.0
A_LOOK_S = 0.5
SERVER = "site-server"
CAMERA = '[[cameras]]\nname = "gate"\nsource = "synthetic:?seed=1&fps=1000&width=160&height=120"\npace = "fast"\n'
PUBLISHER = """
import sys, itertools, threading, paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from bowerbird_testing.fault_device import captured
from bowerbird_wire.codec import encode_frame
from bowerbird_wire.messages import FrameMessage
room = threading.Semaphore(64)
client = mqtt.Client(CallbackAPIVersion.VERSION2, 'cam-01', protocol=mqtt.MQTTv5)
client.on_publish = lambda *_: room.release()
client.tls_set(ca_certs=sys.argv[2], certfile=sys.argv[3], keyfile=sys.argv[3])
client.connect('127.0.0.1', int(sys.argv[1])); client.loop_start()
for number in itertools.count():
    room.acquire()
    client.publish('bowerbird/v1/demo/up/cam-01/frame', encode_frame(FrameMessage(*captured(number, size=4000))), 1)
"""


def anonymous_mb(pid: int) -> float:
    """What a process and its children have for themselves, MB; children that are gone count nothing."""
    total = 0.0
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = [(task / "children").read_text().split() for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return 0.0
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            total = int(line.split()[1]) * 1024 / 1e6
    return total + sum(anonymous_mb(int(child)) for some in children for child in some)


def slope(samples: list[tuple[int, float]]) -> float:
    """MB a 10,000 frames, Theil and Sen."""
    frames, memory = (np.array(column, np.float64) for column in zip(*samples, strict=True))
    first, second = np.triu_indices(len(frames), 1)
    further = frames[second] - frames[first]
    apart = further > 0
    if not apart.any():
        raise SystemExit("no frame came through; see what was said above")
    return float(np.median((memory[second] - memory[first])[apart] / further[apart]) * 10_000)


def look(pid: int, frames: Callable[[], int], seconds: float) -> dict[str, Any]:
    """Sample a running process."""
    began_s, samples = time.monotonic(), []
    while time.monotonic() - began_s < seconds:
        time.sleep(A_LOOK_S)
        samples.append((frames(), anonymous_mb(pid)))
        if samples[-1][1] == 0.0:
            raise SystemExit("the process ended; see what it said above")
    steady = samples[len(samples) // 5 :]
    half = len(steady) // 2
    return {
        "mb_per_10000_frames": round(slope(steady), 3),
        "halves": [round(slope(steady[:half]), 3), round(slope(steady[half:]), 3)],
        "frames": steady[-1][0] - steady[0][0],
        "frames_per_s": round((samples[-1][0] - samples[0][0]) / seconds),
        "mb_first_last": [round(steady[0][1], 1), round(steady[-1][1], 1)],
        "mb_highest": round(max(memory for _, memory in samples), 1),
    }


@contextmanager
def broker_in(root: Path) -> Iterator[TlsBroker]:
    """The server's own."""
    with TlsBroker(root / "broker", {"cam-01": "demo"}, clients=(SERVER,)) as site:
        yield site


def of_ingest(root: Path, seconds: float) -> dict[str, Any]:
    """Ingest under a publisher that waits only for acknowledgements."""
    folder = DataFolder(root / "data").make()
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "tests"), "OMP_NUM_THREADS": "1"}
    with ExitStack() as running:
        cat = running.enter_context(Catalogue(folder.catalogue))
        fleet.add_device(cat, "cam-01", "demo", "benchmark")
        site = running.enter_context(broker_in(root))
        argv = [sys.executable, "-m", "bowerbird_testing.ingest_child", str(folder.root), f"@{site.broker.address_path}", "0"]
        log = running.enter_context((root / "ingest.log").open("wb"))
        address = site.address("cam-01")
        publisher = [sys.executable, "-c", PUBLISHER, str(address.port), str(address.ca_file), str(address.certificate)]
        with subprocess.Popen(argv, env=here, stderr=log) as ingest:
            running.callback(ingest.kill)
            time.sleep(3.0)  # until it has subscribed
            with subprocess.Popen(publisher, env=here) as sending:
                running.callback(sending.kill)
                try:
                    return look(ingest.pid, lambda: int(cat.value("SELECT coalesce(max(rowid), 0) FROM frame")), seconds)
                finally:
                    sending.kill()
                    ingest.kill()


def of_agent(root: Path, seconds: float) -> dict[str, Any]:
    """The agent on frames that wait for nobody."""
    with broker_in(root) as site:
        address = site.address("cam-01")
        overrides: dict[str, dict[str, Any]] = {
            "broker": {"tls": True, "ca_file": address.ca_file, "certificate_file": address.certificate},
            "health": {"interval_s": 0.5, "idle_interval_s": 1.0},
            "accounting": {"encode_everything": False},
        }
        config = write_config(root / "agent", port=address.port, cameras=CAMERA, overrides=overrides)
        with (
            SiteServer("127.0.0.1", address.port, tls=site.server.tls_context(SERVER)) as server,
            AgentProcess(config) as agent,
        ):
            server.wait(lambda: bool(server.health and server.health[-1].frames_scored), "a model", timeout_s=90.0)
            assert agent.process is not None

            def scored() -> int:
                server.frames.clear()  # this process is not what is measured, and need not keep them
                return server.health[-1].frames_scored

            found = look(agent.process.pid, scored, seconds)
            return {**found, "committed": server.health[-1].frames_committed}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="18 s each: tells a gross leak from none")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long each runs")
    parser.add_argument("--only", choices=("ingest", "agent"), help="one of the two")
    parser.add_argument("--folder", type=Path, help="where to write; a disk with some gigabytes of room")
    options = parser.parse_args()
    seconds = 18.0 if options.quick else options.minutes * 60.0
    parts = {"ingest": of_ingest, "agent": of_agent}
    found: dict[str, dict[str, Any]] = {}
    for name, measure in parts.items():
        if options.only in (None, name):
            with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
                found[name] = measure(Path(scratch), seconds)
                print(f"{name}: {found[name]}", flush=True)
    is_short = seconds < 300.0
    value = max(part["halves"][1] if is_short else part["mb_per_10000_frames"] for part in found.values())
    details = {**found, "seconds": seconds, "short": is_short, "transport": "TLS 1.3, client certificates"}
    return report("memory_slope", value, GOAL_MB, "MB a 10,000 frames", at_least=False, details=details)


if __name__ == "__main__":
    sys.exit(main())
