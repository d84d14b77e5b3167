"""A thin link in front of a broker: a proxy in user space that carries so many bytes a second, late, and breaks now and then.

In: where the broker is; rate, round trip, mean time between resets, a seed. Out: a loopback port to connect to. Bytes wait for their
turn and then for half a round trip in each direction; all connections share the rate, as they do on a radio. A reset drops what is on
its way and closes both sides with RST. Buffers are small, so that the sender's kernel feels the link. The same seed breaks at the same
seconds after the start; `reset` and `pause` are there for tests that want their own moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Coroutine
from types import TracebackType
from typing import Any

_PIECE = 1400  # what one packet carries
_BUFFER = 4096


class _Direction:
    """One way: a queue for the whole link."""

    def __init__(self, link: ThinLink) -> None:
        self._link = link
        self._free_at_s = 0.0
        self.carried = 0

    async def turn(self, size: int) -> None:
        """Wait until the link has carried so many bytes more."""
        if self._link.bytes_per_s is not None:
            now_s = time.monotonic()
            self._free_at_s = max(now_s, self._free_at_s) + size / self._link.bytes_per_s
            await asyncio.sleep(max(0.0, self._free_at_s - now_s))
        self.carried += size


class ThinLink:
    """The link, from `with` to its end.

    Args:
        host, port: of the broker.
        bytes_per_s: in each direction, over all connections; None for no limit.
        rtt_s: added round trip.
        reset_every_s: mean seconds between resets, exponentially distributed; None for none.
        seed: of the resets.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        bytes_per_s: float | None = None,
        rtt_s: float = 0.0,
        reset_every_s: float | None = None,
        seed: int = 0,
    ) -> None:
        self.host, self.port = "127.0.0.1", 0
        self.bytes_per_s = bytes_per_s
        self.resets = 0
        self._target = (host, port)
        self._rtt_s = rtt_s
        self._reset_every_s = reset_every_s
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="thin link", daemon=True)
        self._up, self._down = _Direction(self), _Direction(self)
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()  # cleared: nothing moves, nothing breaks

    def __enter__(self) -> ThinLink:
        self._thread.start()
        self._call(self._start())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def carried_up(self) -> int:
        """Bytes that the link has carried to the broker, those that a reset then dropped included."""
        return self._up.carried

    def reset(self) -> None:
        """Break every connection now."""
        self._call(self._reset())

    def pause(self, paused: bool) -> None:
        """A silent partition: nothing moves in either direction, and nobody is told."""
        self._loop.call_soon_threadsafe(self._open.clear if paused else self._open.set)

    # -- the loop's thread

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _start(self) -> None:
        self._open.set()
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)  # inherited by what it accepts
        listener.bind((self.host, 0))
        self.port = int(listener.getsockname()[1])
        self._server = await asyncio.start_server(self._accept, sock=listener, limit=_PIECE)
        if self._reset_every_s is not None:
            self._keep(self._break_now_and_then(self._reset_every_s))

    async def _stop(self) -> None:
        self._server.close()
        await self._reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _break_now_and_then(self, mean_s: float) -> None:
        at_s = time.monotonic()
        while True:
            at_s += self._random.expovariate(1 / mean_s)
            await asyncio.sleep(max(0.0, at_s - time.monotonic()))
            await self._reset()

    async def _reset(self) -> None:
        self.resets += bool(self._writers)
        for writer in list(self._writers):
            _abort(writer)
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        await asyncio.sleep(self._rtt_s)  # the handshake; the kernel has answered the client at once
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target, limit=_PIECE)
        except OSError:
            _abort(writer)
            return
        if writer not in self._writers:  # broken meanwhile
            _abort(far_writer)
            return
        self._writers.add(far_writer)
        self._keep(self._carry(reader, far_writer, writer, self._up))
        self._keep(self._carry(far_reader, writer, far_writer, self._down))

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, near: asyncio.StreamWriter, way: _Direction
    ) -> None:
        late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        delivery = self._keep(self._deliver(late, writer, near))
        try:
            while data := await reader.read(_PIECE):
                await self._open.wait()
                await way.turn(len(data))
                late.put_nowait((time.monotonic() + self._rtt_s / 2, data))
            late.put_nowait((time.monotonic() + self._rtt_s / 2, b""))
            await delivery
        except OSError:
            delivery.cancel()
            self._break(writer, near)

    def _break(self, *ends: asyncio.StreamWriter) -> None:
        for end in ends:
            self._writers.discard(end)
            _abort(end)

    async def _deliver(
        self, late: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, near: asyncio.StreamWriter
    ) -> None:
        while True:
            due_s, data = await late.get()
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            await self._open.wait()
            if not data:
                writer.close()
                self._writers.discard(writer)
                return
            try:
                writer.write(data)
                await writer.drain()
            except OSError:
                self._break(writer, near)
                return


def _abort(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close sends RST
    writer.transport.abort()
