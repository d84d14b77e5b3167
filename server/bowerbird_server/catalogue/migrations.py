"""The catalogue's tables, step by step; a step that has shipped is never edited, only followed by another.

In: an open sqlite-utils database. Out: the same with every step applied, each in one transaction. Times are UTC ISO text,
ids of content are SHA-256 hex, ids of events UUIDv7. Tables are STRICT and foreign keys are on, so that `datasette catalogue.db`
shows what belongs to what.
"""

from __future__ import annotations

from sqlite_utils import Database, Migrations

from bowerbird_server.catalogue.access_tables import chain_events, make_accounts
from bowerbird_server.catalogue.migrations_drift import DRIFT_TABLES, NEW_CAMERA_TABLE
from bowerbird_server.catalogue.migrations_remote import REMOTE_TABLES
from bowerbird_server.catalogue.privacy_tables import PRIVACY_TABLES

catalogue_migrations = Migrations("catalogue")

_FIRST_TABLES = """
CREATE TABLE event (
    id TEXT PRIMARY KEY,            -- UUIDv7
    at TEXT NOT NULL,
    actor TEXT NOT NULL,            -- who
    kind TEXT NOT NULL,             -- what
    subject TEXT NOT NULL,          -- about which row
    why TEXT NOT NULL DEFAULT '{}'  -- JSON
) STRICT;
CREATE INDEX event_subject ON event(subject);

CREATE TABLE device (
    id TEXT PRIMARY KEY,            -- its name in topics
    site TEXT NOT NULL,
    created_at TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'active',     -- active | retired
    online INTEGER NOT NULL DEFAULT 0,
    boot_id TEXT NOT NULL DEFAULT '',
    agent_version TEXT NOT NULL DEFAULT '',
    model_digest TEXT NOT NULL DEFAULT '',    -- as last reported; not a foreign key: a device may run what we never made
    status_at TEXT,
    health_at TEXT,
    health TEXT NOT NULL DEFAULT '{}',        -- newest Health message, JSON of its field names
    desired_version INTEGER NOT NULL DEFAULT 0,
    frames_total INTEGER                      -- frames it may have sent in all, NULL for no limit
) STRICT;

CREATE TABLE camera (
    id TEXT PRIMARY KEY,            -- device/camera
    device TEXT NOT NULL REFERENCES device(id),
    name TEXT NOT NULL,
    UNIQUE (device, name)
) STRICT;

CREATE TABLE health (
    id TEXT PRIMARY KEY,
    device TEXT NOT NULL REFERENCES device(id),
    at TEXT NOT NULL,
    counters TEXT NOT NULL          -- JSON
) STRICT;
CREATE INDEX health_device_at ON health(device, at);

CREATE TABLE class (
    id INTEGER PRIMARY KEY,         -- the class id in data sets, append-only, from 0
    name TEXT NOT NULL UNIQUE,
    added_at TEXT NOT NULL
) STRICT;

CREATE TABLE model (
    digest TEXT PRIMARY KEY,        -- SHA-256 of the package's manifest
    created_at TEXT NOT NULL,
    parent TEXT REFERENCES model(digest),
    dataset_version TEXT REFERENCES dataset_version(id),
    training_run TEXT REFERENCES training_run(id),
    origin TEXT NOT NULL,           -- imported | trained
    state TEXT NOT NULL,            -- candidate | champion | rejected | retired
    onnx_sha256 TEXT NOT NULL,      -- blob of the ONNX file
    weights_sha256 TEXT,            -- blob of the .pt, which never leaves the server
    manifest TEXT NOT NULL,         -- the package's manifest, JSON
    class_names TEXT NOT NULL,      -- JSON list
    metrics TEXT NOT NULL DEFAULT '{}',       -- JSON of Evaluation
    verdict TEXT NOT NULL DEFAULT '{}',       -- JSON of Verdict, kept for ever
    release INTEGER                 -- release counter once published
) STRICT;

CREATE TABLE batch (
    id TEXT PRIMARY KEY,
    created_at TEXT NOT NULL,
    state TEXT NOT NULL,            -- open | done
    policy TEXT NOT NULL DEFAULT '{}'
) STRICT;

CREATE TABLE frame (
    id TEXT PRIMARY KEY,
    blob TEXT NOT NULL,             -- SHA-256 of the image
    image_format TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    source_width INTEGER NOT NULL,  -- size of the camera's picture, before it was scaled for sending
    source_height INTEGER NOT NULL,
    device TEXT REFERENCES device(id),        -- NULL when imported
    camera TEXT REFERENCES camera(id),
    sequence INTEGER NOT NULL,
    captured_at TEXT NOT NULL,
    clock_ok INTEGER NOT NULL DEFAULT 1,
    received_at TEXT NOT NULL,
    model TEXT NOT NULL DEFAULT '',           -- digest that the device ran, as reported
    arm TEXT NOT NULL,              -- policy | explore | import
    reason TEXT NOT NULL,           -- comma-separated strategies that spoke for it
    score REAL NOT NULL DEFAULT 0,
    strategy_scores TEXT NOT NULL DEFAULT '{}',
    inclusion_probability REAL NOT NULL DEFAULT 1,
    scene TEXT NOT NULL,            -- camera and time segment, the unit of every split
    state TEXT NOT NULL             -- received | queued | in_review | labelled | rejected | deleted
) STRICT;
CREATE INDEX frame_state ON frame(state, received_at);
CREATE INDEX frame_scene ON frame(scene);
CREATE INDEX frame_camera ON frame(camera, captured_at);

CREATE TABLE detection (
    frame TEXT NOT NULL REFERENCES frame(id),
    position INTEGER NOT NULL,
    "left" REAL NOT NULL, top REAL NOT NULL, "right" REAL NOT NULL, bottom REAL NOT NULL,  -- pixels of the stored image
    score REAL NOT NULL,
    class_name TEXT NOT NULL,
    PRIMARY KEY (frame, position)
) STRICT;

CREATE TABLE batch_frame (
    batch TEXT NOT NULL REFERENCES batch(id),
    frame TEXT NOT NULL REFERENCES frame(id),
    position INTEGER NOT NULL,
    why TEXT NOT NULL,
    PRIMARY KEY (batch, frame)
) STRICT;
CREATE INDEX batch_frame_frame ON batch_frame(frame);

CREATE TABLE label (
    id TEXT PRIMARY KEY,            -- UUIDv7; a correction is a new row with the next revision
    frame TEXT NOT NULL REFERENCES frame(id),
    revision INTEGER NOT NULL,
    author TEXT NOT NULL,
    created_at TEXT NOT NULL,
    verdict TEXT NOT NULL,          -- labelled | rejected
    boxes TEXT NOT NULL,            -- JSON [{"class": name, "box_xyxy": [l, t, r, b]}], pixels of the stored image
    classes_reviewed TEXT NOT NULL, -- JSON list of the class names that the author looked for
    seconds REAL,
    edits TEXT NOT NULL DEFAULT '{}',         -- JSON counts: kept, moved, added, deleted, reclassed pre-labels
    UNIQUE (frame, revision)
) STRICT;

CREATE TABLE dataset_version (
    id TEXT PRIMARY KEY,            -- SHA-256 of its manifest
    number INTEGER NOT NULL UNIQUE,
    created_at TEXT NOT NULL,
    manifest TEXT NOT NULL,         -- blob
    frames INTEGER NOT NULL,
    boxes INTEGER NOT NULL
) STRICT;

CREATE TABLE dataset_frame (
    dataset_version TEXT NOT NULL REFERENCES dataset_version(id),
    frame TEXT NOT NULL REFERENCES frame(id),
    split TEXT NOT NULL,            -- train | val | holdout
    label TEXT NOT NULL REFERENCES label(id),
    PRIMARY KEY (dataset_version, frame)
) STRICT;
CREATE INDEX dataset_frame_frame ON dataset_frame(frame);

CREATE TABLE scene_split (
    scene TEXT PRIMARY KEY,         -- once a scene has a side it keeps it
    split TEXT NOT NULL,            -- train | val | holdout
    slices TEXT NOT NULL DEFAULT '[]'         -- JSON list, e.g. ["condition:night"]
) STRICT;

CREATE TABLE training_run (
    id TEXT PRIMARY KEY,
    created_at TEXT NOT NULL,
    dataset_version TEXT NOT NULL REFERENCES dataset_version(id),
    base_model TEXT REFERENCES model(digest),
    state TEXT NOT NULL,            -- queued | training | evaluating | promoted | rejected | failed | cancelled
    request TEXT NOT NULL,          -- JSON
    epoch INTEGER NOT NULL DEFAULT 0,
    epochs INTEGER NOT NULL DEFAULT 0,
    started_at TEXT,
    finished_at TEXT,
    result TEXT NOT NULL DEFAULT '{}',
    error TEXT NOT NULL DEFAULT ''
) STRICT;

CREATE TABLE rollout (
    id TEXT PRIMARY KEY,
    created_at TEXT NOT NULL,
    model TEXT NOT NULL REFERENCES model(digest),
    release INTEGER NOT NULL,
    state TEXT NOT NULL,            -- draft | approved | running | paused | completed | aborted | rolled_back
    settings TEXT NOT NULL DEFAULT '{}',
    finished_at TEXT
) STRICT;

CREATE TABLE execution (
    rollout TEXT NOT NULL REFERENCES rollout(id),
    device TEXT NOT NULL REFERENCES device(id),
    job TEXT NOT NULL UNIQUE,
    wave INTEGER NOT NULL DEFAULT 0,          -- rollout group
    state TEXT NOT NULL,            -- waiting | offered | succeeded | failed | timed_out, or a state of the device's updater
    code TEXT NOT NULL DEFAULT '',
    detail TEXT NOT NULL DEFAULT '',
    updated_at TEXT NOT NULL,
    PRIMARY KEY (rollout, device)
) STRICT;

CREATE TABLE round (
    number INTEGER PRIMARY KEY,     -- from 1
    opened_at TEXT NOT NULL,
    closed_at TEXT,
    state TEXT NOT NULL,            -- collecting | labelling | training | rolling_out | finished
    frames_wanted INTEGER NOT NULL, -- from all devices together
    batch TEXT REFERENCES batch(id),
    training_run TEXT REFERENCES training_run(id),
    rollout TEXT REFERENCES rollout(id)
) STRICT;

CREATE TABLE dead_letter (
    id TEXT PRIMARY KEY,
    at TEXT NOT NULL,
    topic TEXT NOT NULL,
    code TEXT NOT NULL,
    detail TEXT NOT NULL,
    blob TEXT                       -- the payload, while the ring has room for it
) STRICT;

CREATE TABLE setting (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL             -- JSON
) STRICT;

CREATE VIEW label_newest AS
    SELECT label.* FROM label
    WHERE revision = (SELECT max(revision) FROM label AS other WHERE other.frame = label.frame);

CREATE VIEW queue AS
    SELECT frame.id, frame.camera, frame.captured_at, frame.reason, frame.score, frame.arm, frame.state,
           batch_frame.batch, batch_frame.position, batch_frame.why
    FROM frame JOIN batch_frame ON batch_frame.frame = frame.id
    WHERE frame.state IN ('queued', 'in_review');
"""


