"""The parts of a running device, built from the configuration and connected with each other; nothing of it runs yet.

In: an `AgentConfig`, and what was found out about this start. Out: `DeviceParts`. Everything that can be wrong with files is looked at
here, before the first thread starts. It starts and stops nothing (`device.py`) and changes no part later (`live_config.py`).
"""

from __future__ import annotations

import base64
import logging
import math
import queue
import threading
import time
from typing import TYPE_CHECKING, Any

from bowerbird_agent.budget.budget_note import restore_budget
from bowerbird_agent.budget.tariff import Tariff
from bowerbird_agent.capture.camera_health import SHOWS_NOTHING
from bowerbird_agent.capture.cameras import Cameras
from bowerbird_agent.capture.exchange import FrameExchange
from bowerbird_agent.clock import clock_ok
from bowerbird_agent.control import Control
from bowerbird_agent.control_events import Wake
from bowerbird_agent.device_models import DeviceModels
from bowerbird_agent.errors import AgentError
from bowerbird_agent.health import counters as names
from bowerbird_agent.health.counters import Counters
from bowerbird_agent.health.health import Vitals, idle_interval_s, now_ms
from bowerbird_agent.health.heartbeat import Heartbeats, Kind
from bowerbird_agent.health.histogram_book import HistogramBook
from bowerbird_agent.health.metrics_endpoint import MetricsEndpoint
from bowerbird_agent.health.metrics_text import device_metrics, exposition
from bowerbird_agent.health.stages import Stages
from bowerbird_agent.health.telemetry import Readings
from bowerbird_agent.identity.renewal import identity_facts, renewals_of
from bowerbird_agent.inference.guard_watch import GuardWatch
from bowerbird_agent.inference.inference import Inference
from bowerbird_agent.inference.machine_sensors import MachineSensors
from bowerbird_agent.link.broker_tls import tls_of
from bowerbird_agent.link.config import read_password
from bowerbird_agent.link.link_events import BrokerSettings
from bowerbird_agent.link.mqtt_link import MqttLink
from bowerbird_agent.link.publish import LocalPublisher
from bowerbird_agent.link.upload_runner import UploadRunner
from bowerbird_agent.remote.report import RemoteReports
from bowerbird_agent.remote.runner import FOLDER as REMOTE_FOLDER
from bowerbird_agent.selection.boost import BoostWatch
from bowerbird_agent.selection.campaign_book import CampaignBook
from bowerbird_agent.selection.decision_log import FOLDER as DECISIONS_FOLDER
from bowerbird_agent.selection.decision_log import DecisionLog
from bowerbird_agent.selection.dry_run import FOLDER as DRY_FOLDER
from bowerbird_agent.selection.dry_run import keep_trial
from bowerbird_agent.selection.select import Selector
from bowerbird_agent.spool.leftovers import give_up_candidates, give_up_old_frames
from bowerbird_agent.spool.spool import Spool
from bowerbird_agent.state_format import claim_state
from bowerbird_agent.storing.encode import FrameEncoder
from bowerbird_agent.storing.erasing import Erasing
from bowerbird_agent.storing.fetching import Fetching
from bowerbird_agent.storing.originals import Originals
from bowerbird_agent.storing.redaction import redactors_of
from bowerbird_agent.storing.storing import SELECTOR_NOTE, StoringThread
from bowerbird_agent.storing.surroundings import Surroundings
from bowerbird_agent.tuning.model_runtime import ModelRuntimes
from bowerbird_agent.updates.launch import Launch
from bowerbird_agent.updates.model_store import ModelStore
from bowerbird_agent.updates.settings import machine_boot_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from bowerbird_agent.config import AgentConfig
    from bowerbird_agent.remote.runner import RemoteWishes

logger = logging.getLogger(__name__)

# Packets under way from which on detections for the site are dropped: a frame is on its way through a thin pipe.
_MANY_IN_FLIGHT = 8
_ACCOUNT_EVERY_S = 10.0
_HISTOGRAMS_FOLDER = "histograms"


