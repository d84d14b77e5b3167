"""Which frame to publish next, and when: a machine without I/O, so that every rule can be tested without a network.

In: events (the link, receipts, frames that the spool offers) and monotonic time. Out: one decision at a time: `Publish` a frame, `Wait`
until something happens, or `Stuck` with what is wrong. What has been sent without a receipt is bounded in frames and bytes, the byte
budget is asked before every publish, resends included, and only a receipt makes a frame go away. It reads no file and holds no image;
`upload_runner.py` joins it to the spool and the link.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class Flight(Enum):
    """Where a frame stands for the uploader. The spool keeps the same on disk."""

    READY = "ready"  # offered by the spool, never sent
    SENT = "sent"  # on its way; the receipt is awaited
    IN_DOUBT = "in_doubt"  # the receipt did not come in time, or the link broke
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
class FrameReady(Event):
    """The spool's next frame; `in_doubt` when it may have been sent before this start."""

    frame_id: str
    message_bytes: int
    in_doubt: bool = False


@dataclass(frozen=True)
class Taken(Event):
    """The link has taken the frame that was to be published."""

    frame_id: str


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
class Tick(Event):
    """Time has passed."""


@dataclass(frozen=True)
class _Overdue(Event):
    """The receipt did not come in time."""


@dataclass(frozen=True)
class _TooLarge(Event):
    """No wait will make it fit."""


# What an event does to one frame. A pair that is not listed changes nothing: events come late, twice and out of order.
TRANSITIONS: Mapping[tuple[Flight, type[Event]], Flight] = {
    (Flight.READY, Taken): Flight.SENT,
    (Flight.READY, _TooLarge): Flight.PARKED,
    (Flight.READY, Settled): Flight.GONE,
    (Flight.READY, Vanished): Flight.GONE,
    (Flight.SENT, Up): Flight.IN_DOUBT,
    (Flight.SENT, Down): Flight.IN_DOUBT,
    (Flight.SENT, _Overdue): Flight.IN_DOUBT,
    (Flight.SENT, Settled): Flight.GONE,
    (Flight.SENT, Vanished): Flight.GONE,
    (Flight.IN_DOUBT, Taken): Flight.SENT,
    (Flight.IN_DOUBT, _TooLarge): Flight.PARKED,
    (Flight.IN_DOUBT, Settled): Flight.GONE,
    (Flight.IN_DOUBT, Vanished): Flight.GONE,
    (Flight.PARKED, Settled): Flight.GONE,
    (Flight.PARKED, Vanished): Flight.GONE,
    (Flight.PARKED, Up): Flight.IN_DOUBT,  # the limits may be others now
}


# -- decisions


@dataclass(frozen=True)
class Publish:
    """Mark the frame as sent, publish it, and answer `Taken`, `NotTaken` or `Vanished`."""

    frame_id: str


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


Decision = Publish | Wait | Stuck


class ByteBudget(Protocol):
    """What the uploader asks of `budget.TokenBucket`."""

    def wait_s(self, now_s: float, size_bytes: int) -> float:
        """Seconds until so many bytes may be sent; 0 now, infinity never."""

    def spend(self, now_s: float, size_bytes: int) -> None:
        """Record bytes that are sent."""


@dataclass(frozen=True)
class UploadLimits:
    """Bounds and times.

    Args:
        max_frames, max_bytes: sent without a receipt, at most. One frame is always allowed.
        receipt_timeout_s: after this a sent frame is in doubt.
        resend_s, resend_max_s: wait of an in-doubt frame before it is sent again; doubles each time up to the second.
        relink_s: the same after the link has come back.
        retry_s: wait after the link has not taken a frame.
        stuck_s: no receipt for this long while frames are out is reported.
    """

    max_frames: int = 32
    max_bytes: int = 512 * 1024
    receipt_timeout_s: float = 20.0
    resend_s: float = 5.0
    resend_max_s: float = 300.0
    relink_s: float = 1.0
    retry_s: float = 0.5
    stuck_s: float = 120.0


@dataclass
class _Entry:
    message_bytes: int
    flight: Flight
    attempts: int = 0
    due_s: float = 0.0  # SENT: receipt expected by; IN_DOUBT: not sent again before


