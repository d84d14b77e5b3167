"""A device that sends what its spool holds and then says what it believes to have cost: a process for a network namespace.

    python -m bowerbird_testing.counting_device FOLDER HOST PORT FRAMES IMAGE_BYTES IDLE_S [CA CERTIFICATE]

In: a folder for the spool, a broker's address, how many frames of which size, how long to stay idle after them; with TLS the broker's
CA and the device's certificate. Out: a JSON line with `sent`, `received` (at the link) and `mqtt_sent`, `mqtt_received`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from bowerbird_agent.config import BrokerConfig
from bowerbird_agent.link.broker_tls import make_context
from bowerbird_testing.frames import make_frame
from bowerbird_testing.uploading_device import UploadingDevice


def main(argv: list[str]) -> None:
    """Send, wait, say."""
    folder, host, port, frames, image_bytes, idle_s, *files = argv
    settings: dict[str, object] = {"keepalive_s": 5, "connect_timeout_s": 10.0, "max_retry_s": 5.0}
    if files:
        ca, certificate = map(Path, files)
        broker = BrokerConfig(host, int(port), ca_file=ca, certificate_file=certificate)
        settings["tls"] = lambda: make_context(broker, Path(folder))
    device = UploadingDevice(Path(folder), host, int(port), **settings)  # type: ignore[arg-type]  # as `uploading`
    for number in range(int(frames)):
        device.spool.put(*make_frame(number, image_bytes=int(image_bytes)), state="new")
    device.link.start()
    device.run(lambda: sum(device.spool.counts().values()) == 0, timeout_s=60.0)
    idle_until_s = time.monotonic() + float(idle_s)
    device.run(lambda: time.monotonic() > idle_until_s, timeout_s=float(idle_s) + 60.0)
    device.link.stop()
    traffic = device.link.traffic
    found = {
        "sent": device.link.bytes_sent,
        "received": device.link.bytes_received,
        "mqtt_sent": traffic.sent,
        "mqtt_received": traffic.received,
    }
    device.spool.close()
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
