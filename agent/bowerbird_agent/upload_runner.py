"""Joins the uploader's decisions to the spool and the link.

In: events of the link, from the control thread's queue. Out: published frames, receipts written into the spool, the byte budget kept
over restarts. It decides nothing (`uploader.py` does) and starts no thread: the control thread calls `handle` for each event and `pump`
between them.
"""

from __future__ import annotations

import json
import logging
import math
from typing import Protocol

from bowerbird_agent.budget import ByteLimits, TokenBucket
from bowerbird_agent.errors import SpoolError
from bowerbird_agent.mqtt_link import LinkDown, LinkEvent, LinkUp, Published, packet_bytes
from bowerbird_agent.spool import FrameState, ReceiptCounts, Spool
from bowerbird_agent.uploader import (
    Acknowledged,
    Down,
    Event,
    FrameReady,
    NotTaken,
    Publish,
    Settled,
    Stuck,
    Taken,
    Tick,
    Up,
    Uploader,
    UploadLimits,
    Vanished,
)
from bowerbird_wire import codec
from bowerbird_wire.errors import WireError
from bowerbird_wire.messages import Receipt
from bowerbird_wire.topics import DeviceTopic, FrameTopic, ReceiptTopic

log = logging.getLogger(__name__)

_BUDGET_NOTE = "budget"
_AHEAD_BYTES = 256 * 1024  # spent in advance on disk, so that a crash loses budget instead of exceeding it
_FAULT_PAUSE_S = 5.0


class Link(Protocol):
    """What is needed of `mqtt_link.MqttLink`."""

    @property
    def bytes_sent(self) -> int:
        """All MQTT bytes written since the start."""

    def publish(self, topic: DeviceTopic, payload: bytes, *, qos: int = 1, retain: bool = False) -> int:
        """A token, or 0 when it was not taken."""


def restore_budget(spool: Spool, limits: ByteLimits, now_s: float, *, elapsed_off_s: float = 0.0) -> TokenBucket:
    """The byte budget as the last run left it; a damaged one starts empty, so that damage buys no bytes."""
    saved = spool.note(_BUDGET_NOTE)
    if saved is None:
        return TokenBucket(limits, now_s)
    try:
        return TokenBucket.from_state(limits, json.loads(saved), now_s, elapsed_off_s=elapsed_off_s)
    except (ValueError, TypeError, AttributeError):
        log.warning("the saved byte budget is damaged; starting with an empty one")
        return TokenBucket.exhausted(limits, now_s)


