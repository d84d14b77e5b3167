"""The part of an agent that uploads: spool, uploader and link, with a loop that plays the control thread.

In: a spool folder, a broker's address. Out: frames sent until a condition holds. `python -m bowerbird_testing.uploading_device FOLDER
HOST PORT` is the same as a process to kill; it ends by itself once the spool is empty.
"""

from __future__ import annotations

import queue
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bowerbird_agent.budget.budget import ByteLimits
from bowerbird_agent.budget.budget_note import restore_budget
from bowerbird_agent.link.link_events import BrokerSettings, LinkEvent
from bowerbird_agent.link.mqtt_link import MqttLink
from bowerbird_agent.link.upload_limits import UploadLimits
from bowerbird_agent.link.upload_runner import UploadRunner
from bowerbird_agent.spool.spool import Spool
from bowerbird_wire.messages import Status

QUICK = UploadLimits(receipt_timeout_s=1.0, resend_s=0.2, resend_max_s=1.0, retry_s=0.05)
SITE, NAME = "demo", "cam-01"


class UploadingDevice:
    """The device; `start` connects, `run` works.

    Args:
        folder: of the spool.
        budget: none by default.
        limits: the uploader's.
        device: its name in topics and at the broker.
        max_bytes: of the spool.
        settings: of the broker's connection, e.g. `keepalive_s=60`.
    """

    def __init__(
        self,
        folder: Path,
        host: str,
        port: int,
        budget: ByteLimits | None = None,
        *,
        limits: UploadLimits = QUICK,
        seed: int = 1,
        device: str = NAME,
        max_bytes: int = 200_000_000,
        **settings: object,
    ) -> None:
        self.spool = Spool(folder, max_bytes=max_bytes)
        self.events: queue.Queue[LinkEvent] = queue.Queue()
        self.seen: list[LinkEvent] = []
        options = {"connect_timeout_s": 2.0, "max_retry_s": 0.5, **settings}
        self.link = MqttLink(
            BrokerSettings(host, port, **options),  # type: ignore[arg-type]  # named by the caller
            SITE,
            device,
            self.events,
            online=lambda: Status("online", model_digest="m1"),
            offline=Status("offline"),
            seed=seed,
        )
        now_s = time.monotonic()
        bucket = restore_budget(self.spool, budget or ByteLimits(), now_s)
        self.runner = UploadRunner(self.spool, self.link, SITE, device, bucket, now_s=now_s, limits=limits)

    def step(self, wait_s: float = 0.05) -> None:
        """Publish what may be published and take one event in."""
        wake_s = self.runner.pump(time.monotonic())
        try:
            event = self.events.get(timeout=max(0.0, min(wake_s - time.monotonic(), wait_s)))
        except queue.Empty:
            return
        self.seen.append(event)
        self.runner.handle(event, time.monotonic())

    def run(self, until: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
        """Work until a condition holds."""
        deadline = time.monotonic() + timeout_s
        while not until():
            assert time.monotonic() < deadline, (self.spool.ledger(), self.runner.uploader.flights(), self.seen[-5:])
            self.step()

    def close(self) -> None:
        """Disconnect and close the spool."""
        self.link.stop()
        self.runner.close()
        self.spool.close()


def drain(device: UploadingDevice, *, timeout_s: float = 60.0) -> None:
    """Work until the spool is empty."""
    device.run(lambda: sum(device.spool.counts().values()) == 0, timeout_s=timeout_s)


@contextmanager
def uploading(
    folder: Path, host: str, port: int, budget: ByteLimits | None = None, **settings: object
) -> Iterator[UploadingDevice]:
    """A device that is connected, or tries to be."""
    device = UploadingDevice(folder, host, port, budget, **settings)  # type: ignore[arg-type]  # named by the caller
    device.link.start()
    try:
        yield device
    finally:
        device.close()


def main(argv: list[str]) -> None:
    """Send what the spool holds, and end."""
    folder, host, port = argv
    with uploading(Path(folder), host, int(port)) as device:
        device.run(lambda: sum(device.spool.counts().values()) == 0, timeout_s=300.0)


if __name__ == "__main__":
    main(sys.argv[1:])
