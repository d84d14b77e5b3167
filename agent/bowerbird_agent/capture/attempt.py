"""One attempt to read a live camera, in a thread that can be left behind when a call into the driver does not return.

In: the function that reads. Out: its result or its error, and when it last gave a sign of life. Between `leave` and the end of the
thread nothing that it brings is taken: who delivers asks `current` first, under the same lock. It decides nothing about time.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


_THREAD_SUFFIX = "-reader"


def start_reader(camera: str, attempt: Attempt, read: Callable[[], bool]) -> threading.Thread:
    """A thread that carries out an attempt and does not keep the process alive."""
    thread = threading.Thread(target=attempt.run, args=(read,), name=f"camera-{camera}{_THREAD_SUFFIX}", daemon=True)
    thread.start()
    return thread


def cameras_hang() -> bool:
    """Whether a reader is still inside a call that did not return."""
    return any(thread.name.endswith(_THREAD_SUFFIX) for thread in threading.enumerate())


class Attempt:
    """Shared by the thread that reads and the one that watches it.

    Args:
        started_s: monotonic clock.
    """

    def __init__(self, started_s: float) -> None:
        self.ended = threading.Event()
        self._lock = threading.Lock()
        self._first_s: float | None = None
        self._alive_at_s = started_s
        self._is_left = False
        self._result = False
        self._error: BaseException | None = None

    @property
    def is_open(self) -> bool:
        """Whether a first picture came."""
        return self._first_s is not None

    @property
    def alive_at_s(self) -> float:
        """When the camera last gave a sign of life; before the first picture, when the attempt began."""
        return self._alive_at_s

    @property
    def well_s(self) -> float:
        """Seconds from the first picture to the last sign of life."""
        return 0.0 if self._first_s is None else self._alive_at_s - self._first_s

    def alive(self, at_s: float) -> None:
        """The camera gave a picture."""
        if self._first_s is None:
            self._first_s = at_s
        self._alive_at_s = at_s

    def run(self, read: Callable[[], bool]) -> None:
        """Call `read` and keep what becomes of it; the body of the thread."""
        try:
            self._result = read()
        except BaseException as error:
            self._error = error
        finally:
            self.ended.set()

    def result(self) -> bool:
        """What `read` returned; raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._result

    def leave(self) -> bool:
        """Take nothing from this attempt any more; False when it has just ended by itself."""
        with self._lock:
            if self.ended.is_set():
                return False
            self._is_left = True
            return True

    @contextlib.contextmanager
    def current(self) -> Iterator[bool]:
        """Whether this attempt still counts; it cannot be left inside the `with`."""
        with self._lock:
            yield not self._is_left
