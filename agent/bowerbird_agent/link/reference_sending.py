"""Which frames of the audit go as references to their twins on this connection, and what is published for one.

In: what the server says that it takes, what the spool knows of frames and of what was committed, PUBACKs. Out: sizes and messages. A
frame goes as a reference when its header names a twin, the server has committed that twin (the spool remembers what settled), and says
that it takes references. The whole frame stays in the spool until its own receipt: whatever the server lacks it gets whole. It
publishes nothing (`upload_runner.py`) and decides about no time (`uploader.py`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from bowerbird_agent.spool.eviction import EXPLORE
from bowerbird_wire import codec
from bowerbird_wire.messages import REFERENCES

if TYPE_CHECKING:
    from bowerbird_agent.spool.spool import Spool, SpooledFrame
    from bowerbird_wire.messages import Credit

log = logging.getLogger(__name__)


class ReferenceSending:
    """One thread owns it.

    Args:
        spool: of the frames.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._is_told = False  # that the server takes them
        self._are_refused = False  # by the broker, on this connection
        self._tokens: set[int] = set()  # of references without a PUBACK
        self.sent = 0  # since the process began

    def link_up(self) -> None:
        """It may be another server now, or another release of it."""
        self._is_told = self._are_refused = False
        self._tokens.clear()

    def credit(self, credit: Credit) -> None:
        """What the server says of itself."""
        self._is_told = credit.extra.get(REFERENCES) is True

    @property
    def are_taken(self) -> bool:
        """Whether references arrive, as far as server and broker have said."""
        return self._is_told and not self._are_refused

    def size_of(self, frame: SpooledFrame) -> int:
        """Bytes of a frame as a reference; 0 where it goes whole.

        Raises:
            SpoolFault: the disk cannot be read.
        """
        if not self.are_taken or frame.arm != EXPLORE:
            return 0
        stored = self._spool.read(frame.frame_id)
        if stored is None or not stored[0].twin or not self._spool.committed(stored[0].twin):
            return 0
        return len(codec.encode_reference(stored[0]))

    def message(self, frame_id: str) -> bytes | None:
        """What to publish; None when the frame is gone.

        Raises:
            SpoolFault: the disk cannot be read.
        """
        stored = self._spool.read(frame_id)
        return None if stored is None else codec.encode_reference(stored[0])

    def handed_over(self, token: int) -> None:
        """The link has taken one."""
        self._tokens.add(token)
        self.sent += 1

    def acknowledged(self, token: int, *, accepted: bool) -> None:
        """The broker's PUBACK of anything. Rules of an older server let no reference pass: then frames go whole again."""
        if token in self._tokens and not accepted and not self._are_refused:
            self._are_refused = True
            log.warning("the broker lets no reference pass; frames go whole. Give it the access rules of the server's release")
        self._tokens.discard(token)
