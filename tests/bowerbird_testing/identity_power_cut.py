"""Enrols and renews under `fault_shim.c`, and dies at a change of the disk: one forked child for each line on standard input.

In: lines of JSON `{"bundle", "root", "shadow", "notes", "at"}`. Out: a line `killed` or `through` for each. What `enrol` and
`renew` have promised by returning stands in the file `notes`, which lies outside of `root`.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path

from bowerbird_agent.identity.enrolment import enrol, read_bundle
from bowerbird_agent.identity.identity import load_identity
from bowerbird_agent.identity.renewal import renew


def live(bundle: Path, root: Path, notes: Path) -> None:
    """A board's first days."""
    done = enrol(read_bundle(bundle), root / "agent.toml", version="0.1.0")
    with notes.open("a") as file:
        file.write(f"{done.identity.generation}\n")
    renewed = renew(load_identity(root / "state" / "identity").certificate_file.parent)
    with notes.open("a") as file:
        file.write(f"{renewed.generation}\n")


def main() -> None:
    """See the module."""
    arm = ctypes.CDLL(None).fault_arm
    for line in sys.stdin:
        task = json.loads(line)
        child = os.fork()
        if child == 0:
            arm(task["root"].encode(), task["shadow"].encode(), ctypes.c_long(task["at"]))
            live(Path(task["bundle"]), Path(task["root"]), Path(task["notes"]))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
            raise SystemExit(f"the work failed before change {task['at']}")
        print("through" if os.WIFEXITED(status) else "killed", flush=True)


if __name__ == "__main__":
    main()
