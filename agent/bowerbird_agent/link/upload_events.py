"""What the uploader hears, what it answers, and the table of what an event does to a frame. Values only.

In: nothing. Out: events, decisions, `Flight` and `TRANSITIONS`. `uploader.py` is the machine that uses them; `upload_runner.py` makes
events of what the link and the spool do, and carries decisions out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Flight(Enum):
    """Where a frame stands for the uploader. The spool keeps the same on disk, as far as it matters after a restart."""

    READY = "ready"  # may be sent from its beginning: new, or the server wants it
    ASKED = "asked"  # not sent; the server was asked first whether it wants it
    SENDING = "sending"  # parts of it are on their way, others are not
    SENT = "sent"  # all of it is on its way; the receipt is awaited
    IN_DOUBT = "in_doubt"  # the receipt did not come in time, or the link broke: ask, never send again blindly
    PARKED = "parked"  # larger than the broker or the budget will ever allow; kept until a limit changes
    GONE = "gone"  # settled by a receipt, or no longer in the spool


# -- events


@dataclass(frozen=True)
class Event:
    """Something that has happened."""


@dataclass(frozen=True)
class Up(Event):
    """Connected. The broker's limits: largest packet (None: none), packets that may be unacknowledged."""

    max_packet_bytes: int | None = None
    receive_maximum: int = 65_535


@dataclass(frozen=True)
class Down(Event):
    """Not connected any more."""


@dataclass(frozen=True)
class Held(Event):
    """The server takes no frames of this device for so many seconds: it is over its limit there."""

    seconds: float


@dataclass(frozen=True)
class FrameReady(Event):
    """The spool's next frame; `in_doubt` when it may have been sent before this start. `ask` first when the link is thin.

    `reference_bytes`: its size as a reference to its twin, which then goes in its place; 0 for a frame that goes whole.
    """

    frame_id: str
    message_bytes: int
    in_doubt: bool = False
    ask: bool = False
    reference_bytes: int = 0


@dataclass(frozen=True)
class Taken(Event):
    """The link has taken the whole frame, or the reference, that was to be published; so many bytes on the wire."""

    frame_id: str
    packet_bytes: int


@dataclass(frozen=True)
class ChunkTaken(Event):
    """The link has taken these blocks of a frame."""

    frame_id: str
    first_block: int
    blocks: int
    packet_bytes: int


@dataclass(frozen=True)
class OfferTaken(Event):
    """The link has taken the question about a frame."""

    frame_id: str
    packet_bytes: int


@dataclass(frozen=True)
class NotTaken(Event):
    """The link has not taken it; nothing was sent."""

    frame_id: str


@dataclass(frozen=True)
class Vanished(Event):
    """The spool does not have it any more: evicted, dropped or damaged, and counted there."""

    frame_id: str


@dataclass(frozen=True)
class Acknowledged(Event):
    """The broker's PUBACK, which proves nothing unless it is a refusal."""

    frame_id: str
    accepted: bool = True


@dataclass(frozen=True)
class Settled(Event):
    """The server's receipt: these frames are committed or refused."""

    frame_ids: tuple[str, ...]


@dataclass(frozen=True)
class Wanted(Event):
    """The server does not have this frame; `have` is the bitmap of the blocks that it does have."""

    frame_id: str
    have: bytes = b""


@dataclass(frozen=True)
class CreditChanged(Event):
    """How many bytes of frames may be on their way at the server's wish; 0 stops frames."""

    bytes_in_flight: int


@dataclass(frozen=True)
class Tick(Event):
    """Time has passed."""


@dataclass(frozen=True)
class Overdue(Event):
    """The uploader's own: an answer did not come in time."""


@dataclass(frozen=True)
class AllSent(Event):
    """The uploader's own: no block is unsent."""


@dataclass(frozen=True)
class GoesOn(Event):
    """The uploader's own: the server has parts of what it wants."""


@dataclass(frozen=True)
class TooLarge(Event):
    """The uploader's own: no wait will make it fit."""


# What an event does to one frame. A pair that is not listed changes nothing: events come late, twice and out of order. `Wanted` for a
# frame that was sent after the question changes nothing either (its blocks know which of them were asked about).
TRANSITIONS: Mapping[tuple[Flight, type[Event]], Flight] = {
    (Flight.READY, Taken): Flight.SENT,
    (Flight.READY, ChunkTaken): Flight.SENDING,
    (Flight.READY, OfferTaken): Flight.ASKED,
    (Flight.READY, GoesOn): Flight.SENDING,
    (Flight.READY, TooLarge): Flight.PARKED,
    (Flight.READY, Settled): Flight.GONE,
    (Flight.READY, Vanished): Flight.GONE,
    (Flight.ASKED, Wanted): Flight.READY,
    (Flight.ASKED, Overdue): Flight.READY,
    (Flight.ASKED, Up): Flight.READY,
    (Flight.ASKED, Down): Flight.READY,
    (Flight.ASKED, Settled): Flight.GONE,
    (Flight.ASKED, Vanished): Flight.GONE,
    (Flight.SENDING, AllSent): Flight.SENT,
    (Flight.SENDING, TooLarge): Flight.PARKED,
    (Flight.SENDING, Settled): Flight.GONE,
    (Flight.SENDING, Vanished): Flight.GONE,
    (Flight.SENT, Up): Flight.IN_DOUBT,
    (Flight.SENT, Down): Flight.IN_DOUBT,
    (Flight.SENT, Overdue): Flight.IN_DOUBT,
    (Flight.SENT, Settled): Flight.GONE,
    (Flight.SENT, Vanished): Flight.GONE,
    (Flight.IN_DOUBT, Wanted): Flight.READY,
    (Flight.IN_DOUBT, Settled): Flight.GONE,
    (Flight.IN_DOUBT, Vanished): Flight.GONE,
    (Flight.PARKED, Settled): Flight.GONE,
    (Flight.PARKED, Vanished): Flight.GONE,
    (Flight.PARKED, Up): Flight.IN_DOUBT,  # the limits may be others now
}


# -- decisions


@dataclass(frozen=True)
class Publish:
    """Mark the frame as sent, publish it whole, and answer `Taken`, `NotTaken` or `Vanished`."""

    frame_id: str


@dataclass(frozen=True)
class PublishReference:
    """Mark the frame as sent, publish it as a reference to its twin, and answer `Taken`, `NotTaken` or `Vanished`."""

    frame_id: str


@dataclass(frozen=True)
class PublishChunk:
    """Mark the frame as sent, publish these blocks of it, and answer `ChunkTaken`, `NotTaken` or `Vanished`."""

    frame_id: str
    first_block: int
    blocks: int


@dataclass(frozen=True)
class PublishOffer:
    """Ask the server about the frame (`first`: before it was ever sent), and answer `OfferTaken`, `NotTaken` or `Vanished`."""

    frame_id: str
    first: bool = False


@dataclass(frozen=True)
class Wait:
    """Nothing to do before `until_s` (monotonic; infinity: before the next event)."""

    until_s: float


@dataclass(frozen=True)
class Stuck:
    """Something that waiting alone will not put right; `reason` says what to do. Frames stay in the spool."""

    reason: str
    until_s: float
    frame_id: str = ""


Decision = Publish | PublishReference | PublishChunk | PublishOffer | Wait | Stuck