class Uploader:
    """The machine. One thread owns it: `handle` events, then call `decide` until it does not say `Publish`.

    Args:
        budget: asked before and told after every publish.
        limits: bounds and times.
        packet_bytes: size of a message -> what it takes on the wire.
    """

    def __init__(
        self, budget: ByteBudget, limits: UploadLimits | None = None, *, packet_bytes: Callable[[int], int] = lambda size: size
    ) -> None:
        self.limits = limits or UploadLimits()
        self._budget = budget
        self._packet_bytes = packet_bytes
        self._entries: dict[str, _Entry] = {}
        self._up: Up | None = None
        self._pause_until_s = -math.inf
        self._last_receipt_s = -math.inf  # or since when frames are out
        self._newly_parked: list[Stuck] = []

    # -- in

    def handle(self, event: Event, now_s: float) -> tuple[str, ...]:
        """Take an event in.

        Returns:
            The frames that it has put in doubt, for the spool to note.
        """
        if isinstance(event, Up):
            self._up = event
            self._pause_until_s = -math.inf
            self._last_receipt_s = now_s
            doubtful = self._all(event, now_s + self.limits.relink_s)
            for entry in self._entries.values():
                if entry.flight is Flight.IN_DOUBT:  # a link that is back deserves a fresh start
                    entry.due_s, entry.attempts = now_s + self.limits.relink_s, 1
            return doubtful
        if isinstance(event, Down):
            self._up = None
            return self._all(event, math.inf)
        if isinstance(event, FrameReady):
            if event.frame_id not in self._entries:
                flight = Flight.IN_DOUBT if event.in_doubt else Flight.READY
                self._entries[event.frame_id] = _Entry(event.message_bytes, flight, int(event.in_doubt), now_s)
        elif isinstance(event, Taken):
            self._taken(event, now_s)
        elif isinstance(event, NotTaken):
            self._pause_until_s = now_s + self.limits.retry_s
        elif isinstance(event, Vanished):
            self._change(event.frame_id, event)
        elif isinstance(event, Acknowledged) and not event.accepted:
            return self._doubt(event.frame_id, now_s)
        elif isinstance(event, Settled):
            self._settled(event, now_s)
        return self._overdue(now_s)

    def _all(self, event: Event, due_s: float) -> tuple[str, ...]:
        changed = [frame_id for frame_id in self._entries if self._change(frame_id, event) is Flight.IN_DOUBT]
        for frame_id in changed:
            self._entries[frame_id].due_s = due_s
        return tuple(changed)

    def _taken(self, event: Taken, now_s: float) -> None:
        entry = self._entries.get(event.frame_id)
        if entry is None:
            return
        if self._outstanding() == 0:
            self._last_receipt_s = now_s  # silence is counted from the first frame that is out
        self._budget.spend(now_s, self._packet_bytes(entry.message_bytes))
        if self._change(event.frame_id, event) is Flight.SENT:
            entry.attempts += 1
            entry.due_s = now_s + self.limits.receipt_timeout_s

    def _settled(self, event: Settled, now_s: float) -> None:
        for frame_id in event.frame_ids:
            self._change(frame_id, event)
        if now_s - self._last_receipt_s > self.limits.receipt_timeout_s:
            # The server was silent and is back: do not sit out the long waits that its silence has caused.
            for entry in self._entries.values():
                if entry.flight is Flight.IN_DOUBT:
                    entry.due_s = min(entry.due_s, now_s + self.limits.resend_s)
        self._last_receipt_s = now_s

    def _overdue(self, now_s: float) -> tuple[str, ...]:
        late = [f for f, entry in self._entries.items() if entry.flight is Flight.SENT and now_s >= entry.due_s]
        return tuple(frame_id for f in late for frame_id in self._doubt(f, now_s))

    def _doubt(self, frame_id: str, now_s: float) -> tuple[str, ...]:
        if self._change(frame_id, _Overdue()) is not Flight.IN_DOUBT:
            return ()
        entry = self._entries[frame_id]
        entry.due_s = now_s + min(self.limits.resend_max_s, self.limits.resend_s * 2.0 ** min(entry.attempts - 1, 30))
        return (frame_id,)

    def _change(self, frame_id: str, event: Event) -> Flight | None:
        """The frame's new state; None when the event changes nothing."""
        entry = self._entries.get(frame_id)
        after = None if entry is None else TRANSITIONS.get((entry.flight, type(event)))
        if entry is None or after is None:
            return None
        entry.flight = after
        if after is Flight.GONE:
            del self._entries[frame_id]
        return after

    # -- out

    @property
    def up(self) -> bool:
        """Whether the link is up as far as the events said."""
        return self._up is not None

    @property
    def known(self) -> Collection[str]:
        """Frames that need not be offered again."""
        return self._entries.keys()

    @property
    def wants_frame(self) -> bool:
        """Whether a new frame could be sent if the spool offered one."""
        if self._up is None or any(entry.flight is Flight.READY for entry in self._entries.values()):
            return False
        return self._outstanding() < self._max_frames() and self._outstanding_bytes() < self.limits.max_bytes

    @property
    def waiting_bytes(self) -> int:
        """Bytes on the wire of the largest frame that is to be sent, again or for the first time; 0 when none waits."""
        waiting = (e.message_bytes for e in self._entries.values() if e.flight in (Flight.READY, Flight.IN_DOUBT))
        return max((self._packet_bytes(size) for size in waiting), default=0)

    def flights(self) -> dict[Flight, int]:
        """How many frames are in each state."""
        return {
            flight: sum(e.flight is flight for e in self._entries.values()) for flight in Flight if flight is not Flight.GONE
        }

    def decide(self, now_s: float) -> Decision:
        """What to do now. The frames in doubt come first, then the new one."""
        if self._newly_parked:
            return self._newly_parked.pop(0)
        if self._up is None:
            return Wait(math.inf)
        if now_s < self._pause_until_s:
            return Wait(self._pause_until_s)
        dues = (e.due_s for e in self._entries.values() if e.flight in (Flight.SENT, Flight.IN_DOUBT))
        wake_s = min((due_s for due_s in dues if due_s > now_s), default=math.inf)
        for frame_id in self._order(now_s):
            wait_s = self._may_send(frame_id, now_s)
            if self._newly_parked:
                return self._newly_parked.pop(0)
            if wait_s == 0.0:
                return Publish(frame_id)
            if wait_s < math.inf:
                return self._waiting(now_s, min(wake_s, now_s + wait_s))
        return self._waiting(now_s, wake_s)

    def _order(self, now_s: float) -> list[str]:
        due = [(e.due_s, f) for f, e in self._entries.items() if e.flight is Flight.IN_DOUBT and e.due_s <= now_s]
        new = [f for f, e in self._entries.items() if e.flight is Flight.READY]
        return [frame_id for _, frame_id in sorted(due)] + new

    def _may_send(self, frame_id: str, now_s: float) -> float:
        """Seconds until this frame may go as far as the budget is concerned; infinity while the window is full."""
        entry = self._entries[frame_id]
        size = self._packet_bytes(entry.message_bytes)
        limit = self._up.max_packet_bytes if self._up is not None else None
        if limit is not None and size > limit:
            self._park(frame_id, f"the broker takes packets of at most {limit} bytes; lower image.long_side or image.quality")
            return math.inf
        if entry.flight is Flight.READY:
            full = self._outstanding() >= self._max_frames()
            over = self._outstanding_bytes() + entry.message_bytes > self.limits.max_bytes and self._outstanding() > 0
            if full or over:
                return math.inf
        wait_s = self._budget.wait_s(now_s, size)
        if wait_s == math.inf:
            self._park(frame_id, "the byte budget will never allow so many; raise budget.burst_bytes or budget.bytes_per_day")
        return wait_s

    def _park(self, frame_id: str, why: str) -> None:
        size = self._entries[frame_id].message_bytes
        self._change(frame_id, _TooLarge())
        self._newly_parked.append(Stuck(f"frame {frame_id[:12]} of {size} bytes: {why}", -math.inf, frame_id))

    def _waiting(self, now_s: float, until_s: float) -> Wait | Stuck:
        silent_s = now_s - self._last_receipt_s
        if self._outstanding() > 0 and silent_s > self.limits.stuck_s:
            return Stuck(
                f"{self._outstanding()} frames sent and no receipt for {silent_s:.0f} s: check that the server's ingest runs",
                until_s,
            )
        return Wait(until_s)

    def _max_frames(self) -> int:
        # Two packets are left for control: health and reports do not queue behind frames.
        allowed = self._up.receive_maximum - 2 if self._up is not None else self.limits.max_frames
        return max(1, min(self.limits.max_frames, allowed))

    def _outstanding(self) -> int:
        return sum(entry.flight in (Flight.SENT, Flight.IN_DOUBT) for entry in self._entries.values())

    def _outstanding_bytes(self) -> int:
        return sum(e.message_bytes for e in self._entries.values() if e.flight in (Flight.SENT, Flight.IN_DOUBT))