@catalogue_migrations()
def m001_first_tables(db: Database) -> None:
    """Devices, frames, labels, data sets, models, rollouts: the whole loop."""
    for statement in _FIRST_TABLES.split(";\n"):
        if statement.strip():
            db.execute(statement)


@catalogue_migrations()
def m002_thumbnails(db: Database) -> None:
    """What frames looked like that were offered before they were sent."""
    db.execute(
        """CREATE TABLE thumbnail (
            frame TEXT NOT NULL UNIQUE,     -- not a foreign key: it is offered before it is here, and perhaps never comes
            site TEXT NOT NULL,
            luma BLOB NOT NULL,             -- 24 x 24 gray values
            at TEXT NOT NULL
        ) STRICT"""
    )


@catalogue_migrations()
def agents_rollouts(db: Database) -> None:
    """A rollout brings a model or a release of the agent: `model` may be empty, and then `agent` is not.

    SQLite cannot drop NOT NULL by a statement; this is the way that its documentation gives for changes that make no row invalid
    ("Making Other Kinds Of Table Schema Changes"), and it goes into the transaction of the step.
    """
    before = "model TEXT NOT NULL REFERENCES model(digest)"
    sql = db.execute("SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = 'rollout'").fetchone()[0]
    if before not in sql:
        raise RuntimeError("the table rollout has not the form that it was made with; restore the catalogue from a backup")
    (version,) = db.execute("PRAGMA schema_version").fetchone()
    db.execute("PRAGMA writable_schema = ON")
    changed = sql.replace(before, "model TEXT REFERENCES model(digest)")
    db.execute("UPDATE sqlite_schema SET sql = ? WHERE type = 'table' AND name = 'rollout'", (changed,))
    db.execute(f"PRAGMA schema_version = {version + 1}")
    db.execute("PRAGMA writable_schema = OFF")
    db.execute("ALTER TABLE rollout ADD COLUMN agent TEXT NOT NULL DEFAULT ''")  # release digest
    db.execute("ALTER TABLE rollout ADD COLUMN agent_version TEXT NOT NULL DEFAULT ''")


