"""A thread beside the supervisor that renews the embedded broker's certificate and those of the server's processes.

In: the broker's folder. Out: files made anew well before they end, and a broker that was told. It renews no device's
certificate.
"""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime

from bowerbird_server.broker.embedded import EmbeddedBroker
from bowerbird_server.errors import ServerError

log = logging.getLogger(__name__)

EVERY_S = 1800.0


def keep_certificates(broker: EmbeddedBroker, stop: threading.Event, *, every_s: float = EVERY_S) -> threading.Thread:
    """Look now and then until `stop`; returns the thread, which is started."""

    def run() -> None:
        complained = False
        while not stop.wait(every_s):
            try:
                if broker.upkeep(datetime.now(tz=UTC)):
                    log.info("the broker has a new certificate")
                complained = False
            except ServerError as error:
                log.log(
                    logging.DEBUG if complained else logging.ERROR, "the broker's certificates cannot be renewed: %s", error
                )
                complained = True

    thread = threading.Thread(target=run, name="broker certificates", daemon=True)
    thread.start()
    return thread
