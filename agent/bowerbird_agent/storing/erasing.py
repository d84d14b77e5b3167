"""Frames that somebody has the right to have forgotten: the server's erase wishes, carried out on the device.

In: `EraseWish`es of the retained `Desired` message. Out: frames deleted from the spool (and from every other store of pictures that is
handed in), and for health which wishes are done and how many frames each took. A wish is on the disk before anything is deleted and
is obeyed until the server takes it back: a frame of its interval that comes late from an encoder's queue is not stored either. What is
on its way to the server already is refused there. It never touches the log of decisions, which holds no picture.
"""

from __future__ import annotations

import json
import logging
import threading
from typing import TYPE_CHECKING, Protocol

from bowerbird_agent.errors import AgentError
from bowerbird_wire.messages import EraseWish

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bowerbird_wire.messages import FrameHeader

logger = logging.getLogger(__name__)

NOTE = "erasing"


class PictureStore(Protocol):
    """What keeps pictures on this device."""

    def erase(self, wish: EraseWish) -> int:
        """Delete every frame that the wish covers; returns how many. Doing it again deletes what is left."""


class Notes(Protocol):
    """Where wishes survive a restart."""

    def note(self, name: str) -> str | None: ...
    def set_note(self, name: str, value: str) -> None: ...


class Erasing:
    """Obeys erase wishes. `obey` belongs to the control thread; `covers` and `done` may be called from any.

    Args:
        notes: the spool's notes.
        stores: where pictures are kept.
    """

    def __init__(self, notes: Notes, stores: Sequence[PictureStore]) -> None:
        self._notes, self._stores = notes, stores
        self._lock = threading.Lock()
        self._wishes: tuple[EraseWish, ...] = ()
        self._done: dict[str, int] = {}
        self._pending: list[EraseWish] = []
        self._is_saved = True
        self._is_failing = False
        self._restore()

    @property
    def done(self) -> Mapping[str, int]:
        """Wish -> frames deleted for it, of the wishes that are done and not yet taken back by the server."""
        with self._lock:
            return dict(self._done)

    def covers(self, header: FrameHeader) -> bool:
        """Whether a frame is to be forgotten, and so must not be stored."""
        wishes = self._wishes
        return any(wish.covers(header.frame_id, header.camera, header.captured_at_ms) for wish in wishes)

    def obey(self, wishes: Sequence[EraseWish]) -> bool:
        """Take up what the server wishes now; whether something new was done. What fails is tried again by `go_on`."""
        with self._lock:
            known = {wish.wish for wish in self._wishes}
            self._wishes = tuple(wishes)
            self._done = {wish.wish: self._done[wish.wish] for wish in wishes if wish.wish in self._done}
            self._pending = [wish for wish in wishes if wish.wish not in self._done]
            changed = known != {wish.wish for wish in wishes}
            self._is_saved = self._is_saved and not changed
        return self.go_on() or changed

    def go_on(self) -> bool:
        """Carry out what is not done yet; whether something was."""
        if self._is_saved and not self._pending:
            return False
        did = False
        try:
            self._save()
            for wish in list(self._pending):
                count = sum(store.erase(wish) for store in self._stores)
                with self._lock:
                    self._done[wish.wish] = self._done.get(wish.wish, 0) + count
                    self._pending.remove(wish)
                did = True
                logger.warning("erased %d frames as the server wishes (%s)", count, wish.wish)
            if did:
                self._save()
        except (AgentError, OSError) as error:
            logger.log(
                logging.DEBUG if self._is_failing else logging.WARNING, "frames cannot be erased now (%s); trying again", error
            )
            self._is_failing = True
        else:
            self._is_failing = False
        return did

    def late(self, header: FrameHeader) -> None:
        """Count a frame that came after its wish was done and was not stored."""
        with self._lock:
            for wish in self._wishes:
                if wish.covers(header.frame_id, header.camera, header.captured_at_ms):
                    self._done[wish.wish] = self._done.get(wish.wish, 0) + 1
                    self._is_saved = False
                    return

    def _save(self) -> None:
        with self._lock:
            text = json.dumps({"wishes": [_plain(wish) for wish in self._wishes], "done": self._done}) if self._wishes else ""
            self._is_saved = True
        self._notes.set_note(NOTE, text)

    def _restore(self) -> None:
        text = self._notes.note(NOTE)
        if not text:
            return
        try:
            saved = json.loads(text)
            self._wishes = tuple(EraseWish(w[0], w[1], w[2], w[3], tuple(w[4])) for w in saved["wishes"])
            self._done = {str(name): int(count) for name, count in saved["done"].items()}
        except (ValueError, KeyError, TypeError, IndexError):
            logger.warning("the wishes to erase cannot be read back; the server says them again")
            return
        self._pending = [wish for wish in self._wishes if wish.wish not in self._done]


def _plain(wish: EraseWish) -> list[object]:
    return [wish.wish, wish.camera, wish.from_ms, wish.to_ms, list(wish.frames)]