@catalogue_migrations()
def m_privacy_erasures(db: Database) -> None:
    """What was covered in a picture, who asked for frames to be forgotten, and every deletion."""
    for statement in PRIVACY_TABLES:
        db.execute(statement)


@catalogue_migrations()
def m_spool_fetches_and_tombstones(db: Database) -> None:
    """What was asked of devices beyond what they sent, the frames that came of it, and what devices never sent."""
    for statement in (
        """CREATE TABLE linked_frame (
            frame TEXT PRIMARY KEY REFERENCES frame(id),
            of_frame TEXT NOT NULL,         -- not a foreign key: headers may be put back in any order
            kind TEXT NOT NULL              -- original | around
        ) STRICT""",
        "CREATE INDEX linked_frame_of ON linked_frame(of_frame)",
        """CREATE TABLE fetch (
            id TEXT PRIMARY KEY,            -- of frame, kind and seconds: the same wish is the same row
            frame TEXT NOT NULL REFERENCES frame(id),
            device TEXT NOT NULL REFERENCES device(id),
            kind TEXT NOT NULL,             -- original | around
            seconds REAL NOT NULL DEFAULT 0,
            asked_at TEXT NOT NULL,
            asked_by TEXT NOT NULL,
            state TEXT NOT NULL,            -- asked | sent | refused | gone
            code TEXT NOT NULL DEFAULT '',
            detail TEXT NOT NULL DEFAULT '',
            frames TEXT NOT NULL DEFAULT '[]',        -- JSON list of the frames that the device says will come
            answered_at TEXT
        ) STRICT""",
        "CREATE INDEX fetch_frame ON fetch(frame)",
        "CREATE INDEX fetch_state ON fetch(state)",
        """CREATE TABLE unsent (
            device TEXT PRIMARY KEY REFERENCES device(id),
            at TEXT NOT NULL,
            evicted TEXT NOT NULL,          -- JSON counts by reason.group.score bin
            dropped TEXT NOT NULL
        ) STRICT""",
        """CREATE TABLE tombstone (
            device TEXT NOT NULL REFERENCES device(id),
            frame TEXT NOT NULL,            -- never a row of `frame`, or only later
            arm TEXT NOT NULL,
            why TEXT NOT NULL,
            score REAL NOT NULL,
            inclusion_probability REAL NOT NULL,
            camera TEXT NOT NULL,
            captured_at TEXT NOT NULL,
            noted_at TEXT NOT NULL,
            PRIMARY KEY (device, frame)
        ) STRICT""",
        "CREATE INDEX frame_received ON frame(received_at)",
    ):
        db.execute(statement)


