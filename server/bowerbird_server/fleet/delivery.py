"""The server's conversation with its devices, frames apart: presence, health and reports in; wishes, jobs and blocks out.

In: Status, Health, Report and BlockRequest messages; the disk's free space. Out: rows; blocks; and what `wishes.py` publishes, in its
turn. A reply goes to the topics of the device that the request's topic names, which the broker's rules tie to its login. It decides no
rollout (`rollout.py`) and stores no frame (`ingest.py`).
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

from cryptography import x509

from bowerbird_server.broker.address import BrokerAddress
from bowerbird_server.broker.mqtt_session import Arrived, Connected, Event, MqttSession
from bowerbird_server.catalogue import (
    campaigns,
    config_changes,
    drift_rows,
    erasures,
    fetches,
    fleet,
    rollouts,
    unsent,
)
from bowerbird_server.catalogue import identity as identity_rows
from bowerbird_server.catalogue.core import Catalogue
from bowerbird_server.drift.verdicts import DriftSettings
from bowerbird_server.drift.watch import DriftWatch
from bowerbird_server.errors import ServerError
from bowerbird_server.fleet.credit import CreditGauge
from bowerbird_server.fleet.log_lines import one_line
from bowerbird_server.fleet.offers import BlockQueue
from bowerbird_server.fleet.wishes import Publisher, Wishes
from bowerbird_server.identity.report_check import ReportCheck
from bowerbird_server.identity.watch import CloneWatch
from bowerbird_server.ingest.ingest import DiskMarks
from bowerbird_server.layout import DataFolder
from bowerbird_server.releases.repository import Repository
from bowerbird_wire.codec import decode, encode
from bowerbird_wire.errors import WireError
from bowerbird_wire.histograms import Histograms
from bowerbird_wire.messages import (
    BlockRequest,
    FetchAnswer,
    Health,
    Job,
    Receipt,
    Report,
    Reported,
    Status,
    Tombstones,
)
from bowerbird_wire.topics import (
    AgentReportTopic,
    BlockRequestTopic,
    BlocksTopic,
    DeviceTopic,
    FetchAnswerTopic,
    HealthTopic,
    HistogramsTopic,
    ReceiptTopic,
    ReportedTopic,
    ReportTopic,
    StatusTopic,
    TombstonesTopic,
    parse_topic,
)

log = logging.getLogger(__name__)

CLIENT_ID = "bowerbird-delivery"
UP_TOPICS: tuple[type[DeviceTopic], ...] = (
    StatusTopic,
    HealthTopic,
    ReportTopic,
    AgentReportTopic,
    ReportedTopic,
    BlockRequestTopic,
    HistogramsTopic,
    TombstonesTopic,
    FetchAnswerTopic,
)
WISHES_EVERY_S = 0.5
UPKEEP_EVERY_S = 600.0
_LOOK_SHARE = 10.0  # time between two looks at the wishes, in times of what one takes
# Every device that is there has a retained status, and retained messages follow the subscription at once.
PRESENCE_AFTER_S = 5.0
REPORT_ALARM_EVERY_S = 3600.0


class Delivery:
    """Applies what devices say and publishes what is wanted of them.

    Args:
        cat: the catalogue, of the calling thread.
        blocks: block requests that wait.
        publisher: where messages go.
        sign: signs a job for the device named second.
        on_suspended: shuts a device out at the broker that turned out to be two.
        drift: limits of what counts as drift, and what is done about it.
        verifies: whether this site's CA signed a device's certificate.
    """

    def __init__(
        self,
        cat: Catalogue,
        blocks: BlockQueue,
        publisher: Publisher,
        sign: Callable[[Job, str], Job],
        on_suspended: Callable[[str], None] = lambda _device: None,
        drift: DriftSettings | None = None,
        verifies: Callable[[x509.Certificate], bool] = lambda _leaf: False,
    ) -> None:
        self._cat = cat
        self._check = ReportCheck(cat, verifies)
        self._alarmed_s: dict[str, float] = {}  # when an alarm about a device's reports was last raised, monotonic seconds
        self._drift = DriftWatch(cat, drift)
        self._blocks = blocks
        self._publisher = publisher
        self._watch = CloneWatch(cat, on_suspended)
        self._reported_at_ms: dict[str, int] = {}  # newest report of each device, by the device's own clock
        self._present: set[str] = set()  # devices whose status came on this connection
        self.wishes = Wishes(cat, publisher, sign, self._present)

    def connected(self) -> None:
        """The broker may have lost all that it retained."""
        self._present.clear()
        self.wishes.forget_published()
        self.wishes.publish()

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
            elif isinstance(topic, ReportedTopic):
                self._reported(topic, decode(Reported, payload))
            elif isinstance(topic, AgentReportTopic):
                self._agent_report(topic, decode(Report, payload))
            elif isinstance(topic, BlockRequestTopic):
                self._blocks.ask(topic.site, topic.device, decode(BlockRequest, payload))
            elif isinstance(topic, TombstonesTopic):
                self._tombstones(topic, decode(Tombstones, payload))
            elif isinstance(topic, HistogramsTopic):
                self._drift.take(topic.device, decode(Histograms, payload))
            elif isinstance(topic, FetchAnswerTopic):
                fetches.record_answer(self._cat, topic.device, decode(FetchAnswer, payload))
        except WireError as error:
            log.warning("dropped a message on %s: %s", topic_text[:200], one_line(error))
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
        if status.state == "online":
            rollouts.record_agent_version(self._cat, topic.device, status.agent_version)
            self.wishes.publish_fetches(time.monotonic(), only=topic.device)
        else:
            self._blocks.forget(topic.site, topic.device)

    def _tombstones(self, topic: TombstonesTopic, message: Tombstones) -> None:
        noted = unsent.record(self._cat, topic.device, message)
        if noted:
            self._publisher.publish(str(ReceiptTopic(topic.site, topic.device)), encode(Receipt(buried=noted)))

    def _health(self, topic: HealthTopic, health: Health) -> None:
        fleet.record_health(self._cat, topic.device, health)
        erased = health.extra.get("erased")
        if isinstance(erased, dict):
            for erasure in erasures.confirm(self._cat, topic.device, erased):
                log.info("device %s has carried out erasure %s", topic.device, one_line(erasure, 40))
        # One that was made before the newest report, and overtaken by it, says nothing about what came after.
        if health.at_ms > self._reported_at_ms.get(topic.device, 0):
            rollouts.record_running(self._cat, topic.device, health.model_digest)

    def _is_its_word(self, topic: DeviceTopic, report: Report) -> bool:
        """Whether a report is the device's own. What is not changes nothing, and a person is told, once an hour."""
        fault = self._check.fault_of(topic.device, report)
        if not fault:
            return True
        log.warning(
            "device %s: %s changes nothing: job %s, %s", topic.device, fault, one_line(report.job_id), one_line(report.state)
        )
        now_s = time.monotonic()
        if now_s - self._alarmed_s.get(topic.device, -REPORT_ALARM_EVERY_S) >= REPORT_ALARM_EVERY_S:
            self._alarmed_s[topic.device] = now_s
            with self._cat.transaction():
                identity_rows.alarm(self._cat, topic.device, f"{fault} came in its name, and changed nothing")
        return False

    def _report(self, topic: ReportTopic, report: Report) -> None:
        if not self._is_its_word(topic, report):
            return
        self._reported_at_ms[topic.device] = max(report.at_ms, self._reported_at_ms.get(topic.device, 0))
        fleet.record_running_model(self._cat, topic.device, report)
        self._execution(topic, report)

    def _agent_report(self, topic: AgentReportTopic, report: Report) -> None:
        if self._is_its_word(topic, report):
            self._execution(topic, report)

    def _execution(self, topic: DeviceTopic, report: Report) -> None:
        if not rollouts.record_report(self._cat, topic.device, report):
            log.info(
                "device %s reports %s for a job that is not ours: %s",
                topic.device,
                one_line(report.state),
                one_line(report.job_id),
            )
        if report.code:
            log.warning(
                "device %s, job %s: %s (%s) %s",
                topic.device,
                *map(one_line, (report.job_id, report.state, report.code, report.detail)),
            )

    def _reported(self, topic: ReportedTopic, reported: Reported) -> None:
        campaigns.record(self._cat, topic.device, reported)
        if config_changes.record(self._cat, topic.device, reported) and reported.faults:
            log.warning(
                "device %s, configuration %d: %s: %s",
                topic.device,
                reported.config_version,
                one_line(reported.state, 40),
                one_line("; ".join(reported.faults), 500),
            )

    def note_absent(self) -> None:
        """A while after connecting: a device whose will was lost with a broker is not online because it once was."""
        for device in fleet.mark_absent(self._cat, self._present):
            log.info("device %s is not connected", device)

    def publish_blocks(self, now_s: float) -> None:
        """Publish the blocks that are due."""
        for due in self._blocks.due(now_s):
            self._publisher.publish(str(BlocksTopic(due.site, due.device)), encode(due.block), qos=0)


