"""What a device remembers of its updates, in a SQLite file of its own: every transition is one durable transaction.

In: records, floors, bad digests. Out: the same after any power cut. It lies outside TUF's folder on purpose: whoever wipes that
folder cannot make the device forget which releases it has run or how late it is. A damaged file is put aside; the release floor
is then read from its copy.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bowerbird_agent.errors import UpdateError
from bowerbird_agent.updates.updater import Record, State, Subject
from bowerbird_models.durable import write_durably
from bowerbird_wire.codec import from_map, to_map
from bowerbird_wire.errors import WireError
from bowerbird_wire.messages import Job

logger = logging.getLogger(__name__)

SCHEMA = 1
RELEASE_FLOOR, TIME_FLOOR_MS = "release", "time_ms"
FLOOR_OF = {Subject.MODEL: RELEASE_FLOOR, Subject.AGENT: "agent-release"}
_FLOORS = (*FLOOR_OF.values(), TIME_FLOOR_MS)
_KEPT_ANSWERS = 50
_TABLES = """
CREATE TABLE IF NOT EXISTS record (id INTEGER PRIMARY KEY CHECK (id = 1), value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS floor (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS known_bad (digest TEXT PRIMARY KEY, code TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS answer (number INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL UNIQUE, value TEXT NOT NULL) STRICT;
"""


class UpdateState:
    """The file `update.db` of the agent's state folder. Thread-safe.

    Raises:
        UpdateError: the file cannot be opened or written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "update.db"
        self._copy = folder / "floors.json"
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._db = self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise UpdateError(f"cannot open {self._path} ({error}); check its folder, owner and free space") from error
            logger.warning("%s is damaged (%s); it is put aside and a new one begun", self._path, error)
            for suffix in ("", "-wal", "-shm"):
                old = Path(f"{self._path}{suffix}")
                if old.exists():
                    old.replace(f"{old}.damaged")
            self._db = self._open()
            self._restore_floors()

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=10.0)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA:
            db.close()
            raise sqlite3.DatabaseError(f"written by a later release (schema {version})")
        if db.execute("PRAGMA quick_check").fetchone() != ("ok",):
            db.close()
            raise sqlite3.DatabaseError("failed its integrity check")
        db.executescript(_TABLES)
        db.execute(f"PRAGMA user_version = {SCHEMA}")
        return db

    def close(self) -> None:
        """Close the file; nothing is lost when this is never reached."""
        self._db.close()

    def _write(self, change: Callable[[], None]) -> None:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    change()
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                raise UpdateError(f"cannot write {self._path} ({error}); check free space") from error

    # -- the record ---------------------------------------------------------------------------------------------------------

    def record(self) -> Record:
        """The record as last saved, the idle one where there is none or it cannot be read."""
        with self._lock:
            row = self._db.execute("SELECT value FROM record").fetchone()
        if row is None:
            return Record()
        try:
            return _record(json.loads(row[0]))
        except (ValueError, KeyError, TypeError, WireError) as error:
            logger.warning("the update's record cannot be read (%s); starting idle", error)
            return Record()

    def save(self, record: Record, *, release_floor: int | None = None, bad: tuple[str, str] | None = None) -> None:
        """Save the record, and with it what the transition entails, in one transaction.

        Args:
            release_floor: raise the release floor of the record's subject to this.
            bad: digest and code to remember as bad.
        """

        def change() -> None:
            self._db.execute("INSERT OR REPLACE INTO record VALUES (1, ?)", (_text(record),))
            if release_floor is not None:
                self._raise_floor(FLOOR_OF[record.subject], release_floor)
            if bad is not None:
                self._db.execute("INSERT OR REPLACE INTO known_bad VALUES (?, ?)", bad)

        self._write(change)
        if release_floor is not None:
            self._copy_floors()

    # -- floors and memories ------------------------------------------------------------------------------------------------

    def floor(self, name: str) -> int:
        """A floor, 0 where none was set."""
        with self._lock:
            row = self._db.execute("SELECT value FROM floor WHERE name = ?", (name,)).fetchone()
        return int(row[0]) if row else 0

    def raise_floor(self, name: str, value: int) -> None:
        """Raise a floor; a lower value changes nothing."""
        if value > self.floor(name):
            self._write(lambda: self._raise_floor(name, value))
            self._copy_floors()

    def _raise_floor(self, name: str, value: int) -> None:
        self._db.execute(
            "INSERT INTO floor VALUES (?, ?) ON CONFLICT(name) DO UPDATE SET value = max(value, excluded.value)", (name, value)
        )

    def _copy_floors(self) -> None:
        floors = {name: self.floor(name) for name in _FLOORS}
        try:
            write_durably(self._copy, json.dumps(floors).encode())
        except OSError as error:
            logger.warning("cannot write %s (%s); the database has the floors", self._copy, error.strerror)

    def _restore_floors(self) -> None:
        try:
            floors = json.loads(self._copy.read_bytes())
            for name in _FLOORS:
                self.raise_floor(name, int(floors.get(name, 0)))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            logger.warning("no copy of the update floors could be read (%s)", error)

    def known_bad(self) -> dict[str, str]:
        """Digests that failed here, with the code."""
        with self._lock:
            return dict(self._db.execute("SELECT digest, code FROM known_bad").fetchall())

    def remember_answer(self, job_id: str, answer: dict[str, str]) -> None:
        """Keep how a job ended, so that its repetition gets the same answer; the newest 50 are kept."""

        def change() -> None:
            self._db.execute("INSERT OR REPLACE INTO answer (job, value) VALUES (?, ?)", (job_id, json.dumps(answer)))
            self._db.execute(
                "DELETE FROM answer WHERE number NOT IN (SELECT number FROM answer ORDER BY number DESC LIMIT ?)",
                (_KEPT_ANSWERS,),
            )

        self._write(change)

    def answer(self, job_id: str) -> dict[str, str] | None:
        """How a job ended, None where it is not known."""
        with self._lock:
            row = self._db.execute("SELECT value FROM answer WHERE job = ?", (job_id,)).fetchone()
        return json.loads(row[0]) if row else None


def _text(record: Record) -> str:
    plain: dict[str, Any] = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    plain["state"], plain["subject"] = record.state.value, record.subject.value
    plain["job"] = None
    if record.job is not None:
        plain["job"] = {**to_map(record.job), "sig": record.job.signature.hex()}
    return json.dumps(plain, default=str)


def _record(plain: dict[str, Any]) -> Record:
    job = plain.pop("job")
    if job is not None:
        job["sig"] = bytes.fromhex(job["sig"])
        job = from_map(Job, job)
    # What a later version added is passed over: after its trial was lost, this one has to read what it wrote.
    known = {f.name for f in dataclasses.fields(Record)}
    plain = {name: value for name, value in plain.items() if name in known}
    subject = Subject(plain.get("subject", Subject.MODEL.value))
    return Record(**{**plain, "state": State(plain["state"]), "subject": subject, "job": job})