@catalogue_migrations()
def remote_configuration(db: Database) -> None:
    """What is wished of each device's configuration, what became of it, and campaigns with their shares."""
    for statement in REMOTE_TABLES.split(";\n"):
        if statement.strip():
            db.execute(statement)


@catalogue_migrations()
def access_01_event_chain(db: Database) -> None:
    """The event log becomes a hash chain that is only ever appended to."""
    chain_events(db)


@catalogue_migrations()
def access_02_accounts(db: Database) -> None:
    """People, programs, their sessions, and who saw which frame."""
    make_accounts(db)


@catalogue_migrations()
def m_drift(db: Database) -> None:
    """Hours as devices counted them, what was said of each, and episodes of drift."""
    for statement in DRIFT_TABLES.split(";\n"):
        if statement.strip():
            db.execute(statement)


from bowerbird_server.catalogue import migrations_batches as _batches  # noqa: E402, F401 - registers its step behind those above
from bowerbird_server.catalogue import migrations_identity as _identity  # noqa: E402, F401 - registers its step behind those above
from bowerbird_server.catalogue import migrations_reports as _reports  # noqa: E402, F401 - the same


@catalogue_migrations()
def new_cameras(db: Database) -> None:
    """Cameras that are explored more because they are new. Those that were heard of before are not."""
    db.execute(NEW_CAMERA_TABLE)
    db.execute("INSERT INTO new_camera (camera, found_at) SELECT camera, min(received_at) FROM camera_hour GROUP BY camera")