class DeviceParts:
    """All parts of one agent; building them claims the state folder.

    Args:
        config: in force at first; `live_config.py` puts others in its place.
        wake: set when the main thread shall look.
        restart: asks for another version of the agent in place of this one.
        remote, sensors, launch: as `Device`.

    Raises:
        AgentError: spool, password or state cannot be used, or a runtime that was named is not here.
    """

    def __init__(
        self,
        config: AgentConfig,
        *,
        version: str,
        wake: threading.Event,
        restart: Callable[[], None],
        remote: RemoteWishes | None = None,
        sensors: MachineSensors | None = None,
        launch: Launch | None = None,
    ) -> None:
        self.config = config
        device = config.device
        # Everything that can be wrong with files is looked at before the first thread starts.
        password = read_password(config.broker)
        device.state_dir.mkdir(parents=True, exist_ok=True)
        claim_state(device.state_dir, version=version)
        runtimes = ModelRuntimes(config.model, device.state_dir)
        runtimes.check()
        store = ModelStore(device.state_dir / "models")
        root = None if config.update.trusted_root is None else _read_root(config)
        self.spool = Spool(
            device.state_dir / "spool",
            max_bytes=config.spool.max_bytes,
            min_free_bytes=config.spool.min_free_bytes,
            floors=config.spool.floors,
        )
        self.counters = Counters(self.spool.counters())
        # What was promoted is the spool's to know; the counter only spares the inference thread a look at the disk.
        self.counters.set_to(names.FRAMES_SELECTED, self.spool.promoted)
        selector = _selector(config, self.spool)
        give_up_candidates(self.spool, selector)

        events: queue.Queue[Any] = queue.Queue()
        self.stages = Stages(wake)
        self.heartbeats = Heartbeats(config.watchdog.limits_s())
        self.pulses = {
            name: self.heartbeats.add(name, kind)
            for name, kind in (
                ("spool", Kind.SPOOL),
                ("inference", Kind.INFERENCE),
                ("control", Kind.CONTROL),
                ("guard", Kind.GUARD),
                ("model", Kind.LOAD),
                ("update", Kind.UPDATE),
            )
        }
        self.exchange = FrameExchange(self._count_replaced)
        boot_id = machine_boot_id()
        self.encoder = encoder = FrameEncoder(
            config.image, device=device.id, boot_id=boot_id, clock_ok=clock_ok, redactors=redactors_of(config.cameras)
        )
        self.decisions = DecisionLog(
            device.state_dir / DECISIONS_FOLDER, keep=config.accounting.keep_decisions, now_s=time.monotonic()
        )
        campaigns = CampaignBook(
            device.state_dir / REMOTE_FOLDER,
            self.spool.counters(),
            clock_ok=clock_ok,
            allowed=lambda: "campaigns" in self.config.remote.allow,
        )
        self.fetching = _fetching(config, encoder, self.spool)
        self.erasing = Erasing(self.spool, [self.spool, self.fetching])
        self.storing = StoringThread(
            self.spool,
            self.counters,
            encoder,
            self.pulses["spool"],
            self.decisions,
            campaigns,
            forgotten=self.erasing,
            look_after=lambda: give_up_old_frames(self.spool, self.config.spool.max_age_days, now_ms()),
        )
        self.storing.fetching = self.fetching
        self.cameras = Cameras(config.running_cameras, self.exchange, self.counters, self.heartbeats, self.stages)
        self.boost = BoostWatch(device.state_dir / REMOTE_FOLDER)
        self.histograms = HistogramBook(
            device.state_dir / _HISTOGRAMS_FOLDER, state_of=self.cameras.state_of, clock_ok=clock_ok
        )
        budget = restore_budget(self.spool, config.budget.to_limits(), time.monotonic(), metered=config.metered.to_limits())
        self.tariff = Tariff(config.budget.quiet_ranges(), config.metered.interfaces, clock_ok=clock_ok)
        self.inference = Inference(
            self.exchange,
            self.storing,
            selector,
            encoder=encoder,
            counters=self.counters,
            seen=self.cameras.seen,
            decode_confidence=config.selection.decode_confidence,
            encode_everything=config.accounting.encode_everything,
            bytes_left=lambda: self.control.bytes_left_today,
            even_bytes_per_s=lambda: self.control.even_bytes_per_s,
            sources_done=lambda: self.cameras.all_done,
            on_promoted=lambda: events.put(Wake()),
            witness=self.decisions.note,
            pulse=self.pulses["inference"],
            campaigns=campaigns,
            histograms=self.histograms,
            is_unwell=lambda camera: self.cameras.state_of(camera).partition(";")[0] in SHOWS_NOTHING,
        )
        self.dry_decisions = self.storing.dry_decisions = DecisionLog(
            device.state_dir / DRY_FOLDER, keep=config.accounting.keep_decisions, now_s=time.monotonic()
        )
        self.guard = GuardWatch(config.guard, sensors or MachineSensors(), self.inference, pulse=self.pulses["guard"])
        self.vitals = vitals = Vitals(
            self.counters,
            self.inference,
            self.storing,
            self.cameras,
            boot_id,
            version,
            lambda: self.guard.state,
            uplink=lambda: self.control.uplink,
            identity=lambda: identity_facts(config, self.link.take_overs, self.link.attempt),
            beside=self._beside,
            readings=lambda: Readings(self.control.rtt_s, max(0, self.control.connections - 1), self.guard.hottest_c),
            erased=lambda: self.erasing.done,
        )
        self.link = MqttLink(
            BrokerSettings(
                config.broker.host,
                config.broker.port,
                config.broker.username or device.id,
                password,
                keepalive_s=config.broker.keepalive_s,
                tls=tls_of(config.broker, device.state_dir),
            ),
            device.site,
            device.id,
            events,
            online=vitals.status,
            offline=vitals.offline(),
        )
        self.renewals = renewals_of(config, lambda _new: self.link.reconnect("a renewed certificate"), lambda: self.link.denied)
        self.publisher = LocalPublisher(
            config.publish,
            device.site,
            device.id,
            self.counters,
            connected=lambda: self.link.connected and self.link.in_flight < _MANY_IN_FLIGHT,
            wake=lambda: events.put(Wake()),
            clock_ok=clock_ok,
        )
        self.inference.detecting.audience = self.publisher
        uploads = UploadRunner(
            self.spool,
            self.link,
            device.site,
            device.id,
            budget,
            now_s=time.monotonic(),
            keepalive_s=config.broker.keepalive_s,
            tariff=self.tariff,
        )
        self.control = Control(
            self.link,
            events,
            spool=self.spool,
            uploads=uploads,
            budget=budget,
            vitals=vitals,
            health_every_s=config.health.interval_s,
            idle_health_s=idle_interval_s(config.health.interval_s, config.health.idle_interval_s),
            publisher=self.publisher,
            account_every_s=_ACCOUNT_EVERY_S if config.metrics.listen else math.inf,
            erasing=self.erasing,
            pulse=self.pulses["control"],
            remote=RemoteReports(remote, campaigns, wake.set, now_ms, self.boost),
            histograms=self.histograms,
        )
        address = config.metrics.address()
        self.metrics = None
        if address is not None:
            self.pulses["metrics"] = self.heartbeats.add("metrics", Kind.METRICS)
            self.metrics = MetricsEndpoint(*address, self._exposition, pulse=self.pulses["metrics"])
        self.models = DeviceModels(
            config,
            store,
            runtimes,
            root,
            inference=self.inference,
            control=self.control,
            pulse=self.pulses["update"],
            agent=None if launch is None else launch.agent_update(device.state_dir, restart),
        )

    def keep_selector(self) -> None:
        """At an orderly end the open window's candidates wait for the next start, and a trial goes on from where it was."""
        if self.inference.dry_run is not None:
            keep_trial(self.config.device.state_dir / DRY_FOLDER, self.inference.dry_run.to_state())
        self.spool.set_note(SELECTOR_NOTE, base64.b64encode(self.inference.selector_state()).decode())

    def _count_replaced(self, camera: str) -> None:
        if self.inference.rate.is_resting:
            self.counters.add(names.FRAMES_SKIPPED)
        else:
            self.counters.count_dropped(camera)

    def _beside(self) -> dict[str, object]:
        """What health says of drift."""
        boost, dry_run = self.boost.facts(), self.inference.dry_run
        return {**({"boost": boost} if boost else {}), **({} if dry_run is None else {"dry_run": dict(dry_run.facts())})}

    def _exposition(self) -> str:
        """For Prometheus, in the metrics' thread: memory only, no disk and no link is asked."""
        health, guard = self.vitals.health(self.control.account), self.guard
        version, connected = self.vitals.agent_version, self.link.connected
        metrics = device_metrics(
            health, version=version, connected=connected, hottest_c=guard.hottest_c, guard_share=guard.state.share
        )
        return exposition(metrics)


