"""An ingest process that kills itself (SIGKILL, nothing is flushed) at a chosen point of its n-th group.

`python -m bowerbird_testing.ingest_child DATA HOST PORT [POINT [GROUP [WORKER WORKERS]]]`; without a point, or with `-`, it runs until
killed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path

from bowerbird_server.broker.embedded import BrokerAddress
from bowerbird_server.ingest import ingest
from bowerbird_server.ingest.share import Share
from bowerbird_server.layout import DataFolder


def main(argv: list[str]) -> None:
    """Run ingest; does not return."""
    data, host, port, *rest = argv
    point = rest[0] if rest else ""
    left = int(rest[1]) if len(rest) > 1 else 1
    share = Share(int(rest[2]), int(rest[3])) if len(rest) > 3 else Share()

    def passed(here: str) -> None:
        nonlocal left
        if here == point:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    logging.basicConfig(level=logging.INFO)
    address = BrokerAddress.load(Path(host[1:])) if host.startswith("@") else BrokerAddress(host, int(port))
    ingest.run(DataFolder(Path(data)), address, threading.Event(), share=share, passed=passed)


if __name__ == "__main__":
    main(sys.argv[1:])
