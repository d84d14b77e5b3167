"""Enrols or renews in a process of its own that kills itself with SIGKILL before its n-th look at disk or network.

In: arguments `enrol BUNDLE CONFIG N` or `renew FOLDER N`. Out: exit code 0 when there were fewer than N steps. The steps are calls of
the operating system (fsync, rename, unlink, open for writing) and the request before it is sent and after it was answered.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bowerbird_agent.identity import claim_client


def die_before(step: int) -> None:
    """Arm it."""
    left = [step]

    def count(_name: str) -> None:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1

    def counted(owner: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def call(*args: Any, **options: Any) -> Any:
            count(name)
            return original(*args, **options)

        setattr(owner, name, call)

    counted(os, "fsync")
    counted(Path, "replace")
    counted(Path, "unlink")
    opening: Callable[..., int] = os.open

    def open_file(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & os.O_CREAT:
            count("open")
        return opening(path, flags, *rest, **options)

    os.open = open_file
    exchange = claim_client._exchange

    def asked(*args: Any) -> Any:
        count("request")
        answer = exchange(*args)
        count("answer")
        return answer

    claim_client._exchange = asked


def main(argv: list[str]) -> None:
    """Run it."""
    die_before(int(argv[-1]))
    if argv[0] == "enrol":
        from bowerbird_agent.identity.enrolment import enrol, read_bundle

        enrol(read_bundle(Path(argv[1])), Path(argv[2]), version="0.1.0")
    else:
        from bowerbird_agent.identity.renewal import renew

        renew(Path(argv[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
