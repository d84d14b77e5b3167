"""Serves the device's numbers to Prometheus over HTTP, in a thread that nobody waits for.

In: where to listen, and a function that writes the text. Out: `GET /metrics` answered, one client at a time, each within a second.
A client that is slow is hung up on, an address that is taken is tried again; neither reaches the rest of the agent. It speaks no TLS
and asks for no password: it listens on loopback unless told otherwise.
"""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bowerbird_agent.health.heartbeat import no_pulse
from bowerbird_agent.health.metrics_text import CONTENT_TYPE

if TYPE_CHECKING:
    from bowerbird_agent.health.heartbeat import Pulse

logger = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
_ADDRESS = re.compile(r"(?:(?P<host>[^\[\]:\s]+)|\[(?P<ipv6>[0-9a-fA-F:.]+)\])?:(?P<port>\d{1,5})")
_CLIENT_S = 1.0  # from its connection to the end of the answer
_ACCEPT_S = 0.3
_RETRY_S = 30.0
_MAX_REQUEST_BYTES = 8192
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 500: "Internal Server Error"}


@dataclass(frozen=True)
class MetricsConfig:
    """Numbers for Prometheus on the device itself.

    Args:
        listen: "ADDRESS:PORT" to answer `GET /metrics` on, like "127.0.0.1:9101"; ":9101" is loopback, and who reaches another address
            reads the numbers. None switches it off.
    """

    listen: str | None = None

    def __post_init__(self) -> None:
        self.address()

    def address(self) -> tuple[str, int] | None:
        """Host and port; None when it is off.

        Raises:
            ValueError: `listen` is no address.
        """
        if self.listen is None:
            return None
        found = _ADDRESS.fullmatch(self.listen)
        if found is None or not 1 <= int(found["port"]) <= 65535:
            raise ValueError(f"listen is {self.listen!r}; write it like '127.0.0.1:9101' or '[::1]:9101'")
        return found["host"] or found["ipv6"] or _LOOPBACK, int(found["port"])


class MetricsEndpoint:
    """The server; `run` belongs to a thread of its own.

    Args:
        host, port: where to listen; port 0 takes a free one.
        text: -> the exposition, as of now; called in this thread.
        pulse: this thread's heartbeat. Waiting for clients is no work.
    """

    def __init__(self, host: str, port: int, text: Callable[[], str], *, pulse: Pulse | None = None) -> None:
        self._address, self._text, self._pulse = (host, port), text, pulse or no_pulse()
        self._stop = threading.Event()
        self._client: socket.socket | None = None
        self._is_failing = False
        self.port: int | None = None  # while it listens

    def stop(self) -> None:
        """Ask `run` to return; a client that is being served is hung up on."""
        self._stop.set()
        client = self._client
        if client is not None:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        """Serve until `stop`."""
        is_told = False
        while not self._stop.is_set():
            self._pulse.wait()
            try:
                with _listener(*self._address) as listener:
                    self.port = listener.getsockname()[1]
                    logger.info("metrics for Prometheus on %s port %d", self._address[0], self.port)
                    is_told = False
                    self._serve(listener)
            except OSError as error:
                level = logging.DEBUG if is_told else logging.WARNING
                is_told = True
                where = f"{self._address[0]} port {self._address[1]}"
                logger.log(level, "metrics.listen: cannot listen on %s (%s); trying again", where, error.strerror or error)
            self.port = None
            self._stop.wait(_RETRY_S)

    def _serve(self, listener: socket.socket) -> None:
        listener.settimeout(_ACCEPT_S)
        while not self._stop.is_set():
            self._pulse.wait()
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            with client:
                self._client = client
                try:
                    self._answer(client)
                except OSError as error:
                    logger.debug("a client of the metrics went away: %s", error)
                finally:
                    self._client = None

    def _answer(self, client: socket.socket) -> None:
        deadline_s = time.monotonic() + _CLIENT_S
        request = b""
        while b"\r\n\r\n" not in request and b"\n\n" not in request:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or len(request) > _MAX_REQUEST_BYTES:
                return
            client.settimeout(left_s)
            received = client.recv(2048)
            if not received:
                return
            request += received
        self._pulse.beat()
        status, body = self._reply(request)
        self._pulse.wait()
        head = [
            f"HTTP/1.1 {status} {_REASONS[status]}",
            f"Content-Type: {CONTENT_TYPE}",
            f"Content-Length: {len(body)}",
            "Allow: GET",
            "Connection: close",
        ]
        client.settimeout(max(0.1, deadline_s - time.monotonic()))
        client.sendall("\r\n".join([*head, "", ""]).encode("ascii") + body)

    def _reply(self, request: bytes) -> tuple[int, bytes]:
        words = request.split(b"\n", 1)[0].strip().split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return 400, b"this is HTTP\n"
        if words[0] != b"GET":
            return 405, b"only GET\n"
        if words[1].split(b"?")[0] != b"/metrics":
            return 404, b"see /metrics\n"
        try:
            body = self._text().encode()
        except Exception as error:  # a number that cannot be read is no reason to end
            logger.log(logging.DEBUG if self._is_failing else logging.ERROR, "metrics cannot be written", exc_info=error)
            self._is_failing = True
            return 500, b"see the agent's log\n"
        self._is_failing = False
        return 200, body


def _listener(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        OSError: the address is taken, or not one of this machine's.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(4)
    except OSError:
        made.close()
        raise
    return made
