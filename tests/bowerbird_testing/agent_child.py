"""An agent that only updates itself, as a program that the launcher starts: real runner, real versions, real installation.

In: STATE/options.json: repository folder (answered from the disk), root, job, where to die, whether the server can be reached.
Out: the exit code that the real agent would have, and STATE/reports, one line of JSON for each report. It ends with 0 once the
job has come to its end in the version that stays. `die_in` names a state: the process kills itself with SIGKILL as soon as that
state is on the disk, once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bowerbird_agent.updates.launch import EXIT_RESTART, Launch
from bowerbird_agent.updates.model_store import ModelStore
from bowerbird_agent.updates.runner import RunnerSettings, UpdateRunner
from bowerbird_agent.updates.updater import State, Subject
from bowerbird_models.manifest import Probation
from bowerbird_server.releases.repository_files import answer
from bowerbird_wire.codec import decode
from bowerbird_wire.messages import BlockRequest, Job, Report

ENDS = {State.COMMITTED, State.ROLLED_BACK, State.REFUSED}


def main() -> int:
    """One start."""
    state = Path(sys.argv[1])
    options: dict[str, Any] = json.loads((state / "options.json").read_text())
    found = Launch.from_environment(os.environ, prefix=Path(sys.prefix), config=Path("/none"))
    if found is None:
        raise SystemExit("this is started by deploy/launch.sh")
    launch = replace(found, config=None, probation=Probation(0, 5.0, options["server_deadline_s"]))
    with (state / "log").open("a") as log:
        log.write(f"{Path(sys.prefix).name if len(Path(sys.prefix).name) == 64 else 'base'}\n")
    restart = threading.Event()
    update = launch.agent_update(state, restart.set)
    runner: UpdateRunner

    def send(message: BlockRequest | Report) -> None:
        if isinstance(message, Report):
            with (state / "reports").open("a") as reports:
                plain = {"state": message.state, "code": message.code, "running": message.running_digest}
                reports.write(json.dumps({**plain, "of": message.extra.get("of", "model")}) + "\n")
        elif options["server"] or message.path != "metadata/timestamp.json" or update.running_digest == "":
            for block in answer(Path(options["repository"]), message):
                runner.block(block)

    def on_state(now: State) -> None:
        mark = state / f"died-in-{now.value}"
        if now.value in options["die_in"] and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    runner = UpdateRunner(
        ModelStore(state / "models"),
        Path(options["root"]).read_bytes(),
        state,
        device="cam-01",
        send=send,
        swap=lambda _slot: None,
        agent=update,
        settings=RunnerSettings(patience_s=5.0, quiet_s=0.2, retry_s=0.05),
        on_state=on_state,
    )
    runner.start()
    runner.link_up()
    if runner.state is State.IDLE:
        runner.job(decode(Job, bytes.fromhex(options["job"])), Subject.AGENT)
    deadline_s = time.monotonic() + 90
    while not restart.is_set() and runner.state not in ENDS and time.monotonic() < deadline_s:
        time.sleep(0.01)
    # The end's own report follows the state.
    time.sleep(0.3)
    runner.stop()
    return EXIT_RESTART if restart.is_set() else 0


def program() -> str:
    """The lines with which a version, whichever environment it is in, becomes this program."""
    paths = [path for path in sys.path if path]
    return f"import sys\nsys.path += {paths!r}\nfrom bowerbird_testing.agent_child import main\nsys.exit(main())\n"
