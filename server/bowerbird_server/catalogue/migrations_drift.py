"""The tables of drift: hours as devices counted them, what was said of each, and episodes with what was done about them.

In: nothing. Out: SQL.
"""

from __future__ import annotations

DRIFT_TABLES = """
CREATE TABLE camera_hour (
    camera TEXT NOT NULL REFERENCES camera(id),
    model TEXT NOT NULL,            -- the first 16 digits of its digest
    floor INTEGER NOT NULL,         -- lowest score decoded, in hundredths
    from_ms INTEGER NOT NULL,       -- capture time of the first frame
    hour TEXT NOT NULL,             -- UTC, begin of the hour it lies in
    frames INTEGER NOT NULL,
    counts TEXT NOT NULL,           -- JSON: histogram -> counts, "classes" -> class id -> count
    unwell TEXT NOT NULL DEFAULT '{}',        -- JSON: what was wrong with the camera -> frames
    clock_ok INTEGER NOT NULL DEFAULT 1,
    received_at TEXT NOT NULL,
    PRIMARY KEY (camera, model, floor, from_ms)
) STRICT;
CREATE INDEX camera_hour_hour ON camera_hour(camera, hour);

CREATE TABLE drift_hour (
    camera TEXT NOT NULL REFERENCES camera(id),
    model TEXT NOT NULL,
    floor INTEGER NOT NULL,
    hour TEXT NOT NULL,
    state TEXT NOT NULL,            -- stable | drifted | learning | too_few | camera_fault
    cause TEXT NOT NULL DEFAULT '', -- light | content, or what is wrong with the camera
    distances TEXT NOT NULL DEFAULT '{}',     -- JSON: histogram -> {psi, ks, psi_limit, ks_limit}
    is_reference INTEGER NOT NULL DEFAULT 0,  -- part of what counts as normal
    PRIMARY KEY (camera, model, floor, hour)
) STRICT;

CREATE TABLE drift (
    id TEXT PRIMARY KEY,            -- UUIDv7
    camera TEXT NOT NULL REFERENCES camera(id),
    model TEXT NOT NULL,
    cause TEXT NOT NULL,            -- light | content
    found_at TEXT NOT NULL,
    since TEXT NOT NULL,            -- first and last drifted hour: the slice of frames marked for evaluation
    until TEXT NOT NULL,
    closed_at TEXT,
    why_closed TEXT NOT NULL DEFAULT '',      -- stable | new_model
    distances TEXT NOT NULL,        -- JSON, of the hour that began it
    boost_until_ms INTEGER NOT NULL DEFAULT 0,
    boost_factor REAL NOT NULL DEFAULT 1
) STRICT;
CREATE INDEX drift_camera ON drift(camera, closed_at);
CREATE INDEX drift_boost ON drift(boost_until_ms);
"""

NEW_CAMERA_TABLE = """
CREATE TABLE new_camera (           -- cameras whose first hour was heard of, and how long they are explored more for it
    camera TEXT PRIMARY KEY REFERENCES camera(id),
    found_at TEXT NOT NULL,
    boost_until_ms INTEGER NOT NULL DEFAULT 0,
    boost_factor REAL NOT NULL DEFAULT 1
) STRICT
"""
