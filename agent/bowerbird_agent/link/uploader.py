"""Which frame to publish next, whole or in parts, and when: a machine without I/O, so that every rule can be tested without a network.

In: events (the link, receipts, frames that the spool offers) and monotonic time. Out: one decision at a time: publish a frame, some of
its blocks or a question about it, wait until something happens, or `Stuck` with what is wrong. What has been sent without a receipt is
bounded in frames and bytes, what has no PUBACK by `link/window.py` and the broker's Receive Maximum; the byte budget is asked before
every publish, resends included; what is in doubt is asked about and never sent again blindly; only a receipt makes a frame go away. It
reads no file and holds no image; `upload_runner.py` joins it to the spool and the link.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from bowerbird_agent.link.estimate import LinkEstimate
from bowerbird_agent.link.upload_events import (
    TRANSITIONS,
    Acknowledged,
    AllSent,
    ChunkTaken,
    CreditChanged,
    Decision,
    Down,
    Event,
    Flight,
    FrameReady,
    GoesOn,
    Held,
    NotTaken,
    OfferTaken,
    Overdue,
    Publish,
    PublishChunk,
    PublishOffer,
    PublishReference,
    Settled,
    Stuck,
    Taken,
    TooLarge,
    Up,
    Vanished,
    Wait,
    Wanted,
)
from bowerbird_agent.link.upload_limits import ByteBudget, UploadLimits, WireSizes
from bowerbird_agent.link.window import LinkWindow
from bowerbird_wire.transfer import BLOCK_BYTES, CHUNK_HEADER_BYTES, MAX_CHUNK_BYTES, Block, Sending, block_count, run_bytes

_LONGEST_HOLD_S = 3600.0  # a server that forgot to let go is asked again after this
_OUT = (Flight.ASKED, Flight.SENDING, Flight.SENT, Flight.IN_DOUBT)


@dataclass
class _Entry:
    message_bytes: int
    flight: Flight
    ask: bool = False  # ask before it is sent for the first time, if the link is thin
    asked: int = 0  # questions without an answer
    due_s: float = math.inf  # SENT, ASKED: in doubt from then on
    ask_s: float = math.inf  # IN_DOUBT, or with blocks in doubt: asked about from then on
    transfer: Sending | None = None  # once parts of it were sent
    reference_bytes: int = 0  # while it goes, or went, as a reference to its twin

    @property
    def out_bytes(self) -> int:
        """What is on its way once it is sent."""
        return self.reference_bytes or self.message_bytes

    @property
    def doubtful(self) -> bool:
        """Whether only the server can tell what of it has arrived."""
        return self.flight is Flight.IN_DOUBT or (self.transfer is not None and self.transfer.count(Block.DOUBTFUL) > 0)


class Uploader:
    """The machine. One thread owns it: `handle` events, then call `decide` until it says `Wait` or a `Stuck` without a frame.

    Args:
        budget: asked before and told after every publish.
        limits: bounds and times.
        sizes: what things take on the wire.
        link: rate, round trip and what is on the link; None for a link without limits.
        keepalive_s: of the connection; bounds the size of a chunk.
    """

    def __init__(
        self,
        budget: ByteBudget,
        limits: UploadLimits | None = None,
        *,
        sizes: WireSizes | None = None,
        link: LinkEstimate | None = None,
        keepalive_s: float = 30.0,
    ) -> None:
        self.limits = limits or UploadLimits()
        self._budget = budget
        self._sizes = sizes or WireSizes()
        self._window = LinkWindow(link, keepalive_s)
        self._entries: dict[str, _Entry] = {}
        self._up: Up | None = None
        self._pause_until_s = -math.inf
        self._last_receipt_s = -math.inf  # or since when frames are out
        self._newly_parked: list[Stuck] = []
        self._credit: int | None = None
        self._credit_until_s = math.inf
        self._held_until_s = -math.inf

    # -- in

    def handle(self, event: Event, now_s: float) -> tuple[str, ...]:
        """Take an event in.

        Returns:
            The frames that it has put in doubt, for the spool to note.
        """
        if now_s >= self._held_until_s:
            self._held_until_s = -math.inf  # before anybody asks whether a frame is wanted
        if isinstance(event, Up | Down):
            return self._link_changed(event, now_s)
        if isinstance(event, FrameReady):
            if event.frame_id not in self._entries:
                flight = Flight.IN_DOUBT if event.in_doubt else Flight.READY
                self._entries[event.frame_id] = _Entry(
                    event.message_bytes, flight, event.ask, ask_s=now_s, reference_bytes=event.reference_bytes
                )
        elif isinstance(event, Taken | ChunkTaken | OfferTaken):
            self._taken(event, now_s)
        elif isinstance(event, NotTaken):
            self._pause_until_s = now_s + self.limits.retry_s
        elif isinstance(event, Vanished):
            self._change(event.frame_id, event)
        elif isinstance(event, Acknowledged) and not event.accepted:
            return self._doubt(event.frame_id, now_s, ask_in_s=self.limits.resend_s)
        elif isinstance(event, Settled):
            for frame_id in event.frame_ids:
                self._change(frame_id, event)
            self._heard(now_s)
        elif isinstance(event, Wanted):
            self._wanted(event, now_s)
            self._heard(now_s)
        elif isinstance(event, Held):
            self._held_until_s = now_s + min(max(0.0, event.seconds), _LONGEST_HOLD_S)
            self._heard(now_s)
        elif isinstance(event, CreditChanged):
            self._credit, self._credit_until_s = max(0, event.bytes_in_flight), math.inf
        return self._overdue(now_s)

    def _link_changed(self, event: Up | Down, now_s: float) -> tuple[str, ...]:
        self._up = event if isinstance(event, Up) else None
        ask_at_s = now_s + self.limits.relink_s if self._up is not None else math.inf
        if self._up is not None:
            self._pause_until_s = -math.inf
            self._last_receipt_s = now_s
            self._credit_until_s = now_s + self.limits.credit_wait_s
        before = {frame_id for frame_id, entry in self._entries.items() if entry.flight is Flight.IN_DOUBT}
        for frame_id, entry in self._entries.items():
            self._change(frame_id, event)
            entry.asked = 0  # a link that is back deserves a fresh start
            if entry.flight is Flight.READY:
                entry.reference_bytes = 0  # another server may not know what a reference is
            if entry.transfer is not None:
                entry.transfer.doubt()
            entry.ask_s = ask_at_s
        return tuple(f for f, entry in self._entries.items() if entry.flight is Flight.IN_DOUBT and f not in before)

    def _taken(self, event: Taken | ChunkTaken | OfferTaken, now_s: float) -> None:
        entry = self._entries.get(event.frame_id)
        self._budget.spend(now_s, event.packet_bytes)
        if entry is None:
            return
        if self._outstanding() == 0:
            self._last_receipt_s = now_s  # silence is counted from the first frame that is out
        self._change(event.frame_id, event)
        if isinstance(event, OfferTaken):
            entry.asked += 1
            entry.ask_s = entry.due_s = now_s + self._patience_s(entry)
            if entry.transfer is not None:
                entry.transfer.doubt()  # the answer will be about what was sent until now
        elif isinstance(event, Taken):
            entry.due_s = now_s + self.limits.receipt_timeout_s
        else:
            if entry.transfer is None:
                entry.transfer = Sending(entry.message_bytes)
            entry.transfer.taken(event.first_block, event.blocks)
            if entry.transfer.count(Block.UNSENT) == 0:
                self._change(event.frame_id, AllSent())
                # With blocks in doubt a question is due already, and an overdue receipt would lead to the same one.
                entry.due_s = entry.ask_s if entry.doubtful else now_s + self.limits.receipt_timeout_s

    def _wanted(self, event: Wanted, now_s: float) -> None:
        entry = self._entries.get(event.frame_id)
        if entry is None:
            return
        entry.asked, entry.ask = 0, False
        if entry.reference_bytes:
            entry.reference_bytes = 0  # whether it was lost or its twin is: now whole
            if entry.flight is Flight.SENT:
                entry.flight = Flight.IN_DOUBT  # the answer to the reference itself: what follows is as after any question
        if event.have and entry.transfer is None:
            entry.transfer = Sending(entry.message_bytes)
        if entry.transfer is not None:
            entry.transfer.answer(event.have)
            if entry.transfer.count(Block.UNSENT) == 0:  # nothing to send: the receipt is on its way
                if entry.flight is Flight.SENT and not entry.doubtful:
                    entry.due_s = now_s + self.limits.receipt_timeout_s
                return
            if entry.flight is Flight.SENT:
                entry.flight = Flight.IN_DOUBT  # parts that were sent are not there: what follows is as after any question
            if entry.flight is Flight.IN_DOUBT and entry.transfer.count(Block.UNSENT) == block_count(entry.message_bytes):
                entry.transfer = None  # from the beginning, whole or in parts
        if self._change(event.frame_id, event) is Flight.READY and entry.transfer is not None:
            self._change(event.frame_id, GoesOn())

    def _heard(self, now_s: float) -> None:
        if now_s - self._last_receipt_s > self.limits.receipt_timeout_s:
            # The server was silent and is back: do not sit out the long waits that its silence has caused.
            for entry in self._entries.values():
                if entry.doubtful:
                    entry.ask_s = min(entry.ask_s, now_s + self.limits.resend_s)
        self._last_receipt_s = now_s

    def _overdue(self, now_s: float) -> tuple[str, ...]:
        late = [f for f, entry in self._entries.items() if entry.flight in (Flight.SENT, Flight.ASKED) and now_s >= entry.due_s]
        return tuple(frame_id for f in late for frame_id in self._doubt(f, now_s))

    def _doubt(self, frame_id: str, now_s: float, *, ask_in_s: float = 0.0) -> tuple[str, ...]:
        entry = self._entries.get(frame_id)
        if entry is None:
            return ()
        after = self._change(frame_id, Overdue())
        if entry.transfer is not None:
            entry.transfer.doubt()
        entry.ask_s = now_s + ask_in_s
        return (frame_id,) if after is Flight.IN_DOUBT else ()

    def _patience_s(self, entry: _Entry) -> float:
        return min(self.limits.resend_max_s, self.limits.resend_s * 2.0 ** min(max(entry.asked, 1) - 1, 30))

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
        if (
            self._up is None
            or self._credit == 0
            or self._is_held
            or any(entry.flight is Flight.READY for entry in self._entries.values())
        ):
            return False
        return self._outstanding() < self.limits.max_frames and self._outstanding_bytes() < self._max_bytes()

    @property
    def _is_held(self) -> bool:
        return self._held_until_s > -math.inf

    @property
    def waiting_bytes(self) -> int:
        """What the largest frame asks of the budget that is to be sent, again or for the first time, with all that is around it; 0 when
        none waits."""
        waiting = (
            e.out_bytes if e.flight is Flight.READY else e.message_bytes
            for e in self._entries.values()
            if e.flight in (Flight.READY, Flight.IN_DOUBT)
        )
        packets = map(self._sizes.whole, waiting)
        return max((packet + self._sizes.overhead(packet) for packet in packets), default=0)

    def flights(self) -> dict[Flight, int]:
        """How many frames are in each state."""
        return {
            flight: sum(e.flight is flight for e in self._entries.values()) for flight in Flight if flight is not Flight.GONE
        }

    def decide(self, now_s: float) -> Decision:
        """What to do now. Questions come first, then frames of which parts are sent, then the others in their order."""
        if self._newly_parked:
            return self._newly_parked.pop(0)
        if self._up is None:
            return Wait(math.inf)
        if now_s < self._pause_until_s:
            return Wait(self._pause_until_s)
        asks = [e.ask_s for e in self._entries.values() if e.doubtful]
        dues = [e.due_s for e in self._entries.values() if e.flight in (Flight.SENT, Flight.ASKED)]
        wake_s = min((due_s for due_s in asks + dues if due_s > now_s), default=math.inf)
        if self._credit is not None and now_s >= self._credit_until_s:
            self._credit = None  # of an earlier connection, and nobody has repeated it
        if self._credit == 0:
            reason = "the server takes no frames now (its disk is full, see its log); they wait in the spool"
            return Stuck(reason, min(wake_s, self._credit_until_s))
        if self._is_held:
            if now_s < self._held_until_s:
                reason = (
                    "the server takes no more frames of this device now (its limit there is reached); they wait in the spool"
                )
                return Stuck(reason, min(wake_s, self._held_until_s))
            self._held_until_s = -math.inf
        for frame_id, question in self._order(now_s):
            decision, wait_s = self._question(frame_id, now_s) if question else self._send(frame_id, now_s)
            if self._newly_parked:
                return self._newly_parked.pop(0)
            if decision is not None and wait_s == 0.0:
                return decision
            if wait_s < math.inf:
                return self._waiting(now_s, min(wake_s, now_s + wait_s))
        return self._waiting(now_s, wake_s)

    def _order(self, now_s: float) -> list[tuple[str, bool]]:
        """(frame, whether to ask about it) in order. A frame half sent goes on before another begins: it is nearer to being whole."""
        asks = [
            (e.ask_s, f) for f, e in self._entries.items() if e.doubtful and e.ask_s <= now_s and e.flight is not Flight.SENT
        ]
        begun, ready = (
            [f for f, e in self._entries.items() if e.flight is flight] for flight in (Flight.SENDING, Flight.READY)
        )
        return [(f, True) for _, f in sorted(asks)] + [(f, False) for f in begun + ready]

    def _question(self, frame_id: str, now_s: float, *, first: bool = False) -> tuple[Decision | None, float]:
        if not self._window.has_slot(self._max_packets()):
            return None, math.inf
        return PublishOffer(frame_id, first), self._wait_s(now_s, self._sizes.offer(first))

    def _send(self, frame_id: str, now_s: float) -> tuple[Decision | None, float]:
        """What to publish of a frame, and the seconds until the budget allows it; (None, infinity) while a window is full."""
        entry = self._entries[frame_id]
        if entry.flight is Flight.READY and not self._may_begin(entry):
            return None, math.inf
        if entry.reference_bytes and self._lets_pass(self._sizes.reference(entry.reference_bytes), now_s):
            size = self._sizes.reference(entry.reference_bytes)
            if not self._window.fits(size, self._max_packets()):
                return None, math.inf
            return PublishReference(frame_id), self._wait_s(now_s, size)
        entry.reference_bytes = 0
        if self._goes_whole(entry, now_s):
            size = self._sizes.whole(entry.message_bytes)
            if not self._window.fits(size, self._max_packets()):
                return None, math.inf
            return Publish(frame_id), self._wait_s(now_s, size)
        if entry.ask and entry.transfer is None:
            return self._question(frame_id, now_s, first=True)
        return self._send_chunk(frame_id, entry, now_s)

    def _wait_s(self, now_s: float, size: int) -> float:
        """Seconds until the budget allows a packet with all that is around it."""
        return self._budget.wait_s(now_s, size + self._sizes.overhead(size))

    def _send_chunk(self, frame_id: str, entry: _Entry, now_s: float) -> tuple[Decision | None, float]:
        run = (entry.transfer or Sending(entry.message_bytes)).next_run(MAX_CHUNK_BYTES)
        if run is None:
            return None, math.inf
        limit = self._up.max_packet_bytes if self._up is not None else None
        beside = self._sizes.chunk(MAX_CHUNK_BYTES) - MAX_CHUNK_BYTES - CHUNK_HEADER_BYTES
        room = None if limit is None else limit - beside
        chunk = self._window.chunk_bytes(room)
        if chunk == 0:
            self._park(frame_id, f"the broker takes packets of at most {limit} bytes; raise its limit above 5000")
            return None, math.inf
        first, blocks = run[0], min(run[1], chunk // BLOCK_BYTES)
        while True:
            size = self._sizes.chunk(run_bytes(entry.message_bytes, first, blocks))
            wait_s = self._wait_s(now_s, size)
            if wait_s < math.inf or blocks == 1:
                break
            blocks = blocks // 2
        if wait_s == math.inf:
            self._park(frame_id, "the byte budget will never allow so many; raise budget.burst_bytes or budget.bytes_per_day")
        elif not self._window.fits(size, self._max_packets()):
            return None, math.inf
        return PublishChunk(frame_id, first, blocks), wait_s

    def _goes_whole(self, entry: _Entry, now_s: float) -> bool:
        """Whole on a link that carries it in the time of a chunk, if broker and budget let it pass; never once parts are there."""
        if entry.transfer is not None:
            return False
        whole = self._sizes.whole(entry.message_bytes)
        return self._lets_pass(whole, now_s) and self._window.carries_whole(entry.message_bytes)

    def _lets_pass(self, size: int, now_s: float) -> bool:
        """Whether broker and budget will ever let so many bytes pass in one packet."""
        limit = self._up.max_packet_bytes if self._up is not None else None
        return (limit is None or size <= limit) and self._wait_s(now_s, size) < math.inf

    def _may_begin(self, entry: _Entry) -> bool:
        if self._outstanding() == 0:
            return True
        has_room = self._outstanding_bytes() + entry.out_bytes <= self._max_bytes()
        return has_room and self._outstanding() < self.limits.max_frames

    def _park(self, frame_id: str, why: str) -> None:
        size = self._entries[frame_id].message_bytes
        self._change(frame_id, TooLarge())
        self._newly_parked.append(Stuck(f"frame {frame_id[:12]} of {size} bytes: {why}", -math.inf, frame_id))

    def _waiting(self, now_s: float, until_s: float) -> Wait | Stuck:
        silent_s = now_s - self._last_receipt_s
        if self._outstanding() > 0 and silent_s > self.limits.stuck_s:
            return Stuck(
                f"{self._outstanding()} frames sent and no receipt for {silent_s:.0f} s: check that the server's ingest runs",
                until_s,
            )
        return Wait(until_s)

    def _max_packets(self) -> int:
        # Of packets without a PUBACK only. Two are left for control: health and reports do not queue behind frames.
        return max(1, self._up.receive_maximum - 2) if self._up is not None else 1

    def _max_bytes(self) -> int:
        return self.limits.max_bytes if self._credit is None else min(self.limits.max_bytes, self._credit)

    def _outstanding(self) -> int:
        return sum(entry.flight in _OUT for entry in self._entries.values())

    def _outstanding_bytes(self) -> int:
        return sum(e.out_bytes for e in self._entries.values() if e.flight in _OUT)
