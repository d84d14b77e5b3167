"""The tables of redaction, erasure and deletion, for `migrations.py`; as every step there, never edited once shipped."""

from __future__ import annotations

PRIVACY_TABLES = (
    """CREATE TABLE redaction (           -- regions that the device covered before it stored the frame
        frame TEXT NOT NULL REFERENCES frame(id),
        position INTEGER NOT NULL,
        "left" REAL NOT NULL, top REAL NOT NULL, "right" REAL NOT NULL, bottom REAL NOT NULL,  -- pixels of the stored image
        class_name TEXT NOT NULL,
        method TEXT NOT NULL,               -- fill | pixelate | blur
        PRIMARY KEY (frame, position)
    ) STRICT""",
    """CREATE TABLE erasure (             -- a request to forget frames; a row never changes, and refuses what comes late
        id TEXT PRIMARY KEY,            -- UUIDv7
        at TEXT NOT NULL,
        actor TEXT NOT NULL,
        why TEXT NOT NULL,
        device TEXT NOT NULL,           -- '' for all
        camera TEXT NOT NULL,           -- device/camera, '' for all
        from_ms INTEGER NOT NULL,       -- of capture, UTC, both inclusive
        to_ms INTEGER NOT NULL,         -- below from_ms: only the named frames
        frames TEXT NOT NULL            -- JSON list of ids
    ) STRICT""",
    """CREATE TABLE deletion (            -- every frame that is gone for good, also such as never came; wins over whatever arrives
        frame TEXT PRIMARY KEY,
        blob TEXT NOT NULL,             -- SHA-256 of its image, '' where it was never here
        at TEXT NOT NULL,
        actor TEXT NOT NULL,
        why TEXT NOT NULL,
        erasure TEXT NOT NULL           -- '' for none
    ) STRICT""",
    """CREATE TABLE erasure_device (
        id TEXT PRIMARY KEY,            -- erasure/device
        erasure TEXT NOT NULL,
        device TEXT NOT NULL,
        asked_at TEXT NOT NULL,
        confirmed_at TEXT,
        frames INTEGER NOT NULL DEFAULT 0   -- that the device says it deleted
    ) STRICT""",
    """CREATE TABLE erasure_done (        -- once all of it is gone from this server
        erasure TEXT PRIMARY KEY,
        at TEXT NOT NULL,
        removed TEXT NOT NULL           -- JSON counts by place
    ) STRICT""",
    """CREATE TABLE erasure_package (     -- packages whose golden pictures show an erased frame
        erasure TEXT NOT NULL,
        model TEXT NOT NULL,
        PRIMARY KEY (erasure, model)
    ) STRICT""",
)
