"""Frames from the broker into blobs and catalogue, each acknowledged only when it is safe.

In: frame messages in groups of up to 32 or 50 ms. Out: verify -> blobs durable -> rows in one transaction -> receipts -> MQTT
acknowledgements. Killed anywhere in between, the broker or the device brings the message again and its hash makes it one row. It
decodes no image and decides nothing about labelling.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from bowerbird_server.arrival import Accepted, Rejected, judge
from bowerbird_server.blobs import LocalBlobs, Sidecar
from bowerbird_server.broker import BrokerAddress
from bowerbird_server.catalogue import fleet, frames
from bowerbird_server.catalogue.core import Catalogue
from bowerbird_server.dead_letters import DeadLetters
from bowerbird_server.errors import EnvironmentFault
from bowerbird_server.layout import DataFolder
from bowerbird_server.mqtt_session import Arrived, Event, MqttSession
from bowerbird_wire.codec import encode
from bowerbird_wire.messages import Receipt, Refusal
from bowerbird_wire.topics import FrameTopic, ReceiptTopic

log = logging.getLogger(__name__)

CLIENT_ID = "bowerbird-ingest"
GROUP_FRAMES = 32
GROUP_WAIT_S = 0.05
HIGH_WATER_FREE_BYTES = 200 * 1024**2  # stop below this much free space
LOW_WATER_FREE_BYTES = 300 * 1024**2  # and go on above this
FULL_RETRY_S = 2.0

POINTS = ("receive", "blob", "row", "commit", "receipt", "ack")


class Session(Protocol):
    """What ingest needs of its MQTT session."""

    events: queue.Queue[Event]

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        """Hand over a message; False without a connection."""

    def acknowledge(self, arrived: Arrived) -> bool:
        """Acknowledge on the connection that brought it."""

    def is_current(self, arrived: Arrived) -> bool:
        """Whether that connection still stands."""


class Ingest:
    """Takes groups of messages.

    Args:
        cat: the catalogue, of the calling thread.
        blobs: where images go.
        dead_letters: where messages go that are refused.
        session: the MQTT session that brought the messages.
        passed: called at each of `POINTS` on the way of a group; the fault suite kills the process there.
    """

    def __init__(
        self,
        cat: Catalogue,
        blobs: LocalBlobs,
        dead_letters: DeadLetters,
        session: Session,
        passed: Callable[[str], None] = lambda _point: None,
    ) -> None:
        self._cat = cat
        self._blobs = blobs
        self._dead_letters = dead_letters
        self._session = session
        self._passed = passed

    def take(self, group: Sequence[Arrived]) -> None:
        """Store a group, answer its devices, acknowledge its messages.

        Raises:
            EnvironmentFault: no space; nothing of the group was acknowledged and it may be given again.
        """
        devices = fleet.active_devices(self._cat)
        judged = [(arrived, judge(arrived.topic, arrived.payload, devices)) for arrived in group]
        accepted = [verdict for _, verdict in judged if isinstance(verdict, Accepted)]
        rejected = [(arrived, verdict) for arrived, verdict in judged if isinstance(verdict, Rejected)]
        self._passed("receive")
        accepted, deleted = self._part_deleted(accepted)
        self._blobs.put_many([item.message.image for item in accepted], [_sidecar(item) for item in accepted])
        for arrived, verdict in rejected:
            self._dead_letters.keep_payload(arrived.payload)
            log.warning("refused a message on %s: %s (%s)", arrived.topic[:200], verdict.detail, verdict.code)
        self._passed("blob")
        with self._cat.transaction():
            added = frames.add_frames(
                self._cat, [frames.ArrivedFrame(item.message.header, len(item.message.image)) for item in accepted]
            )
            for arrived, verdict in rejected:
                self._dead_letters.add(self._cat, arrived.topic, arrived.payload, verdict.code, verdict.detail)
            self._passed("row")
        self._passed("commit")
        if rejected:
            self._dead_letters.prune(self._cat)
        gone = {item.message.header.frame_id for item in deleted} | set(added.deleted)
        self._answer([*accepted, *deleted], gone, [verdict for _, verdict in rejected])
        self._passed("receipt")
        for arrived in group:
            self._session.acknowledge(arrived)
        self._passed("ack")
        log.debug("%s new frames, %s known, %s refused", len(added.new), len(added.known), len(rejected) + len(gone))

    def _part_deleted(self, accepted: Sequence[Accepted]) -> tuple[list[Accepted], list[Accepted]]:
        """Frames to store, and frames that were deleted here, whose image must not come back."""
        stay: list[Accepted] = []
        deleted: list[Accepted] = []
        for item in accepted:
            state = frames.state_of(self._cat, item.message.header.frame_id)
            (deleted if state == "deleted" else stay).append(item)
        return stay, deleted

    def _answer(self, taken: Sequence[Accepted], gone: set[str], rejected: Sequence[Rejected]) -> None:
        committed: dict[FrameTopic, list[str]] = {}
        refused: dict[FrameTopic, list[Refusal]] = {}
        for item in taken:
            frame = item.message.header.frame_id
            if frame in gone:
                refused.setdefault(item.topic, []).append(Refusal(frame, "deleted", "deleted at the server"))
            else:
                committed.setdefault(item.topic, []).append(frame)
        for verdict in rejected:
            if verdict.topic is not None:
                refused.setdefault(verdict.topic, []).append(Refusal(verdict.frame_id, verdict.code, verdict.detail[:200]))
        for topic in {**committed, **refused}:
            receipt = Receipt(tuple(dict.fromkeys(committed.get(topic, ()))), tuple(refused.get(topic, ())))
            if not self._session.publish(str(ReceiptTopic(topic.site, topic.device)), encode(receipt)):
                log.info("no connection for a receipt to %s; it will send its frames again and get one", topic.device)


def _sidecar(item: Accepted) -> Sidecar:
    # Two frames may share an image, so the frame's id is part of the name.
    header = item.message.header
    return Sidecar(header.image_sha256, f"{header.frame_id[:16]}.header", encode(header))


def groups(session: Session, stop: threading.Event) -> Iterator[list[Arrived]]:
    """Messages in groups of up to `GROUP_FRAMES`, or what came within `GROUP_WAIT_S` of the first; until `stop`."""
    while not stop.is_set():
        try:
            event = session.events.get(timeout=0.5)
        except queue.Empty:
            continue
        if not isinstance(event, Arrived):
            continue
        group = [event]
        until = time.monotonic() + GROUP_WAIT_S
        while len(group) < GROUP_FRAMES:
            try:
                event = session.events.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if isinstance(event, Arrived):
                group.append(event)
        # What an ended connection brought comes again; taking it now would only be done twice.
        group = [arrived for arrived in group if session.is_current(arrived)]
        if group:
            yield group


def run(
    folder: DataFolder,
    broker: BrokerAddress,
    stop: threading.Event,
    *,
    site: str = "+",
    passed: Callable[[str], None] = lambda _point: None,
) -> None:
    """Take frames until `stop`. Waits for the broker and for space on the disk as long as it takes.

    Args:
        folder: the data folder, made already.
        broker: where the frames come from.
        stop: ends it within a second.
        site: whose frames; all sites by default.
        passed: see `Ingest`.
    """
    blobs = LocalBlobs(folder.blobs)
    session = MqttSession(broker, CLIENT_ID, [FrameTopic.filter(site)])
    with Catalogue(folder.catalogue) as cat:
        ingest = Ingest(cat, blobs, DeadLetters(folder.root / "dead-letters"), session, passed)
        session.start()
        try:
            for group in groups(session, stop):
                _take_when_there_is_room(ingest, blobs, session, group, stop)
        finally:
            session.stop()


def _take_when_there_is_room(
    ingest: Ingest, blobs: LocalBlobs, session: Session, group: Sequence[Arrived], stop: threading.Event
) -> None:
    """Nothing is acknowledged while the disk is full, so the broker sends no more and the devices keep their frames."""
    needed = HIGH_WATER_FREE_BYTES
    while not stop.is_set():
        current = [arrived for arrived in group if session.is_current(arrived)]
        if not current:
            return
        try:
            if blobs.free_bytes() < needed:
                raise EnvironmentFault(
                    f"less than {needed // 1024**2} MiB are free on the disk of {blobs.root}: free space; devices keep their frames"
                )
            ingest.take(current)
        except (EnvironmentFault, sqlite3.OperationalError) as error:
            log.log(logging.WARNING if needed == HIGH_WATER_FREE_BYTES else logging.DEBUG, "frames wait: %s", error)
            needed = LOW_WATER_FREE_BYTES
            stop.wait(FULL_RETRY_S)
        else:
            if needed != HIGH_WATER_FREE_BYTES:
                log.warning("there is room again; taking frames")
            return
