"""Frames from the broker into blobs and catalogue, each acknowledged only when it is safe.

In: messages in groups of up to 32 or 50 ms: frames, parts of frames, questions (`incoming.py` sorts them). Out: verify -> blobs
durable -> rows in one transaction, durable -> receipts -> MQTT acknowledgements. While messages keep coming, one flush serves twice: it
makes the blobs of a group and the rows of the group before durable. Killed anywhere in between, the broker or the device brings the
message again and its hash makes it one row. It decodes no image and decides nothing about labelling.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from bowerbird_server.blobs import LocalBlobs
from bowerbird_server.broker.address import BrokerAddress
from bowerbird_server.broker.mqtt_session import Arrived, Event, MqttSession
from bowerbird_server.catalogue import fleet, frames, references
from bowerbird_server.catalogue.core import Catalogue, utc_now
from bowerbird_server.catalogue.records import encode_headers
from bowerbird_server.errors import EnvironmentFault
from bowerbird_server.fleet.log_lines import one_line
from bowerbird_server.ingest.arrival import Accepted, Rejected, judge
from bowerbird_server.ingest.chunks import ChunkStore
from bowerbird_server.ingest.dead_letters import DeadLetters
from bowerbird_server.ingest.device_limits import DeviceLimit, DeviceLimits
from bowerbird_server.ingest.incoming import Incoming, Unpacked
from bowerbird_server.ingest.receipts import Receipts
from bowerbird_server.ingest.share import Share, give_up_unused
from bowerbird_server.layout import DataFolder
from bowerbird_wire.codec import encode
from bowerbird_wire.messages import Refusal, Want

log = logging.getLogger(__name__)

GROUP_FRAMES = 32
GROUP_WAIT_S = 0.05
RECEIVE_MAXIMUM = 3 * GROUP_FRAMES  # one group arrives while one is stored and one waits for the flush that answers it
FULL_RETRY_S = 2.0
_TOLD_AT_MOST = 1000

POINTS = ("receive", "blob", "row", "commit", "receipt", "ack")


@dataclass(frozen=True)
class DiskMarks:
    """Free space on the blobs' disk: below the first nothing is taken, until there is more than the second."""

    stop_below_bytes: int = 200 * 1024**2
    go_on_above_bytes: int = 300 * 1024**2


class Session(Protocol):
    """What ingest needs of its MQTT session."""

    events: queue.SimpleQueue[Event]

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        """Hand over a message; False without a connection."""

    def acknowledge_all(self, group: Sequence[Arrived]) -> bool:
        """Acknowledge messages, each on the connection that brought it."""

    def is_current(self, arrived: Arrived) -> bool:
        """Whether that connection still stands."""


@dataclass(frozen=True)
class _Unanswered:
    """A group that is committed: its messages, the frames to confirm, ids among them that are deleted here, refusals, other answers."""

    messages: tuple[Arrived, ...]
    taken: tuple[Accepted, ...]
    gone: set[str]
    rejected: list[Rejected]
    unpacked: Unpacked


