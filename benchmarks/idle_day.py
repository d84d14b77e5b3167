"""Bytes that an idle device costs in a day, at the link: keep-alives, update poll and health included.

    python benchmarks/idle_day.py [--quick] [--minutes N]

In: nothing; it starts a broker and `bowerbird-agent run` on a camera that shows nothing worth keeping. Out: bytes a day, as the agent
counts them (which `tests/faults/test_interface_counters.py` holds against an interface), and as a last line of JSON the same (goal: at
most 100,000). A run with real intervals takes longer than a keep-alive; `--quick` makes intervals short, counts what one keep-alive and
one health message cost, and multiplies by how often they come in a day with the intervals of a new device. TLS is as the fixtures give
it: without it, the 58 bytes of two records for each keep-alive are told in `details` as what it would add.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from figure import report

from bowerbird_agent.config import HealthConfig
from bowerbird_agent.health import idle_interval_s
from bowerbird_agent.link_config import BrokerConfig
from bowerbird_testing.agent_process import AgentProcess, write_config
from bowerbird_testing.broker import Mosquitto
from bowerbird_testing.site_server import SiteServer

GOAL = 100_000
DAY_S = 86_400.0
CAMERA = '[[cameras]]\nname = "gate"\nsource = "synthetic:?seed=1&fps=2"\nfps = 2.0\n'
_RECORD_BYTES = 29
_LONG_S = 3600.0


def spent(root: Path, name: str, seconds: float, keepalive_s: int, health_s: float) -> tuple[int, int]:
    """(bytes both ways, health messages) of an idle agent between two of its own health messages, which are some seconds apart."""
    overrides: dict[str, dict[str, Any]] = {
        # Every frame is looked at and none is worth sending: what is left is what being there costs.
        "selection": {"frames_per_window": 0, "epsilon": 0.0, "cold_epsilon": 0.0},
        "broker": {"keepalive_s": keepalive_s},
        "health": {"interval_s": min(health_s, 5.0), "idle_interval_s": health_s},
        "accounting": {"encode_everything": False},
    }
    with Mosquitto(root / f"{name}-broker") as broker, SiteServer(broker.host, broker.port) as server:
        config = write_config(root / name, port=broker.port, cameras=CAMERA, overrides=overrides)
        with AgentProcess(config) as agent:
            server.wait(lambda: bool(server.health and server.health[-1].frames_scored), "a model", timeout_s=60.0)
            time.sleep(12.0)  # whatever a start has to say is said
            first = server.health[-1]
            said = len(server.health)
            time.sleep(max(0.0, first.at_ms / 1000.0 + seconds - time.time()))
            agent.terminate()  # its last words are a health message
            server.wait(lambda: server.health[-1].at_ms > first.at_ms, "its last words", timeout_s=30.0)
            last = server.health[-1]
            both = (last.bytes_sent + last.bytes_received) - (first.bytes_sent + first.bytes_received)
            return both, len(server.health) - said


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short intervals, multiplied")
    parser.add_argument("--minutes", type=float, default=32.0, help="how long the run with real intervals takes")
    options = parser.parse_args()
    broker, health = BrokerConfig("127.0.0.1"), HealthConfig()
    idle_s = idle_interval_s(health.interval_s, health.idle_interval_s)
    pings, messages = DAY_S / broker.keepalive_s, DAY_S / idle_s
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        seconds = 60.0
        chatty, said = spent(root, "health", seconds, 3600, 1.0)
        a_message = chatty / max(said, 1)
        if options.quick:
            busy, beats = spent(root, "pings", seconds, 5, 20.0)
            a_ping = max(0.0, busy - beats * a_message) / (seconds / 5)
            day = pings * a_ping + messages * a_message
        else:
            seconds = options.minutes * 60.0
            quiet, beats = spent(root, "real", seconds, broker.keepalive_s, _LONG_S)
            a_ping = max(0.0, quiet - beats * a_message) / (seconds / broker.keepalive_s)
            day = quiet * DAY_S / seconds - beats * a_message * DAY_S / seconds + messages * a_message
    print(f"a health message {a_message:.0f} bytes, {messages:.0f} a day; a keep-alive {a_ping:.0f} bytes, {pings:.0f} a day")
    details = {
        "health_bytes": round(a_message),
        "keepalive_bytes": round(a_ping),
        "health_a_day": round(messages),
        "keepalives_a_day": round(pings),
        "tls_would_add": round((pings * 2 + messages) * _RECORD_BYTES),
        "update_poll": "none: jobs are retained messages",
        "intervals": "short, multiplied" if options.quick else "as delivered, health apart",
    }
    return report("idle_day", day, GOAL, "bytes a day at the link", at_least=False, details=details)


if __name__ == "__main__":
    sys.exit(main())
