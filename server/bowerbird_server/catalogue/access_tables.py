"""The tables of who may come in, and the columns that make the event log a chain. Part of `migrations.py`; never edited once shipped.

In: an open database in a migration. Out: the tables in it. What they mean is told in docs/access.md.
"""

from __future__ import annotations

from sqlite_utils import Database

from bowerbird_server.access.event_chain import FIRST, digest_of

_CHAIN = (
    # From where it was asked for, and with which credential.
    "ALTER TABLE event ADD COLUMN origin TEXT NOT NULL DEFAULT ''",
    # From 1, without gaps.
    "ALTER TABLE event ADD COLUMN position INTEGER",
    # Of this event and the one before: event_chain.py.
    "ALTER TABLE event ADD COLUMN digest TEXT",
)
_APPEND_ONLY = (
    "CREATE UNIQUE INDEX event_position ON event(position)",
    "CREATE TRIGGER event_is_never_changed BEFORE UPDATE ON event "
    "BEGIN SELECT RAISE(ABORT, 'the event log is only ever appended to'); END",
    "CREATE TRIGGER event_is_never_deleted BEFORE DELETE ON event "
    "BEGIN SELECT RAISE(ABORT, 'the event log is only ever appended to'); END",
)
_ACCOUNTS = """
CREATE TABLE user (
    name TEXT PRIMARY KEY,
    password TEXT NOT NULL,         -- argon2id, in its own text form
    role TEXT NOT NULL,
    sites TEXT NOT NULL,            -- JSON list of site names, or "*" for all
    created_at TEXT NOT NULL
) STRICT;
CREATE TABLE api_token (
    id TEXT PRIMARY KEY,            -- what lists, events and people call it
    digest TEXT NOT NULL UNIQUE,    -- SHA-256 of the token, which itself is 256 random bits
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    sites TEXT NOT NULL,            -- as in user
    created_at TEXT NOT NULL,
    created_by TEXT NOT NULL,
    expires_at TEXT,                -- NULL for never
    revoked_at TEXT,
    used_at TEXT                    -- to about ten minutes
) STRICT;
CREATE TABLE web_session (
    digest TEXT PRIMARY KEY,        -- SHA-256 of the cookie
    author TEXT NOT NULL,           -- the name that is shown and that labels carry
    user TEXT,                      -- who logged in, or
    token TEXT,                     -- the id of the token that did
    created_at REAL NOT NULL,       -- seconds since the epoch
    seen_at REAL NOT NULL
) STRICT;
CREATE TABLE sight (
    day TEXT NOT NULL,              -- UTC
    person TEXT NOT NULL,
    frame TEXT NOT NULL,            -- not a foreign key: who saw a frame outlives it
    at TEXT NOT NULL,               -- first that day
    origin TEXT NOT NULL,
    PRIMARY KEY (person, frame, day)
) STRICT, WITHOUT ROWID;
CREATE INDEX sight_frame ON sight(frame)
"""


def chain_events(db: Database) -> None:
    """Columns of the chain, filled for what is there, and triggers that keep the log append-only."""
    for statement in _CHAIN:
        db.execute(statement)
    before = FIRST
    found = db.execute("SELECT rowid, id, at, actor, kind, subject, why FROM event ORDER BY rowid").fetchall()
    for position, (rowid, *values) in enumerate(found, start=1):
        event = dict(zip(("id", "at", "actor", "kind", "subject", "why"), values, strict=True), origin="")
        before = digest_of(before, position, event)
        db.execute("UPDATE event SET position = ?, digest = ? WHERE rowid = ?", (position, before, rowid))
    for statement in _APPEND_ONLY:
        db.execute(statement)


def make_accounts(db: Database) -> None:
    """Users, tokens, sessions, and who saw what."""
    for statement in _ACCOUNTS.strip().split(";\n"):
        db.execute(statement)
