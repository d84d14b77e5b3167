"""Processes that are there to be killed, forked from a server that has imported everything: a life costs milliseconds, not a second.

In: a function of a module and its arguments. Out: a process with a pid, an exit code and `kill`. They die with the process that
asked for them. Each writes its log into a file of its own.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "bowerbird_server.ingest.ingest",
        "bowerbird_server.fleet.delivery",
        "bowerbird_agent.link.mqtt_link",
        "bowerbird_agent.link.upload_runner",
    ]
)


def _begin(log: str, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_die_with_the_parent, daemon=True).start()
    logging.basicConfig(filename=log, level=logging.INFO, format="%(asctime)s %(process)d %(name)s %(message)s", force=True)
    function(*arguments)


def _die_with_the_parent() -> None:
    """The server that forks lives as long as one of its children does: the death of whoever asked for them must be noticed here."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os.kill(os.getpid(), signal.SIGKILL)


def start(log: Path, function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Run `function(*arguments)` in a process of its own."""
    log.parent.mkdir(parents=True, exist_ok=True)
    process = _CONTEXT.Process(target=_begin, args=(str(log), function, arguments))
    process.start()
    return process


def end(process: BaseProcess) -> None:
    """kill -9, and wait for its end."""
    process.kill()
    process.join(20)


@contextmanager
def running(log: Path, function: Callable[..., None], *arguments: Any) -> Iterator[BaseProcess]:
    """A process that is killed at the end."""
    process = start(log, function, *arguments)
    try:
        yield process
    finally:
        end(process)


def ingest(data: str, host: str, port: int, point: str, group: int, worker: int, workers: int, told: str) -> None:
    """An ingest process that kills itself at `point` of its n-th group of frames, and first says in the file `told` how many messages
    it held; without a point it runs until it is killed."""
    from bowerbird_server.broker.embedded import BrokerAddress
    from bowerbird_server.ingest import ingest as product
    from bowerbird_server.ingest.share import Share
    from bowerbird_server.layout import DataFolder

    left, held = group, 0
    original = product.Ingest.take

    def take(self: product.Ingest, group: Any) -> None:
        nonlocal held
        held = len(group)
        original(self, group)

    def passed(here: str) -> None:
        nonlocal left
        if here != point:
            return
        left -= 1
        if left == 0:
            Path(told).write_text(str(held))
            os.kill(os.getpid(), signal.SIGKILL)

    product.Ingest.take = take  # type: ignore[method-assign]
    share = Share(worker, workers)
    product.run(DataFolder(Path(data)), BrokerAddress(host, port), threading.Event(), share=share, passed=passed)


def delivery(data: str, host: str, port: int) -> None:
    """A delivery process."""
    from bowerbird_server.broker.embedded import BrokerAddress
    from bowerbird_server.fleet import delivery as product
    from bowerbird_server.layout import DataFolder

    product.run(DataFolder(Path(data)), BrokerAddress(host, port), threading.Event())
