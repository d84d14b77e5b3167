"""The other end of `sd_notify`: a real datagram socket that remembers what a service says, as systemd would hear it.

In: a path, or a name in the abstract namespace. Out: the messages in order, each a mapping of its lines. It supervises nothing.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType


class SupervisorSocket:
    """Listens from `with` to its end, in a thread: the socket's queue holds a dozen messages only.

    Args:
        address: as in NOTIFY_SOCKET: a path, or "@name".
        deaf: let the queue fill up instead.
    """

    def __init__(self, address: str, *, deaf: bool = False) -> None:
        self.address = address
        self._stop = threading.Event()
        self._thread = None if deaf else threading.Thread(target=self._listen, daemon=True)
        self.messages: list[dict[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def __enter__(self) -> SupervisorSocket:
        self._socket.bind("\0" + self.address[1:] if self.address.startswith("@") else self.address)
        self._socket.settimeout(0.1)
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(10)
        self._socket.close()

    def hear(self) -> list[dict[str, str]]:
        """Everything that was said so far; the thread is a moment behind."""
        return list(self.messages)

    def said(self) -> list[str]:
        """The first key of each message, in order."""
        return [next(iter(message)) for message in self.hear()]

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
        """Return as soon as `condition()` holds; fail with `what` when it never does."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, f"timed out: {what}; heard {self.messages[-5:]}"
            time.sleep(0.02)

    def _listen(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                text = self._socket.recv(65_536).decode()
                self.messages.append(dict(line.split("=", 1) for line in text.splitlines()))
