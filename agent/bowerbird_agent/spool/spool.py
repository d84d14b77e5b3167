"""The durable queue of frames, the only store on the device that counts. Only the server's receipt deletes from it.

In: frame headers with their images, promotions and drops from the selection, receipts. Out: payloads to publish, counts, and a
ledger that proves that no frame was lost. A file per frame (`spool/files.py`) and an SQLite index (`spool/index.py`) that is rebuilt
from the files when it is missing or damaged; where the two differ after a crash, the index is right about states and the files about
existence. It does not decide when to send (`uploader.py`) nor what is worth keeping (`select.py`), except when it is full.

Every public method may be called from any thread. `put` writes its file outside the lock, so a slow disk does not hold up receipts.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, TypeVar

from bowerbird_agent.errors import SpoolError, SpoolFault, SpoolFull
from bowerbird_agent.spool.eviction import EXPLORE, FLOORS, group_of, score_bin
from bowerbird_agent.spool.files import FrameFiles, on_disk_bytes
from bowerbird_agent.spool.index import (
    PROMOTED,
    FrameState,
    Ledger,
    Outcome,
    SpooledFrame,
    disk_fault,
)
from bowerbird_agent.spool.recovery import open_index, reconcile, write_snapshot
from bowerbird_agent.spool.room import MIN_SPOOL_BYTES, SpoolRoom, index_bytes
from bowerbird_agent.spool.send_order import turn
from bowerbird_wire import codec
from bowerbird_wire.errors import WireError
from bowerbird_wire.linked import FETCHED
from bowerbird_wire.messages import EraseWish, FrameHeader, FrameMessage, Receipt, Tombstone

log = logging.getLogger(__name__)

T = TypeVar("T")

_SNAPSHOT_EVERY = 64


@dataclass(frozen=True)
class ReceiptCounts:
    """What a receipt did: frames deleted as committed, deleted as refused, and ids that are not in the spool (late or repeated)."""

    committed: int = 0
    refused: int = 0
    unknown: int = 0


class Spool:
    """Frames on their way to the server.

    Args:
        root: folder of its own; made when missing.
        max_bytes: hard cap of frames, index and all; at least `MIN_SPOOL_BYTES`.
        min_free_bytes: the spool does not grow while the disk has less free than this.
        remember: how many ids of settled frames are kept (about 150 bytes each); None for about 1 % of max_bytes.
        floors: reason -> the share of the room below which its frames do not make way for others; see `spool/eviction.py`.

    Raises:
        ValueError: max_bytes is too small.
        SpoolError: the folder cannot be used; the message says what to do.
    """

    def __init__(
        self,
        root: Path,
        *,
        max_bytes: int,
        min_free_bytes: int = 0,
        remember: int | None = None,
        floors: Mapping[str, float] = FLOORS,
    ) -> None:
        if max_bytes < MIN_SPOOL_BYTES:
            raise ValueError(f"spool.max_bytes must be at least {MIN_SPOOL_BYTES}, not {max_bytes}")
        self.root = root
        self._room = SpoolRoom(root, max_bytes=max_bytes, min_free_bytes=min_free_bytes, floors=floors)
        self._remember = min(max(max_bytes // 20_000, 500), 50_000) if remember is None else remember
        self._lock = threading.RLock()
        self._writing: dict[str, int] = {}  # frame id -> bytes promised to a put under way
        self._changes = 0
        self._floors = dict(floors)
        self._offered = 0  # frames handed out by `next_new`: whose turn it is
        self._last_offered = ""
        try:
            self._files = FrameFiles(root / "frames")
            self._claim = self._claim_folder()
        except OSError as error:
            raise disk_fault(error, root) from error
        try:
            self._room.refill()
            self._index = open_index(root, remember=self._remember)
            reconcile(self._index, self._files, self._floors)
        except (OSError, sqlite3.Error) as error:
            self._claim.close()
            raise disk_fault(error, root) from error
        except BaseException:
            self._claim.close()
            raise

    def close(self) -> None:
        """Close the index. The spool can be opened again."""
        with self._lock:
            if not self._claim.closed:
                self._snapshot()
                self._index.close()
                self._claim.close()

    # -- in

    def put(self, header: FrameHeader, image: bytes, state: Literal["candidate", "new"] = "candidate") -> bool:
        """Keep a frame; when this returns True, no crash and no power cut can lose it.

        Returns:
            False when the frame is here already, or the server has it or has refused it (as far as that is remembered).

        Raises:
            SpoolFull: no room, and nothing here is worth less; counted as `spool.full`.
            SpoolFault: the disk refused; counted as `spool.fault` where that is possible.
        """
        payload = codec.encode_frame(FrameMessage(header, image))
        frame = SpooledFrame(
            header.frame_id,
            FrameState(state),
            header.arm,
            header.score,
            len(payload),
            header.camera,
            header.sequence,
            header.captured_at_ms,
            group_of(header.arm, header.reasons, self._floors),
            header.inclusion_probability,
        )
        disk_bytes = on_disk_bytes(len(payload))
        try:
            with self._reading():
                if frame.frame_id in self._writing or self._index.frame(frame.frame_id) is not None:
                    return False
                if self._index.outcome(frame.frame_id) in (Outcome.COMMITTED, Outcome.REFUSED):
                    return False
                self._make_room(frame, disk_bytes)
                self._writing[frame.frame_id] = disk_bytes
            try:
                self._write(frame, payload, disk_bytes)
            finally:
                with self._lock:
                    del self._writing[frame.frame_id]
        except SpoolError as error:
            with contextlib.suppress(SpoolError):
                self.add_counters({"spool.full" if isinstance(error, SpoolFull) else "spool.fault": 1})
            raise
        return True

    def _write(self, frame: SpooledFrame, payload: bytes, disk_bytes: int) -> None:
        try:
            self._files.write(frame.frame_id, payload, candidate=frame.state is FrameState.CANDIDATE)
        except OSError as error:
            raise disk_fault(error, self.root) from error
        try:
            # A row lost in a power cut is found again by its file, hence no second wait for the disk.
            with self._lock, self._index.transaction(durable=False):
                self._index.insert(frame, disk_bytes)
        except SpoolError:
            with contextlib.suppress(OSError):
                self._files.delete(frame.frame_id)
            raise

    def promote(self, frame_ids: Iterable[str]) -> tuple[str, ...]:
        """CANDIDATE -> NEW; of frames that are worth the same, those given first are sent first.

        Counted in `promoted` in the same transaction.

        Returns:
            The ids that were promoted; one that was evicted meanwhile is not among them.
        """
        ids = list(frame_ids)
        with self._lock:
            promoted = self._change(lambda: tuple(frame_id for frame_id in ids if self._index.promote(frame_id)))
            for frame_id in promoted:
                with contextlib.suppress(OSError):  # the name is for a rebuild only; the next start corrects it
                    self._files.rename(frame_id, candidate=False)
            self._snapshot()
        return promoted

    def drop(self, frame_ids: Iterable[str], reason: str) -> int:
        """Give frames up by decision of the agent; returns how many were there.

        A candidate that leaves unsent counts like an eviction, by reason, group and score bin: `weaker.policy.0.3`.
        """
        with self._reading():
            found = [(frame_id, self._index.frame(frame_id)) for frame_id in frame_ids]

        def waited(frame: SpooledFrame) -> bool:
            return frame.state is FrameState.CANDIDATE

        return len(
            self._settle(
                [
                    (frame_id, Outcome.DROPPED, f"{reason}.{frame.group}.{score_bin(frame.score)}" if waited(frame) else reason)
                    for frame_id, frame in found
                    if frame is not None
                ]
            )
        )

    def erase(self, wish: EraseWish) -> int:
        """Delete frames that somebody has the right to have forgotten, in every state; counted as refused with reason `erased`.

        One that is on its way to the server now is deleted here as well; the server refuses it by the same wish.
        """
        with self._reading():
            covered = [
                frame.frame_id
                for frame in self._index.all_frames()
                if wish.covers(frame.frame_id, frame.camera, frame.captured_at_ms)
            ]
        erased = self._settle([(frame_id, Outcome.REFUSED, "erased") for frame_id in covered])
        self._snapshot()
        return len(erased)

    def expire(self, before_ms: int, *, not_before_ms: int = 0) -> int:
        """Give up frames captured before a moment, in every state; counted as evicted with reason `too_old`.

        Args:
            before_ms: UTC, milliseconds.
            not_before_ms: frames with an earlier time are left: their clock was not set, and their age is not known.
        """
        with self._reading():
            rows = [row for row in self._index.all_frames() if not_before_ms <= row.captured_at_ms < before_ms]
        return len(
            self._settle([(row.frame_id, Outcome.EVICTED, f"too_old.{row.group}.{score_bin(row.score)}") for row in rows])
        )

    # -- out

    def next_new(self, exclude: Collection[str] = ()) -> SpooledFrame | None:
        """The next frame to send for the first time, as `send_order.py` says; asking again before it is sent changes nothing."""
        with self._reading():
            if self._last_offered and self._last_offered not in exclude:
                again = self._index.frame(self._last_offered)
                if again is not None and again.state is FrameState.NEW:
                    return again
            found = self._index.first_new(exclude.__contains__, turn(self._offered))
            if found is not None:
                self._offered, self._last_offered = self._offered + 1, found.frame_id
            return found

    def frames(self, state: FrameState) -> tuple[SpooledFrame, ...]:
        """All frames of a state, in send order."""
        with self._reading():
            return self._index.frames(state)

    def frame(self, frame_id: str) -> SpooledFrame | None:
        """What is known of one frame, None when it is not here."""
        with self._reading():
            return self._index.frame(frame_id)

    def message(self, frame_id: str) -> bytes | None:
        """The payload to publish. None when the frame is gone; a damaged file is dropped, counted, and None as well.

        Raises:
            SpoolFault: the disk cannot be read.
        """
        try:
            payload = self._files.read(frame_id)
        except OSError as error:
            raise disk_fault(error, self.root) from error
        if payload is None:
            if self.drop([frame_id], "file_missing"):
                log.warning("frame %s: its spool file is missing; dropped and counted", frame_id[:12])
            return None
        try:
            intact = codec.decode_frame(payload).header.frame_id == frame_id
        except WireError:
            intact = False
        if not intact:
            if self.drop([frame_id], "file_damaged"):
                log.warning("frame %s: its spool file is damaged; dropped and counted", frame_id[:12])
            return None
        return payload

    def read(self, frame_id: str) -> tuple[FrameHeader, bytes] | None:
        """Header and image of a frame; None and SpoolFault as for `message`."""
        payload = self.message(frame_id)
        if payload is None:
            return None
        message = codec.decode_frame(payload)
        return message.header, message.image

    def mark_sent(self, frame_id: str) -> bool:
        """NEW or IN_DOUBT -> SENT, before the bytes leave. False: do not send, the frame is gone."""
        allowed_from = (FrameState.NEW, FrameState.IN_DOUBT, FrameState.SENT)
        return self._change(lambda: self._index.move(frame_id, FrameState.SENT, allowed_from), durable=False)

    def mark_in_doubt(self, frame_ids: Iterable[str] | None = None) -> int:
        """SENT -> IN_DOUBT for these frames, None for all that were sent; returns how many."""
        ids = None if frame_ids is None else list(frame_ids)

        def move() -> int:
            if ids is None:
                return self._index.wake()
            return sum(self._index.move(frame_id, FrameState.IN_DOUBT, (FrameState.SENT,)) for frame_id in ids)

        return self._change(move, durable=False)

    def receipt(self, receipt: Receipt) -> ReceiptCounts:
        """Delete what the server has committed or refused, in one transaction. Repeating a receipt changes nothing.

        Raises:
            SpoolError: the disk refused; nothing has changed, the frames will be in doubt and the server will answer again.
        """
        changes = [(frame_id, Outcome.COMMITTED, "") for frame_id in receipt.committed]
        changes += [(refusal.frame_id, Outcome.REFUSED, refusal.code) for refusal in receipt.refused]
        settled = self._settle(changes)
        for refusal in receipt.refused:
            level = logging.INFO if refusal.code == "near_duplicate" else logging.WARNING
            log.log(level, "frame %s: refused by the server (%s) %s", refusal.frame_id[:12], refusal.code, refusal.detail[:200])
        committed = len(settled.intersection(receipt.committed))
        refused = len(settled) - committed
        return ReceiptCounts(committed, refused, len(changes) - committed - refused)

    def committed(self, frame_id: str) -> bool:
        """Whether the server has this frame, as far as that is remembered."""
        with self._reading():
            return self._index.outcome(frame_id) is Outcome.COMMITTED

    # -- account

    def counts(self) -> dict[str, int]:
        """Frames by state; every state is a key."""
        with self._reading():
            return self._index.counts()

    def ledger(self) -> Ledger:
        """What became of every frame ever spooled, of one moment."""
        with self._reading():
            return self._index.ledger()

    def evicted(self) -> dict[str, int]:
        """Evictions by `reason.group.score bin`, e.g. `spool_full.policy.0.3`."""
        return dict(self.ledger().evicted)

    @property
    def promoted(self) -> int:
        """Frames ever chosen for sending: what `Desired.frames_total` is held against."""
        return self.counter(PROMOTED)

    @property
    def unsent_bytes(self) -> int:
        """Message bytes of the frames that were chosen and are not sent yet."""
        with self._reading():
            return self._index.unsent_bytes()

    @property
    def bytes_used(self) -> int:
        """Bytes on disk, index included."""
        with self._reading():
            return sum(self._index.disk_bytes().values()) + sum(self._writing.values()) + index_bytes(self._index)

    def counter(self, name: str) -> int:
        """A persistent counter, 0 when it was never counted."""
        with self._reading():
            return self._index.counter(name)

    def counters(self) -> dict[str, int]:
        """All persistent counters; those of the spool itself begin with `spool.`."""
        with self._reading():
            return self._index.counters()

    def add_counters(self, deltas: Mapping[str, int], *, durable: bool = False) -> None:
        """Add to counters in one transaction. Unless `durable`, a power cut may take the last seconds back; kill -9 does not."""
        with self._lock, self._index.transaction(durable=durable):
            self._index.count(deltas)

    def set_counter(self, name: str, value: int) -> None:
        """Set a counter, durably."""
        with self._lock, self._index.transaction():
            self._index.set_counter(name, value)

    def note(self, name: str) -> str | None:
        """A short text that was kept, e.g. the state of the byte budget."""
        with self._reading():
            return self._index.note(name)

    def set_note(self, name: str, value: str) -> None:
        """Keep a short text, durably."""
        with self._lock, self._index.transaction():
            self._index.set_note(name, value)

    # -- tombstones

    def tombstones(self, limit: int = 100) -> tuple[Tombstone, ...]:
        """Frames of the random sample, and frames that were asked for, that went unsent and that the server has not heard of."""
        with self._reading():
            return self._index.tombstones(limit)

    def forget_tombstones(self, up_to: int) -> int:
        """The server has noted all tombstones up to this number; returns how many went."""
        return self._change(lambda: self._index.forget_tombstones(up_to), durable=False)

    # -- inside

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """The lock, with SQLite's errors turned into ours."""
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                raise disk_fault(error, self.root) from error

    def _claim_folder(self) -> IO[bytes]:
        """Two agents on one spool would promote, send and delete each other's frames."""
        file = (self.root / "lock").open("wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise SpoolFault(
                f"the spool {self.root} is in use: stop the other agent or give this one its own state_dir"
            ) from error
        return file

    def _change(self, change: Callable[[], T], *, durable: bool = True) -> T:
        """Run `change` in one transaction. On a full disk the ballast makes room: what drains the spool must not wait for space."""
        with self._lock:
            try:
                with self._index.transaction(durable=durable):
                    return change()
            except SpoolFull:
                self._room.give_way()
                with self._index.transaction(durable=durable):
                    return change()
            finally:
                self._room.refill()

    def _settle(self, changes: list[tuple[str, Outcome, str]]) -> set[str]:
        """Take frames out and return the ids that were here.

        Row and counter first, file second: a crash between leaves a file that the next start recognises and removes.
        """
        with self._lock:
            settled = self._change(
                lambda: {frame_id for frame_id, outcome, why in changes if self._settle_row(frame_id, outcome, why)}
            )
            for frame_id in settled:
                try:
                    self._files.delete(frame_id)
                except OSError as error:
                    log.warning("frame %s: cannot delete its file (%s); the next start tries again", frame_id[:12], error)
            self._changes += len(settled)
            if self._changes >= _SNAPSHOT_EVERY:
                self._snapshot()
            return settled

    def _settle_row(self, frame_id: str, outcome: Outcome, reason: str) -> bool:
        if outcome in (Outcome.EVICTED, Outcome.DROPPED):
            frame = self._index.frame(frame_id)
            # Of the random sample a candidate that was not chosen is named as well: estimates take it for missing, not for absent.
            if frame is not None and frame.arm in (EXPLORE, FETCHED):
                self._index.bury(frame_id, f"{outcome.value}:{reason.partition('.')[0]}")
        if self._index.settle(frame_id, outcome, reason):
            return True
        # A receipt for what was evicted or dropped after it was sent: the server has it, so it is not to be sent again.
        if outcome in (Outcome.COMMITTED, Outcome.REFUSED) and self._index.outcome(frame_id) is not None:
            self._index.remember(frame_id, outcome)
        return False

    def _make_room(self, frame: SpooledFrame, disk_bytes: int) -> None:
        """Evict what is worth less until `frame` fits, or raise SpoolFull and evict nothing."""
        victims, why = self._room.victims(self._index, frame, disk_bytes, sum(self._writing.values()))
        self._settle([(victim.frame_id, Outcome.EVICTED, f"{why}.{victim.group}.{victim.score_bin}") for victim in victims])

    def _snapshot(self) -> None:
        self._changes = 0
        write_snapshot(self.root, self._index)


__all__ = ["FrameState", "Ledger", "ReceiptCounts", "Spool", "SpoolFault", "SpoolFull", "SpooledFrame"]
