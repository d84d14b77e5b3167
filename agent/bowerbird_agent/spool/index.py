"""The spool's index: which frame is in which state, and the counters that prove that none was lost.

In: states and counts, from `spool.py` only. Out: rows. One SQLite file in WAL mode beside the frame files; every change of a row
and the counter that accounts for it are one transaction. It touches no frame file and can be thrown away: the files can rebuild it.
Not thread-safe by itself; the spool holds its lock around every call.
"""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from bowerbird_agent.errors import SpoolError, SpoolFault, SpoolFull
from bowerbird_agent.spool.eviction import EXPLORE, Row
from bowerbird_agent.spool.schema import FROM_1, SCHEMA, SCHEMA_VERSION
from bowerbird_agent.spool.send_order import Turn
from bowerbird_wire.linked import FETCHED
from bowerbird_wire.messages import Tombstone


class FrameState(str, Enum):
    """Where a frame in the spool stands."""

    CANDIDATE = "candidate"  # kept until its selection window closes
    NEW = "new"  # chosen, not yet sent
    SENT = "sent"  # handed to the broker; a PUBACK proves nothing
    IN_DOUBT = "in_doubt"  # sent, but the receipt did not come


class Outcome(str, Enum):
    """How a frame left the spool. The values open the names of the counters."""

    COMMITTED = "committed"  # the server's receipt
    REFUSED = "refused"  # the server will never take it
    EVICTED = "evicted"  # the spool was full
    DROPPED = "dropped"  # the agent decided: not chosen, damaged file


# State on disk at power loss -> state at boot. Total. A sent frame may or may not have arrived.
WAKE_IN: Mapping[FrameState, FrameState] = {
    FrameState.CANDIDATE: FrameState.CANDIDATE,
    FrameState.NEW: FrameState.NEW,
    FrameState.SENT: FrameState.IN_DOUBT,
    FrameState.IN_DOUBT: FrameState.IN_DOUBT,
}

SPOOLED = "spool.spooled"
PROMOTED = "spool.promoted"


@dataclass(frozen=True)
class SpooledFrame:
    """A row: what is known of a frame without opening its file. `message_bytes` is the size of the payload to publish.

    `group` is what it counts as when the spool is full, see `spool_eviction.group_of`; "" for its arm.
    """

    frame_id: str
    state: FrameState
    arm: str
    score: float
    message_bytes: int
    camera: str
    sequence: int
    captured_at_ms: int
    group: str = ""
    probability: float = 0.0


def send_value(arm: str, score: float) -> float:
    """What a frame is worth when the next one to send is chosen: the random sample first, then what a person asked for."""
    return {EXPLORE: 3.0, FETCHED: 2.0}.get(arm, min(max(score, 0.0), 1.0))


@dataclass(frozen=True)
class Ledger:
    """What became of every frame that was ever spooled. `balanced` must hold after any fault.

    `evicted`, `refused` and `dropped` count by reason; `in_spool` by state.
    """

    spooled: int = 0
    committed: int = 0
    evicted: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    in_spool: Mapping[str, int] = field(default_factory=dict)

    def dropped_by_reason(self) -> dict[str, int]:
        """`dropped` without groups and score bins."""
        found: dict[str, int] = {}
        for reason, count in self.dropped.items():
            short = reason.partition(".")[0]
            found[short] = found.get(short, 0) + count
        return found

    @property
    def settled(self) -> int:
        """Frames that left the spool, however."""
        return self.committed + sum(self.evicted.values()) + sum(self.refused.values()) + sum(self.dropped.values())

    @property
    def difference(self) -> int:
        """Frames spooled and not accounted for; anything but 0 is a fault of ours."""
        return self.spooled - self.settled - sum(self.in_spool.values())

    @property
    def balanced(self) -> bool:
        """spooled = committed + evicted + refused + dropped + still in spool."""
        return self.difference == 0


# Named tombstones that nobody fetches; the oldest go first, and the counters know of all.
_MOST_TOMBSTONES = 5000
_WAL_BYTES = 400 * 1024

_COLUMNS = (
    'frame_id, state, arm, score, message_bytes, camera, sequence, captured_at_ms, eviction_group AS "group", probability'
)
_TURNS = {
    Turn.VALUE: "send_value DESC, send_order",
    Turn.FRESHEST: "captured_at_ms DESC, send_order",
    Turn.OLDEST: "captured_at_ms, send_order",
}


