"""What other threads want of the inference thread: put down at any time, taken up between two frames.

In: models, policies, words of the server. Out: each of them once; of several that came between two frames only the newest. Nobody
waits here.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bowerbird_agent.inference.detecting import LoadedModel
    from bowerbird_agent.selection.select import Selector

_T = TypeVar("_T")


class Latest(Generic[_T]):
    """A value that some threads put and one takes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._value: _T | None = None
        self._is_news = False

    def put(self, value: _T) -> None:
        """The next `take` gives this, whatever was put before."""
        with self._lock:
            self._value, self._is_news = value, True

    def put_if_other(self, value: _T) -> None:
        """As `put`, unless it equals what was put last."""
        with self._lock:
            if value != self._value:
                self._value, self._is_news = value, True

    def take(self) -> _T | None:
        """What was put last, None when it has been taken already."""
        with self._lock:
            is_news, self._is_news = self._is_news, False
            return self._value if is_news else None

    def again(self) -> None:
        """What was put last, if anything was, has to be taken once more: what it was told to is another now."""
        with self._lock:
            self._is_news = self._value is not None


class Wishes:
    """One place for each kind of wish; see the methods of `Inference` that put them."""

    def __init__(self) -> None:
        self.model: Latest[tuple[LoadedModel | None, threading.Event]] = Latest()
        self.restart: Latest[str] = Latest()
        self.selector: Latest[Callable[[bytes], Selector]] = Latest()
        self.boosts: Latest[Mapping[str, float]] = Latest()
        self.enough: Latest[bytes] = Latest()
        self.calibration: Latest[bytes] = Latest()
