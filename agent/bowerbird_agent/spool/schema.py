"""The tables of the spool's index, and how an index of an earlier release becomes one of this.

In: nothing. Out: SQL. `spool/index.py` carries it out.
"""

SCHEMA_VERSION = 2

SCHEMA = """
CREATE TABLE frame (
    frame_id TEXT PRIMARY KEY, state TEXT NOT NULL, arm TEXT NOT NULL, score REAL NOT NULL, density REAL NOT NULL,
    message_bytes INTEGER NOT NULL, disk_bytes INTEGER NOT NULL, send_order INTEGER,
    camera TEXT NOT NULL, sequence INTEGER NOT NULL, captured_at_ms INTEGER NOT NULL,
    eviction_group TEXT NOT NULL, send_value REAL NOT NULL, probability REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX frame_by_value ON frame (send_value DESC, send_order) WHERE state = 'new';
CREATE INDEX frame_by_time ON frame (captured_at_ms) WHERE state = 'new';
CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE note (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE settled (number INTEGER PRIMARY KEY AUTOINCREMENT, frame_id TEXT NOT NULL UNIQUE, outcome TEXT NOT NULL);
CREATE TABLE tombstone (
    number INTEGER PRIMARY KEY AUTOINCREMENT, frame_id TEXT NOT NULL, arm TEXT NOT NULL, why TEXT NOT NULL, score REAL NOT NULL,
    probability REAL NOT NULL, camera TEXT NOT NULL, captured_at_ms INTEGER NOT NULL
);
"""

# An index of the first version becomes one of the second without being made again: what was sent stays sent.
FROM_1 = """
DROP INDEX frame_by_state;
DROP INDEX frame_by_density;
ALTER TABLE frame ADD COLUMN eviction_group TEXT NOT NULL DEFAULT 'policy';
ALTER TABLE frame ADD COLUMN send_value REAL NOT NULL DEFAULT 0;
ALTER TABLE frame ADD COLUMN probability REAL NOT NULL DEFAULT 0;
UPDATE frame SET eviction_group = arm, send_value = CASE WHEN arm = 'explore' THEN 3.0 ELSE score END;
CREATE INDEX frame_by_value ON frame (send_value DESC, send_order) WHERE state = 'new';
CREATE INDEX frame_by_time ON frame (captured_at_ms) WHERE state = 'new';
CREATE TABLE tombstone (
    number INTEGER PRIMARY KEY AUTOINCREMENT, frame_id TEXT NOT NULL, arm TEXT NOT NULL, why TEXT NOT NULL, score REAL NOT NULL,
    probability REAL NOT NULL, camera TEXT NOT NULL, captured_at_ms INTEGER NOT NULL
);
"""
