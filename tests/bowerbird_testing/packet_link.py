"""A link in front of a broker that sees MQTT packets: they can be repeated, overtaken or swallowed, each way by itself.

In: where the broker is, and rules. Out: a loopback port to connect to. A rule gets every packet of its direction and returns the
packets to pass on instead, in order; it is called in the thread of its connection and direction. It knows no more of MQTT than
where a packet ends and what kind it is; `thin_link.py` is the link that is slow.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import threading
from collections.abc import Callable, Sequence
from types import TracebackType

PUBLISH = 3
_IDLE_MS = 50  # a rule that keeps packets back must let them go after this
Rule = Callable[[bytes], Sequence[bytes]]


def kind_of(packet: bytes) -> int:
    """The packet's type, e.g. `PUBLISH`."""
    return packet[0] >> 4


def pass_on(packet: bytes) -> Sequence[bytes]:
    """The rule that changes nothing."""
    return (packet,)


def thrice(packet: bytes) -> Sequence[bytes]:
    """Every message comes three times."""
    return (packet,) * (3 if kind_of(packet) == PUBLISH else 1)


class Shuffle:
    """Messages overtake each other: up to `depth` wait until as many are there, another kind or nothing comes, then go in any order."""

    def __init__(self, seed: int, depth: int = 4) -> None:
        self._dice, self._depth = random.Random(seed), depth
        self._waiting: list[bytes] = []
        self.overtaken = 0

    def __call__(self, packet: bytes) -> Sequence[bytes]:
        """The packets whose time has come."""
        if kind_of(packet) == PUBLISH:
            self._waiting.append(packet)
            if len(self._waiting) < self._depth:
                return ()
            return self.release()
        return (*self.release(), packet)

    def release(self) -> list[bytes]:
        """What still waits, when nothing has come for a moment."""
        before, self._waiting = self._waiting, []
        after = self._dice.sample(before, len(before))
        self.overtaken += sum(a is not b for a, b in zip(before, after, strict=True))
        return after


class PacketLink:
    """The link, from `with` to its end.

    Args:
        up, down: rules for packets to the broker and from it.

    `deaf` swallows all that comes from the broker, without telling anybody: a black hole.
    """

    def __init__(self, host: str, port: int, *, up: Rule = pass_on, down: Rule = pass_on) -> None:
        self.host, self.port = "127.0.0.1", 0
        self.deaf = False
        self.published_up = 0
        self._target, self._up, self._down = (host, port), up, down
        self._listener = socket.socket()
        self._sockets: set[socket.socket] = set()
        self._stopping = False

    def __enter__(self) -> PacketLink:
        self._listener.bind((self.host, 0))
        self._listener.listen(64)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, name="packet link", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopping = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for end in (self._listener, *list(self._sockets)):
            _close(end)

    def _accept(self) -> None:
        while not self._stopping:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target, timeout=5)
            except OSError:
                _close(near)
                continue
            far.settimeout(None)
            self._sockets |= {near, far}
            for source, target, is_up in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._carry, args=(source, target, is_up), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, is_up: bool) -> None:
        rule = self._up if is_up else self._down
        release: Callable[[], Sequence[bytes]] = getattr(rule, "release", tuple)
        ready = select.poll()
        ready.register(source, select.POLLIN)
        try:
            while True:
                if not ready.poll(_IDLE_MS):
                    for out in release():
                        target.sendall(out)
                    continue
                packet = _read_packet(source)
                self.published_up += is_up and kind_of(packet) == PUBLISH
                if self.deaf and not is_up:
                    continue
                for out in rule(packet):
                    target.sendall(out)
        except OSError:
            pass
        for end in (source, target):
            self._sockets.discard(end)
            _close(end)


def _close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


def _read_exactly(source: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = source.recv(size - len(data))
        if not piece:
            raise ConnectionResetError("the other end is gone")
        data += piece
    return data


def _read_packet(source: socket.socket) -> bytes:
    """One MQTT packet: a byte of type and flags, the length in up to four groups of seven bits, the rest."""
    head = _read_exactly(source, 1)
    length = 0
    for group in range(4):
        digit = _read_exactly(source, 1)
        head += digit
        length |= (digit[0] & 0x7F) << 7 * group
        if digit[0] < 0x80:
            break
    return head + _read_exactly(source, length)