def disk_fault(error: OSError | sqlite3.Error, path: Path) -> SpoolError:
    """The error of ours that says what the disk did and what to do about it."""
    text = str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SpoolFull(f"the disk of the spool {path} is full: free space or lower spool.max_bytes")
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return SpoolFault(f"the spool {path} cannot be written ({error.strerror}): check the mount and the folder's owner")
    if isinstance(error, sqlite3.OperationalError):
        if "full" in text:
            return SpoolFull(f"the disk of the spool {path} is full: free space or lower spool.max_bytes")
        if "readonly" in text or "read-only" in text or "unable to open" in text:
            return SpoolFault(f"the spool {path} cannot be written ({text}): check the mount and the folder's owner")
    if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
        return SpoolFault(f"the index of the spool {path} is damaged ({text}): restart the agent, it is rebuilt from the files")
    return SpoolFault(f"the disk of the spool {path} does not work ({text}): check it with dmesg and fsck")


class SpoolIndex:
    """The open index. `Damaged` is raised by opening one that cannot be read; the spool then rebuilds it.

    Args:
        path: of the SQLite file; made when missing.
        remember: how many settled frame ids are kept, so that a film run again is not sent twice.
    """

    class Damaged(Exception):
        """The file is not a usable index."""

    def __init__(self, path: Path, *, remember: int) -> None:
        self._path = path
        self._remember = remember
        self.fresh = not path.exists()
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
            # A change of a row writes a page: small ones keep what is written beside the frames small. Only a new file takes it up.
            self._db.execute("PRAGMA page_size = 1024")
            self._db.execute("PRAGMA journal_mode = WAL")
            page_bytes = self._db.execute("PRAGMA page_size").fetchone()[0]
            self._db.execute(f"PRAGMA wal_autocheckpoint = {_WAL_BYTES // page_bytes}")
            self._db.execute("PRAGMA journal_size_limit = 262144")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                self.fresh = True
                self._db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
            elif version == 1 and self._db.execute("PRAGMA quick_check").fetchone()[0] == "ok":
                self._db.executescript(f"BEGIN; {FROM_1} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
            elif version != SCHEMA_VERSION or self._db.execute("PRAGMA quick_check").fetchone()[0] != "ok":
                raise SpoolIndex.Damaged(f"index {path}: damaged, or of schema version {version}")
        except sqlite3.OperationalError as error:
            raise disk_fault(error, path.parent) from error
        except sqlite3.DatabaseError as error:
            raise SpoolIndex.Damaged(f"index {path}: {error}") from error
        self._synchronous = ""
        self._last_order: int = self._db.execute("SELECT coalesce(max(send_order), 0) FROM frame").fetchone()[0]

    def close(self) -> None:
        """Close the file; the WAL is folded into it."""
        self._db.close()

    def size_bytes(self) -> int:
        """What the index takes on disk, WAL included."""
        total = 0
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                total += Path(f"{self._path}{suffix}").stat().st_size
        return total

    @contextlib.contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[None]:
        """All or nothing. `durable` waits for the disk; without it a power cut may take the change back (kill -9 never does).

        Raises:
            SpoolFull, SpoolFault: the disk refused; nothing has changed.
        """
        wanted = "FULL" if durable else "NORMAL"
        try:
            if wanted != self._synchronous:
                self._db.execute(f"PRAGMA synchronous = {wanted}")
                self._synchronous = wanted
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise disk_fault(error, self._path.parent) from error

    # -- frames

    def insert(self, frame: SpooledFrame, disk_bytes: int, *, count_promoted: bool = True) -> None:
        """Add a row and count it as spooled; a promoted one goes to the end of the send order and is counted as promoted."""
        promoted = frame.state is not FrameState.CANDIDATE
        self._db.execute(
            "INSERT INTO frame (frame_id, state, arm, score, density, message_bytes, disk_bytes, send_order, camera, "
            "sequence, captured_at_ms, eviction_group, send_value, probability) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                frame.frame_id,
                frame.state.value,
                frame.arm,
                frame.score,
                frame.score / max(frame.message_bytes, 1),
                frame.message_bytes,
                disk_bytes,
                self._next_order() if promoted else None,
                frame.camera,
                frame.sequence,
                frame.captured_at_ms,
                frame.group or frame.arm,
                send_value(frame.arm, frame.score),
                frame.probability,
            ),
        )
        self._db.execute("DELETE FROM settled WHERE frame_id = ?", (frame.frame_id,))
        # What a person asked for is not the selection's, and no part of what `Desired.frames_total` counts.
        self.count({SPOOLED: 1, PROMOTED: int(promoted and count_promoted and frame.arm != FETCHED)})

    def _next_order(self) -> int:
        self._last_order += 1
        return self._last_order

    def promote(self, frame_id: str) -> bool:
        """CANDIDATE -> NEW at the end of the send order; False when it is not a candidate."""
        changed = self._db.execute(
            "UPDATE frame SET state = ?, send_order = ? WHERE frame_id = ? AND state = ?",
            (FrameState.NEW.value, self._next_order(), frame_id, FrameState.CANDIDATE.value),
        ).rowcount
        self.count({PROMOTED: changed})
        return changed == 1

    def move(self, frame_id: str, to: FrameState, allowed_from: Iterable[FrameState]) -> bool:
        """Change one frame's state; False when it is gone or in none of the allowed states."""
        sources = [state.value for state in allowed_from]
        marks = ",".join("?" * len(sources))
        changed = self._db.execute(
            f"UPDATE frame SET state = ? WHERE frame_id = ? AND state IN ({marks})",  # noqa: S608 - only question marks
            (to.value, frame_id, *sources),
        ).rowcount
        return changed == 1

    def wake(self) -> int:
        """Apply `WAKE_IN` to all rows; returns how many changed."""
        changed = 0
        for before, after in WAKE_IN.items():
            if before is not after:
                changed += self._db.execute("UPDATE frame SET state = ? WHERE state = ?", (after.value, before.value)).rowcount
        return changed

    def settle(self, frame_id: str, outcome: Outcome, reason: str = "") -> bool:
        """Take a frame out, count why, and remember its id. False when it is not there."""
        if self._db.execute("DELETE FROM frame WHERE frame_id = ?", (frame_id,)).rowcount == 0:
            return False
        self.count({f"spool.{outcome.value}" + (f":{reason}" if reason else ""): 1})
        self.remember(frame_id, outcome)
        return True

    def remember(self, frame_id: str, outcome: Outcome) -> None:
        """Note how a frame ended, forgetting the oldest beyond the limit."""
        self._db.execute(
            "INSERT INTO settled (frame_id, outcome) VALUES (?, ?) ON CONFLICT (frame_id) DO UPDATE SET outcome = excluded.outcome",
            (frame_id, outcome.value),
        )
        self._db.execute(
            "DELETE FROM settled WHERE number <= (SELECT max(number) FROM settled) - ?",
            (self._remember,),
        )

    def outcome(self, frame_id: str) -> Outcome | None:
        """How a frame left the spool, as far as that is remembered."""
        row = self._db.execute("SELECT outcome FROM settled WHERE frame_id = ?", (frame_id,)).fetchone()
        return None if row is None else Outcome(row[0])

    def frame(self, frame_id: str) -> SpooledFrame | None:
        """One row."""
        return next(iter(self._frames("WHERE frame_id = ?", (frame_id,))), None)

    def frames(self, state: FrameState) -> tuple[SpooledFrame, ...]:
        """All rows of a state in send order."""
        return tuple(self._frames("WHERE state = ? ORDER BY send_order, captured_at_ms, frame_id", (state.value,)))

    def all_frames(self) -> tuple[SpooledFrame, ...]:
        """All rows, oldest first."""
        return tuple(self._frames("ORDER BY captured_at_ms, frame_id", ()))

    def first_new(self, skip: Callable[[str], bool], turn: Turn = Turn.VALUE) -> SpooledFrame | None:
        """The first row that is NEW and not skipped, in the order of the turn."""
        # The state stands in the text, not as a parameter: the indexes are of new frames only, to write less, and must be found.
        rows = self._frames(f"WHERE state = 'new' ORDER BY {_TURNS[turn]}", ())
        return next((frame for frame in rows if not skip(frame.frame_id)), None)

    def evictable(self, *, explore: bool) -> Iterator[Row]:
        """What may be given up of the random sample, or of everything else, worst first.

        The explore arm is a random sample: its order is that of the ids, which are hashes, so what remains stays a random sample.
        """
        # Read at once: an open cursor would hold up the transaction that evicts.
        rows = self._db.execute(
            "SELECT frame_id, eviction_group, score, density, disk_bytes FROM frame WHERE state IN (?, ?) "
            "AND (eviction_group = ?) = ? ORDER BY CASE WHEN eviction_group = ? THEN 0 ELSE density END, frame_id",
            (FrameState.CANDIDATE.value, FrameState.NEW.value, EXPLORE, int(explore), EXPLORE),
        ).fetchall()
        return (Row(*row) for row in rows)

    def disk_bytes(self) -> dict[str, int]:
        """Bytes on disk by eviction group."""
        return dict(self._db.execute("SELECT eviction_group, sum(disk_bytes) FROM frame GROUP BY eviction_group"))

    # -- tombstones

    def bury(self, frame_id: str, why: str) -> None:
        """Name a frame that is about to go unsent, with what an unbiased estimate needs to allow for it."""
        self._db.execute(
            "INSERT INTO tombstone (frame_id, arm, why, score, probability, camera, captured_at_ms) "
            "SELECT frame_id, arm, ?, score, probability, camera, captured_at_ms FROM frame WHERE frame_id = ?",
            (why, frame_id),
        )
        self._db.execute("DELETE FROM tombstone WHERE number <= (SELECT max(number) FROM tombstone) - ?", (_MOST_TOMBSTONES,))

    def tombstones(self, limit: int) -> tuple[Tombstone, ...]:
        """The oldest named tombstones."""
        rows = self._db.execute("SELECT * FROM tombstone ORDER BY number LIMIT ?", (limit,))
        return tuple(Tombstone(number, bytes.fromhex(frame_id), *rest) for number, frame_id, *rest in rows)

    def forget_tombstones(self, up_to: int) -> int:
        """The server has them; returns how many went."""
        return self._db.execute("DELETE FROM tombstone WHERE number <= ?", (up_to,)).rowcount

    def unsent_bytes(self) -> int:
        """Message bytes of all frames in state NEW."""
        row = self._db.execute(
            "SELECT coalesce(sum(message_bytes), 0) FROM frame WHERE state = ?", (FrameState.NEW.value,)
        ).fetchone()
        return int(row[0])

    def states(self) -> dict[str, str]:
        """Frame id -> state of all rows."""
        return dict(self._db.execute("SELECT frame_id, state FROM frame"))

    def counts(self) -> dict[str, int]:
        """How many frames are in each state; every state is a key."""
        found = dict(self._db.execute("SELECT state, count(*) FROM frame GROUP BY state"))
        return {state.value: int(found.get(state.value, 0)) for state in FrameState}

    def _frames(self, where: str, values: Sequence[object]) -> Iterator[SpooledFrame]:
        for row in self._db.execute(f"SELECT {_COLUMNS} FROM frame {where}", values):  # noqa: S608 - constants of this file
            yield SpooledFrame(row[0], FrameState(row[1]), *row[2:])

    # -- counters

    def count(self, deltas: Mapping[str, int]) -> None:
        """Add to counters; a missing one starts at 0."""
        self._db.executemany(
            "INSERT INTO counter (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            [(name, delta) for name, delta in deltas.items() if delta],
        )

    def set_counter(self, name: str, value: int) -> None:
        """Set one counter."""
        self._db.execute(
            "INSERT INTO counter VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", (name, value)
        )

    def counters(self) -> dict[str, int]:
        """All counters by name."""
        return dict(self._db.execute("SELECT name, value FROM counter"))

    def counter(self, name: str) -> int:
        """One counter, 0 when it was never counted."""
        row = self._db.execute("SELECT value FROM counter WHERE name = ?", (name,)).fetchone()
        return 0 if row is None else int(row[0])

    def set_note(self, name: str, value: str) -> None:
        """Keep a short text, e.g. the state of the byte budget."""
        self._db.execute(
            "INSERT INTO note VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", (name, value)
        )

    def note(self, name: str) -> str | None:
        """A kept text."""
        row = self._db.execute("SELECT value FROM note WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def notes(self) -> dict[str, str]:
        """All kept texts."""
        return dict(self._db.execute("SELECT name, value FROM note"))

    def ledger(self) -> Ledger:
        """The account of all frames; call it inside a transaction to have rows and counters of one moment."""
        return ledger_of(self.counters(), self.counts())


def ledger_of(counters: Mapping[str, int], in_spool: Mapping[str, int]) -> Ledger:
    """The account from the spool's counters and the frames that are there."""

    def by_reason(outcome: Outcome) -> dict[str, int]:
        prefix = f"spool.{outcome.value}:"
        return {name[len(prefix) :]: value for name, value in sorted(counters.items()) if name.startswith(prefix)}

    return Ledger(
        spooled=counters.get(SPOOLED, 0),
        committed=counters.get(f"spool.{Outcome.COMMITTED.value}", 0),
        evicted=by_reason(Outcome.EVICTED),
        refused=by_reason(Outcome.REFUSED),
        dropped=by_reason(Outcome.DROPPED),
        in_spool=dict(in_spool),
    )


def salvage(path: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Counters and notes of a damaged index, as far as they can still be read."""
    counters: dict[str, int] = {}
    notes: dict[str, str] = {}
    with contextlib.suppress(sqlite3.Error):
        db = sqlite3.connect(path)
        with contextlib.closing(db):
            with contextlib.suppress(sqlite3.Error):
                counters = {str(name): int(value) for name, value in db.execute("SELECT name, value FROM counter")}
            with contextlib.suppress(sqlite3.Error):
                notes = {str(name): str(value) for name, value in db.execute("SELECT name, value FROM note")}
    return counters, notes