class Ingest:
    """Takes groups of messages.

    Args:
        cat: the catalogue, of the calling thread.
        blobs: where images go.
        dead_letters: where messages go that are refused.
        chunks: where parts of frames wait until they are whole.
        session: the MQTT session that brought the messages.
        passed: called at each of `POINTS` on the way of a group; the fault suite kills the process there.
        limits: what each device may send; no limits by default.
    """

    def __init__(
        self,
        cat: Catalogue,
        blobs: LocalBlobs,
        dead_letters: DeadLetters,
        chunks: ChunkStore,
        session: Session,
        passed: Callable[[str], None] = lambda _point: None,
        limits: DeviceLimits | None = None,
    ) -> None:
        self._limits = limits or DeviceLimits(cat, DeviceLimit(), time.monotonic)
        self._cat = cat
        self._blobs = blobs
        self._dead_letters = dead_letters
        self._chunks = chunks
        self._incoming = Incoming(cat, chunks)
        self._session = session
        self._passed = passed
        self._unanswered: _Unanswered | None = None  # committed, but perhaps not durable yet
        self._told: set[tuple[str, str]] = set()  # (device, code) of refusals that the log has

    def take(self, group: Sequence[Arrived]) -> None:
        """Store a group; answer its devices and acknowledge its messages, at once or, while more wait, with the next group.

        An empty group only answers what is still to be answered.

        Raises:
            EnvironmentFault: no space; nothing of the group was acknowledged and it may be given again.
        """
        if not group:
            self._settle()
            return
        devices = fleet.active_devices(self._cat)
        unpacked = self._incoming.unpack(group, devices)
        judged = [(arrived, _judge(arrived, devices)) for arrived in unpacked.frames]
        accepted = self._within_limits([verdict for _, verdict in judged if isinstance(verdict, Accepted)], unpacked)
        accepted = self._with_twins(accepted, unpacked)
        rejected = [(arrived, verdict) for arrived, verdict in judged if isinstance(verdict, Rejected)] + unpacked.rejected
        self._passed("receive")
        received_at = utc_now()
        accepted, deleted = self._store(accepted, received_at)
        self._dead_letters.keep_payloads([arrived.payload for arrived, _ in rejected])
        for arrived, verdict in rejected:
            self._tell_refused(arrived.topic, verdict)
        self._passed("blob")
        more = not self._session.events.empty()
        with self._cat.transaction(durable=not more):
            added = frames.add_frames(
                self._cat,
                [frames.ArrivedFrame(item.header, len(item.image)) for item in accepted],
                received_at=received_at,
            )
            for arrived, verdict in rejected:
                self._dead_letters.add(self._cat, arrived.topic, arrived.payload, verdict.code, verdict.detail)
            self._passed("row")
        self._passed("commit")
        new = set(added.new)
        accepted = self._whole_wanted(accepted, added.without_twin, unpacked)  # the twin was deleted a moment ago
        for item in accepted:
            if item.header.frame_id in new:
                self._limits.took(item.topic.device, len(item.image))
        if rejected:
            self._dead_letters.prune(self._cat)
        self._take_back(accepted, added.deleted)
        gone = {item.header.frame_id for item in deleted} | set(added.deleted)
        refused = [verdict for _, verdict in rejected]
        self._unanswered = _Unanswered(tuple(group), (*accepted, *deleted), gone, refused, unpacked)
        log.debug("%s new frames, %s known, %s refused", len(added.new), len(added.known), len(rejected) + len(gone))
        if not more:
            if not (added.new or rejected):
                # Nothing was written, so nothing was flushed; another process may have committed these rows a moment ago.
                self._blobs.put_many((), also_flush=(self._cat.write_ahead_log,))
            self._answer()

    def _within_limits(self, accepted: list[Accepted], unpacked: Unpacked) -> list[Accepted]:
        """The frames of devices that are within their limits. The others stay in their spools: they get no receipt, but are told."""
        askers = [item.topic for item in accepted] + [topic for topic, _ in unpacked.wanted]
        for topic in {topic.device: topic for topic in askers}.values():
            hold_s = self._limits.hold_s(topic.device)
            if hold_s:
                unpacked.held[topic.device] = (topic, hold_s)
                kind = (topic.device, "over_limit")
                level = logging.DEBUG if kind in self._told else logging.WARNING
                self._told.add(kind)
                log.log(level, "device %s is over its daily limit and is told to keep its frames", topic.device)
        if not unpacked.held:
            return accepted
        known = frames.states_of(self._cat, [item.header.frame_id for item in accepted])
        return [item for item in accepted if item.topic.device not in unpacked.held or item.header.frame_id in known]

    def _with_twins(self, accepted: list[Accepted], unpacked: Unpacked) -> list[Accepted]:
        """The frames that are here with a picture: references whose twin is not here are asked for whole.

        The blob is looked for as well: a catalogue restored from a backup may know more frames than there are pictures.
        """
        headers = [item.header for item in accepted if item.is_reference]
        if not headers:
            return accepted
        known = frames.states_of(self._cat, [header.frame_id for header in headers])
        twins = references.twins(self._cat, headers)
        here = {frame for frame, twin in twins.items() if self._blobs.exists(twin["blob"])}
        alone = [header.frame_id for header in headers if header.frame_id not in known and header.frame_id not in here]
        return self._whole_wanted(accepted, alone, unpacked)

    def _whole_wanted(self, accepted: list[Accepted], alone: Collection[str], unpacked: Unpacked) -> list[Accepted]:
        """Have these references sent whole; the others."""
        stay = []
        for item in accepted:
            if item.is_reference and item.header.frame_id in alone:
                unpacked.wanted.append((item.topic, Want(bytes.fromhex(item.header.frame_id))))
            else:
                stay.append(item)
        return stay

    def _tell_refused(self, topic: str, verdict: Rejected) -> None:
        """A warning for the first of its kind; a device that sends nothing but poison must not fill the log as well."""
        kind = ("" if verdict.topic is None else verdict.topic.device, verdict.code)
        known = kind in self._told or len(self._told) >= _TOLD_AT_MOST
        if not known:
            self._told.add(kind)
        log.log(
            logging.DEBUG if known else logging.WARNING,
            "refused a message on %s: %s (%s)",
            topic[:200],
            one_line(verdict.detail, 500),
            verdict.code,
        )

    def _store(self, accepted: Sequence[Accepted], received_at: str) -> tuple[list[Accepted], list[Accepted]]:
        """Images and headers made durable, with the rows of the group before; frames stored, and frames that were deleted here,
        whose image must not come back."""
        states = frames.states_of(self._cat, [item.header.frame_id for item in accepted])
        states |= dict.fromkeys(frames.erased(self._cat, [item.header for item in accepted], states), "deleted")
        deleted = [item for item in accepted if states.get(item.header.frame_id) == "deleted"]
        stay = [item for item in accepted if states.get(item.header.frame_id) != "deleted"]
        whole = [item for item in stay if not item.is_reference]
        images: list[bytes | memoryview] = [item.image for item in whole]
        digests = [item.header.image_sha256 for item in whole]
        stay.sort(key=lambda item: not item.is_reference)  # of a frame that came both ways the whole one counts
        new = {item.header.frame_id: item for item in stay if item.header.frame_id not in states}
        if new:
            record = encode_headers(
                received_at, [(item.topic.site, item.header_bytes, len(item.image)) for item in new.values()]
            )
            images.append(record)
            digests.append(hashlib.sha256(record).hexdigest())
        before = () if self._unanswered is None else (self._cat.write_ahead_log,)
        self._blobs.put_many(images, digests, also_flush=before)
        self._answer()
        return stay, deleted

    def _take_back(self, stored: Sequence[Accepted], deleted: Sequence[str]) -> None:
        """Images of frames that were deleted or asked to be forgotten between the look before storing them and the commit."""
        # The digest in a reference was not verified: it may be anybody's.
        images = {item.header.image_sha256 for item in stored if item.header.frame_id in deleted and not item.is_reference}
        for blob in frames.without_live_frame(self._cat, sorted(images)):
            self._blobs.delete(blob)

    def _settle(self) -> None:
        if self._unanswered is not None:
            self._blobs.put_many((), also_flush=(self._cat.write_ahead_log,))
            self._answer()

    def _answer(self) -> None:
        """Receipts and acknowledgements of a group whose rows are durable."""
        if self._unanswered is None:
            return
        group, self._unanswered = self._unanswered, None
        self._send_receipts(group)
        self._passed("receipt")
        for key in group.unpacked.finished:
            if key.device not in group.unpacked.held:  # a held frame is not committed: its parts stay until it may be
                self._chunks.drop(key)
        self._session.acknowledge_all(group.messages)
        self._passed("ack")

    def _send_receipts(self, group: _Unanswered) -> None:
        receipts = Receipts()
        for item in group.taken:
            frame = item.header.frame_id
            if frame in group.gone:
                receipts.refused(item.topic, Refusal(frame, "deleted", "deleted at the server"))
            else:
                receipts.committed(item.topic, frame)
        for verdict in group.rejected:
            if verdict.topic is not None:
                refusal = Refusal(verdict.frame_id, verdict.code, verdict.detail[:200], verdict.transfer)
                receipts.refused(verdict.topic, refusal)
        group.unpacked.tell(receipts)
        for topic, receipt in receipts.messages():
            if not self._session.publish(str(topic), encode(receipt)):
                log.info("no connection for a receipt to %s; it will ask about its frames and get one", topic.device)


