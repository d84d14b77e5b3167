"""How long a command takes to a device that uploads over 9.6 kbit/s with a round trip of 1.5 s, and whether anybody hangs up.

    python benchmarks/thin_command.py [--quick] [--commands N]

In: nothing; it starts the server's own broker, an ingest and a link (`bowerbird_testing/thin_link.py`). Out: seconds from the
server's publish (its PUBACK, without the link) to the device's event for each command, and as a last line of JSON the longest
(goal: at most 20 s). Frames of 40 kB go up all the time, over TLS 1.3 with a certificate each; the keep-alive is 30 s, a tenth of
the product's. A connection that ends, or cannot be made, spoils the figure.

The link shares nothing between its two directions, so what a command waits for is the device's own window and the
acknowledgements.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from figure import report

from bowerbird_agent.link.link_events import LinkDown, MessageIn
from bowerbird_agent.link.uploader import UploadLimits
from bowerbird_testing.fault_site import SERVER_CLIENTS, FaultSite
from bowerbird_testing.mqtt_device import MqttDevice
from bowerbird_testing.thin_link import ThinLink
from bowerbird_testing.tls_broker import TlsBroker
from bowerbird_wire.codec import encode
from bowerbird_wire.messages import Desired
from bowerbird_wire.topics import DesiredTopic

GOAL_S = 20.0
BYTES_PER_S = 9600 / 8
RTT_S = 1.5
GAP_S = 10.0  # between two commands


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two commands")
    parser.add_argument("--commands", type=int, default=10, help="how many, ten seconds apart")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    commands = 2 if options.quick else options.commands
    took_s: list[float] = []
    with ExitStack() as running:
        root = Path(running.enter_context(tempfile.TemporaryDirectory()))
        broker = TlsBroker(root / "broker", {"cam-01": "demo"}, clients=SERVER_CLIENTS)
        running.enter_context(broker)
        site = FaultSite(root / "site", broker)
        site.fill(20, size=40_000)
        running.enter_context(site.serving())
        link = running.enter_context(ThinLink(broker.host, broker.port, bytes_per_s=BYTES_PER_S, rtt_s=RTT_S))
        settings = {"limits": UploadLimits(), "keepalive_s": 30, "connect_timeout_s": 20.0}
        device = running.enter_context(site.device(host=link.host, port=link.port, **settings))
        server = running.enter_context(MqttDevice(site.address, "server"))
        device.run(lambda: link.carried_up > 10_000, timeout_s=60)
        for version in range(1, commands + 1):
            heard = len(device.seen)
            server.publish(str(DesiredTopic("demo", "cam-01")), encode(Desired(version, 40)))
            began_s = time.monotonic()
            device.run(
                lambda since=heard: any(  # type: ignore[misc]
                    isinstance(event, MessageIn) and isinstance(event.topic, DesiredTopic) for event in device.seen[since:]
                ),
                timeout_s=60,
            )
            took_s.append(time.monotonic() - began_s)
            print(f"command {version}: {took_s[-1]:.1f} s, {link.carried_up} bytes are up", flush=True)
            until_s = time.monotonic() + GAP_S
            device.run(lambda end=until_s: time.monotonic() > end)  # type: ignore[misc]
        ends = sum(isinstance(event, LinkDown) for event in device.seen)
        carried = link.carried_up
    details = {
        "median_s": round(statistics.median(took_s), 2),
        "each_s": [round(one, 2) for one in took_s],
        "connections_that_ended": ends,
        "bytes_up": carried,
        "transport": "TLS 1.3, client certificates",
    }
    return report("thin_command", max(took_s), GOAL_S, "s to a command", at_least=False, details=details, also=ends == 0)


if __name__ == "__main__":
    sys.exit(main())
