"""The server's conversation with its devices, frames apart: presence, health and reports in; wishes, jobs and blocks out.

In: Status, Health, Report and BlockRequest messages; the catalogue's wishes; the disk's free space. Out: rows; retained Desired, Job
and Credit messages, published again on every connect since the broker keeps nothing; blocks. A reply goes to the topics of the device
that the request's topic names, which the broker's rules tie to its login. It decides no rollout (`rollout.py`) and stores no frame
(`ingest.py`).
"""

from __future__ import annotations

import logging
import queue
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bowerbird_server.broker_address import BrokerAddress
from bowerbird_server.catalogue import fleet, rollouts
from bowerbird_server.catalogue.core import Catalogue
from bowerbird_server.credit import CreditGauge
from bowerbird_server.errors import ServerError
from bowerbird_server.identity.watch import CloneWatch
from bowerbird_server.ingest import DiskMarks
from bowerbird_server.layout import DataFolder
from bowerbird_server.mqtt_session import Arrived, Connected, Event, MqttSession
from bowerbird_server.offers import BlockQueue
from bowerbird_server.repository import Repository
from bowerbird_wire.codec import decode, encode
from bowerbird_wire.errors import WireError
from bowerbird_wire.messages import BlockRequest, Credit, Desired, Health, Job, Report, Status
from bowerbird_wire.topics import (
    BlockRequestTopic,
    BlocksTopic,
    CreditTopic,
    DesiredTopic,
    DeviceTopic,
    HealthTopic,
    JobTopic,
    ReportTopic,
    StatusTopic,
    parse_topic,
)

log = logging.getLogger(__name__)

CLIENT_ID = "bowerbird-delivery"
UP_TOPICS: tuple[type[DeviceTopic], ...] = (StatusTopic, HealthTopic, ReportTopic, BlockRequestTopic)
WISHES_EVERY_S = 0.5
UPKEEP_EVERY_S = 600.0
# Every device that is there has a retained status, and retained messages follow the subscription at once.
PRESENCE_AFTER_S = 5.0


class Publisher(Protocol):
    """What delivery needs to send."""

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        """Hand over a message; False without a connection."""