def _judge(arrived: Arrived, devices: Mapping[str, str]) -> Accepted | Rejected:
    try:
        return judge(arrived.topic, arrived.payload, devices)
    except Exception as error:
        # A fault of ours must not stop everybody's frames for ever. The message is kept as a dead letter and its device is told
        # nothing, so that it keeps the frame.
        log.exception("a message on %s could not be judged", arrived.topic[:200])
        return Rejected(None, "", "unexpected", f"{type(error).__name__}: {error}")


def groups(session: Session, stop: threading.Event) -> Iterator[list[Arrived]]:
    """Messages in groups of up to `GROUP_FRAMES`, or what came within `GROUP_WAIT_S` of the first; until `stop`.

    A group is empty when what came was no message, or belongs to a connection that has ended.
    """
    while not stop.is_set():
        try:
            event = session.events.get(timeout=0.5)
        except queue.Empty:
            continue
        if not isinstance(event, Arrived):
            yield []
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
        yield [arrived for arrived in group if session.is_current(arrived)]


def run(
    folder: DataFolder,
    broker: BrokerAddress,
    stop: threading.Event,
    *,
    share: Share | None = None,
    marks: DiskMarks | None = None,
    site: str = "+",
    passed: Callable[[str], None] = lambda _point: None,
    limit: DeviceLimit | None = None,
) -> None:
    """Take frames until `stop`. Waits for the broker and for space on the disk as long as it takes.

    Args:
        folder: the data folder, made already.
        broker: where the frames come from.
        stop: ends it within a second.
        share: which part of them; all by default.
        marks: when to stop for want of space.
        site: whose frames; all sites by default.
        passed: see `Ingest`.
        limit: what each device may send in 24 hours; no limit by default.
    """
    share, marks = share or Share(), marks or DiskMarks()
    blobs = LocalBlobs(folder.blobs)
    session = MqttSession(broker, share.client_id, share.filters(site), receive_maximum=RECEIVE_MAXIMUM)
    if share.number == 1:
        give_up_unused(folder.root / "ingest-workers.json", share.workers, broker)
    with Catalogue(folder.catalogue) as cat:
        limits = DeviceLimits(cat, limit or DeviceLimit(), time.monotonic)
        dead_letters, chunks = DeadLetters(folder.root / "dead-letters"), ChunkStore(folder.parts)
        ingest = Ingest(cat, blobs, dead_letters, chunks, session, passed, limits)
        session.start()
        try:
            for group in groups(session, stop):
                _take_when_there_is_room(ingest, blobs, session, group, stop, marks)
            with suppress(EnvironmentFault):  # what stays unanswered comes again
                ingest.take([])
        finally:
            session.stop()


def _take_when_there_is_room(
    ingest: Ingest, blobs: LocalBlobs, session: Session, group: Sequence[Arrived], stop: threading.Event, marks: DiskMarks
) -> None:
    """Nothing is acknowledged while the disk is full, so the broker sends no more and the devices keep their frames."""
    needed, waited = marks.stop_below_bytes, False
    while not stop.is_set():
        current = [arrived for arrived in group if session.is_current(arrived)]
        try:
            if current and blobs.free_bytes() < needed:
                raise EnvironmentFault(
                    f"less than {needed // 1024**2} MiB are free on the disk of {blobs.root}: free space; devices keep their frames"
                )
            ingest.take(current)
        except (EnvironmentFault, sqlite3.OperationalError) as error:
            log.log(logging.DEBUG if waited else logging.WARNING, "frames wait: %s", error)
            needed, waited = marks.go_on_above_bytes, True
            stop.wait(FULL_RETRY_S)
        else:
            if waited:
                log.warning("there is room again; taking frames")
            return
