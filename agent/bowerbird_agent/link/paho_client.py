"""paho's client with what it lacks: a count of every byte, an end that cannot hang, and the reason why TLS ended.

In: what `paho.mqtt.client.Client` takes. Out: that client, whose traffic is counted where it meets the socket (below MQTT, above TLS),
so that no packet of paho's own making is missed, and at the link as the kernel tells (`wire_count.py`). With TLS 1.3 a refusal comes
after the handshake, where paho would drop it. The members of paho that are used are private; their presence is tested.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
from typing import Any

import paho.mqtt.client as paho

from bowerbird_agent.link import wire_count
from bowerbird_agent.link.wire_count import OnWire
from bowerbird_wire.tls_faults import refusal


class Traffic:
    """Bytes in both directions, over all connections: `sent` and `received` as MQTT, `on_wire` at the link. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.sent = 0
        self.received = 0
        self._ended = OnWire()  # connections that are over
        self._current = OnWire()

    def add(self, *, sent: int = 0, received: int = 0) -> None:
        """Count bytes that have passed the socket."""
        with self._lock:
            self.sent += sent
            self.received += received

    def look(self, on_wire: OnWire) -> None:
        """What the current connection has cost; it never falls."""
        with self._lock:
            sent, received = max(self._current.sent, on_wire.sent), max(self._current.received, on_wire.received)
            self._current = OnWire(sent, received)

    def end(self) -> None:
        """The current connection is over."""
        with self._lock:
            self._ended, self._current = self._ended + self._current, OnWire()

    @property
    def on_wire(self) -> OnWire:
        """Bytes at the link over all connections, as of the last look."""
        with self._lock:
            return self._ended + self._current


class CountingClient(paho.Client):
    """A client for one connection only."""

    def __init__(self, *args: Any, traffic: Traffic, **options: Any) -> None:
        super().__init__(*args, **options)
        self._traffic = traffic
        self.tls_fault: ssl.SSLError | None = None
        self._passed = [0, 0, 0, 0]  # of this connection: bytes sent, received, writes, reads

    def _sock_send(self, buf: bytes | bytearray) -> int:
        try:
            sent = super()._sock_send(buf)
        except BlockingIOError:
            raise
        except OSError as error:
            self.tls_fault = self.tls_fault or refusal(error, self._sock)
            raise
        self._traffic.add(sent=sent)
        self._passed[0] += sent
        self._passed[2] += 1
        return sent

    def _sock_recv(self, bufsize: int) -> bytes:
        try:
            data = super()._sock_recv(bufsize)
        except BlockingIOError:
            raise
        except OSError as error:
            self.tls_fault = self.tls_fault or refusal(error, self._sock)
            raise
        self._traffic.add(received=len(data))
        self._passed[1] += len(data)
        self._passed[3] += 1
        return data

    def _sock_close(self) -> None:
        self.look()  # afterwards the kernel has forgotten it
        super()._sock_close()

    def look(self) -> None:
        """Have the traffic know what this connection has cost at the link so far."""
        sock: Any = self._sock
        if sock is not None:
            self._traffic.look(wire_count.of_connection(sock) or wire_count.estimate(*self._passed))

    def thread_alive(self) -> bool:
        """Whether paho's network thread runs; `is_connected()` stays True after its death."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    def abandon(self, *, timeout_s: float = 5.0) -> None:
        """Close the socket and leave: unlike `loop_stop` this does not wait for unacknowledged messages."""
        thread = self._thread
        self._thread_terminate = True
        with contextlib.suppress(OSError, ValueError):
            self._sock_close()
        if thread is not None:
            thread.join(timeout_s)
        self._traffic.end()
