"""Joins the uploader's decisions to the spool and the link.

In: events of the link, from the control thread's queue; the tariff of the moment. Out: published frames, references, chunks and
questions, receipts written into the spool, the byte budgets kept over restarts and charged with all that passes the link. It decides
nothing (`uploader.py` does) and starts no thread: the control thread calls `handle` for each event and `pump` between them.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from bowerbird_agent.budget.budget import ByteLimits
from bowerbird_agent.budget.budget_note import BUDGET_NOTE
from bowerbird_agent.budget.tariff import Tariff
from bowerbird_agent.budget.uplink_budget import UplinkBudget, ahead_bytes
from bowerbird_agent.errors import SpoolError
from bowerbird_agent.link.estimate import LinkEstimate
from bowerbird_agent.link.link_events import LinkDown, LinkEvent, LinkUp, Published, packet_bytes
from bowerbird_agent.link.reference_sending import ReferenceSending
from bowerbird_agent.link.upload_events import (
    Acknowledged,
    ChunkTaken,
    CreditChanged,
    Down,
    Event,
    FrameReady,
    Held,
    NotTaken,
    OfferTaken,
    Publish,
    PublishChunk,
    PublishOffer,
    PublishReference,
    Settled,
    Stuck,
    Taken,
    Tick,
    Up,
    Vanished,
    Wanted,
)
from bowerbird_agent.link.upload_limits import UploadLimits, WireSizes
from bowerbird_agent.link.uploader import Uploader
from bowerbird_agent.link.wire_count import overhead_bytes
from bowerbird_agent.spool.spool import FrameState, ReceiptCounts, Spool, SpooledFrame
from bowerbird_agent.storing.thumbnail import thumbnail
from bowerbird_wire import codec
from bowerbird_wire.errors import DigestError, WireError
from bowerbird_wire.linked import FETCHED
from bowerbird_wire.messages import Chunk, Credit, Offer, Receipt, Refusal
from bowerbird_wire.spent import FETCHED as FETCHED_KIND
from bowerbird_wire.thumbnail import THUMBNAIL_BYTES
from bowerbird_wire.topics import ChunkTopic, CreditTopic, DeviceTopic, FrameTopic, OfferTopic, ReceiptTopic, ReferenceTopic
from bowerbird_wire.transfer import BLOCK_BYTES, CHUNK_HEADER_BYTES, run_bytes, transfer_id

log = logging.getLogger(__name__)

_AHEAD_BYTES = 256 * 1024  # spent in advance on disk, so that a crash loses budget instead of exceeding it
_FAULT_PAUSE_S = 5.0
_QUIET_RECHECK_S = 60.0  # the clock may be set, or summer time begin
_PROMISED_FOR_S = 120.0  # what was asked for and has not come by then does not come
_MOST_PROMISED_BYTES = 1024 * 1024
_ASK_FROM_BYTES = 64 * 1024  # frames above this are offered before they are sent, on a thin link
_NAMED_FROM_BYTES = 4 * BLOCK_BYTES  # parts of smaller frames are not worth the name of a transfer in each question
_OFFER_BYTES = 96  # an encoded `Offer` without a thumbnail, at most
_MESSAGES_KEPT = 2
_GARBLED_AT_MOST = 3  # times that a frame is sent again because the server got it with a wrong digest


class Link(Protocol):
    """What is needed of `mqtt_link.MqttLink`."""

    @property
    def bytes_sent(self) -> int:
        """Bytes that left over the network since the start."""

    @property
    def bytes_received(self) -> int:
        """Bytes that came over the network since the start."""

    def publish(
        self, topic: DeviceTopic, payload: bytes, *, qos: int = 1, retain: bool = False, kind: str | None = None
    ) -> int:
        """A token, or 0 when it was not taken."""


class UploadRunner:
    """The upload of one device. One thread owns it.

    Args:
        spool: where frames come from and receipts go.
        link: what publishes.
        site, device: of the frame topic.
        budget: see `restore_budget`. Control traffic, keep-alives and downloads are charged to it as well.
        now_s: monotonic seconds.
        tariff: quiet hours and metered interfaces; None for neither.
        keepalive_s: of the link's connections.
    """

    def __init__(
        self,
        spool: Spool,
        link: Link,
        site: str,
        device: str,
        budget: UplinkBudget,
        *,
        now_s: float,
        limits: UploadLimits | None = None,
        keepalive_s: float = 30.0,
        tariff: Tariff | None = None,
    ) -> None:
        self._spool = spool
        self._link = link
        self._topic, self._chunk_topic, self._offer_topic = (
            kind(site, device) for kind in (FrameTopic, ChunkTopic, OfferTopic)
        )
        self._reference_topic = ReferenceTopic(site, device)
        self.references = ReferenceSending(spool)
        self._budget, self._tariff = budget, tariff or Tariff()
        self._estimate = LinkEstimate()
        sizes = WireSizes(
            whole=lambda size: packet_bytes(self._topic, size),
            chunk=lambda size: packet_bytes(self._chunk_topic, size + CHUNK_HEADER_BYTES),
            overhead=overhead_bytes,
            reference=lambda size: packet_bytes(self._reference_topic, size),
            offer=lambda first: packet_bytes(self._offer_topic, _OFFER_BYTES + (THUMBNAIL_BYTES if first else 0)),
        )
        self.link_estimate = self._estimate
        self.uploader = Uploader(budget, limits, sizes=sizes, link=self._estimate, keepalive_s=keepalive_s)
        self._tokens: dict[int, str] = {}  # publish token -> frame, until the PUBACK; "" for a question
        self._messages: OrderedDict[str, tuple[bytes, bytes]] = OrderedDict()  # the frames of which parts are being sent
        self._fetched: set[str] = set()  # frames on their way that were asked for: their bytes are a kind of their own
        self._garbled: Counter[str] = Counter()  # frame -> how often the server got something else under its name
        self._transfers: dict[bytes, str] = {}  # name of a transfer -> frame
        self._charged = 0  # bytes that the budget knows of, never below what the link has written
        self._charged_in = 0  # the same of what it has read
        self._promised_until_s = -math.inf
        self._said: set[str] = set()
        self._pause_until_s = -math.inf
        self.heard: Callable[[Receipt], None] = _nobody  # told of what a receipt says beside frames: wishes, tombstones
        self._set_ahead()
        self._save_budget()
        for frame in spool.frames(FrameState.IN_DOUBT):
            self._note_fetched(frame)
            self.uploader.handle(_ready(frame, in_doubt=True), now_s)

    def handle(self, event: LinkEvent, now_s: float) -> ReceiptCounts | None:
        """Take an event of the link; what was a receipt returns its counts, everything else None. Other messages are ignored."""
        if isinstance(event, LinkUp):
            self._tokens.clear()
            self.references.link_up()
            self._tariff.link_changed()
            self._estimate.connected(event.rtt_s)
            self._feed(Up(event.max_packet_bytes, event.receive_maximum), now_s)
        elif isinstance(event, LinkDown):
            self._estimate.lost()
            self._take_back(now_s)
            self._budget.promised_bytes = 0
            self._feed(Down(), now_s)
        elif isinstance(event, Published):
            frame_id = self._tokens.pop(event.token, None)
            self.references.acknowledged(event.token, accepted=event.accepted)
            if frame_id is not None:
                self._estimate.acknowledged(event.token, now_s)
                self._feed(Acknowledged(frame_id, event.accepted), now_s)
        elif isinstance(event.topic, ReceiptTopic):
            return self._receipt(event.payload, now_s)
        elif isinstance(event.topic, CreditTopic):
            self._credit(event.payload, now_s)
        return None

    def pump(self, now_s: float) -> float:
        """Publish what may be published now. Returns the monotonic time at which to call again without an event (may be infinity)."""
        self._charge_control(now_s)
        self._budget.is_metered = self._tariff.is_metered(now_s)
        if now_s < self._pause_until_s:
            return self._pause_until_s
        try:
            self._feed(Tick(), now_s)
            quiet_s = self._tariff.quiet_left_s()
            if quiet_s > 0.0:
                return now_s + min(quiet_s, _QUIET_RECHECK_S)
            while True:
                if self.uploader.wants_frame:
                    offered = self._spool.next_new(self.uploader.known)
                    if offered is not None:
                        self._note_fetched(offered)
                        self._feed(_ready(offered, reference_bytes=self.references.size_of(offered)), now_s)
                decision = self.uploader.decide(now_s)
                if isinstance(decision, Publish):
                    self._publish(decision.frame_id, now_s)
                elif isinstance(decision, PublishReference):
                    self._publish_reference(decision.frame_id, now_s)
                elif isinstance(decision, PublishChunk):
                    self._publish_chunk(decision, now_s)
                elif isinstance(decision, PublishOffer):
                    self._publish_offer(decision, now_s)
                elif isinstance(decision, Stuck):
                    # One key for all frames: the first is a warning, and nothing grows with their number.
                    self._say(decision.reason, "parked" if decision.frame_id else "silence")
                    if not decision.frame_id:
                        return decision.until_s
                else:
                    return decision.until_s
        except SpoolError as error:
            self._say(f"upload waits: {error}", "fault")
            self._pause_until_s = now_s + _FAULT_PAUSE_S
            return self._pause_until_s

    def publish_beside(self, topic: DeviceTopic, payload: bytes, now_s: float) -> bool:
        """Publish something of QoS 0 that no frame may pay for; False when it was dropped.

        The bytes that a waiting frame needs, half of the bucket and half of each cap stay for frames. Nothing goes in quiet hours.
        """
        size = packet_bytes(topic, len(payload), qos=0)
        if self.is_quiet or not self._budget.has_room_beside(now_s, size, self.uploader.waiting_bytes):
            return False
        if self._budget.needs_save:
            self._save_budget()
        if self._link.publish(topic, payload, qos=0) == 0:
            return False
        self._budget.charge(now_s, size)
        self._charged += size
        return True

    @property
    def is_quiet(self) -> bool:
        """Whether it is quiet hours: only control goes."""
        return self._tariff.quiet_left_s() > 0.0

    def may_ask_for(self, size_bytes: int, now_s: float) -> bool:
        """Whether so much may be asked for, to come down: not in quiet hours, and only what the caps have room for."""
        return not self.is_quiet and self._budget.cap_wait_s(now_s, size_bytes) == 0.0

    def asked_for(self, size_bytes: int, now_s: float) -> None:
        """So many bytes will come: frames leave them their room."""
        self._budget.promised_bytes = min(_MOST_PROMISED_BYTES, self._budget.promised_bytes + size_bytes)
        self._promised_until_s = now_s + _PROMISED_FOR_S

    def change_limits(self, limits: ByteLimits, now_s: float, *, metered: ByteLimits | None = None) -> None:
        """Other caps from now on, also on the disk."""
        self._budget.change_limits(limits, metered or ByteLimits(), now_s)
        self._set_ahead()
        self._save_budget()

    def _set_ahead(self) -> None:
        self._ahead_bytes = ahead_bytes(self._budget, _AHEAD_BYTES)

    def close(self) -> None:
        """Write the budget down as it is."""
        if self._budget.has_limits:
            self._spool.set_note(BUDGET_NOTE, json.dumps(self._budget.to_state()))

    def _publish(self, frame_id: str, now_s: float) -> None:
        # The state is on disk before the bytes leave: after a crash the frame is in doubt, never forgotten.
        payload = self._spool.message(frame_id) if self._spool.mark_sent(frame_id) else None
        if payload is None:
            self._feed(Vanished(frame_id), now_s)
            return
        size = self._hand_over(self._topic, payload, frame_id, now_s)
        if size:
            self._feed(Taken(frame_id, size), now_s)

    def _publish_reference(self, frame_id: str, now_s: float) -> None:
        payload = self.references.message(frame_id) if self._spool.mark_sent(frame_id) else None
        if payload is None:
            self._feed(Vanished(frame_id), now_s)
            return
        size = self._hand_over(self._reference_topic, payload, frame_id, now_s)
        if size:
            self._feed(Taken(frame_id, size), now_s)

    def _publish_chunk(self, decision: PublishChunk, now_s: float) -> None:
        frame_id = decision.frame_id
        message = self._message(frame_id) if self._spool.mark_sent(frame_id) else None
        if message is None:
            self._feed(Vanished(frame_id), now_s)
            return
        payload, name = message
        at = decision.first_block * BLOCK_BYTES
        data = payload[at : at + run_bytes(len(payload), decision.first_block, decision.blocks)]
        chunk = codec.encode(Chunk(name, len(payload), decision.first_block, data))
        size = self._hand_over(self._chunk_topic, chunk, frame_id, now_s)
        if size:
            self._feed(ChunkTaken(frame_id, decision.first_block, decision.blocks, size), now_s)

    def _publish_offer(self, decision: PublishOffer, now_s: float) -> None:
        frame_id = decision.frame_id
        frame = self._spool.frame(frame_id)
        if frame is None:
            self._feed(Vanished(frame_id), now_s)
            return
        offer = Offer(bytes.fromhex(frame_id))
        if decision.first or frame.message_bytes > _NAMED_FROM_BYTES:
            message = self._message(frame_id)
            if message is None:
                self._feed(Vanished(frame_id), now_s)
                return
            payload, name = message
            picture = thumbnail(codec.decode_frame(payload).image) if decision.first else b""
            offer = Offer(bytes.fromhex(frame_id), name, len(payload), picture)
        size = self._hand_over(self._offer_topic, codec.encode(offer), "", now_s)
        if size:
            self._feed(OfferTaken(frame_id, size), now_s)

    def _hand_over(self, topic: DeviceTopic, payload: bytes, frame_id: str, now_s: float) -> int:
        """Publish; returns the bytes on the wire, 0 when the link has not taken it (the uploader knows then)."""
        if self._budget.needs_save:
            self._save_budget()
        token = self._link.publish(topic, payload, kind=FETCHED_KIND if frame_id in self._fetched else None)
        if token == 0:
            self._feed(NotTaken(frame_id), now_s)
            return 0
        size = packet_bytes(topic, len(payload))
        self._tokens[token] = frame_id
        if topic is self._reference_topic:
            self.references.handed_over(token)
        self._estimate.sent(token, size, now_s)
        self._charged += size
        return size

    def _note_fetched(self, frame: SpooledFrame) -> None:
        if frame.arm == FETCHED:
            self._fetched.add(frame.frame_id)

    def _message(self, frame_id: str) -> tuple[bytes, bytes] | None:
        """A frame's message and the name of its transfer; the last few are kept in memory while their parts are sent."""
        message = self._messages.pop(frame_id, None)
        if message is None:
            payload = self._spool.message(frame_id)
            if payload is None:
                return None
            message = (payload, transfer_id(payload))
            self._transfers[message[1]] = frame_id
        self._messages[frame_id] = message
        while len(self._messages) > _MESSAGES_KEPT:
            self._messages.popitem(last=False)
        return message

    def _receipt(self, payload: bytes, now_s: float) -> ReceiptCounts | None:
        try:
            receipt = codec.decode(Receipt, payload)
        except WireError as error:
            self._say(f"a receipt cannot be read and is ignored ({error}); update the agent or the server", "receipt")
            return None
        receipt = replace(receipt, refused=tuple(self._named(refusal) for refusal in receipt.refused))
        try:
            receipt, garbled = self._without_garbled(receipt)
            counts = self._spool.receipt(receipt)
        except SpoolError as error:
            self._say(f"a receipt cannot be recorded, the server will be asked again: {error}", "fault")
            return None
        self._said -= {"fault", "silence"}
        settled = (*receipt.committed, *(refusal.frame_id for refusal in receipt.refused))
        if settled:
            self._feed(Settled(settled), now_s)
        for frame_id in garbled:
            self._feed(Acknowledged(frame_id, accepted=False), now_s)
        for want in receipt.wanted:
            frame_id = want.frame.hex() or self._transfers.get(want.transfer, "")
            if frame_id:
                self._feed(Wanted(frame_id, want.have), now_s)
        if receipt.hold_s > 0.0:
            self._feed(Held(receipt.hold_s), now_s)
        if receipt.fetch or receipt.buried:
            self.heard(receipt)
        self._forget()
        return counts

    def _without_garbled(self, receipt: Receipt) -> tuple[Receipt, tuple[str, ...]]:
        """The receipt without the frames that the server got with a wrong digest and that are whole here, and those frames.

        They are in doubt and will be asked about; a server that says it for the last time of a few is believed.
        """
        garbled: list[str] = []
        for refusal in receipt.refused:
            if refusal.code == DigestError.code and refusal.frame_id in self.uploader.known:
                self._garbled[refusal.frame_id] += 1
                if self._garbled[refusal.frame_id] <= _GARBLED_AT_MOST and self._spool.message(refusal.frame_id) is not None:
                    garbled.append(refusal.frame_id)
        left = tuple(refusal for refusal in receipt.refused if refusal.frame_id not in garbled)
        return replace(receipt, refused=left), tuple(garbled)

    def _named(self, refusal: Refusal) -> Refusal:
        """A refusal of a transfer as one of its frame."""
        if refusal.frame_id:
            return refusal
        return replace(refusal, frame_id=self._transfers.get(refusal.transfer, ""))

    def _forget(self) -> None:
        known = self.uploader.known
        for frame_id in [f for f in self._messages if f not in known]:
            del self._messages[frame_id]
        self._fetched.intersection_update(known)
        for frame_id in [f for f in self._garbled if f not in known]:
            del self._garbled[frame_id]
        self._transfers = {name: frame_id for name, frame_id in self._transfers.items() if frame_id in known}

    def _credit(self, payload: bytes, now_s: float) -> None:
        try:
            credit = codec.decode(Credit, payload)
        except WireError as error:
            self._say(f"a credit cannot be read and is ignored ({error}); update the agent or the server", "credit")
            return
        if credit.bytes_in_flight > 0:
            self._said.discard("silence")
        self.references.credit(credit)
        self._feed(CreditChanged(credit.bytes_in_flight), now_s)

    def _feed(self, event: Event, now_s: float) -> None:
        doubtful = self.uploader.handle(event, now_s)
        if doubtful:
            try:
                self._spool.mark_in_doubt(doubtful)
            except SpoolError as error:  # the next start wakes SENT as IN_DOUBT, so nothing depends on it
                log.debug("frames in doubt could not be noted: %s", error)

    def _charge_control(self, now_s: float) -> None:
        """Everything on the wire counts: status, health, keep-alives, acknowledgements and downloads are charged after the fact."""
        behind, received = self._link.bytes_sent - self._charged, self._link.bytes_received - self._charged_in
        if behind > 0:
            self._budget.charge(now_s, behind)
            self._charged += behind
        if received > 0:
            self._budget.charge(now_s, received, is_download=True)
            self._charged_in += received
            self._budget.promised_bytes = max(0, self._budget.promised_bytes - received)
        if now_s > self._promised_until_s:
            self._budget.promised_bytes = 0
        if self._budget.needs_save:
            self._save_budget()

    def _take_back(self, now_s: float) -> None:
        """What a broken connection left unsent was paid for and did not leave."""
        self._charged -= self._budget.refund(now_s, self._charged - self._link.bytes_sent)

    def _save_budget(self) -> None:
        state = self._budget.to_state(ahead_bytes=self._ahead_bytes)
        if self._budget.has_limits:
            self._spool.set_note(BUDGET_NOTE, json.dumps(state))

    def _say(self, text: str, about: str) -> None:
        log.log(logging.DEBUG if about in self._said else logging.WARNING, "%s", text)
        self._said.add(about)


def _ready(frame: SpooledFrame, *, in_doubt: bool = False, reference_bytes: int = 0) -> FrameReady:
    # The random sample is not thinned out by likeness: it would not be random any more.
    # What a person asked for is wanted, however it looks.
    ask = frame.message_bytes > _ASK_FROM_BYTES and frame.arm not in ("explore", FETCHED)
    return FrameReady(frame.frame_id, frame.message_bytes, in_doubt, ask, reference_bytes)


def _nobody(receipt: Receipt) -> None:
    del receipt
