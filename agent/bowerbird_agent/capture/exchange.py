"""Frames change hands between the capture threads and the one inference thread.

In: frames, from a thread per camera. Out: frames, one at a time and in turn between cameras. A camera either overwrites (the newest
frame wins, the older one is counted as dropped) or waits until there is room (nothing is dropped). It looks into no frame.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from bowerbird_agent.capture.capture import Frame

# A source that waited so lately still sets the pace; and the weight of the newest interval between live frames.
_PATIENT_NS = 2_000_000_000
_NEWEST_WEIGHT = 0.05
_WAITING_ROOM = 2  # frames of a camera that waits: one in work, one ready


class Mailbox(Protocol):
    """Where a camera's thread puts its frames."""

    def put_newest(self, frame: Frame) -> None: ...
    def put_waiting(self, frame: Frame) -> bool: ...


class FrameExchange:
    """Mailboxes of all cameras. Thread-safe.

    Args:
        on_drop: called with the camera's name for each frame that a newer one replaced; must not block.
    """

    def __init__(self, on_drop: Callable[[str], None]) -> None:
        self._boxes: dict[str, deque[Frame]] = {}
        self._turn: deque[str] = deque()
        self._changed = threading.Condition()
        self._on_drop = on_drop
        self._is_closed = False
        self._is_held = False
        self._interval_ns = 0.0
        self._live_ns = self._patient_ns = 0

    def put_newest(self, frame: Frame, given_up: threading.Event | None = None) -> None:
        """Hand over a frame at once; one that still waits is dropped and counted. With `given_up` set it is turned away."""
        with self._changed:
            if given_up is not None and given_up.is_set():
                return
            box = self._box(frame.camera)
            dropped = len(box)
            box.clear()
            box.append(frame)
            self._measure(frame.monotonic_ns)
            self._changed.notify_all()
        for _ in range(dropped):
            self._on_drop(frame.camera)

    def put_waiting(self, frame: Frame, given_up: threading.Event | None = None) -> bool:
        """Hand over a frame as soon as there is room; False when the exchange was closed, or `given_up` set, meanwhile."""

        def is_over() -> bool:
            return self._is_closed or (given_up is not None and given_up.is_set())

        with self._changed:
            box = self._box(frame.camera)
            self._changed.wait_for(lambda: is_over() or (not self._is_held and len(box) < _WAITING_ROOM))
            if is_over():
                return False
            box.append(frame)
            self._patient_ns = frame.monotonic_ns
            self._changed.notify_all()
            return True

    def hold(self, held: bool) -> None:
        """While held, cameras that wait find no room: the disk behind the inference is behind, or there is no model and no
        frame may be sent."""
        with self._changed:
            if held != self._is_held:
                self._is_held = held
                self._changed.notify_all()

    def take(self, timeout_s: float) -> Frame | None:
        """The next frame, cameras in turn; None after `timeout_s` seconds or when closed."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._is_closed or any(self._boxes.values()), timeout_s) or self._is_closed:
                return None
            while not self._boxes[self._turn[0]]:
                self._turn.rotate(-1)
            camera = self._turn[0]
            self._turn.rotate(-1)
            frame = self._boxes[camera].popleft()
            self._changed.notify_all()
            return frame

    @property
    def is_empty(self) -> bool:
        """Whether no frame waits."""
        with self._changed:
            return not any(self._boxes.values())

    @property
    def arrival_s(self) -> float | None:
        """Seconds between two frames of the live cameras together; None while a source waits for us, or before any came."""
        with self._changed:
            if not self._interval_ns or (self._patient_ns and self._live_ns - self._patient_ns < _PATIENT_NS):
                return None
            return self._interval_ns / 1e9

    def remove(self, camera: str) -> int:
        """Forget a camera; returns how many of its frames still waited."""
        with self._changed:
            box = self._boxes.pop(camera, None)
            if box is None:
                return 0
            self._turn.remove(camera)
            self._changed.notify_all()
            return len(box)

    def close(self) -> None:
        """Wake everybody who waits; nothing is taken any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _measure(self, now_ns: int) -> None:
        if self._live_ns:
            interval_ns = max(0, now_ns - self._live_ns)
            self._interval_ns += (interval_ns - self._interval_ns) * (_NEWEST_WEIGHT if self._interval_ns else 1.0)
        self._live_ns = now_ns

    def _box(self, camera: str) -> deque[Frame]:
        if camera not in self._boxes:
            self._boxes[camera] = deque()
            self._turn.append(camera)
        return self._boxes[camera]


class CameraPort:
    """One camera's own way into the exchange; once closed, what that camera still hands over is turned away.

    A camera that hangs in its driver may come back long after another one has taken its place.
    """

    def __init__(self, exchange: FrameExchange, camera: str) -> None:
        self._exchange, self._camera = exchange, camera
        self._closed = threading.Event()

    def put_newest(self, frame: Frame) -> None:
        """As `FrameExchange.put_newest`."""
        self._exchange.put_newest(frame, self._closed)

    def put_waiting(self, frame: Frame) -> bool:
        """As `FrameExchange.put_waiting`; False also once closed."""
        return self._exchange.put_waiting(frame, self._closed)

    def close(self) -> int:
        """Turn the camera away; returns how many of its frames still waited, which nobody will see."""
        self._closed.set()
        return self._exchange.remove(self._camera)
