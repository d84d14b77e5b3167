"""Answers wishes for more of a frame, and keeps what can be asked for. The spool thread owns it.

In: frames as they are kept, pictures that pass, wishes of the server. Out: linked frames in the spool, and answers. What is fetched
goes the spool's way like every frame (budget, parts, receipts), under a daily cap of its own on top; it has the arm `fetched`, so it
is no part of the selection. The same wish again changes nothing: its frames have the same ids. It opens no connection.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Literal, Protocol

from bowerbird_agent.budget.budget import ByteLimits, TokenBucket
from bowerbird_agent.errors import SpoolError
from bowerbird_agent.storing.encode import outward, wire_regions
from bowerbird_agent.storing.surroundings import Moment, Surroundings
from bowerbird_wire import codec
from bowerbird_wire.linked import AROUND, AROUND_OF, FETCHED, MAX_AROUND_S, ORIGINAL, ORIGINAL_OF
from bowerbird_wire.messages import Fetch, FetchAnswer, FrameHeader, FrameMessage, WireDetection

if TYPE_CHECKING:
    from bowerbird_agent.capture.capture import Frame
    from bowerbird_agent.storing.encode import CoveredFrame, Encoded, FrameEncoder
    from bowerbird_agent.storing.fetch_config import FetchConfig
    from bowerbird_agent.storing.originals import Originals
    from bowerbird_wire.messages import EraseWish

log = logging.getLogger(__name__)

_NOTE = "fetch_budget"
_MOST_PENDING = 64
_AROUND_GONE = (
    "only a camera's last seconds are in memory (fetch.around_memory_mb); fetch.around_reasons in agent.toml keeps those around "
    "later frames on disk"
)


class Spooling(Protocol):
    """What is needed of the spool."""

    def put(self, header: FrameHeader, image: bytes, state: Literal["candidate", "new"] = "candidate") -> bool: ...
    def note(self, name: str) -> str | None: ...
    def set_note(self, name: str, value: str) -> None: ...


@dataclass(frozen=True)
class _Pending:
    """A kept frame whose surroundings are written once its later side has passed."""

    header: FrameHeader
    due_s: float


class Fetching:
    """The keeper.

    Args:
        config: the `[fetch]` section.
        originals: what is on disk.
        surroundings: what is in memory.
        encoder: makes pictures as they are sent, and as the camera gave them.
        spool: where fetched frames go.
        now_s: monotonic seconds.
    """

    def __init__(
        self,
        config: FetchConfig,
        originals: Originals,
        surroundings: Surroundings,
        encoder: FrameEncoder,
        spool: Spooling,
        *,
        now_s: float,
    ) -> None:
        self._config, self._originals, self._surroundings = config, originals, surroundings
        self._encoder, self._spool = encoder, spool
        self._lock = threading.Lock()  # `erase` comes from another thread
        self._pending: list[_Pending] = []
        self._budget = self._restore_budget(now_s)

    # -- what can be asked for later

    def wants(self, frame: Frame) -> bool:
        """Whether the surroundings want this picture; asked in the inference thread for every frame."""
        return self._surroundings.wants(frame.camera, frame.captured_at_ms)

    def passed(self, covered: CoveredFrame) -> None:
        """Take a picture into the ring of its camera."""
        frame = covered.frame
        encoded = self._encoder.image(frame.image_bgr)
        height, width = frame.image_bgr.shape[:2]
        self._surroundings.add(
            frame.camera,
            Moment(
                frame.captured_at_ms,
                frame.sequence,
                frame.monotonic_ns,
                encoded.jpeg,
                encoded.width,
                encoded.height,
                width,
                height,
                wire_regions(covered.regions, (width, height), (encoded.width, encoded.height)),
            ),
        )

    def forget(self, camera: str) -> None:
        """Let go of what passed at a camera: its masks or its redaction have changed."""
        self._surroundings.forget(camera)

    def erase(self, wish: EraseWish) -> int:
        """Delete what is kept for frames that the wish covers, and pictures of their time; returns how many. Any thread may call it."""
        with self._lock:
            self._pending = [
                waiting
                for waiting in self._pending
                if not wish.covers(waiting.header.frame_id, waiting.header.camera, waiting.header.captured_at_ms)
            ]
        return self._originals.erase(wish) + self._surroundings.erase(wish)

    def kept(self, header: FrameHeader, frame: Frame, now_s: float) -> None:
        """A frame has become a candidate: its original is kept where it is larger, its surroundings when a rule says so."""
        if not self._originals.keeps:
            return
        if (header.source_width, header.source_height) != (header.width, header.height):
            encoded = self._encoder.original(frame.image_bgr, quality=self._config.originals_quality)
            self._originals.put(original_of(header, encoded, self._config.originals_quality), of=header.frame_id, kind=ORIGINAL)
        spoke = {header.arm, *header.reasons}
        if spoke.intersection(self._config.around_reasons) and len(self._pending) < _MOST_PENDING:
            with self._lock:
                self._pending.append(_Pending(header, now_s + self._config.around_s))

    def not_chosen(self, frame_ids: Iterable[str]) -> None:
        """Candidates that nobody will see: what was kept of them goes as well."""
        gone = set(frame_ids)
        with self._lock:
            self._pending = [waiting for waiting in self._pending if waiting.header.frame_id not in gone]
        self._originals.discard(gone)

    def tick(self, now_s: float) -> None:
        """Write the surroundings that are complete."""
        with self._lock:
            due = [waiting for waiting in self._pending if waiting.due_s <= now_s]
            if not due:
                return
            self._pending = [waiting for waiting in self._pending if waiting.due_s > now_s]
        for waiting in due:
            header = waiting.header
            for number, moment in enumerate(self._around(header.camera, header.captured_at_ms, self._config.around_s)):
                message = around(header.frame_id, header, moment, self._encoder.image_config.quality)
                self._originals.put(message, of=header.frame_id, kind=AROUND, number=number)

    # -- wishes

    def answer(self, fetch: Fetch, now_s: float) -> FetchAnswer:
        """Do what is asked, as far as it can be done; the answer says which frames are in the spool now."""
        frame_id = fetch.frame.hex()
        if fetch.kind == ORIGINAL:
            if not self._originals.keeps:
                return _refused(fetch, "off", "this device keeps no originals: fetch.originals_max_bytes is 0")
            messages = self._originals.of(frame_id, ORIGINAL)
        elif fetch.kind == AROUND and 0 < fetch.seconds <= MAX_AROUND_S:
            if self._config.around_memory_mb == 0 and not self._originals.keeps:
                return _refused(fetch, "off", "this device keeps no surroundings: fetch.around_memory_mb is 0")
            messages = self._all_around(frame_id, fetch)
        else:
            return _refused(fetch, "unknown_kind", f"this release knows no {fetch.kind[:40]!r} of {fetch.seconds:g} s")
        if not messages:
            detail = _AROUND_GONE if fetch.kind == AROUND else "it is not kept any more, or never was"
            return FetchAnswer(fetch.request, "gone", detail=detail)
        size = sum(len(message.image) for message in messages)
        if self._budget.wait_s(now_s, size) > 0.0:
            return _refused(fetch, "budget", f"{size} bytes are more than fetch.bytes_per_day leaves now")
        new_bytes = 0
        try:
            for message in messages:
                if self._spool.put(message.header, message.image, "new"):
                    new_bytes += len(message.image)
        except SpoolError as error:
            return _refused(fetch, "spool", str(error)[:300])
        finally:
            if new_bytes:
                self._budget.spend(now_s, new_bytes)
                self._save_budget()
        return FetchAnswer(fetch.request, "sent", tuple(bytes.fromhex(message.header.frame_id) for message in messages))

    def _all_around(self, frame_id: str, fetch: Fetch) -> list[FrameMessage]:
        found = {message.header.sequence: message for message in self._originals.of(frame_id, AROUND)}
        # The device may not know the frame any more: the server says where and when it was.
        camera, at_ms = fetch.extra.get("cam"), fetch.extra.get("t")
        if isinstance(camera, str) and isinstance(at_ms, int):
            within_ms = fetch.seconds * 1000.0
            found = {n: m for n, m in found.items() if abs(m.header.captured_at_ms - at_ms) <= within_ms}
            base = FrameHeader("", "", self._encoder.device, camera, 0, at_ms, 0, 0)
            for moment in self._around(camera, at_ms, fetch.seconds):
                found.setdefault(moment.sequence, around(frame_id, base, moment, self._encoder.image_config.quality))
        return sorted(found.values(), key=lambda message: message.header.captured_at_ms)

    def _around(self, camera: str, at_ms: int, seconds: float) -> list[Moment]:
        return self._surroundings.around(camera, at_ms, seconds)

    def _restore_budget(self, now_s: float) -> TokenBucket:
        limits = ByteLimits(bytes_per_day=self._config.bytes_per_day)
        saved = self._spool.note(_NOTE)
        try:
            return TokenBucket(limits, now_s) if saved is None else TokenBucket.from_state(limits, json.loads(saved), now_s)
        except (ValueError, TypeError, AttributeError):
            log.warning("the saved budget of fetched pictures is damaged; it starts anew")
            return TokenBucket(limits, now_s)

    def _save_budget(self) -> None:
        try:
            self._spool.set_note(_NOTE, json.dumps(self._budget.to_state()))
        except SpoolError as error:
            log.debug("the budget of fetched pictures cannot be kept: %s", error)


def original_of(header: FrameHeader, encoded: Encoded, quality: int) -> FrameMessage:
    """The message of a frame's picture as the camera gave it; boxes in its pixels."""
    scale = encoded.width / header.width, encoded.height / header.height
    found = tuple(
        WireDetection(
            (
                round(box.box_xyxy[0] * scale[0], 1),
                round(box.box_xyxy[1] * scale[1], 1),
                round(box.box_xyxy[2] * scale[0], 1),
                round(box.box_xyxy[3] * scale[1], 1),
            ),
            box.score,
            box.class_name,
        )
        for box in header.detections
    )
    sizes = (header.width, header.height), (encoded.width, encoded.height)
    covered = tuple(replace(region, box_xyxy=outward(region.box_xyxy, *sizes)) for region in header.redacted)
    base = replace(header, detections=found, redacted=covered, width=encoded.width, height=encoded.height, quality=quality)
    return _linked(base, encoded.jpeg, {ORIGINAL_OF: header.frame_id})


