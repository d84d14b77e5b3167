"""Which part of the frames one ingest process takes: all of them, or its share of a shared subscription.

In: the process's number and how many there are. Out: its client id and its subscription, and sessions that no process uses any more
given up: a broker goes on giving such a session its share, and what it got would only come again after the devices have waited for
their receipts. It neither starts processes nor stores frames.
"""

from __future__ import annotations

import json
import logging
import queue
from dataclasses import dataclass
from pathlib import Path

from bowerbird_server.broker.address import BrokerAddress
from bowerbird_server.broker.mqtt_session import new_client
from bowerbird_server.errors import EnvironmentFault
from bowerbird_wire.topics import ChunkTopic, FrameTopic, OfferTopic, ReferenceTopic

log = logging.getLogger(__name__)

CLIENT_ID = "bowerbird-ingest"
GROUP = "ingest"
MAX_WORKERS = 64
_ANSWER_WAIT_S = 5.0


@dataclass(frozen=True)
class Share:
    """Process `number` (from 1) of `workers`.

    Raises:
        ValueError: the number is not one of them.
    """

    number: int = 1
    workers: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.workers <= MAX_WORKERS:
            raise ValueError(f"worker {self.number} of {self.workers}: count from 1, {MAX_WORKERS} at most")

    @property
    def client_id(self) -> str:
        """Fixed, so that the broker keeps this process's share while it starts again."""
        return CLIENT_ID if self.workers == 1 else f"{CLIENT_ID}-{self.number}"

    def filters(self, site: str) -> list[str]:
        """The subscriptions to what carries frames of a site, `+` for all."""
        plain = [kind.filter(site) for kind in (FrameTopic, ChunkTopic, OfferTopic, ReferenceTopic)]
        return plain if self.workers == 1 else [f"$share/{GROUP}/{one}" for one in plain]


def client_ids(workers: int) -> list[str]:
    """The client ids of so many processes."""
    return [Share(number, workers).client_id for number in range(1, workers + 1)]


def give_up_unused(note: Path, workers: int, address: BrokerAddress) -> list[str]:
    """End the sessions of an earlier number of processes; one process calls it, before it subscribes.

    Args:
        note: the file that says how many there were; written when the broker has let go of the rest.

    Returns:
        The client ids whose sessions were ended.
    """
    before = _noted(note)
    unused = [name for name in client_ids(before) if name not in client_ids(workers)] if before else []
    kept = [name for name in unused if not _end_session(address, name)]
    if kept:
        log.warning("the broker did not let go of the sessions %s; trying again at the next start", ", ".join(kept))
        return []
    if before != workers:
        temporary = note.with_name(f".{note.name}.new")
        temporary.write_text(json.dumps({"workers": workers}) + "\n")
        temporary.replace(note)
    return unused


def _noted(note: Path) -> int:
    try:
        workers = int(json.loads(note.read_text())["workers"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return workers if 1 <= workers <= MAX_WORKERS else 0


def _end_session(address: BrokerAddress, client_id: str) -> bool:
    """Take a session over with a clean start and without expiry; whether the broker agreed."""
    answers: queue.Queue[bool] = queue.Queue()
    try:
        client = new_client(address, client_id)
    except EnvironmentFault:
        return False
    client.on_connect = lambda _c, _d, _f, reason, _p: answers.put(not reason.is_failure)
    try:
        client.connect(address.host, address.port, clean_start=True)
    except (OSError, ValueError):
        return False
    client.loop_start()
    try:
        return answers.get(timeout=_ANSWER_WAIT_S)
    except queue.Empty:
        return False
    finally:
        client.disconnect()
        client.loop_stop()