class Delivery:
    """Applies what devices say and publishes what is wanted of them.

    Args:
        cat: the catalogue, of the calling thread.
        blocks: block requests that wait.
        publisher: where messages go.
        sign: signs a job for the device named second.
        on_suspended: shuts a device out at the broker that turned out to be two.
    """

    def __init__(
        self,
        cat: Catalogue,
        blocks: BlockQueue,
        publisher: Publisher,
        sign: Callable[[Job, str], Job],
        on_suspended: Callable[[str], None] = lambda _device: None,
    ) -> None:
        self._cat = cat
        self._blocks = blocks
        self._publisher = publisher
        self._sign = sign
        self._watch = CloneWatch(cat, on_suspended)
        self._desired: dict[str, Desired] = {}  # as last published on this connection
        self._jobs: dict[str, Job] = {}
        self._credits: dict[str, int] = {}  # by site
        self._reported_at_ms: dict[str, int] = {}  # newest report of each device, by the device's own clock
        self._present: set[str] = set()  # devices whose status came on this connection
        self._complained = False

    def connected(self) -> None:
        """The broker may have lost all that it retained."""
        self._desired.clear()
        self._jobs.clear()
        self._credits.clear()
        self._present.clear()
        self.publish_wishes()

    def received(self, topic_text: str, payload: bytes) -> None:
        """Apply one message. What is not a message, or of no device of ours, is logged and dropped: nothing waits for an answer."""
        try:
            topic = parse_topic(topic_text)
            if fleet.active_devices(self._cat).get(topic.device) != topic.site:
                log.warning("%s: no such device here; `bowerbird devices add` makes one", topic_text[:200])
                return
            if isinstance(topic, StatusTopic):
                self._status(topic, decode(Status, payload))
            elif isinstance(topic, HealthTopic):
                self._health(topic, decode(Health, payload))
            elif isinstance(topic, ReportTopic):
                self._report(topic, decode(Report, payload))
            elif isinstance(topic, BlockRequestTopic):
                self._blocks.ask(topic.site, topic.device, decode(BlockRequest, payload))
        except WireError as error:
            log.warning("dropped a message on %s: %s", topic_text[:200], error)
        except sqlite3.OperationalError:
            raise  # locked, or no space: it is applied later
        except Exception:
            # A fault of ours must not stop everybody for ever: the broker would bring the message again after every restart.
            log.exception("dropped a message on %s that could not be applied", topic_text[:200])

    def _status(self, topic: StatusTopic, status: Status) -> None:
        if not self._watch.saw(topic.device, status):
            self._blocks.forget(topic.site, topic.device)
            return
        fleet.record_status(self._cat, topic.device, status)
        self._present.add(topic.device)
        if status.state != "online":
            self._blocks.forget(topic.site, topic.device)

    def _health(self, topic: HealthTopic, health: Health) -> None:
        fleet.record_health(self._cat, topic.device, health)
        # One that was made before the newest report, and overtaken by it, says nothing about what came after.
        if health.at_ms > self._reported_at_ms.get(topic.device, 0):
            rollouts.record_running(self._cat, topic.device, health.model_digest)

    def _report(self, topic: ReportTopic, report: Report) -> None:
        self._reported_at_ms[topic.device] = max(report.at_ms, self._reported_at_ms.get(topic.device, 0))
        fleet.record_running_model(self._cat, topic.device, report)
        if not rollouts.record_report(self._cat, topic.device, report):
            log.info(
                "device %s reports %s for a job that is not ours: %s", topic.device, _shown(report.state), _shown(report.job_id)
            )
        if report.code:
            log.warning(
                "device %s, job %s: %s (%s) %s",
                topic.device,
                *map(_shown, (report.job_id, report.state, report.code, report.detail)),
            )

    def publish_wishes(self) -> None:
        """Advance rollouts, and publish each Desired and Job that differs from what is published already."""
        for rollout in rollouts.advance(self._cat):
            log.info("rollout %s moved on", rollout)
        sites = fleet.active_devices(self._cat)
        for device, desired in fleet.desired(self._cat).items():
            topic = str(DesiredTopic(sites[device], device))
            if self._desired.get(device) != desired and self._publisher.publish(topic, encode(desired), retain=True):
                self._desired[device] = desired
        for wanted in rollouts.jobs(self._cat):
            if self._jobs.get(wanted.device) == wanted.job:
                continue
            try:
                signed = self._sign(wanted.job, wanted.device)
            except ServerError as error:
                log.log(logging.DEBUG if self._complained else logging.ERROR, "jobs wait for a signature: %s", error)
                self._complained = True
                return
            self._complained = False
            if self._publisher.publish(str(JobTopic(wanted.site, wanted.device)), encode(signed), retain=True):
                self._jobs[wanted.device] = wanted.job
                log.info("device %s: %s model %s", wanted.device, wanted.job.action, wanted.job.model_digest[:12])

    def publish_credit(self, bytes_in_flight: int) -> None:
        """Tell each site how much its devices may have on their way, when it differs from what is published already."""
        for site in sorted(set(fleet.active_devices(self._cat).values())):
            if self._credits.get(site) == bytes_in_flight:
                continue
            credit = encode(Credit(bytes_in_flight, int(time.time() * 1000)))
            if self._publisher.publish(str(CreditTopic(site)), credit, retain=True):
                if bytes_in_flight == 0 or self._credits.get(site) == 0:
                    log.warning(
                        "the devices of site %s are told to %s", site, "go on" if bytes_in_flight else "keep their frames"
                    )
                self._credits[site] = bytes_in_flight

    def note_absent(self) -> None:
        """A while after connecting: a device whose will was lost with a broker is not online because it once was."""
        for device in fleet.mark_absent(self._cat, self._present):
            log.info("device %s is not connected", device)

    def publish_blocks(self, now_s: float) -> None:
        """Publish the blocks that are due."""
        for due in self._blocks.due(now_s):
            self._publisher.publish(str(BlocksTopic(due.site, due.device)), encode(due.block), qos=0)


