"""The web server in a thread of this process, over real sockets.

In: a data folder, the table `web`. Out: its port.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from bowerbird_server.config import WebConfig
from bowerbird_server.layout import DataFolder
from bowerbird_server.web import server as web_server
from bowerbird_server.web.certificate import certificate_of
from bowerbird_server.web.endpoint import WebEndpoint


@contextmanager
def serving(folder: DataFolder, web: WebConfig) -> Iterator[int]:
    """From its first answer to the end of the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    server = web_server.make_server(
        folder, WebEndpoint("127.0.0.1", port), web, certificate_of(folder, web, now=datetime.now(UTC))
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline_s = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline_s, "uvicorn did not start"
        time.sleep(0.02)
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join(20)
