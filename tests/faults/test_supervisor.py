"""The supervisor with real processes that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bowerbird_server.errors import EnvironmentFault
from bowerbird_server.supervisor import ChildEvent, ChildSpec, Supervisor, read_state
from bowerbird_testing.mqtt_device import wait_until

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


class Running:
    """A supervisor in a thread, its events, and its state file."""

    def __init__(self, folder: Path, children: list[ChildSpec]) -> None:
        self.events: list[ChildEvent] = []
        self.state_file = folder / "serve.json"
        self.stop = threading.Event()
        self.error: Exception | None = None
        self.supervisor = Supervisor(
            children, folder / "logs", self.events.append, state_path=self.state_file, facts={"web": "http://127.0.0.1:1"}
        )
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.supervisor.run(self.stop)
        except EnvironmentFault as error:
            self.error = error

    def kinds(self, name: str) -> list[str]:
        return [event.kind for event in self.events if event.name == name]


@pytest.fixture
def started() -> Iterator[list[Running]]:
    runs: list[Running] = []
    yield runs
    for run in runs:
        run.stop.set()
        run.thread.join(30)
        assert not run.thread.is_alive()


def test_a_killed_child_is_started_again_and_the_state_file_follows(tmp_path: Path, started: list[Running]) -> None:
    """kill -9 of a child: a new process of the same name, in the file, while the other one stays."""
    run = Running(tmp_path, [ChildSpec("a", SLEEPER), ChildSpec("b", SLEEPER)])
    started.append(run)
    wait_until(lambda: len(run.supervisor.pids) == 2, "both children")
    before = dict(run.supervisor.pids)
    os.kill(before["a"], signal.SIGKILL)
    wait_until(lambda: run.supervisor.pids.get("a", before["a"]) != before["a"], "a new child")
    wait_until(lambda: json.loads(run.state_file.read_text())["children"] == run.supervisor.pids, "the state file")
    assert run.supervisor.pids["b"] == before["b"]
    state = read_state(run.state_file)
    assert state is not None
    assert state["web"] == "http://127.0.0.1:1"
    run.stop.set()
    run.thread.join(30)
    assert not any(alive(pid) for pid in before.values())


def test_the_second_child_waits_until_the_first_is_ready(tmp_path: Path, started: list[Running]) -> None:
    """`ready` holds the next start back."""
    sign = tmp_path / "ready"
    run = Running(tmp_path, [ChildSpec("broker", SLEEPER, ready=sign.exists), ChildSpec("web", SLEEPER)])
    started.append(run)
    wait_until(lambda: "started" in run.kinds("broker"), "the first child")
    assert run.kinds("web") == []
    sign.touch()
    wait_until(lambda: run.kinds("web") == ["started"], "the second child")
    assert run.kinds("broker") == ["started", "ready"]


def test_children_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    """kill -9 of the supervisor leaves no process behind."""
    code = (
        "import sys, threading; from pathlib import Path; from bowerbird_server.supervisor import *\n"
        "spec = ChildSpec('a', [sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "Supervisor([spec], Path(sys.argv[1]), state_path=Path(sys.argv[1]) / 'serve.json').run(threading.Event())"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    try:
        wait_until(lambda: bool((read_state(tmp_path / "serve.json") or {}).get("children")), "the child")
        child = json.loads((tmp_path / "serve.json").read_text())["children"]["a"]
        assert alive(child)
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not alive(child), "the end of the child")
    assert read_state(tmp_path / "serve.json") is None


def test_a_child_that_ends_well_may_rest_and_run_returns(tmp_path: Path, started: list[Running]) -> None:
    """`on_failure` restarts after a failure, not after success."""
    flag = tmp_path / "second"
    code = f"import pathlib, sys; p = pathlib.Path({str(flag)!r}); e = p.exists(); p.touch(); sys.exit(0 if e else 3)"
    run = Running(tmp_path, [ChildSpec("once", [sys.executable, "-c", code], restart="on_failure")])
    started.append(run)
    run.thread.join(30)
    assert run.kinds("once") == ["started", "exited", "started", "finished"]


def test_a_fatal_exit_code_stops_all_with_the_last_line_of_the_log(tmp_path: Path, started: list[Running]) -> None:
    """A configuration that cannot be used is told once instead of tried for ever."""
    code = "import sys; sys.stderr.write('port 99999 is not a port\\n'); sys.exit(2)"
    bad = ChildSpec("web", [sys.executable, "-c", code], fatal_codes=frozenset({2}))
    run = Running(tmp_path, [ChildSpec("a", SLEEPER), bad])
    started.append(run)
    run.thread.join(30)
    assert "port 99999 is not a port" in str(run.error)
    assert run.kinds("a")[-1] == "stopped"


def test_a_program_that_is_not_there_is_named(tmp_path: Path, started: list[Running]) -> None:
    """No stack trace: the message says which program."""
    run = Running(tmp_path, [ChildSpec("broker", ["no-such-program"])])
    started.append(run)
    run.thread.join(30)
    assert "no-such-program" in str(run.error)
