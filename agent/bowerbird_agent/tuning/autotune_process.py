"""The parent's end of one measuring child: starts it, asks it, bounds its time and memory, ends it.

In: a package's folder, a candidate, limits. Out: the child's answers as plain values, or `ChildFailed` with the reason in words; a
child that hangs or eats memory costs its own life and nothing else. What is asked, and in which order, is `autotune_runner.py`'s
work.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bowerbird_agent.tuning.autotune_candidates import ACCELERATED
from bowerbird_agent.tuning.hardware import with_huge_pages

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from bowerbird_agent.tuning.autotune import Candidate

MEMORY_BYTES = 3 * 1024**3
CPU_S = 1800
_POLL_S = 0.1
_MAX_ANSWER_BYTES = 4 * 1024 * 1024


class ChildFailed(Exception):
    """The child gave no answer; the message says why, in words for a table."""


class Stopped(Exception):
    """The parent was asked to stop while it waited."""


class CandidateProcess:
    """One child with its candidate loaded; a context manager that ends it.

    Args:
        folder, digest: the package, verified again by the child.
        candidate: what it runs.
        engine_dir: where engines are kept.
        memory_bytes: memory that it may hold; also its address space where no accelerator maps more than that.
        should_stop: asked while waiting.
    """

    def __init__(
        self,
        folder: Path,
        digest: str,
        candidate: Candidate,
        *,
        engine_dir: Path | None = None,
        memory_bytes: int = MEMORY_BYTES,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.candidate = candidate
        self._memory_bytes = memory_bytes
        self._should_stop = should_stop
        command = [sys.executable, "-m", "bowerbird_agent.tuning.autotune_child", str(folder), "--digest", digest]
        command += ["--candidate", json.dumps(asdict(candidate)), "--cpu-s", str(CPU_S)]
        if engine_dir is not None:
            command += ["--engine-dir", str(engine_dir)]
        if candidate.runtime not in ACCELERATED:  # these map tens of gigabytes that they never touch
            command += ["--memory-bytes", str(memory_bytes)]
        try:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                # The C library reads its tunables when a process begins, so huge pages are a matter of the environment.
                env=with_huge_pages(dict(os.environ), wanted=candidate.huge_pages),
            )
        except OSError as error:
            raise ChildFailed(f"it could not be started ({error.strerror})") from error
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def ask(self, command: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Send a command and wait for its answer; errors as `answer`."""
        try:
            stream = self._child.stdin
            if stream is None:
                raise ChildFailed("it was closed")
            stream.write(json.dumps(command).encode() + b"\n")
            stream.flush()
        except OSError as error:
            raise ChildFailed(self._how_it_died()) from error
        return self.answer(timeout_s=timeout_s)

    def answer(self, *, timeout_s: float) -> dict[str, Any]:
        """The next line of the child.

        Raises:
            ChildFailed: it said why it cannot, died, took too long or too much memory. It is dead after this.
            Stopped: `should_stop`.
        """
        try:
            line = self._line(time.monotonic() + timeout_s, timeout_s)
            plain = json.loads(line)
            if not isinstance(plain, dict):
                raise ChildFailed("it answered nonsense")
            if plain.get("failure"):
                raise ChildFailed(str(plain["failure"])[:500])
            return plain
        except ValueError as error:
            self.close()
            raise ChildFailed("it answered nonsense") from error
        except ChildFailed:
            self.close()
            raise

    def _line(self, deadline_s: float, timeout_s: float) -> bytes:
        stream = self._child.stdout
        if stream is None:
            raise ChildFailed("it was closed")
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if self._should_stop():
                    raise Stopped
                if time.monotonic() > deadline_s:
                    raise ChildFailed(f"it did not answer within {timeout_s:.0f} s")
                held_bytes = self._held_bytes()
                if held_bytes > self._memory_bytes:
                    raise ChildFailed(
                        f"it took {held_bytes // 2**20} MB, more than the {self._memory_bytes // 2**20} MB it may"
                    )
                if not selector.select(_POLL_S):
                    continue
                chunk = os.read(stream.fileno(), 65536)
                if not chunk:
                    raise ChildFailed(self._how_it_died())
                self._unread += chunk
                if len(self._unread) > _MAX_ANSWER_BYTES:
                    raise ChildFailed("it answered without an end")
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _held_bytes(self) -> int:
        """Resident memory of the child, 0 when it is gone."""
        try:
            return int(Path(f"/proc/{self._child.pid}/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError, ValueError):
            return 0

    def _how_it_died(self) -> str:
        try:
            code = self._child.wait(2.0)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        return f"it died ({f'signal {-code}' if code < 0 else f'exit code {code}'})"

    def close(self) -> None:
        """End the child and everything that it started; calling it again does nothing."""
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        if self._child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