def _selector(config: AgentConfig, spool: Spool) -> Selector:
    """The selection with the memory that the spool keeps of it."""
    saved = spool.note(SELECTOR_NOTE)
    cameras = len(config.running_cameras)
    device = config.device.id
    if saved is not None:
        try:
            return Selector(config.selection, device=device, cameras=cameras, state=base64.b64decode(saved))
        except ValueError as error:
            logger.warning("%s; the selection starts without its memory", error)
    return Selector(config.selection, device=device, cameras=cameras)


def _fetching(config: AgentConfig, encoder: FrameEncoder, spool: Spool) -> Fetching:
    fetch = config.fetch
    originals = Originals(
        config.device.state_dir / "originals", max_bytes=fetch.originals_max_bytes, min_free_bytes=config.spool.min_free_bytes
    )
    surroundings = Surroundings(fps=fetch.around_fps, max_bytes=int(fetch.around_memory_mb * 1e6))
    return Fetching(fetch, originals, surroundings, encoder, spool, now_s=time.monotonic())


def _read_root(config: AgentConfig) -> bytes:
    path = config.update.trusted_root
    try:
        return b"" if path is None else path.read_bytes()
    except OSError as error:
        raise AgentError(f"update.trusted_root: {path} cannot be read ({error.strerror}); check the path") from error
