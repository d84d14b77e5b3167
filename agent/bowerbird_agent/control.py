"""The control thread: joins link, upload, updates, the server's wishes and health.

In: events of the link and of the other threads, on one queue. Out: publishes. It carries messages between machines that decide for
themselves (`uploader.py`, `updater.py`, the selector), and gives their turn to those that send by themselves (`outbox.py`,
`health/sender.py`, `tombstone_sender.py`, `block_requests.py`). It touches no frame.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from bowerbird_agent.control_events import AskForBlocks, ModelChanged, Reconfigure, SendAnswer, SendReport, Wake
from bowerbird_agent.errors import SpoolError
from bowerbird_agent.health.heartbeat import no_pulse
from bowerbird_agent.health.histogram_book import HistogramSender
from bowerbird_agent.health.sender import HealthSender
from bowerbird_agent.link.block_requests import BlockRequests, Updates
from bowerbird_agent.link.counts import LinkCounts
from bowerbird_agent.link.link_events import LinkDown, LinkUp, MessageIn, Published
from bowerbird_agent.link.outbox import Outbox
from bowerbird_agent.selection.pace import room_bytes
from bowerbird_agent.spool.index import Ledger
from bowerbird_agent.spool.tombstone_sender import TombstoneSender
from bowerbird_agent.storing.storing import OnDisk
from bowerbird_agent.updates.updater import Subject
from bowerbird_wire import codec
from bowerbird_wire.errors import WireError
from bowerbird_wire.messages import OF, Block, BlockRequest, Desired, Fetch, FetchAnswer, Job, Receipt, Report
from bowerbird_wire.topics import (
    AgentJobTopic,
    AgentReportTopic,
    BlocksTopic,
    DesiredTopic,
    FetchAnswerTopic,
    HistogramsTopic,
    JobTopic,
    ReportedTopic,
    ReportTopic,
    StatusTopic,
    TombstonesTopic,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bowerbird_agent.budget.budget import ByteLimits
    from bowerbird_agent.budget.uplink_budget import UplinkBudget
    from bowerbird_agent.health.health import Vitals
    from bowerbird_agent.health.heartbeat import Pulse
    from bowerbird_agent.health.histogram_book import HistogramBook
    from bowerbird_agent.link.mqtt_link import MqttLink
    from bowerbird_agent.link.publish import LocalPublisher
    from bowerbird_agent.link.upload_runner import UploadRunner
    from bowerbird_agent.remote.report import RemoteReports
    from bowerbird_agent.spool.spool import Spool
    from bowerbird_agent.storing.erasing import Erasing

logger = logging.getLogger(__name__)

_TICK_S = 0.5
_UNSENT_EVERY_S = 1.0
_EVENTS_AT_ONCE = 256


class Control:
    """The loop; `run` belongs to a thread of its own. `send` may be called from any thread.

    Args:
        events: what the link puts its events on; shared with `wake` and `send`.
        budget: the byte budgets of the uploads, owned by this thread.
        health_every_s: seconds between health messages; one more is sent whenever the link comes up.
        idle_health_s: the same while they have no news; None for `health_every_s`.
        publisher: what waits there is sent last, None for nothing.
        erasing: obeys the server's wishes to forget frames; None for nobody.
        account_every_s: how old `account`, the spool's account for other threads, may become; infinity leaves it empty.
        pulse: this thread's heartbeat.
        remote: takes up what is set from afar and says what became of it; None for nothing.
        histograms: the hours to send; None for none.
    """

    def __init__(
        self,
        link: MqttLink,
        events: queue.Queue[Any],
        *,
        spool: Spool,
        uploads: UploadRunner,
        budget: UplinkBudget,
        vitals: Vitals,
        health_every_s: float,
        idle_health_s: float | None = None,
        publisher: LocalPublisher | None = None,
        account_every_s: float = math.inf,
        erasing: Erasing | None = None,
        pulse: Pulse | None = None,
        remote: RemoteReports | None = None,
        histograms: HistogramBook | None = None,
    ) -> None:
        self._remote = remote
        self._publisher, self._pulse = publisher, pulse or no_pulse()
        self._link, self._events, self._spool, self._uploads, self._vitals = link, events, spool, uploads, vitals
        self._budget = budget
        # Chosen frames that wait on disk are paid from it already.
        self.bytes_left_today = budget.left_today_bytes(time.monotonic())
        self.even_bytes_per_s = budget.even_bytes_per_s
        self._unsent_bytes, self._unsent_due_s = 0, 0.0
        self.uplink: Mapping[str, object] = {}  # for health: what day and month have cost, and what holds for the uplink now
        self._health = HealthSender(
            link,
            spool,
            budget,
            vitals,
            every_s=health_every_s,
            idle_s=health_every_s if idle_health_s is None else idle_health_s,
        )
        self.updates: Updates | None = None
        self._outbox = Outbox(lambda topic, payload, retain: link.publish(topic, payload, retain=retain))
        self._names = (link.site, link.device)
        self._histograms = (
            None if histograms is None else HistogramSender(histograms, self._outbox, HistogramsTopic(*self._names))
        )
        self._tombstones = TombstoneSender(spool, self._outbox, TombstonesTopic(*self._names))
        uploads.heard = self._heard
        self._block_requests = BlockRequests(link, uploads)
        self._link_counts = LinkCounts(link, uploads.references, vitals.counters)
        self.connections = 0  # since the process began
        self.account = Ledger()
        self._erasing = erasing
        self._account_every_s, self._account_due_s = account_every_s, -math.inf
        self._stop = threading.Event()
        self._complained: set[str] = set()

    @property
    def rtt_s(self) -> float | None:
        """Round trip to the broker without a queue, None before it was measured."""
        return self._uploads.link_estimate.measured_rtt_s

    # --- other threads -------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Look at the spool now."""
        self._events.put(Wake())

    def model_changed(self) -> None:
        """Tell the server soon."""
        self._events.put(ModelChanged())

    def reconfigure(self, limits: ByteLimits, metered: ByteLimits, health_every_s: float, idle_health_s: float) -> None:
        """Take up what a reload has changed, and tell the server soon."""
        self._events.put(Reconfigure(limits, metered, health_every_s, idle_health_s))

    def send(self, message: BlockRequest | Report) -> None:
        """For the updater. A block request that does not get through is asked again there; a report is kept until it does."""
        if isinstance(message, BlockRequest):
            self._events.put(AskForBlocks(message))
        else:
            self._events.put(SendReport(message))

    def stop(self) -> None:
        """Ask `run` to return."""
        self._stop.set()
        self._events.put(Wake())

    # --- the control thread --------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Carry messages until `stop`."""
        wait_s = 0.0
        while not self._stop.is_set():
            self._pulse.beat()
            for event in self._next_events(wait_s):
                self._handle(event)
            now_s = time.monotonic()
            self._report_remote(now_s)
            if self._histograms is not None:
                self._histograms.pump(now_s, at_once=self._vitals.inference.is_flushed)
            # Control first: on a thin link it would wait for seconds behind frames.
            if self._link.connected:
                self._tombstones.pump(now_s, int(time.time() * 1000))
            self._outbox.pump()
            if self._link.connected:
                self._health.pump(now_s)
            if self._account_every_s < math.inf and now_s >= self._account_due_s:
                self._account_due_s = now_s + self._account_every_s
                with contextlib.suppress(SpoolError):
                    self.account = self._spool.ledger()
            if self._publisher is not None:
                self._publisher.pump(self._uploads, now_s)
            if self._erasing is not None and self._erasing.go_on():
                self._health.say(now_s)
            again_s = self._uploads.pump(now_s)
            self._block_requests.let_go(now_s, self.updates)
            self._link_counts.count()
            self._plan_windows(now_s)
            self.uplink = self._budget.spent_of_caps(now_s) | ({"quiet": True} if self._uploads.is_quiet else {})
            wait_s = max(0.01, min(_TICK_S, again_s - now_s, self._health.due_s - now_s if self._link.connected else _TICK_S))
        self._link_counts.count()
        try:
            self._uploads.close()
        except SpoolError as error:
            logger.warning("the byte budget could not be written down (%s); the next start begins with less of it", error)

    def _plan_windows(self, now_s: float) -> None:
        """The bucket belongs to this thread; a window elsewhere plans with these numbers and needs no lock for them."""
        left = self._budget.left_today_bytes(now_s)
        if left is not None and now_s >= self._unsent_due_s:
            self._unsent_due_s = now_s + _UNSENT_EVERY_S
            with contextlib.suppress(SpoolError):
                self._unsent_bytes = self._spool.unsent_bytes
        self.even_bytes_per_s = self._budget.even_bytes_per_s
        self.bytes_left_today = room_bytes(left, self._unsent_bytes, self.even_bytes_per_s)

    def last_words(self) -> None:
        """A last health message on the way out; the link may not take it."""
        self._health.last_words()

    def _next_events(self, wait_s: float) -> list[Any]:
        found: list[Any] = []
        with contextlib.suppress(queue.Empty):
            found.append(self._events.get(timeout=wait_s) if wait_s else self._events.get_nowait())
            while len(found) < _EVENTS_AT_ONCE:
                found.append(self._events.get_nowait())
        return found

    def _handle(self, event: Any) -> None:
        now_s = time.monotonic()
        if isinstance(event, LinkUp | LinkDown | Published | MessageIn):
            self._uploads.handle(event, now_s)
        if isinstance(event, LinkUp):
            logger.info("connected to the broker")
            self.connections += 1
            self._health.say(now_s)
            self._tombstones.link_up(now_s)
            self._block_requests.link_up()
            if self._remote is not None:
                self._remote.connected()
            if self.updates is not None:
                self.updates.link_up()
        elif isinstance(event, LinkDown):
            self._outbox.link_down()
            if self.updates is not None:
                self.updates.link_down()
        elif isinstance(event, Published):
            self._outbox.published(event.token, accepted=event.accepted)
        elif isinstance(event, SendReport):
            report = event.report
            topic = AgentReportTopic if report.extra.get(OF) == Subject.AGENT.value else ReportTopic
            self._outbox.put(f"report {report.job_id} {report.state}", topic(*self._names), codec.encode(report))
        elif isinstance(event, SendAnswer):
            answer = event.answer
            self._outbox.put(f"fetch {answer.request.hex()}", FetchAnswerTopic(*self._names), codec.encode(answer))
        elif isinstance(event, ModelChanged):
            self._outbox.put("status", StatusTopic(*self._names), codec.encode(self._vitals.status()), retain=True)
            self._health.say(now_s)
        elif isinstance(event, Reconfigure):
            if (event.limits, event.metered) != (self._budget.total.limits, self._budget.metered.limits):
                self._uploads.change_limits(event.limits, now_s, metered=event.metered)
            self._health.every_s, self._health.idle_s = event.health_every_s, event.idle_health_s
            self._health.say(now_s)
        elif isinstance(event, AskForBlocks):
            self._block_requests.ask(event.request, now_s, self.updates)
        elif isinstance(event, MessageIn):
            self._message(event)

    def _message(self, event: MessageIn) -> None:
        try:
            if isinstance(event.topic, DesiredTopic):
                desired = codec.decode(Desired, event.payload)
                if self._erasing is not None and self._erasing.obey(desired.erase):
                    self._health.say(time.monotonic())
                if self._vitals.inference.set_desired(desired.version, desired.frames_total):
                    logger.info("the server wants %s frames in all (version %d)", desired.frames_total, desired.version)
                    self._health.say(time.monotonic() + 0.2)
                self._vitals.inference.set_enough(desired.enough)
                self._vitals.inference.set_calibration(desired.calibration)
                if self._remote is not None:
                    self._remote.desired(desired)
            elif isinstance(event.topic, JobTopic) and event.payload:
                self._job(codec.decode(Job, event.payload), Subject.MODEL)
            elif isinstance(event.topic, AgentJobTopic) and event.payload:
                self._job(codec.decode(Job, event.payload), Subject.AGENT)
            elif isinstance(event.topic, BlocksTopic) and self.updates is not None:
                self.updates.block(codec.decode(Block, event.payload))
        except WireError as error:
            kind = type(event.topic).__name__
            level = logging.DEBUG if kind in self._complained else logging.WARNING
            self._complained.add(kind)
            logger.log(level, "a message on %s is not understood (%s); update the older side", event.topic, error)

    def _heard(self, receipt: Receipt) -> None:
        """What a receipt says beside frames."""
        if receipt.buried:
            self._tombstones.buried(receipt.buried, time.monotonic())
        for fetch in receipt.fetch:
            # Pictures lie on the disk: the spool thread looks for them and the answer comes back as an event.
            self._vitals.storing.submit(OnDisk(partial(self._fetch, fetch)))

    def _fetch(self, fetch: Fetch) -> None:
        """In the spool thread."""
        fetching = self._vitals.storing.fetching
        answer = FetchAnswer(fetch.request, "refused", code="off", detail="this device keeps nothing to fetch")
        self._events.put(SendAnswer(answer if fetching is None else fetching.answer(fetch, time.monotonic())))

    def _job(self, job: Job, subject: Subject) -> None:
        if self.updates is not None:
            self.updates.job(job, subject)
            return
        detail = "this device trusts no update repository: set update.trusted_root"
        logger.warning("job %s is refused: %s", job.job_id, detail)
        is_model = subject is Subject.MODEL
        running = self._vitals.inference.model_digest if is_model else ""
        extra = {} if is_model else {OF: subject.value}
        self.send(
            Report(job.job_id, "refused", running, model_digest=job.model_digest, code="no_root", detail=detail, extra=extra)
        )

    def _report_remote(self, now_s: float) -> None:
        reported = None if self._remote is None or not self._link.connected else self._remote.due(now_s)
        if reported is not None:
            self._outbox.put("reported", ReportedTopic(*self._names), codec.encode(reported), retain=True)
