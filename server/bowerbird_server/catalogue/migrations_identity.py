"""The catalogue's tables for identity: invitations, certificates, and what is remembered of a device's connections.

In: the catalogue's migrations, to which this adds a step. Out: nothing else. Of tokens and keys only hashes are stored.
"""

from __future__ import annotations

from sqlite_utils import Database

from bowerbird_server.catalogue.migrations import catalogue_migrations

_TABLES = """
CREATE TABLE invitation (
    id TEXT PRIMARY KEY,            -- UUIDv7
    token_sha256 TEXT NOT NULL UNIQUE,
    site TEXT NOT NULL,
    label TEXT NOT NULL DEFAULT '',
    serial TEXT NOT NULL DEFAULT '',          -- the board must say this one; '' for any
    device TEXT,                    -- chosen beforehand, or at the claim
    approved INTEGER NOT NULL,      -- 1: its claim needs no person
    created_at TEXT NOT NULL,
    expires_at TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'open',       -- open | claimed | withdrawn
    key_sha256 TEXT NOT NULL DEFAULT '',      -- of the public key that claimed it
    claimed_at TEXT
) STRICT;
CREATE INDEX invitation_device ON invitation(device);

CREATE TABLE certificate (
    device TEXT NOT NULL REFERENCES device(id),
    generation INTEGER NOT NULL,
    key_sha256 TEXT NOT NULL,
    pem TEXT NOT NULL,              -- leaf and issuing certificate; nothing secret
    issued_at TEXT NOT NULL,
    not_after TEXT NOT NULL,
    seen_at TEXT,                   -- when the device first used it
    PRIMARY KEY (device, generation)
) STRICT;

ALTER TABLE device ADD COLUMN label TEXT NOT NULL DEFAULT '';
ALTER TABLE device ADD COLUMN serial TEXT NOT NULL DEFAULT '';
ALTER TABLE device ADD COLUMN replaces TEXT;
ALTER TABLE device ADD COLUMN state_why TEXT NOT NULL DEFAULT '';
ALTER TABLE device ADD COLUMN sightings TEXT NOT NULL DEFAULT '{}';
ALTER TABLE camera ADD COLUMN place TEXT NOT NULL DEFAULT '';
UPDATE camera SET place = id;
CREATE INDEX device_serial ON device(serial);
"""


@catalogue_migrations()
def m100_identity(db: Database) -> None:
    """Who is invited, which certificates were issued, and what makes a clone noticed."""
    for statement in _TABLES.split(";\n"):
        if statement.strip():
            db.execute(statement)
