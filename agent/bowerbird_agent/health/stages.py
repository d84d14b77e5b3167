"""The agent's threads: named, watched, and never dying unnoticed.

In: a name and a function per thread. Out: running threads; the first one that ends by an error sets `died`, and the process is then
taken down by its owner so that the supervisor (systemd or the demo) starts it again. It restarts no thread: half a process is worse
than a new one.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from bowerbird_agent.health.heartbeat import Pulse

logger = logging.getLogger(__name__)


class Stages:
    """The threads of one process.

    Args:
        wake: set when a thread dies, so that the owner need not poll.
    """

    def __init__(self, wake: threading.Event) -> None:
        self._wake = wake
        self._threads: list[threading.Thread] = []
        self._died: list[tuple[str, BaseException]] = []

    def start(self, name: str, run: Callable[[], None], pulse: Pulse | None = None) -> threading.Thread:
        """Run `run` in a thread of that name; returning is fine, an exception is a death. `pulse` ends with the thread."""
        thread = threading.Thread(target=self._watched, args=(name, run, pulse), name=name, daemon=True)
        # Cameras come and go when the configuration is read again; who has ended is forgotten.
        self._threads = [each for each in self._threads if each.is_alive()] + [thread]
        thread.start()
        return thread

    @property
    def died(self) -> tuple[str, BaseException] | None:
        """Name and error of the first thread that died, None while all is well."""
        return self._died[0] if self._died else None

    def join(self, timeout_s: float) -> list[str]:
        """Wait up to `timeout_s` seconds in all; returns the names of threads that still run (a camera that hangs, say)."""
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        return [thread.name for thread in self._threads if thread.is_alive()]

    def _watched(self, name: str, run: Callable[[], None], pulse: Pulse | None) -> None:
        if pulse is not None:
            pulse.beat()
        try:
            run()
        except BaseException as error:
            # An error here is ours by definition: the stack trace belongs in the log.
            logger.critical("thread %s died; the agent ends so that its supervisor starts it again", name, exc_info=error)
            self._died.append((name, error))
            self._wake.set()
        finally:
            if pulse is not None:
                pulse.end()
