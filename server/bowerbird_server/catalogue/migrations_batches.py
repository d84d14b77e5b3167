"""The catalogue's step for labelling batches: what a model saw in received frames, roles of a batch's frames, manifests.

In: the catalogue. Out: two tables and four columns. Registered behind the steps of `migrations.py`, which imports this module last.
"""

from __future__ import annotations

from sqlite_utils import Database

from bowerbird_server.catalogue.migrations import catalogue_migrations

_TABLES = """
CREATE TABLE look (
    frame TEXT NOT NULL REFERENCES frame(id),
    model TEXT NOT NULL,            -- digest of what looked: a model's, a teacher's file, '' for pixels alone
    luma BLOB NOT NULL,             -- 24 x 24 gray values; empty when the picture cannot be read
    embedding BLOB,                 -- float16, length 1; NULL for a model without
    doubt REAL,                     -- in [0, 1], NULL without a model
    boxes REAL NOT NULL,            -- expected
    class_names TEXT NOT NULL,      -- JSON list of what it shows
    PRIMARY KEY (frame, model)
) STRICT;

-- Of a batch the blob with its manifest; of its frames the role (evaluation | control | rare | policy), the probability with which
-- chance took it from the pool, and the rule that chose the batch (score | diversity).
ALTER TABLE batch ADD COLUMN manifest TEXT;
ALTER TABLE batch_frame ADD COLUMN role TEXT NOT NULL DEFAULT 'policy';
ALTER TABLE batch_frame ADD COLUMN probability REAL NOT NULL DEFAULT 1;
ALTER TABLE batch_frame ADD COLUMN chosen_by TEXT NOT NULL DEFAULT 'score';
UPDATE batch_frame SET role = 'control' WHERE frame IN (SELECT id FROM frame WHERE arm = 'explore');
"""


_SECOND_LOOKS = """
CREATE TABLE second_look (
    id TEXT PRIMARY KEY,
    frame TEXT NOT NULL REFERENCES frame(id),
    kind TEXT NOT NULL,             -- consensus | gold | suspicious
    why TEXT NOT NULL,
    asked_at TEXT NOT NULL,
    label TEXT NOT NULL REFERENCES label(id),   -- what is looked at again
    author TEXT NOT NULL,           -- whose it is
    state TEXT NOT NULL,            -- open | agreed | differs
    answer TEXT REFERENCES label(id),
    answered_by TEXT,
    agreement REAL                  -- of the two, in [0, 1]
) STRICT;
CREATE INDEX second_look_frame ON second_look(frame, state);
"""


@catalogue_migrations()
def batches_01_roles(db: Database) -> None:
    """Which frames measure, which control and which were chosen; what a model saw in them."""
    _carry_out(db, _TABLES)


@catalogue_migrations()
def batches_02_second_looks(db: Database) -> None:
    """Labels that are looked at again: by lot, as a check of people, or because they are odd."""
    _carry_out(db, _SECOND_LOOKS)


def _carry_out(db: Database, statements: str) -> None:
    for statement in statements.split(";\n"):
        if statement.strip():
            db.execute(statement)
