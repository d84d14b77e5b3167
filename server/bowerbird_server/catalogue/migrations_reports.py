"""What the catalogue remembers of a device's reports: whether it signs them, and how new the newest is; what an invited board is told.

In: the catalogue's migrations, to which this adds a step. Out: nothing else.
"""

from __future__ import annotations

from sqlite_utils import Database

from bowerbird_server.catalogue.migrations import catalogue_migrations

_COLUMNS = (
    "ALTER TABLE device ADD COLUMN signs_reports INTEGER NOT NULL DEFAULT 0",  # 1: one without a signature is not its own
    "ALTER TABLE device ADD COLUMN reported_at_ms INTEGER NOT NULL DEFAULT 0",  # by the device's own clock
    "ALTER TABLE invitation ADD COLUMN setup TEXT NOT NULL DEFAULT ''",  # JSON: what a bundle holds beside token, CA and pin
)


@catalogue_migrations()
def m150_reports(db: Database) -> None:
    """Who signs, and what is newest."""
    for statement in _COLUMNS:
        db.execute(statement)
