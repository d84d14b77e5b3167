"""What a frame costs beside its image: headers, packets, parts, acknowledgements, receipts, both ways, as a share of the image's bytes.

    python benchmarks/protocol_overhead.py [--quick]

In: nothing; for each form it starts the server's own broker, an ingest and a device of its own, over TLS with certificates. Out: per
form bytes that are not image, both ways, over image bytes, and as a last line of JSON the largest of frames of 60 kB (goal: at most
0.02). Bytes are those that pass the socket below TLS (MQTT level), PUBACKs, receipts and questions included, from the settled
connection to the last receipt; the frame's own header with three detections is counted as overhead. Beside it, for information, the
same at the link: TLS, TCP, IP and Ethernet headers and acknowledgements, as the device counts them for its budget.

Forms: whole on a fast link; in chunks as 128 kbit/s and 200 ms make them. For information: in the smallest chunks there are
(4 KiB, for a broker that takes 6,000 bytes a packet, or below 4 kB/s: there a larger chunk that a broken link loses costs more
than its headers), and frames of 70 kB that a thin link offers first, with a thumbnail, which the server then wants. At a slow
link TCP acknowledges nearly each segment, and the proxy's small buffers make more segments than a radio would.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from figure import report

from bowerbird_agent.link.link_events import LinkDown
from bowerbird_agent.link.upload_limits import UploadLimits
from bowerbird_testing.fault_device import Promises
from bowerbird_testing.fault_site import SERVER_CLIENTS, FaultSite
from bowerbird_testing.frame_messages import frame_message, jpeg
from bowerbird_testing.thin_link import ThinLink
from bowerbird_testing.tls_broker import TlsBroker
from bowerbird_testing.uploading_device import drain
from bowerbird_wire.messages import WireDetection

GOAL = 0.02
LIMITS = UploadLimits()


@dataclass(frozen=True)
class Form:
    """A way for a frame to go up."""

    name: str
    size_wh: tuple[int, int]  # noise: 60 kB or 70 kB
    frames: int
    counts: bool = True
    bytes_per_s: float | None = None
    settings: tuple[str, ...] = ()


SIXTY, SEVENTY = (264, 192), (288, 208)
FORMS = (
    Form("whole", SIXTY, 40),
    Form("chunks at 128 kbit/s", SIXTY, 5, bytes_per_s=16_000),
    Form("smallest chunks", SIXTY, 20, counts=False, settings=("max_packet_size 6000",)),
    Form("offered first, 128 kbit/s", SEVENTY, 3, counts=False, bytes_per_s=16_000),
)
SEEN = (
    WireDetection((12.5, 30.25, 80.0, 120.5), 0.91, "fox"),
    WireDetection((100.0, 40.0, 180.0, 160.0), 0.55, "badger"),
    WireDetection((5.0, 5.0, 40.0, 60.0), 0.32, "bird"),
)


def measure(form: Form, root: Path, frames: int) -> dict[str, Any]:
    """Shares of the image's bytes."""
    with ExitStack() as running:
        broker = TlsBroker(root / "broker", {"cam-01": "demo"}, clients=SERVER_CLIENTS, settings=form.settings)
        running.enter_context(broker)
        site = FaultSite(root / "site", broker)
        running.enter_context(site.serving())
        port = broker.port
        if form.bytes_per_s is not None:
            thin = ThinLink(broker.host, broker.port, bytes_per_s=form.bytes_per_s, rtt_s=0.2)
            port = running.enter_context(thin).port
        settings = {"limits": LIMITS, "keepalive_s": 300, "connect_timeout_s": 20.0}
        device = running.enter_context(site.device(port=port, **settings))
        device.run(lambda: device.runner.uploader.up)
        settled_s = time.monotonic() + 1.0
        device.run(lambda: time.monotonic() > settled_s)
        traffic = device.link.traffic
        mqtt = traffic.sent, traffic.received
        link = device.link.bytes_sent, device.link.bytes_received
        promises, image_bytes = Promises(site.promises()), 0
        for number in range(frames):
            image = jpeg(number, *form.size_wh)
            message = frame_message(
                sequence=number, image=image, width=form.size_wh[0], height=form.size_wh[1], score=0.5, detections=SEEN
            )
            assert promises.put(device.spool, message.header, message.image)
            image_bytes += len(image)
        drain(device, timeout_s=120.0)
        settled_s = time.monotonic() + 0.3
        device.run(lambda: time.monotonic() > settled_s)
        if any(isinstance(event, LinkDown) for event in device.seen):
            raise SystemExit("the connection ended; run it again")
        up, down = traffic.sent - mqtt[0] - image_bytes, traffic.received - mqtt[1]
        at_link = device.link.bytes_sent - link[0] + device.link.bytes_received - link[1] - image_bytes
    return {
        "overhead": round((up + down) / image_bytes, 5),
        "up_bytes_a_frame": round(up / frames),
        "down_bytes_a_frame": round(down / frames),
        "at_the_link": round(at_link / image_bytes, 4),
        "image_bytes": round(image_bytes / frames),
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the frames")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, form in enumerate(FORMS):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            found[form.name] = measure(form, folder, max(2, form.frames // 4) if options.quick else form.frames)
            print(f"{form.name}: {found[form.name]}", flush=True)
    value = max(found[form.name]["overhead"] for form in FORMS if form.counts)
    details = {"forms": found, "transport": "TLS 1.3, client certificates"}
    return report("protocol_overhead", value, GOAL, "bytes beside the image over image bytes", at_least=False, details=details)


if __name__ == "__main__":
    sys.exit(main())
