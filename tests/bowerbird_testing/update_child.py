"""A device's updater as a process of its own, to be killed: `python -m bowerbird_testing.update_child OPTIONS.json`.

In: a JSON file: state folder, repository folder (answered from the disk), root, job, and where to die. Out: one JSON line when the
job has come to its end. `die_in` names a state: the process kills itself with SIGKILL as soon as that state is on the disk;
`die_in_swap` does so inside the swap, `die_after_blocks` in the middle of fetching.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from bowerbird_agent.updates.updater import TERMINAL, State
from bowerbird_server.releases.repository_files import answer
from bowerbird_testing.update_device import UpdateDevice
from bowerbird_wire.codec import decode
from bowerbird_wire.messages import BlockRequest, Job, Report


def die() -> None:
    """kill -9, from inside so that the moment is exact."""
    os.kill(os.getpid(), signal.SIGKILL)


def main(path: Path) -> None:
    """One boot of the device."""
    options: dict[str, Any] = json.loads(path.read_text())
    repository = Path(options["repository"])
    job = decode(Job, bytes.fromhex(options["job"]))
    reports: list[Report] = []
    blocks = 0
    device: UpdateDevice

    def send(message: BlockRequest | Report) -> None:
        nonlocal blocks
        if isinstance(message, Report):
            reports.append(message)
            return
        for block in answer(repository, message):
            if message.path.endswith(".onnx"):
                blocks += 1
                if options["die_after_blocks"] and blocks > options["die_after_blocks"]:
                    die()
            device.runner.block(block)

    def on_state(state: State) -> None:
        if state.value == options["die_in"]:
            die()

    class Dying(UpdateDevice):
        def swap(self, slot: Any) -> None:
            if options["die_in_swap"] and self.loaded and slot is not None and slot.digest == job.model_digest:
                die()
            super().swap(slot)

    factory = Path(options["factory"])
    device = Dying(
        Path(options["state"]),
        Path(options["root"]).read_bytes(),
        send,
        factory=factory,
        on_state=on_state,
        boot_id=options["boot_id"],
    )
    if options["die_at_boot"]:
        die()
    with device:
        if device.runner.state in {State.IDLE}:
            device.runner.job(job)
        deadline_s = time.monotonic() + 60
        while not any(report.state in {s.value for s in TERMINAL} for report in reports) and time.monotonic() < deadline_s:
            time.sleep(0.01)
    final = reports[-1]
    out = {"state": final.state, "code": final.code, "running": final.running_digest, "loaded": device.loaded}
    sys.stdout.write(json.dumps(out) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
