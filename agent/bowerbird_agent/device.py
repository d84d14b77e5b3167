"""The running device: builds every part from the configuration, connects them, runs them and takes them down.

In: an `AgentConfig`. Out: a process that runs until it is asked to stop, or until a thread of it dies. This is the composition root of
`bowerbird-agent run`; it decides nothing that a part could decide.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import queue
import threading
import time
from typing import TYPE_CHECKING, Any

from bowerbird_agent import counters as names
from bowerbird_agent.capture_worker import CaptureWorker
from bowerbird_agent.config import read_password
from bowerbird_agent.control import Control, Wake
from bowerbird_agent.counters import Counters, SeenFrames
from bowerbird_agent.encode import FrameEncoder
from bowerbird_agent.errors import AgentError, NoModelError, SpoolError, StageDied
from bowerbird_agent.exchange import FrameExchange
from bowerbird_agent.health import Vitals
from bowerbird_agent.inference import Inference, LoadedModel
from bowerbird_agent.model_store import ModelSlot, ModelStore
from bowerbird_agent.mqtt_link import BrokerSettings, MqttLink
from bowerbird_agent.select import Selector
from bowerbird_agent.spool import FrameState, Spool
from bowerbird_agent.stages import Stages
from bowerbird_agent.storing import SELECTOR_NOTE, StoringThread
from bowerbird_agent.update_runner import UpdateRunner, machine_boot_id
from bowerbird_agent.upload_runner import UploadRunner, restore_budget
from bowerbird_models.errors import ModelError
from bowerbird_models.onnx_detector import OnnxDetector

if TYPE_CHECKING:
    from bowerbird_agent.config import AgentConfig

logger = logging.getLogger(__name__)

# A clock before the first release of this software has not been set yet.
_CLOCK_OK_FROM_S = 1_767_225_600
_LINK_STOP_S = 0.8
_JOIN_S = 0.8
_POLL_S = 0.5


class Device:
    """All parts of one agent. Building it claims the state folder; `run` starts the threads.

    Raises:
        AgentError: spool, password or state cannot be used.
        ModelError: the factory model is none.
    """

    def __init__(self, config: AgentConfig, *, version: str) -> None:
        self._config = config
        device = config.device
        # Everything that can be wrong with files is looked at before the first thread starts.
        password = read_password(config.broker)
        device.state_dir.mkdir(parents=True, exist_ok=True)
        self._store = ModelStore(device.state_dir / "models")
        if config.model.factory is not None:
            self._store.install_factory(config.model.factory)
        root = None if config.update.trusted_root is None else _read_root(config)
        self._spool = Spool(
            device.state_dir / "spool", max_bytes=config.spool.max_bytes, min_free_bytes=config.spool.min_free_bytes
        )
        self._counters = Counters(self._spool.counters())
        # What was promoted is the spool's to know; the counter only spares the inference thread a look at the disk.
        self._counters.set_to(names.FRAMES_SELECTED, self._spool.promoted)
        self._give_up_old_candidates()

        events: queue.Queue[Any] = queue.Queue()
        self._wake = threading.Event()
        self._stages = Stages(self._wake)
        self._stop_asked = threading.Event()
        self._exchange = FrameExchange(lambda _camera: self._counters.add(names.FRAMES_DROPPED))
        boot_id = machine_boot_id()
        encoder = FrameEncoder(
            config.image, device=device.id, boot_id=boot_id, clock_ok=lambda: time.time() >= _CLOCK_OK_FROM_S
        )
        self._storing = StoringThread(self._spool, self._counters, encoder)
        seen = {camera.name: SeenFrames(camera, self._counters) for camera in config.cameras}
        self._workers = [
            CaptureWorker(camera, self._exchange, resume_after=seen[camera.name].resume_after) for camera in config.cameras
        ]
        budget = restore_budget(self._spool, config.budget.to_limits(), time.monotonic())
        self._inference = Inference(
            self._exchange,
            self._storing,
            self._make_selector(),
            encoder=encoder,
            counters=self._counters,
            seen=seen,
            decode_confidence=config.selection.decode_confidence,
            encode_everything=config.accounting.encode_everything,
            bytes_left=lambda: self._control.bytes_left_today,
            sources_done=lambda: all(worker.is_done for worker in self._workers),
            on_promoted=lambda: events.put(Wake()),
        )
        vitals = Vitals(self._counters, self._inference, self._storing, self._workers, boot_id, version)
        self._link = MqttLink(
            BrokerSettings(
                config.broker.host,
                config.broker.port,
                config.broker.username or device.id,
                password,
                keepalive_s=config.broker.keepalive_s,
            ),
            device.site,
            device.id,
            events,
            online=vitals.status,
            offline=vitals.offline(),
        )
        uploads = UploadRunner(
            self._spool,
            self._link,
            device.site,
            device.id,
            budget,
            now_s=time.monotonic(),
            keepalive_s=config.broker.keepalive_s,
        )
        self._control = Control(
            self._link,
            events,
            spool=self._spool,
            uploads=uploads,
            budget=budget,
            vitals=vitals,
            health_every_s=config.health.interval_s,
        )
        self._updates: UpdateRunner | None = None
        if root is not None:
            self._updates = UpdateRunner(
                self._store, root, device.state_dir, device=device.id, send=self._control.send, swap=self._swap
            )
            self._control.updates = self._updates
            self._inference.observer = self._updates

    # --- running -------------------------------------------------------------------------------------------------------

    def run(self, *, until_done: bool = False) -> None:
        """Run until `stop` is called, or, with `until_done`, until all sources ended and the spool is empty.

        Raises:
            StageDied: a thread of the agent died; everything else was taken down in order.
        """
        self._stages.start("spool", self._storing.run)
        self._stages.start("inference", self._inference.run)
        try:
            self._load_first_model()
            self._stages.start("control", self._control.run)
            self._link.start()
            if self._updates is not None:
                self._updates.start()
            for worker in self._workers:
                self._stages.start(f"camera-{worker.name}", worker.run)
            while not self._stop_asked.is_set() and self._stages.died is None:
                self._wake.wait(_POLL_S)
                if self._updates is not None and not self._updates.is_alive:
                    raise StageDied("the update thread died; the log says why. The agent ends so that it is started again")
                if until_done and self._is_done():
                    break
        finally:
            self._shut_down()
        if self._stages.died is not None:
            name, error = self._stages.died
            raise StageDied(f"thread {name} died ({type(error).__name__}: {error}); the agent ends so that it is started again")

    def stop(self) -> None:
        """Ask `run` to end; safe in a signal handler."""
        self._stop_asked.set()
        self._wake.set()

    def _shut_down(self) -> None:
        self._inference.stop()
        for worker in self._workers:
            worker.stop()
        self._exchange.close()
        if self._link.connected:
            self._control.last_words()
        self._control.stop()
        self._storing.stop()
        if self._updates is not None:
            self._updates.stop(timeout_s=_JOIN_S)
        self._link.stop(timeout_s=_LINK_STOP_S)
        hanging = self._stages.join(_JOIN_S)
        if hanging:
            logger.info("not waiting for %s", ", ".join(hanging))
        with contextlib.suppress(SpoolError):
            self._storing.flush()
        if "spool" not in hanging and "control" not in hanging:
            self._spool.close()
        logger.info("stopped")

    def _is_done(self) -> bool:
        """Whether nothing is left to do: sources ended, last window closed, everything sent has its receipt."""
        if not self._inference.is_flushed or self._storing.backlog:
            return False
        return sum(self._spool.counts().values()) == 0

    # --- models --------------------------------------------------------------------------------------------------------

    def _load_first_model(self) -> None:
        """Load what the updater or the store names; a model that does not load gives way to the next one."""
        slot = self._updates.running if self._updates is not None else self._store.boot()
        while slot is not None:
            try:
                self._load(slot)
                return
            except (ModelError, AgentError) as error:
                if self._updates is None:
                    raise
                slot = self._updates.load_failed(str(error))
        if self._updates is None:
            raise NoModelError(
                "there is no model on this device and no update repository that it trusts; set model.factory or update.trusted_root"
            )
        logger.warning("there is no model on this device yet; waiting for the server to send one")

    def _load(self, slot: ModelSlot) -> None:
        detector = OnnxDetector(slot.onnx, threads=self._config.model.threads)
        self._inference.swap_model(LoadedModel(detector, slot.digest))

    def _swap(self, slot: ModelSlot | None) -> None:
        """For the updater, in its thread: returns when the model answers frames."""
        if slot is None:
            self._inference.swap_model(None)
        else:
            self._load(slot)
        self._control.model_changed()

    # --- parts ---------------------------------------------------------------------------------------------------------

    def _make_selector(self) -> Selector:
        saved = self._spool.note(SELECTOR_NOTE)
        cameras = len(self._config.cameras)
        device = self._config.device.id
        if saved is not None:
            try:
                return Selector(self._config.selection, device=device, cameras=cameras, state=base64.b64decode(saved))
            except ValueError as error:
                logger.warning("%s; the selection starts without its memory", error)
        return Selector(self._config.selection, device=device, cameras=cameras)

    def _give_up_old_candidates(self) -> None:
        """Candidates of a run that was cut short: their window will never close. They are counted, and films run again."""
        left = [frame.frame_id for frame in self._spool.frames(FrameState.CANDIDATE)]
        if left:
            logger.info("%d candidates of a selection window that was cut short are given up", len(left))
            self._spool.drop(left, "window_cut_short")


def _read_root(config: AgentConfig) -> bytes:
    path = config.update.trusted_root
    try:
        return b"" if path is None else path.read_bytes()
    except OSError as error:
        raise AgentError(f"update.trusted_root: {path} cannot be read ({error.strerror}); check the path") from error