def run(
    folder: DataFolder,
    broker: BrokerAddress,
    stop: threading.Event,
    *,
    site: str = "+",
    marks: DiskMarks | None = None,
    on_suspended: Callable[[str], None] = lambda _device: None,
    drift: DriftSettings | None = None,
    verifies: Callable[[x509.Certificate], bool] = lambda _leaf: False,
) -> None:
    """Converse until `stop`; waits for the broker as long as it takes.

    Args:
        folder: the data folder, made already, with an update repository once there is a rollout.
        broker: where the devices are.
        stop: ends it within a second.
        site: whose devices; all sites by default.
        marks: at which free space devices are told to wait, and to go on.
        on_suspended: shuts a device out at the broker.
        drift, verifies: see `Delivery`.
    """
    session = MqttSession(broker, CLIENT_ID, [kind.filter(site) for kind in UP_TOPICS])
    repository = Repository(folder.repository, folder.keys)
    with Catalogue(folder.catalogue) as cat:
        blocks = BlockQueue(folder.repository)
        delivery = Delivery(
            cat, blocks, session, lambda job, device: repository.sign_job(job, device=device), on_suspended, drift, verifies
        )
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
                    self.delivery.wishes.publish()
                    self.delivery.wishes.publish_fetches(now_s)
                    self.delivery.wishes.publish_credit(self.gauge.read(shutil.disk_usage(self.disk).free))
                    # In a fleet of thousands a look takes a tenth of a second: not twice in each.
                    wishes_at_s = now_s + max(WISHES_EVERY_S, _LOOK_SHARE * (time.monotonic() - now_s))
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
    drift_rows.thin(cat)
    if repository.exists:
        try:
            repository.refresh()
        except ServerError as error:
            log.error("the update repository's signatures cannot be renewed: %s", error)