class UploadRunner:
    """The upload of one device. One thread owns it.

    Args:
        spool: where frames come from and receipts go.
        link: what publishes.
        site, device: of the frame topic.
        budget: the token bucket, see `restore_budget`. Control traffic and keep-alives are charged to it as well.
        now_s: monotonic seconds.
    """

    def __init__(
        self,
        spool: Spool,
        link: Link,
        site: str,
        device: str,
        budget: TokenBucket,
        *,
        now_s: float,
        limits: UploadLimits | None = None,
    ) -> None:
        self._spool = spool
        self._link = link
        self._topic = FrameTopic(site, device)
        self._budget = budget
        self.uploader = Uploader(budget, limits, packet_bytes=lambda size: packet_bytes(self._topic, size))
        self._tokens: dict[int, str] = {}  # publish token -> frame, until the PUBACK
        self._charged = 0  # bytes that the budget knows of, never below what the link has written
        self._said: set[str] = set()
        self._pause_until_s = -math.inf
        self._set_ahead()
        self._save_budget()
        for frame in spool.frames(FrameState.IN_DOUBT):
            self.uploader.handle(FrameReady(frame.frame_id, frame.message_bytes, in_doubt=True), now_s)

    def handle(self, event: LinkEvent, now_s: float) -> ReceiptCounts | None:
        """Take an event of the link; what was a receipt returns its counts, everything else None. Other messages are ignored."""
        if isinstance(event, LinkUp):
            self._tokens.clear()
            self._feed(Up(event.max_packet_bytes, event.receive_maximum), now_s)
        elif isinstance(event, LinkDown):
            self._feed(Down(), now_s)
        elif isinstance(event, Published):
            frame_id = self._tokens.pop(event.token, None)
            if frame_id is not None:
                self._feed(Acknowledged(frame_id, event.accepted), now_s)
        elif isinstance(event.topic, ReceiptTopic):
            return self._receipt(event.payload, now_s)
        return None

    def pump(self, now_s: float) -> float:
        """Publish what may be published now. Returns the monotonic time at which to call again without an event (may be infinity)."""
        self._charge_control(now_s)
        if now_s < self._pause_until_s:
            return self._pause_until_s
        try:
            self._feed(Tick(), now_s)
            while True:
                if self.uploader.wants_frame:
                    offered = self._spool.next_new(self.uploader.known)
                    if offered is not None:
                        self._feed(FrameReady(offered.frame_id, offered.message_bytes), now_s)
                decision = self.uploader.decide(now_s)
                if isinstance(decision, Publish):
                    self._publish(decision.frame_id, now_s)
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

        The bytes that a waiting frame needs, half of the bucket and half of the day stay for frames.
        """
        size = packet_bytes(topic, len(payload), qos=0)
        if not self._has_room_beside(size, now_s):
            return False
        if self._budget.needs_save:
            self._save_budget()
        if self._link.publish(topic, payload, qos=0) == 0:
            return False
        self._budget.charge(now_s, size)
        self._charged += size
        return True

    def _has_room_beside(self, size: int, now_s: float) -> bool:
        left, today = self._budget.left_bytes(now_s), self._budget.left_today_bytes(now_s)
        limits = self._budget.limits
        caps = [cap for cap in (limits.burst_bytes, limits.bytes_per_day) if cap is not None]
        if left is None or not caps:
            return True
        if today is not None and limits.bytes_per_day is not None and today - size < limits.bytes_per_day // 2:
            return False
        return left - size >= max(min(caps) // 2, self.uploader.waiting_bytes)

    def change_limits(self, limits: ByteLimits, now_s: float) -> None:
        """Other caps from now on, also on the disk."""
        self._budget.change_limits(limits, now_s)
        self._set_ahead()
        self._save_budget()

    def _set_ahead(self) -> None:
        caps = [cap // 20 for cap in (self._budget.limits.burst_bytes, self._budget.limits.bytes_per_day) if cap is not None]
        self._ahead_bytes = min([_AHEAD_BYTES, *caps])

    def close(self) -> None:
        """Write the budget down as it is."""
        if self._budgeted:
            self._spool.set_note(_BUDGET_NOTE, json.dumps(self._budget.to_state()))

    def _publish(self, frame_id: str, now_s: float) -> None:
        # The state is on disk before the bytes leave: after a crash the frame is in doubt, never forgotten.
        payload = self._spool.message(frame_id) if self._spool.mark_sent(frame_id) else None
        if payload is None:
            self._feed(Vanished(frame_id), now_s)
            return
        if self._budget.needs_save:
            self._save_budget()
        token = self._link.publish(self._topic, payload)
        if token == 0:
            self._feed(NotTaken(frame_id), now_s)
            return
        self._tokens[token] = frame_id
        self._feed(Taken(frame_id), now_s)
        self._charged += packet_bytes(self._topic, len(payload))

    def _receipt(self, payload: bytes, now_s: float) -> ReceiptCounts | None:
        try:
            receipt = codec.decode(Receipt, payload)
        except WireError as error:
            self._say(f"a receipt cannot be read and is ignored ({error}); update the agent or the server", "receipt")
            return None
        try:
            counts = self._spool.receipt(receipt)
        except SpoolError as error:
            self._say(f"a receipt cannot be recorded, the server will be asked again: {error}", "fault")
            return None
        self._said -= {"fault", "silence"}
        self._feed(Settled((*receipt.committed, *(refusal.frame_id for refusal in receipt.refused))), now_s)
        return counts

    def _feed(self, event: Event, now_s: float) -> None:
        doubtful = self.uploader.handle(event, now_s)
        if doubtful:
            try:
                self._spool.mark_in_doubt(doubtful)
            except SpoolError as error:  # the next start wakes SENT as IN_DOUBT, so nothing depends on it
                log.debug("frames in doubt could not be noted: %s", error)

    def _charge_control(self, now_s: float) -> None:
        """Everything on the wire counts: status, health, keep-alives and acknowledgements are charged after the fact."""
        behind = self._link.bytes_sent - self._charged
        if behind > 0:
            self._budget.charge(now_s, behind)
            self._charged += behind
            if self._budget.needs_save:
                self._save_budget()

    @property
    def _budgeted(self) -> bool:
        limits = self._budget.limits
        return limits.bytes_per_s is not None or limits.bytes_per_day is not None

    def _save_budget(self) -> None:
        state = self._budget.to_state(ahead_bytes=self._ahead_bytes)
        if self._budgeted:
            self._spool.set_note(_BUDGET_NOTE, json.dumps(state))

    def _say(self, text: str, about: str) -> None:
        log.log(logging.DEBUG if about in self._said else logging.WARNING, "%s", text)
        self._said.add(about)
