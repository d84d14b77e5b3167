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
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from bowerbird_server.broker_address import BrokerAddress
from bowerbird_server.catalogue import (
    campaigns,
    config_changes,
    device_config,
    drift_rows,
    erasures,
    fetches,
    fleet,
    fleet_sketches,
    rollouts,
    unsent,
)
from bowerbird_server.catalogue.core import Catalogue
from bowerbird_server.credit import CreditGauge
from bowerbird_server.drift import DriftSettings
from bowerbird_server.drift_watch import DriftWatch
from bowerbird_server.errors import ServerError
from bowerbird_server.identity.watch import CloneWatch
from bowerbird_server.ingest import DiskMarks
from bowerbird_server.layout import DataFolder
from bowerbird_server.mqtt_session import Arrived, Connected, Event, MqttSession
from bowerbird_server.offers import BlockQueue
from bowerbird_server.repository import Repository
from bowerbird_wire.codec import decode, encode
from bowerbird_wire.errors import WireError
from bowerbird_wire.histograms import Histograms
from bowerbird_wire.messages import (
    BlockRequest,
    Credit,
    Desired,
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
    AgentJobTopic,
    AgentReportTopic,
    BlockRequestTopic,
    BlocksTopic,
    CreditTopic,
    DesiredTopic,
    DeviceTopic,
    FetchAnswerTopic,
    HealthTopic,
    HistogramsTopic,
    JobTopic,
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
DESIRED_AT_ONCE = 100
_LOOK_SHARE = 10.0  # time between two looks at the wishes, in times of what one takes
# How often devices that found nothing for a campaign are given some of its quota again.
CAMPAIGN_TURN_EVERY_S = 600.0
# A wish that was said and not answered is said again after so long, and at once to a device that comes back.
FETCH_AGAIN_S = 300.0
_FETCHES_A_MESSAGE = 50
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
        drift: limits of what counts as drift, and what is done about it.
    """

    def __init__(
        self,
        cat: Catalogue,
        blocks: BlockQueue,
        publisher: Publisher,
        sign: Callable[[Job, str], Job],
        on_suspended: Callable[[str], None] = lambda _device: None,
        drift: DriftSettings | None = None,
    ) -> None:
        self._cat = cat
        self._drift = DriftWatch(cat, drift)
        self._blocks = blocks
        self._publisher = publisher
        self._sign = sign
        self._watch = CloneWatch(cat, on_suspended)
        self._desired: dict[str, Desired] = {}  # as last published on this connection
        self._jobs: dict[tuple[str, bool], Job] = {}  # by device, and whether it is of the agent
        self._credits: dict[str, int] = {}  # by site
        self._reported_at_ms: dict[str, int] = {}  # newest report of each device, by the device's own clock
        self._present: set[str] = set()  # devices whose status came on this connection
        self._turn_at_s = time.monotonic() + CAMPAIGN_TURN_EVERY_S
        self._complained = False
        self._fetches_said: dict[bytes, float] = {}  # request -> when it was said last, monotonic seconds

    def connected(self) -> None:
        """The broker may have lost all that it retained."""
        self._desired.clear()
        self._jobs.clear()
        self._credits.clear()
        self._present.clear()
        self._fetches_said.clear()
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
        if status.state == "online":
            rollouts.record_agent_version(self._cat, topic.device, status.agent_version)
            self.publish_fetches(time.monotonic(), only=topic.device)
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
                log.info("device %s has carried out erasure %s", topic.device, erasure[:40])
        # One that was made before the newest report, and overtaken by it, says nothing about what came after.
        if health.at_ms > self._reported_at_ms.get(topic.device, 0):
            rollouts.record_running(self._cat, topic.device, health.model_digest)

    def _report(self, topic: ReportTopic, report: Report) -> None:
        self._reported_at_ms[topic.device] = max(report.at_ms, self._reported_at_ms.get(topic.device, 0))
        fleet.record_running_model(self._cat, topic.device, report)
        self._execution(topic, report)

    def _agent_report(self, topic: AgentReportTopic, report: Report) -> None:
        self._execution(topic, report)

    def _execution(self, topic: DeviceTopic, report: Report) -> None:
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

    def _reported(self, topic: ReportedTopic, reported: Reported) -> None:
        campaigns.record(self._cat, topic.device, reported)
        if config_changes.record(self._cat, topic.device, reported) and reported.faults:
            log.warning(
                "device %s, configuration %d: %s: %s",
                topic.device,
                reported.config_version,
                reported.state[:40],
                "; ".join(reported.faults)[:500],
            )

    def publish_wishes(self) -> None:
        """Advance rollouts, changes and campaigns, and publish each Desired and Job that differs from what is published already.

        At most `DESIRED_AT_ONCE` wishes go out at a time, so that a change for a large fleet is no burst.
        """
        for rollout in rollouts.advance(self._cat):
            log.info("rollout %s moved on", rollout)
        for change in config_changes.advance(self._cat):
            log.info("configuration change %s moved on", change)
        campaigns.advance(self._cat, turn=self._is_turn())
        sites = fleet.active_devices(self._cat)
        published = 0
        for device, desired in wanted_of(self._cat, sites).items():
            if self._desired.get(device) == desired:
                continue
            if published >= DESIRED_AT_ONCE:
                break
            if self._publisher.publish(str(DesiredTopic(sites[device], device)), encode(desired), retain=True):
                self._desired[device] = desired
                published += 1
        for wanted in rollouts.jobs(self._cat):
            key = (wanted.device, wanted.is_agent)
            if self._jobs.get(key) == wanted.job:
                continue
            try:
                signed = self._sign(wanted.job, wanted.device)
            except ServerError as error:
                log.log(logging.DEBUG if self._complained else logging.ERROR, "jobs wait for a signature: %s", error)
                self._complained = True
                return
            self._complained = False
            kind = AgentJobTopic if wanted.is_agent else JobTopic
            if self._publisher.publish(str(kind(wanted.site, wanted.device)), encode(signed), retain=True):
                self._jobs[key] = wanted.job
                what = "agent" if wanted.is_agent else "model"
                log.info("device %s: %s %s %s", wanted.device, wanted.job.action, what, wanted.job.model_digest[:12])

    def _is_turn(self) -> bool:
        now_s = time.monotonic()
        if now_s < self._turn_at_s:
            return False
        self._turn_at_s = now_s + CAMPAIGN_TURN_EVERY_S
        return True

    def publish_fetches(self, now_s: float, *, only: str | None = None) -> None:
        """Say what people have asked for and devices have not answered; `only` to one that has just come, whatever was said."""
        sites = fleet.active_devices(self._cat)
        wishes = fetches.open_wishes(self._cat)
        open_now = {fetch.request for asked in wishes.values() for fetch in asked}
        self._fetches_said = {request: at_s for request, at_s in self._fetches_said.items() if request in open_now}
        for device, asked in wishes.items():
            if device not in self._present or (only is not None and device != only):
                continue
            due = [
                fetch
                for fetch in asked
                if only is not None or now_s - self._fetches_said.get(fetch.request, -FETCH_AGAIN_S) >= FETCH_AGAIN_S
            ][:_FETCHES_A_MESSAGE]
            topic = str(ReceiptTopic(sites[device], device))
            if due and self._publisher.publish(topic, encode(Receipt(fetch=tuple(due)))):
                self._fetches_said.update({fetch.request: now_s for fetch in due})

    def publish_credit(self, bytes_in_flight: int) -> None:
        """Tell each site how much its devices may have on their way, when it differs from what is published already."""
        for site in sorted(set(fleet.active_devices(self._cat).values())):
            if self._credits.get(site) == bytes_in_flight:
                continue
            credit = encode(Credit(bytes_in_flight, int(time.time() * 1000)))
            if self._publisher.publish(str(CreditTopic(site)), credit, retain=True):
                if bytes_in_flight == 0:
                    log.warning(
                        "the disk has less free than ingest.stop_below_free_mib: the devices of site %s are told to keep their "
                        "frames, and nothing is lost; free some space",
                        site,
                    )
                elif self._credits.get(site) == 0:
                    log.warning("the disk has room again: the devices of site %s are told to go on", site)
                self._credits[site] = bytes_in_flight

    def note_absent(self) -> None:
        """A while after connecting: a device whose will was lost with a broker is not online because it once was."""
        for device in fleet.mark_absent(self._cat, self._present):
            log.info("device %s is not connected", device)

    def publish_blocks(self, now_s: float) -> None:
        """Publish the blocks that are due."""
        for due in self._blocks.due(now_s):
            self._publisher.publish(str(BlocksTopic(due.site, due.device)), encode(due.block), qos=0)


def wanted_of(cat: Catalogue, active: Collection[str]) -> dict[str, Desired]:
    """What each active device should hold: frames, configuration and campaigns in one message. Devices that nobody has asked for
    anything are left out."""
    totals, wishes, shares = fleet.desired(cat), device_config.wishes(cat), campaigns.wished(cat)
    boosts, were_boosted = drift_rows.boosts(cat, int(time.time() * 1000)), drift_rows.were_boosted(cat)
    enough = fleet_sketches.wished(cat)
    found = {}
    for device in active:
        total = totals.get(device, Desired(0))  # with what it shall erase
        version, document, campaigns_version = wishes.get(device, (0, {}, 0))
        wanted = replace(
            total,
            config_version=version,
            config=document,
            campaigns_version=campaigns_version,
            campaigns=shares.get(device, ()),
            boost=boosts.get(device),
            enough=enough.get(device, b""),
        )
        if device in totals or version or campaigns_version or device in were_boosted or wanted.enough:
            found[device] = wanted
    return found


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
    drift: DriftSettings | None = None,
) -> None:
    """Converse until `stop`; waits for the broker as long as it takes.

    Args:
        folder: the data folder, made already, with an update repository once there is a rollout.
        broker: where the devices are.
        stop: ends it within a second.
        site: whose devices; all sites by default.
        marks: at which free space devices are told to wait, and to go on.
        on_suspended: shuts a device out at the broker.
        drift: see `Delivery`.
    """
    session = MqttSession(broker, CLIENT_ID, [kind.filter(site) for kind in UP_TOPICS])
    repository = Repository(folder.repository, folder.keys)
    with Catalogue(folder.catalogue) as cat:
        blocks = BlockQueue(folder.repository)
        delivery = Delivery(
            cat, blocks, session, lambda job, device: repository.sign_job(job, device=device), on_suspended, drift
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
                    self.delivery.publish_wishes()
                    self.delivery.publish_fetches(now_s)
                    self.delivery.publish_credit(self.gauge.read(shutil.disk_usage(self.disk).free))
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
