"""Opening the catalogue, short write transactions, and the append-only event log.

In: the path of `catalogue.db`. Out: `Catalogue`. One connection belongs to one thread; several processes on one host meet in the
file through SQLite's WAL. It knows nothing of frames or models.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from bowerbird_server.access.event_chain import FIRST, digest_of
from bowerbird_server.catalogue.migrations import catalogue_migrations
from bowerbird_server.errors import EnvironmentFault

Row = dict[str, Any]

# From where the work that is under way was asked for, and with which credential: "192.0.2.7 user:ada" for a request to the web.
# It would otherwise have to pass through every function that logs an event.
ORIGIN: ContextVar[str] = ContextVar("origin", default="local")


def utc_now() -> str:
    """Now as UTC ISO text with milliseconds, e.g. `2026-11-22T19:45:12.345Z`."""
    return utc_text(time.time() * 1000)


def utc_text(epoch_ms: float) -> str:
    """Milliseconds since the epoch as UTC ISO text; text order is time order."""
    text = datetime.fromtimestamp(epoch_ms / 1000, tz=UTC).isoformat(timespec="milliseconds")
    return f"{text.removesuffix('+00:00')}Z"


def new_id() -> str:
    """A UUIDv7 (RFC 9562, section 5.7): ids made later sort later."""
    value = (int(time.time() * 1000) << 80) | int.from_bytes(os.urandom(10), "big")
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    return str(uuid.UUID(int=value))


def refuse_later(db: Database, path: Path) -> None:
    """Leave a catalogue alone that a later version has changed: what it added would be lost, or stand in the way.

    Raises:
        EnvironmentFault: there is a step that this version does not know.
    """
    fresh = Database(memory=True)
    catalogue_migrations.apply(fresh)
    known = {step.name for step in catalogue_migrations.applied(fresh)}
    fresh.close()
    later = [step.name for step in catalogue_migrations.applied(db) if step.name not in known]
    if later:
        raise EnvironmentFault(
            f"the catalogue {path} was changed by a later version of Bowerbird ({', '.join(later[:3])}). Nothing was touched: "
            "install that version again, or restore a backup that this version made (`bowerbird restore`)"
        )


def steps_of_a_later_version(path: Path) -> None:
    """`refuse_later` of a file that is opened for reading only; a file that is not there is fine.

    Raises:
        EnvironmentFault: as above, or it cannot be read.
    """
    if not path.exists():
        return
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10.0)
        try:
            refuse_later(Database(connection), path)
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise EnvironmentFault(f"cannot read the catalogue {path}: {error}; `bowerbird catalogue verify` says more") from error


class Catalogue:
    """An open catalogue.

    Args:
        path: the SQLite file; its folder must exist. Tables are made or brought up to date.

    Raises:
        EnvironmentFault: the file cannot be opened, is not a database, or the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if not path.exists():  # hashes of passwords are in it; SQLite gives its own files beside it the same mode
                path.touch(mode=0o600)
            connection = sqlite3.connect(path, timeout=30.0, isolation_level=None)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA secure_delete = ON")  # what is deleted is not left behind in free pages
            self.connection = connection
            self.db = Database(connection)
            self._refuse_foreign()
            refuse_later(self.db, path)
            self._migrate()
        except (sqlite3.Error, OSError) as error:
            raise EnvironmentFault(
                f"cannot open the catalogue {path}: {error}. Check that the folder is writable and has space; if the file is "
                "damaged or something else, restore it from a backup or name another folder with --data."
            ) from error

    def _refuse_foreign(self) -> None:
        """Somebody else's database is left as it is."""
        tables = set(self.db.table_names())
        if tables and catalogue_migrations.migrations_table not in tables:
            self.connection.close()
            raise EnvironmentFault(
                f"{self.path} is a database, but not a catalogue of Bowerbird: it was left alone. Name another folder with --data."
            )

    def _migrate(self) -> None:
        # Several processes start at once: one takes the lock and applies, the others lose the race and find nothing pending.
        started_s = time.monotonic()
        while catalogue_migrations.pending(self.db):
            try:
                catalogue_migrations.apply(self.db)
            except sqlite3.Error as error:
                busy = "locked" in str(error) or "busy" in str(error)
                if time.monotonic() - started_s > (20 if busy else 2):
                    raise
                time.sleep(0.1)

    def close(self) -> None:
        """Close the connection; the file stays consistent whenever this is not reached."""
        self.connection.close()

    def __enter__(self) -> Catalogue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def write_ahead_log(self) -> Path:
        """The file that holds what was committed last; flushing it makes commits that were not `durable` survive a power cut."""
        return self.path.with_name(f"{self.path.name}-wal")

    def fold_log(self) -> None:
        """Fold the log into the file and cut it to nothing, as far as readers allow it now."""
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[Database]:
        """One short write transaction; takes the writer's lock at once, so that it cannot fail half-way for it.

        A transaction inside another joins it.

        Args:
            durable: flush at the commit. Without, the caller flushes `write_ahead_log` before it promises anything: a power cut
                before that takes the whole transaction back and harms nothing else.
        """
        if self.connection.in_transaction:
            yield self.db
            return
        self.connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield self.db
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")

    def execute(self, sql: str, *params: Any) -> int:
        """One writing statement inside a transaction; returns how many rows it changed."""
        with self.transaction():
            return int(self.connection.execute(sql, params).rowcount)

    def insert(self, table: str, row: Mapping[str, Any], *, ignore: bool = False) -> bool:
        """One new row; with `ignore` a row whose key exists changes nothing. Returns whether it was written."""
        columns = ", ".join(f'"{name}"' for name in row)
        verb = "INSERT OR IGNORE" if ignore else "INSERT"
        marks = ", ".join("?" * len(row))
        # Table and column names are our own constants, never input.
        return self.execute(f'{verb} INTO "{table}" ({columns}) VALUES ({marks})', *row.values()) > 0

    def insert_many(self, table: str, rows: Sequence[Row]) -> None:
        """New rows that all have the same columns, in one statement."""
        if not rows:
            return
        columns = ", ".join(f'"{name}"' for name in rows[0])
        marks = ", ".join("?" * len(rows[0]))
        with self.transaction():
            # Table and column names are our own constants, never input.
            self.connection.executemany(
                f'INSERT INTO "{table}" ({columns}) VALUES ({marks})',  # noqa: S608
                [tuple(row.values()) for row in rows],
            )

    def rows(self, sql: str, *params: Any) -> list[Row]:
        """All rows of a query as dictionaries."""
        return list(self.db.query(sql, params))

    def row(self, sql: str, *params: Any) -> Row | None:
        """The first row of a query, or None."""
        return next(iter(self.rows(sql, *params)), None)

    def value(self, sql: str, *params: Any) -> Any:
        """The first column of the first row, or None."""
        found = self.row(sql, *params)
        return None if found is None else next(iter(found.values()))

    def starting_with(self, table: str, key: str, text: str) -> list[Row]:
        """The rows whose key begins with `text`, letter for letter; none for an empty text, and no more than it takes to know that
        the beginning is shared."""
        if not text:
            return []
        # Table and key are our own constants, never input.
        return self.rows(f'SELECT * FROM "{table}" WHERE substr("{key}", 1, ?) = ? LIMIT 20', len(text), text)  # noqa: S608

    def damage(self) -> str:
        """What SQLite finds wrong with the file, "" for nothing."""
        found = str(self.value("PRAGMA quick_check"))
        return "" if found == "ok" else found

    def log(self, actor: str, kind: str, subject: str, why: Mapping[str, Any] | None = None) -> None:
        """Append to the event log: who did what to what, why and from where. Call it inside the transaction that does it."""
        event = {
            "id": new_id(),
            "at": utc_now(),
            "actor": actor,
            "kind": kind,
            "subject": subject,
            "why": json.dumps(dict(why or {}), sort_keys=True),
            "origin": ORIGIN.get(),
        }
        with self.transaction():  # one writer at a time: nobody else's event comes in between
            head = self.row("SELECT position, digest FROM event ORDER BY position DESC LIMIT 1")
            position = 1 if head is None else head["position"] + 1
            digest = digest_of(FIRST if head is None else head["digest"], position, event)
            self.insert("event", {**event, "position": position, "digest": digest})

    def setting(self, name: str, default: Any = None) -> Any:
        """A stored setting, or `default`."""
        text = self.value("SELECT value FROM setting WHERE name = ?", name)
        return default if text is None else json.loads(text)

    def set_setting(self, name: str, value: Any) -> None:
        """Store a setting as JSON."""
        self.execute(
            "INSERT INTO setting (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            name,
            json.dumps(value),
        )