def around(of: str, header: FrameHeader, moment: Moment, quality: int) -> FrameMessage:
    """The message of a picture around frame `of`, whose header gives device, camera and score."""
    base = replace(
        header,
        sequence=moment.sequence,
        captured_at_ms=moment.captured_at_ms,
        monotonic_ns=moment.monotonic_ns,
        width=moment.width,
        height=moment.height,
        source_width=moment.source_width,
        source_height=moment.source_height,
        quality=quality,
        detections=(),
        redacted=moment.redacted,
    )
    # The same picture may be, or become, a frame of its own or belong to another: a comment makes it a picture of this frame.
    comment = f"around {of[:32]}".encode()
    marked = moment.jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + moment.jpeg[2:]
    return _linked(base, marked, {AROUND_OF: of})


def _linked(base: FrameHeader, jpeg: bytes, extra: dict[str, str]) -> FrameMessage:
    header = replace(
        base,
        image_sha256=sha256(jpeg).hexdigest(),
        arm=FETCHED,
        reasons=(),
        strategy_scores={},
        inclusion_probability=0.0,
        twin="",
        extra=extra,
    )
    return FrameMessage(replace(header, frame_id=codec.frame_id_of(header)), jpeg)


def _refused(fetch: Fetch, code: str, detail: str) -> FetchAnswer:
    return FetchAnswer(fetch.request, "refused", code=code, detail=detail)
