"""Frames change hands between the capture threads and the one inference thread.

In: frames, from a thread per camera. Out: frames, one at a time and in turn between cameras. A camera either overwrites (the newest
frame wins, the older one is counted as dropped) or waits until there is room (nothing is dropped). It looks into no frame.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from bowerbird_agent.capture import Frame

_WAITING_ROOM = 2  # frames of a camera that waits: one in work, one ready


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

    def put_newest(self, frame: Frame) -> None:
        """Hand over a frame at once; one that still waits is dropped and counted."""
        with self._changed:
            box = self._box(frame.camera)
            dropped = len(box)
            box.clear()
            box.append(frame)
            self._changed.notify_all()
        for _ in range(dropped):
            self._on_drop(frame.camera)

    def put_waiting(self, frame: Frame) -> bool:
        """Hand over a frame as soon as there is room; False when the exchange was closed meanwhile."""
        with self._changed:
            box = self._box(frame.camera)
            self._changed.wait_for(lambda: self._is_closed or (not self._is_held and len(box) < _WAITING_ROOM))
            if self._is_closed:
                return False
            box.append(frame)
            self._changed.notify_all()
            return True

    def hold(self, held: bool) -> None:
        """While held, cameras that wait find no room: the disk behind the inference is behind, or there is no model."""
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

    def close(self) -> None:
        """Wake everybody who waits; nothing is taken any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _box(self, camera: str) -> deque[Frame]:
        if camera not in self._boxes:
            self._boxes[camera] = deque()
            self._turn.append(camera)
        return self._boxes[camera]
