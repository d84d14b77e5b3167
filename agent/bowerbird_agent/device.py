"""The running device: starts the threads of its parts, watches over them and takes them down.

In: an `AgentConfig`. Out: a process that runs until it is asked to stop, or until a thread of it dies or hangs. With `device_parts.py`,
which builds, this is the composition root of `bowerbird-agent run`; it decides nothing that a part could decide: which thread hangs is
`heartbeat.py`'s word, what a reload may change `reload.py`'s (`live_config.py` does it), how long an end may take `shutdown.py`'s.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING

from bowerbird_agent.capture.attempt import cameras_hang
from bowerbird_agent.device_parts import DeviceParts
from bowerbird_agent.errors import AgentError, SpoolError, StageDied, StageHung
from bowerbird_agent.health.sd_notify import Notifier
from bowerbird_agent.health.shutdown import BUDGET_S, STAGE_S, LastResort
from bowerbird_agent.inference.machine_sensors import MachineSensors
from bowerbird_agent.inference.memory import give_back
from bowerbird_agent.remote.live_config import LiveConfig
from bowerbird_agent.updates.launch import Launch
from bowerbird_models.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from bowerbird_agent.config import AgentConfig
    from bowerbird_agent.remote.runner import RemoteWishes

logger = logging.getLogger(__name__)

_POLL_S = 0.5
_GIVE_BACK_AFTER_S, _GIVE_BACK_EVERY_S = 2.0, 300.0  # what a start leaves behind, and what months do
_EXTEND_EVERY_S = 10.0


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
        self._remote = remote
        self._notifier = notifier or Notifier()
        self._last_resort = LastResort(give_up)
        self._hanging: list[str] = []
        self._exit_code = 0
        self._wake = threading.Event()
        self._stop_asked, self._restart_asked = threading.Event(), threading.Event()
        self._reload_asked = threading.Event()
        self._parts = DeviceParts(
            config, version=version, wake=self._wake, restart=self._restart, remote=remote, sensors=sensors, launch=launch
        )
        self._live = LiveConfig(self._parts, remote, on_log_level, self._notifier)
        self._live.set_dry_run()

    # --- running -------------------------------------------------------------------------------------------------------

    def run(self, *, until_done: bool = False) -> None:
        """Run until `stop` is called, or, with `until_done`, until all sources ended and the spool is empty.

        Raises:
            StageDied: a thread of the agent died; everything else was taken down in order.
            StageHung: a thread shows no sign of life; the same.
            ModelError: the factory model is none.
        """
        parts = self._parts
        parts.stages.start("spool", parts.storing.run, parts.pulses["spool"])
        parts.stages.start("inference", parts.inference.run, parts.pulses["inference"])
        try:
            if self._load_in_thread():
                parts.stages.start("control", parts.control.run, parts.pulses["control"])
                parts.stages.start("guard", parts.guard.run, parts.pulses["guard"])
                if parts.metrics is not None:
                    parts.stages.start("metrics", parts.metrics.run, parts.pulses["metrics"])
                parts.link.start()
                if parts.renewals is not None:
                    parts.renewals.start()
                if parts.models.updates is not None:
                    parts.pulses["update"].beat()
                    parts.models.updates.start()
                parts.cameras.start()
                self._notifier.ready(parts.vitals.line())
                give_back_s = time.monotonic() + _GIVE_BACK_AFTER_S
                while not self._stop_asked.is_set():
                    self._wait()
                    self._look_after()
                    if time.monotonic() >= give_back_s:
                        give_back(collect=False, code=True)
                        give_back_s = time.monotonic() + _GIVE_BACK_EVERY_S
                    if parts.models.updates is not None and not parts.models.updates.is_alive:
                        raise StageDied("the update thread died; the log says why. The agent ends so that it is started again")
                    if self._reload_asked.is_set():
                        self._reload_asked.clear()
                        self._live.reload()
                    self._live.look_at_wishes()
                    self._live.look_at_boost()
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
        if self._parts.stages.died is not None:
            name, error = self._parts.stages.died
            raise StageDied(f"thread {name} died ({type(error).__name__}: {error}); the agent ends so that it is started again")
        late = self._parts.heartbeats.late()
        if late:
            for each in late:
                logger.critical("%s; the agent ends so that it is started again. It hangs in:\n%s", each, _stack(each.thread))
            raise StageHung(f"{late[0]}; the agent ends so that it is started again")
        self._notifier.alive(time.monotonic(), self._parts.vitals.line())

    def _shut_down(self) -> None:
        parts = self._parts
        self._last_resort.arm(self._exit_code, BUDGET_S)
        self._notifier.stopping()
        parts.inference.stop()
        parts.cameras.stop()
        parts.guard.stop()
        if parts.metrics is not None:
            parts.metrics.stop()
        parts.exchange.close()
        if parts.link.connected:
            parts.control.last_words()
        parts.control.stop()
        parts.storing.stop()
        if parts.models.updates is not None:
            parts.models.updates.stop(timeout_s=STAGE_S["update"])
        if parts.renewals is not None:
            parts.renewals.stop()
        parts.link.stop(timeout_s=STAGE_S["link"])
        self._hanging = parts.stages.join(STAGE_S["threads"])
        if self._hanging:
            logger.info("not waiting for %s", ", ".join(self._hanging))
        parts.histograms.keep()
        if "spool" not in self._hanging:
            with contextlib.suppress(SpoolError):
                parts.storing.flush()
                if "inference" not in self._hanging:
                    parts.keep_selector()
            if "control" not in self._hanging:
                parts.spool.close()
        if self._remote is not None and self._exit_code == 0:
            self._remote.close()
        self._last_resort.disarm()
        logger.info("stopped")

    def _is_done(self) -> bool:
        """Whether nothing is left to do: sources ended, last window closed, everything sent has its receipt."""
        if not self._parts.inference.is_flushed or self._parts.storing.backlog:
            return False
        return sum(self._parts.spool.counts().values()) == 0

    def _load_in_thread(self) -> bool:
        """Load the first model while watching over the threads; False when the agent was asked to stop meanwhile.

        Raises:
            ModelError, AgentError: as `DeviceModels.load_first`.
        """
        over = threading.Event()
        failed: list[BaseException] = []

        def load() -> None:
            try:
                self._parts.models.load_first()
            except (ModelError, AgentError) as error:  # the user's to mend: shown without a stack trace
                failed.append(error)
            finally:
                over.set()
                self._wake.set()

        self._parts.stages.start("model", load, self._parts.pulses["model"])
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


def _stack(name: str) -> str:
    """Where a thread stands, for the log."""
    numbers = {thread.ident for thread in threading.enumerate() if thread.name == name}
    found = [frame for number, frame in sys._current_frames().items() if number in numbers]
    return "".join(line for frame in found for line in traceback.format_stack(frame)[-4:]) or "(no thread of this name)"
