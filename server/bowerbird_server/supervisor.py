"""Keeps a set of processes running: start in order, restart what dies, stop in reverse order.

In: `ChildSpec`s, a folder for logs. Out: running children, events, and a JSON file that says which process is which. A child dies with
its parent (Linux's parent-death signal), so a killed supervisor leaves nothing behind that would hold a port. It knows nothing of
what the children do.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bowerbird_server.errors import EnvironmentFault

log = logging.getLogger(__name__)

READY_TIMEOUT_S = 30.0
POLL_S = 0.1
FIRST_RETRY_S = 0.2
RETRY_MAX_S = 30.0
LONG_LIFE_S = 20.0  # a child that lived so long starts again without delay
LOG_LIMIT_BYTES = 10_000_000
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class ChildSpec:
    """A process to keep running.

    Args:
        name: of the child, its log file and its entry in the state file.
        argv: the command line.
        ready: asked after a start until it says True; the next child starts only then (or after 30 s).
        env: added to this process's environment.
        restart: `always`; `on_failure` lets a child that ends with 0 rest; `never`.
        cwd: working folder, this process's own by default.
        fatal_codes: exit codes after which starting again is useless (a configuration that cannot be used); all is stopped then.
        stop_wait_s: time to end after SIGTERM, before it is killed; longer for a supervisor of its own.
    """

    name: str
    argv: Sequence[str]
    ready: Callable[[], bool] | None = None
    env: Mapping[str, str] | None = None
    restart: Literal["always", "on_failure", "never"] = "always"
    cwd: Path | None = None
    fatal_codes: frozenset[int] = frozenset()
    stop_wait_s: float = 8.0


@dataclass(frozen=True)
class ChildEvent:
    """Something happened to a child: `started`, `ready`, `not_ready`, `exited`, `finished`, `fatal` or `stopped`."""

    name: str
    kind: str
    pid: int
    detail: str = ""


@dataclass
class _Child:
    spec: ChildSpec
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    retry_s: float = FIRST_RETRY_S
    start_at_s: float = 0.0
    finished: bool = False


class Supervisor:
    """Runs children until told to stop.

    Args:
        children: started in this order, stopped in reverse.
        log_dir: one `<name>.log` each; the one before is kept as `<name>.log.1` when it grows beyond 10 MB.
        on_event: called with each `ChildEvent`, from the thread that runs `run`.
        state_path: written whenever a process changes: {"pid", "children": {name: pid}, **facts}.
        facts: further entries of the state file.
    """

    def __init__(
        self,
        children: Sequence[ChildSpec],
        log_dir: Path,
        on_event: Callable[[ChildEvent], None] | None = None,
        *,
        state_path: Path | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self._children = [_Child(spec) for spec in children]
        self._log_dir = log_dir
        self._on_event = on_event
        self._state_path = state_path
        self._facts = dict(facts or {})
        self._fatal: str | None = None

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the children that run."""
        return {child.spec.name: child.process.pid for child in self._children if child.process is not None}

    def run(self, stop: threading.Event) -> None:
        """Keep the children running until `stop` is set or all have finished; then stop them.

        Call it from a thread that lives as long as the children should: the parent-death signal belongs to that thread.

        Raises:
            EnvironmentFault: a child cannot be started at all, or ended with one of its fatal codes.
        """
        self._log_dir.mkdir(parents=True, exist_ok=True)
        try:
            for child in self._children:
                self._start(child)
                self._write_state()
                self._await_ready(child, stop)
            while not stop.is_set() and self._fatal is None and not all(child.finished for child in self._children):
                for child in self._children:
                    self._look_after(child)
                stop.wait(POLL_S)
        finally:
            self._stop_all()
        if self._fatal is not None:
            raise EnvironmentFault(self._fatal)

    def _start(self, child: _Child) -> None:
        spec = child.spec
        log_path = self._log_dir / f"{spec.name}.log"
        if log_path.exists() and log_path.stat().st_size > LOG_LIMIT_BYTES:
            log_path.replace(log_path.with_name(f"{log_path.name}.1"))
        try:
            with log_path.open("ab") as output:
                child.process = subprocess.Popen(
                    list(spec.argv),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=spec.cwd,
                    env={**os.environ, **spec.env} if spec.env else None,
                    start_new_session=True,  # Ctrl-C in the terminal reaches us alone; we stop the children in order
                    preexec_fn=die_with_parent(),  # noqa: PLW1509 - only calls into libc that were looked up before
                )
        except OSError as error:
            raise EnvironmentFault(f"cannot start {spec.name} ({spec.argv[0]}): {error.strerror}. Is it installed?") from error
        child.started_s = time.monotonic()
        self._tell(child, "started")

    def _await_ready(self, child: _Child, stop: threading.Event) -> None:
        if child.spec.ready is None or child.process is None:
            return
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline_s and not (stop.is_set() or self._fatal):
            if self._look_after(child) and child.spec.ready():
                self._tell(child, "ready")
                return
            stop.wait(POLL_S / 2)
        if not (stop.is_set() or self._fatal):
            self._tell(child, "not_ready", f"not ready after {READY_TIMEOUT_S:g} s; see {self._log_dir / child.spec.name}.log")

    def _look_after(self, child: _Child) -> bool:
        """Notice an end, start again when it is time; whether the child runs."""
        now_s = time.monotonic()
        if child.process is not None:
            code = child.process.poll()
            if code is None:
                return True
            self._ended(child, code, now_s)
        elif not child.finished and now_s >= child.start_at_s:
            self._start(child)
            self._write_state()
            return True
        return False

    def _ended(self, child: _Child, code: int, now_s: float) -> None:
        spec = child.spec
        detail = _how_it_ended(code)
        log_path = self._log_dir / f"{spec.name}.log"
        if spec.restart == "never" or (spec.restart == "on_failure" and code == 0):
            child.finished = True
            self._tell(child, "finished", detail)
        elif code in spec.fatal_codes:
            child.finished = True
            self._fatal = f"{spec.name} cannot run ({detail}): {_last_line(log_path)}"
            self._tell(child, "fatal", detail)
        else:
            if now_s - child.started_s > LONG_LIFE_S:
                child.retry_s = FIRST_RETRY_S
            child.start_at_s = now_s + child.retry_s
            self._tell(child, "exited", f"{detail}; starting again in {child.retry_s:g} s")
            log.warning("%s: %s; starting it again in %s s (its log: %s)", spec.name, detail, child.retry_s, log_path)
            child.retry_s = min(child.retry_s * 2, RETRY_MAX_S)
        child.process = None
        self._write_state()

    def _stop_all(self) -> None:
        alive = [(child, child.process) for child in reversed(self._children) if child.process is not None]
        for _, process in alive:
            process.terminate()
        began_s = time.monotonic()
        for child, process in alive:
            try:
                process.wait(max(0.0, child.spec.stop_wait_s - (time.monotonic() - began_s)))
            except subprocess.TimeoutExpired:
                log.warning("%s does not end; killing it", child.spec.name)
                process.kill()
                process.wait()
            self._tell(child, "stopped", _how_it_ended(process.returncode))
            child.process = None
        self._write_state()

    def _tell(self, child: _Child, kind: str, detail: str = "") -> None:
        pid = child.process.pid if child.process is not None else 0
        log.info("%s %s (pid %s) %s", child.spec.name, kind, pid, detail)
        if self._on_event is not None:
            self._on_event(ChildEvent(child.spec.name, kind, pid, detail))

    def _write_state(self) -> None:
        if self._state_path is None:
            return
        temporary = self._state_path.with_name(f".{self._state_path.name}.{os.getpid()}")
        temporary.write_text(json.dumps({"pid": os.getpid(), "children": self.pids, **self._facts}, indent=1) + "\n")
        temporary.replace(self._state_path)


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    """A `preexec_fn` that has the kernel kill the child when the parent's thread ends, however that ends; nothing but on Linux.

    SIGKILL, since every process here survives it by design and none may outlive its supervisor.
    """
    parent = os.getpid()
    prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None

    def prepare() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
            if os.getppid() != parent:  # it ended before the line above
                os._exit(1)

    return prepare


def read_state(path: Path) -> dict[str, Any] | None:
    """What a supervisor wrote to its state file, None when there is none or its process is gone."""
    try:
        state = json.loads(path.read_text())
        os.kill(int(state["pid"]), 0)
    except PermissionError:
        return dict(state)  # it runs as another user
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return dict(state)


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _last_line(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - 4000))
            lines = stream.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""
