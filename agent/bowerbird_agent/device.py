"""The running device: builds every part from the configuration, connects them, runs them and takes them down.

In: an `AgentConfig`. Out: a process that runs until it is asked to stop, or until a thread of it dies or hangs. This is the composition
root of `bowerbird-agent run`; it decides nothing that a part could decide: which thread hangs is `heartbeat.py`'s word, what a reload
may change `reload.py`'s, how long an end may take `shutdown.py`'s.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import math
import queue
import sys
import threading
import time
import traceback
from functools import partial
from typing import TYPE_CHECKING, Any

from bowerbird_agent import counters as names
from bowerbird_agent.attempt import cameras_hang
from bowerbird_agent.boost import BoostWatch
from bowerbird_agent.broker_tls import tls_of
from bowerbird_agent.budget_note import restore_budget
from bowerbird_agent.camera_health import SHOWS_NOTHING
from bowerbird_agent.cameras import Cameras
from bowerbird_agent.campaign_book import CampaignBook
from bowerbird_agent.config import read_password
from bowerbird_agent.control import Control, Wake
from bowerbird_agent.counters import Counters
from bowerbird_agent.decision_log import FOLDER as DECISIONS_FOLDER
from bowerbird_agent.decision_log import DecisionLog
from bowerbird_agent.device_models import DeviceModels
from bowerbird_agent.dry_run import FOLDER as DRY_FOLDER
from bowerbird_agent.dry_run import DryRun, keep_trial, read_trial
from bowerbird_agent.encode import FrameEncoder
from bowerbird_agent.erasing import Erasing
from bowerbird_agent.errors import AgentError, ConfigError, SpoolError, StageDied, StageHung
from bowerbird_agent.exchange import FrameExchange
from bowerbird_agent.fetching import Fetching
from bowerbird_agent.guard_watch import GuardWatch
from bowerbird_agent.health import Vitals, idle_interval_s, now_ms
from bowerbird_agent.heartbeat import Heartbeats, Kind
from bowerbird_agent.histogram_book import HistogramBook
from bowerbird_agent.inference import Inference
from bowerbird_agent.launch import Launch
from bowerbird_agent.machine_sensors import MachineSensors
from bowerbird_agent.memory import give_back
from bowerbird_agent.metrics_endpoint import MetricsEndpoint
from bowerbird_agent.metrics_text import device_metrics, exposition
from bowerbird_agent.model_runtime import ModelRuntimes
from bowerbird_agent.model_store import ModelStore
from bowerbird_agent.mqtt_link import BrokerSettings, MqttLink
from bowerbird_agent.originals import Originals
from bowerbird_agent.publish import LocalPublisher
from bowerbird_agent.redaction import redactors_after, redactors_of
from bowerbird_agent.reload import ReloadPlan, reload_plan
from bowerbird_agent.remote_report import RemoteReports
from bowerbird_agent.remote_runner import FOLDER as REMOTE_FOLDER
from bowerbird_agent.renewal import identity_facts, renewals_of
from bowerbird_agent.sd_notify import Notifier
from bowerbird_agent.select import Selector
from bowerbird_agent.shutdown import BUDGET_S, STAGE_S, LastResort
from bowerbird_agent.spool import FrameState, Spool
from bowerbird_agent.stages import Stages
from bowerbird_agent.state_format import claim_state
from bowerbird_agent.storing import SELECTOR_NOTE, OnDisk, StoringThread
from bowerbird_agent.surroundings import Surroundings
from bowerbird_agent.tariff import Tariff
from bowerbird_agent.telemetry import Readings
from bowerbird_agent.update_settings import machine_boot_id
from bowerbird_agent.upload_runner import UploadRunner
from bowerbird_models.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bowerbird_agent.config import AgentConfig
    from bowerbird_agent.remote_runner import RemoteWishes

logger = logging.getLogger(__name__)

# A clock before the first release of this software has not been set yet.
_CLOCK_OK_FROM_S = 1_767_225_600
_POLL_S = 0.5
_GIVE_BACK_AFTER_S, _GIVE_BACK_EVERY_S = 2.0, 300.0  # what a start leaves behind, and what months do
_EXTEND_EVERY_S = 10.0
# Packets under way from which on detections for the site are dropped: a frame is on its way through a thin pipe.
_MANY_IN_FLIGHT = 8
_OLD_CAMERAS_S = 1.0
_ACCOUNT_EVERY_S = 10.0
_HISTOGRAMS_FOLDER = "histograms"
# States of a camera that gives pictures, or has given all it has.
_WELL = frozenset({"ok", "dark", "blurred", "moved", "finished"})


class Device:
    """All parts of one agent. Building it claims the state folder; `run` starts the threads.

    Args:
        remote: reads the configuration again, for `ask_reload`, and keeps what the server wants of it. None: it stays as it is.
        on_log_level: told of another `log.level`.
        notifier: tells the supervisor how the agent is.
        give_up: ends the process at once with an exit code when its orderly end hangs; None waits for ever.
        sensors: what the guard reads.
        launch: how this process was started, for the update of the agent itself; None: not by the launcher.

    Raises:
        AgentError: spool, password or state cannot be used, or a runtime that was named is not here.
        ModelError: the factory model is none.
    """

    def __init__(
        self,
        config: AgentConfig,
        *,
        version: str,
        remote: RemoteWishes | None = None,
        on_log_level: Callable[[str], None] = lambda _level: None,
        notifier: Notifier | None = None,
        give_up: Callable[[int], None] | None = None,
        sensors: MachineSensors | None = None,
        launch: Launch | None = None,
    ) -> None:
        self._config = config
        self._remote, self._on_log_level = remote, on_log_level
        self._notifier = notifier or Notifier()
        self._last_resort = LastResort(give_up)
        self._hanging: list[str] = []
        self._exit_code = 0
        device = config.device
        # Everything that can be wrong with files is looked at before the first thread starts.
        password = read_password(config.broker)
        device.state_dir.mkdir(parents=True, exist_ok=True)
        claim_state(device.state_dir, version=version)
        runtimes = ModelRuntimes(config.model, device.state_dir)
        runtimes.check()
        store = ModelStore(device.state_dir / "models")
        root = None if config.update.trusted_root is None else _read_root(config)
        self._spool = Spool(
            device.state_dir / "spool",
            max_bytes=config.spool.max_bytes,
            min_free_bytes=config.spool.min_free_bytes,
            floors=config.spool.floors,
        )
        self._counters = Counters(self._spool.counters())
        # What was promoted is the spool's to know; the counter only spares the inference thread a look at the disk.
        self._counters.set_to(names.FRAMES_SELECTED, self._spool.promoted)
        selector = self._make_selector()
        self._give_up_old_candidates(selector)

        events: queue.Queue[Any] = queue.Queue()
        self._wake = threading.Event()
        self._stages = Stages(self._wake)
        self._stop_asked, self._restart_asked = threading.Event(), threading.Event()
        self._reload_asked = threading.Event()
        self._heartbeats = Heartbeats(config.watchdog.limits_s())
        self._pulses = {
            name: self._heartbeats.add(name, kind)
            for name, kind in (
                ("spool", Kind.SPOOL),
                ("inference", Kind.INFERENCE),
                ("control", Kind.CONTROL),
                ("guard", Kind.GUARD),
                ("model", Kind.LOAD),
                ("update", Kind.UPDATE),
            )
        }
        self._exchange = FrameExchange(self._count_replaced)
        boot_id = machine_boot_id()
        self._encoder = encoder = FrameEncoder(
            config.image, device=device.id, boot_id=boot_id, clock_ok=_clock_ok, redactors=redactors_of(config.cameras)
        )
        self._decisions = DecisionLog(
            device.state_dir / DECISIONS_FOLDER, keep=config.accounting.keep_decisions, now_s=time.monotonic()
        )
        campaigns = CampaignBook(
            device.state_dir / REMOTE_FOLDER,
            self._spool.counters(),
            clock_ok=_clock_ok,
            allowed=lambda: "campaigns" in self._config.remote.allow,
        )
        self._fetching = _fetching(config, encoder, self._spool)
        self._erasing = Erasing(self._spool, [self._spool, self._fetching])
        self._storing = StoringThread(
            self._spool,
            self._counters,
            encoder,
            self._pulses["spool"],
            self._decisions,
            campaigns,
            forgotten=self._erasing,
            look_after=self._give_up_old_frames,
        )
        self._storing.fetching = self._fetching
        self._cameras = Cameras(config.running_cameras, self._exchange, self._counters, self._heartbeats, self._stages)
        self._boost = BoostWatch()
        self._histograms = HistogramBook(
            device.state_dir / _HISTOGRAMS_FOLDER, state_of=self._cameras.state_of, clock_ok=_clock_ok
        )
        budget = restore_budget(self._spool, config.budget.to_limits(), time.monotonic(), metered=config.metered.to_limits())
        self._tariff = Tariff(config.budget.quiet_ranges(), config.metered.interfaces, clock_ok=_clock_ok)
        self._inference = Inference(
            self._exchange,
            self._storing,
            selector,
            encoder=encoder,
            counters=self._counters,
            seen=self._cameras.seen,
            decode_confidence=config.selection.decode_confidence,
            encode_everything=config.accounting.encode_everything,
            bytes_left=lambda: self._control.bytes_left_today,
            even_bytes_per_s=lambda: self._control.even_bytes_per_s,
            sources_done=lambda: self._cameras.all_done,
            on_promoted=lambda: events.put(Wake()),
            witness=self._decisions.note,
            pulse=self._pulses["inference"],
            campaigns=campaigns,
            histograms=self._histograms,
            is_unwell=lambda camera: self._cameras.state_of(camera).partition(";")[0] in SHOWS_NOTHING,
        )
        self._dry_decisions = self._storing.dry_decisions = DecisionLog(
            device.state_dir / DRY_FOLDER, keep=config.accounting.keep_decisions, now_s=time.monotonic()
        )
        self._guard = GuardWatch(config.guard, sensors or MachineSensors(), self._inference, pulse=self._pulses["guard"])
        self._vitals = vitals = Vitals(
            self._counters,
            self._inference,
            self._storing,
            self._cameras,
            boot_id,
            version,
            lambda: self._guard.state,
            uplink=lambda: self._control.uplink,
            identity=lambda: identity_facts(config, self._link.take_overs),
            beside=self._beside,
            readings=lambda: Readings(self._control.rtt_s, max(0, self._control.connections - 1), self._guard.hottest_c),
            erased=lambda: self._erasing.done,
        )
        self._link = MqttLink(
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
        self._renewals = renewals_of(
            config, lambda _new: self._link.reconnect("a renewed certificate"), lambda: self._link.denied
        )
        self._publisher = LocalPublisher(
            config.publish,
            device.site,
            device.id,
            self._counters,
            connected=lambda: self._link.connected and self._link.in_flight < _MANY_IN_FLIGHT,
            wake=lambda: events.put(Wake()),
            clock_ok=_clock_ok,
        )
        self._inference.audience = self._publisher
        uploads = UploadRunner(
            self._spool,
            self._link,
            device.site,
            device.id,
            budget,
            now_s=time.monotonic(),
            keepalive_s=config.broker.keepalive_s,
            tariff=self._tariff,
        )
        self._control = Control(
            self._link,
            events,
            spool=self._spool,
            uploads=uploads,
            budget=budget,
            vitals=vitals,
            health_every_s=config.health.interval_s,
            idle_health_s=idle_interval_s(config.health.interval_s, config.health.idle_interval_s),
            publisher=self._publisher,
            account_every_s=_ACCOUNT_EVERY_S if config.metrics.listen else math.inf,
            erasing=self._erasing,
            pulse=self._pulses["control"],
            remote=RemoteReports(remote, campaigns, self._wake.set, now_ms, self._boost),
            histograms=self._histograms,
        )
        self._set_dry_run()
        address = config.metrics.address()
        self._metrics = None
        if address is not None:
            self._pulses["metrics"] = self._heartbeats.add("metrics", Kind.METRICS)
            self._metrics = MetricsEndpoint(*address, self._exposition, pulse=self._pulses["metrics"])
        self._models = DeviceModels(
            config,
            store,
            runtimes,
            root,
            inference=self._inference,
            control=self._control,
            pulse=self._pulses["update"],
            agent=None if launch is None else launch.agent_update(device.state_dir, self._restart),
        )

    # --- running -------------------------------------------------------------------------------------------------------

    def run(self, *, until_done: bool = False) -> None:
        """Run until `stop` is called, or, with `until_done`, until all sources ended and the spool is empty.

        Raises:
            StageDied: a thread of the agent died; everything else was taken down in order.
            StageHung: a thread shows no sign of life; the same.
            ModelError: the factory model is none.
        """
        self._stages.start("spool", self._storing.run, self._pulses["spool"])
        self._stages.start("inference", self._inference.run, self._pulses["inference"])
        try:
            if self._load_in_thread():
                self._stages.start("control", self._control.run, self._pulses["control"])
                self._stages.start("guard", self._guard.run, self._pulses["guard"])
                if self._metrics is not None:
                    self._stages.start("metrics", self._metrics.run, self._pulses["metrics"])
                self._link.start()
                if self._renewals is not None:
                    self._renewals.start()
                if self._models.updates is not None:
                    self._pulses["update"].beat()
                    self._models.updates.start()
                self._cameras.start()
                self._notifier.ready(self._vitals.line())
                give_back_s = time.monotonic() + _GIVE_BACK_AFTER_S
                while not self._stop_asked.is_set():
                    self._wait()
                    self._look_after()
                    if time.monotonic() >= give_back_s:
                        give_back(collect=False, code=True)
                        give_back_s = time.monotonic() + _GIVE_BACK_EVERY_S
                    if self._models.updates is not None and not self._models.updates.is_alive:
                        raise StageDied("the update thread died; the log says why. The agent ends so that it is started again")
                    if self._reload_asked.is_set():
                        self._reload_asked.clear()
                        self._reload()
                    self._look_at_wishes()
                    self._look_at_boost()
                    if until_done and self._is_done():
                        break
        except BaseException as error:
            self._exit_code = 3 if isinstance(error, StageHung) else 1
            raise
        finally:
            self._shut_down()

    def stop(self) -> None:
        """Ask `run` to end; safe in a signal handler."""
        self._stop_asked.set()
        self._wake.set()

    def ask_reload(self) -> None:
        """Ask `run` to read the configuration again; safe in a signal handler."""
        self._reload_asked.set()
        self._wake.set()

    @property
    def is_restart_asked(self) -> bool:
        """After `run`: whether another version of the agent is to be started in place of this one."""
        return self._restart_asked.is_set()

    def _restart(self) -> None:
        self._restart_asked.set()
        self.stop()

    @property
    def is_hanging(self) -> bool:
        """After `run`: whether threads are left that did not end, so that the process should not wait for them."""
        return bool(self._hanging) or cameras_hang()

    def _wait(self) -> None:
        self._wake.wait(min(_POLL_S, self._notifier.poll_s))
        if not self._stop_asked.is_set():
            self._wake.clear()

    def _look_after(self) -> None:
        """Raise when a thread has died or hangs; tell the supervisor that all is well otherwise."""
        if self._stages.died is not None:
            name, error = self._stages.died
            raise StageDied(f"thread {name} died ({type(error).__name__}: {error}); the agent ends so that it is started again")
        late = self._heartbeats.late()
        if late:
            for each in late:
                logger.critical("%s; the agent ends so that it is started again. It hangs in:\n%s", each, _stack(each.thread))
            raise StageHung(f"{late[0]}; the agent ends so that it is started again")
        self._notifier.alive(time.monotonic(), self._vitals.line())

    def _shut_down(self) -> None:
        self._last_resort.arm(self._exit_code, BUDGET_S)
        self._notifier.stopping()
        self._inference.stop()
        self._cameras.stop()
        self._guard.stop()
        if self._metrics is not None:
            self._metrics.stop()
        self._exchange.close()
        if self._link.connected:
            self._control.last_words()
        self._control.stop()
        self._storing.stop()
        if self._models.updates is not None:
            self._models.updates.stop(timeout_s=STAGE_S["update"])
        if self._renewals is not None:
            self._renewals.stop()
        self._link.stop(timeout_s=STAGE_S["link"])
        self._hanging = self._stages.join(STAGE_S["threads"])
        if self._hanging:
            logger.info("not waiting for %s", ", ".join(self._hanging))
        self._histograms.keep()
        if "spool" not in self._hanging:
            with contextlib.suppress(SpoolError):
                self._storing.flush()
                if "inference" not in self._hanging:
                    self._keep_selector()
            if "control" not in self._hanging:
                self._spool.close()
        if self._remote is not None and self._exit_code == 0:
            self._remote.close()
        self._last_resort.disarm()
        logger.info("stopped")

    def _is_done(self) -> bool:
        """Whether nothing is left to do: sources ended, last window closed, everything sent has its receipt."""
        if not self._inference.is_flushed or self._storing.backlog:
            return False
        return sum(self._spool.counts().values()) == 0

    def _count_replaced(self, camera: str) -> None:
        if self._inference.is_resting:
            self._counters.add(names.FRAMES_SKIPPED)
        else:
            self._counters.count_dropped(camera)

    # --- the configuration, read again ---------------------------------------------------------------------------------

    def _reload(self) -> None:
        """Read the configuration again and apply what has changed; with a fault in it everything stays as it is."""
        if self._remote is None:
            return
        self._notifier.reloading()
        news = self._vitals.reload
        try:
            plan = reload_plan(self._config, self._remote.reread())
        except (AgentError, OSError) as error:
            logger.error("the configuration stays as it was: %s", error)
            news.at_ms = now_ms()
            news.faults = error.faults if isinstance(error, ConfigError) else (str(error),)
        else:
            news.at_ms, news.faults, news.restart_needed = now_ms(), (), plan.refused
            for refusal in plan.refused:
                logger.warning("%s", refusal)
            logger.info("the configuration was read again: %s", plan)
            self._apply(plan)
        self._tell_control()
        self._notifier.ready(self._vitals.line())

    def _look_at_wishes(self) -> None:
        """Take up what the server wants of the configuration, or go back to what was before."""
        if self._remote is None:
            return
        well = any(worker.state.partition(";")[0] in _WELL for worker in self._cameras.workers)
        config = self._remote.step(time.monotonic(), camera_well=well, connected=self._link.connected)
        if config is None:
            return
        plan = reload_plan(self._config, config)
        logger.info("the configuration was changed from afar: %s", plan)
        self._apply(plan)
        self._tell_control()

    def _apply(self, plan: ReloadPlan) -> None:
        """Put a plan in force, as far as it goes without a restart."""
        before, self._config = self._config, plan.config
        config = self._config
        if "log" in plan.live:
            self._on_log_level(config.log.level)
        self._encoder.image_config = config.image
        # Before the new cameras begin, and what is gone from the file stays until the old ones have ended: a frame of theirs that
        # is in the model right now is redacted if either side asks for it.
        self._encoder.redactors = {**self._encoder.redactors, **redactors_of(config.cameras)}
        self._guard.config = config.guard
        self._publisher.config = config.publish
        self._tariff.quiet_hours = config.budget.quiet_ranges()
        self._tariff.metered_interfaces = config.metered.interfaces
        self._inference.encode_everything = config.accounting.encode_everything
        self._decisions.keep = config.accounting.keep_decisions
        self._cameras.change(plan.added, plan.changed, plan.removed, wait_s=_OLD_CAMERAS_S)
        self._encoder.redactors = redactors_after(self._encoder.redactors, config.cameras)
        for name in (*(camera.name for camera in plan.changed), *plan.removed):
            self._fetching.forget(name)  # with other masks, or other things covered
        cameras = len(config.running_cameras)
        if "selection" in plan.live or cameras != len(before.running_cameras):
            self._inference.set_policy(config.selection, device=config.device.id, cameras=cameras)
        self._set_boosts()
        if "dry_run" in plan.live or (config.dry_run is not None and cameras != len(before.running_cameras)):
            self._set_dry_run()

    def _set_boosts(self) -> None:
        self._inference.set_boosts(self._boost.factors(camera.name for camera in self._config.running_cameras))

    def _look_at_boost(self) -> None:
        """More exploration of a camera begins or ends."""
        allowed = "selection" in self._config.remote.allow
        if self._boost.step(time.monotonic(), now_ms(), clock_ok=_clock_ok(), allowed=allowed):
            boosted = ", ".join(self._boost.factors(camera.name for camera in self._config.running_cameras))
            logger.info("exploration and target rate are %s", f"raised for a while: {boosted}" if boosted else "as usual again")
            self._set_boosts()

    def _beside(self) -> dict[str, object]:
        """What health says of drift."""
        boost, dry_run = self._boost.facts(), self._inference.dry_run
        return {**({"boost": boost} if boost else {}), **({} if dry_run is None else {"dry_run": dict(dry_run.facts())})}

    def _set_dry_run(self) -> None:
        """Begin, replace or end the trial of a policy."""
        config = self._config
        folder = config.device.state_dir / DRY_FOLDER
        if config.dry_run is None:
            self._inference.dry_run = None
            self._storing.submit(OnDisk(partial(keep_trial, folder, None)))
            return
        self._dry_decisions.keep = config.accounting.keep_decisions
        self._inference.dry_run = DryRun(
            config.dry_run,
            device=config.device.id,
            cameras=len(config.running_cameras),
            log=self._dry_decisions,
            frames_left=lambda: self._inference.frames_left,
            bytes_left=lambda: self._control.bytes_left_today,
            state=read_trial(folder),
            keep=lambda state: self._keep_trial(folder, state),
        )
        logger.info("a policy is tried in dry run; nothing of it is sent")

    def _keep_trial(self, folder: Path, state: bytes) -> None:
        self._storing.submit(OnDisk(partial(keep_trial, folder, state)))

    def _tell_control(self) -> None:
        limits, metered = self._config.budget.to_limits(), self._config.metered.to_limits()
        every_s, idle_s = self._config.health.interval_s, self._config.health.idle_interval_s
        self._control.reconfigure(limits, metered, every_s, idle_interval_s(every_s, idle_s))

    # --- models --------------------------------------------------------------------------------------------------------

    def _load_in_thread(self) -> bool:
        """Load the first model while watching over the threads; False when the agent was asked to stop meanwhile.

        Raises:
            ModelError, AgentError: as `DeviceModels.load_first`.
        """
        over = threading.Event()
        failed: list[BaseException] = []

        def load() -> None:
            try:
                self._models.load_first()
            except (ModelError, AgentError) as error:  # the user's to mend: shown without a stack trace
                failed.append(error)
            finally:
                over.set()
                self._wake.set()

        self._stages.start("model", load, self._pulses["model"])
        extended_s = float("-inf")
        while not over.is_set():
            self._wait()
            if self._stop_asked.is_set():
                return False
            self._look_after()
            if time.monotonic() - extended_s > _EXTEND_EVERY_S:
                extended_s = time.monotonic()
                self._notifier.starting()
        if failed:
            raise failed[0]
        self._look_after()
        return not self._stop_asked.is_set()

    # --- parts ---------------------------------------------------------------------------------------------------------

    def _exposition(self) -> str:
        """For Prometheus, in the metrics' thread: memory only, no disk and no link is asked."""
        health, guard = self._vitals.health(self._control.account), self._guard
        version, connected = self._vitals.agent_version, self._link.connected
        metrics = device_metrics(
            health, version=version, connected=connected, hottest_c=guard.hottest_c, guard_share=guard.state.share
        )
        return exposition(metrics)

    def _make_selector(self) -> Selector:
        saved = self._spool.note(SELECTOR_NOTE)
        cameras = len(self._config.running_cameras)
        device = self._config.device.id
        if saved is not None:
            try:
                return Selector(self._config.selection, device=device, cameras=cameras, state=base64.b64decode(saved))
            except ValueError as error:
                logger.warning("%s; the selection starts without its memory", error)
        return Selector(self._config.selection, device=device, cameras=cameras)

    def _give_up_old_candidates(self, selector: Selector) -> None:
        """What waited for a later window goes on waiting. Candidates of a window that was cut short are counted: their judgements
        are not known any more."""
        here = {frame.frame_id for frame in self._spool.frames(FrameState.CANDIDATE)}
        selector.keep_waiting(here)
        left = sorted(here.difference(selector.candidates))
        if left:
            logger.info("%d candidates of a selection window that was cut short are given up", len(left))
            self._spool.drop(left, "window_cut_short")

    def _keep_selector(self) -> None:
        """At an orderly end the open window's candidates wait for the next start, and a trial goes on from where it was."""
        if self._inference.dry_run is not None:
            keep_trial(self._config.device.state_dir / DRY_FOLDER, self._inference.dry_run.to_state())
        self._spool.set_note(SELECTOR_NOTE, base64.b64encode(self._inference.selector_state()).decode())

    def _give_up_old_frames(self) -> None:
        """Nothing waits on the device for longer than is allowed; ages are known only while the clock is."""
        days = self._config.spool.max_age_days
        if days is None or not _clock_ok():
            return
        gone = self._spool.expire(now_ms() - int(days * 86_400_000), not_before_ms=_CLOCK_OK_FROM_S * 1000)
        if gone:
            logger.warning("%d frames that were not sent within %g days are given up", gone, days)


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


def _clock_ok() -> bool:
    return time.time() >= _CLOCK_OK_FROM_S


def _stack(name: str) -> str:
    """Where a thread stands, for the log."""
    numbers = {thread.ident for thread in threading.enumerate() if thread.name == name}
    found = [frame for number, frame in sys._current_frames().items() if number in numbers]
    return "".join(line for frame in found for line in traceback.format_stack(frame)[-4:]) or "(no thread of this name)"