def _shown(text: str) -> str:
    """A device's words for a line of the log, which they must neither leave nor fill."""
    return text[:200].encode("unicode_escape").decode() if not text[:200].isprintable() else text[:200]


def run(
    folder: DataFolder,
    broker: BrokerAddress,
    stop: threading.Event,
    *,
    site: str = "+",
    marks: DiskMarks | None = None,
    on_suspended: Callable[[str], None] = lambda _device: None,
) -> None:
    """Converse until `stop`; waits for the broker as long as it takes.

    Args:
        folder: the data folder, made already, with an update repository once there is a rollout.
        broker: where the devices are.
        stop: ends it within a second.
        site: whose devices; all sites by default.
        marks: at which free space devices are told to wait, and to go on.
        on_suspended: shuts a device out at the broker.
    """
    session = MqttSession(broker, CLIENT_ID, [kind.filter(site) for kind in UP_TOPICS])
    repository = Repository(folder.repository, folder.keys)
    with Catalogue(folder.catalogue) as cat:
        blocks = BlockQueue(folder.repository)
        delivery = Delivery(cat, blocks, session, lambda job, device: repository.sign_job(job, device=device), on_suspended)
        session.start()
        try:
            gauge = CreditGauge(marks or DiskMarks())
            _Conversation(delivery, blocks, session, repository, cat, gauge, folder.blobs).hold(stop)
        finally:
            session.stop()


@dataclass
class _Conversation:
    """The loop of `run` and when its regular duties are due."""

    delivery: Delivery
    blocks: BlockQueue
    session: MqttSession
    repository: Repository
    cat: Catalogue
    gauge: CreditGauge
    disk: Path

    def hold(self, stop: threading.Event) -> None:
        event: Event | None = None
        wishes_at_s = upkeep_at_s = 0.0
        presence_at_s: float | None = None
        while not stop.is_set():
            if event is None:
                with suppress(queue.Empty):
                    event = self.session.events.get(timeout=0.02 if len(self.blocks) else 0.2)
            try:
                self._apply(event)
                now_s = time.monotonic()
                if isinstance(event, Connected):
                    presence_at_s = now_s + PRESENCE_AFTER_S
                event = None
                if presence_at_s is not None and now_s >= presence_at_s and self.session.is_connected:
                    self.delivery.note_absent()
                    presence_at_s = None
                self.delivery.publish_blocks(now_s)
                if now_s >= wishes_at_s:
                    self.delivery.publish_wishes()
                    self.delivery.publish_credit(self.gauge.read(shutil.disk_usage(self.disk).free))
                    wishes_at_s = now_s + WISHES_EVERY_S
                if now_s >= upkeep_at_s:
                    upkeep_at_s = now_s + UPKEEP_EVERY_S
                    _keep_up(self.repository, self.cat)
            except sqlite3.OperationalError as error:
                # Locked for long, or no space. The event is kept and tried again.
                log.warning("the catalogue cannot be written now (%s); check the disk's space", error)
                stop.wait(1.0)

    def _apply(self, event: Event | None) -> None:
        if isinstance(event, Connected):
            self.delivery.connected()
        elif isinstance(event, Arrived) and self.session.is_current(event):
            self.delivery.received(event.topic, event.payload)
            self.session.acknowledge(event)


def _keep_up(repository: Repository, cat: Catalogue) -> None:
    """Signatures near their end are renewed, old health rows thinned."""
    fleet.thin_health(cat)
    if repository.exists:
        try:
            repository.refresh()
        except ServerError as error:
            log.error("the update repository's signatures cannot be renewed: %s", error)
