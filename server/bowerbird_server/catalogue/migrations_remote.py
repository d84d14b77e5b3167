"""The tables of remote configuration and campaigns; a step of `migrations.py` makes them.

In: nothing. Out: SQL.
"""

from __future__ import annotations

REMOTE_TABLES = """
CREATE TABLE device_tag (
    device TEXT NOT NULL REFERENCES device(id),
    tag TEXT NOT NULL,
    PRIMARY KEY (device, tag)
) STRICT;

CREATE TABLE device_config (
    device TEXT PRIMARY KEY REFERENCES device(id),
    version INTEGER NOT NULL DEFAULT 0,           -- of the document; 0: nothing was ever wished
    document TEXT NOT NULL DEFAULT '{}',          -- JSON: what is laid over the device's agent.toml
    campaigns_version INTEGER NOT NULL DEFAULT 0, -- of its shares of campaigns
    reported TEXT NOT NULL DEFAULT '{}',          -- newest Reported message, JSON of its field names
    reported_at TEXT
) STRICT;

CREATE TABLE config_history (
    id TEXT PRIMARY KEY,            -- UUIDv7
    device TEXT NOT NULL REFERENCES device(id),
    version INTEGER NOT NULL,
    at TEXT NOT NULL,
    actor TEXT NOT NULL,
    change TEXT REFERENCES config_change(id),
    document TEXT NOT NULL          -- JSON
) STRICT;
CREATE INDEX config_history_device ON config_history(device, version);

CREATE TABLE config_change (
    id TEXT PRIMARY KEY,
    at TEXT NOT NULL,
    actor TEXT NOT NULL,
    patch TEXT NOT NULL,            -- JSON: {"set": {...}, "unset": [key paths]}
    settings TEXT NOT NULL,         -- JSON: waves, as of a rollout
    state TEXT NOT NULL,            -- running | paused | completed | aborted
    why TEXT NOT NULL DEFAULT '{}'  -- JSON: of the newest change of state
) STRICT;

CREATE TABLE config_change_device (
    change TEXT NOT NULL REFERENCES config_change(id),
    device TEXT NOT NULL REFERENCES device(id),
    wave INTEGER NOT NULL,
    state TEXT NOT NULL,            -- waiting | offered | trial | succeeded | failed | timed_out | cancelled
    version INTEGER NOT NULL DEFAULT 0,
    code TEXT NOT NULL DEFAULT '',
    detail TEXT NOT NULL DEFAULT '',
    updated_at TEXT NOT NULL,
    PRIMARY KEY (change, device)
) STRICT;

CREATE TABLE campaign (
    id TEXT PRIMARY KEY,
    at TEXT NOT NULL,
    actor TEXT NOT NULL,
    scope TEXT NOT NULL,            -- JSON: {"site": ..., "tag": ..., "devices": [...]}
    condition TEXT NOT NULL,        -- JSON by field name of the wire's Campaign
    frames INTEGER NOT NULL,        -- quota of the whole fleet
    bytes INTEGER NOT NULL,
    until TEXT NOT NULL,
    state TEXT NOT NULL,            -- running | finished | expired | stopped
    ended_at TEXT
) STRICT;

CREATE TABLE campaign_share (
    campaign TEXT NOT NULL REFERENCES campaign(id),
    device TEXT NOT NULL REFERENCES device(id),
    version INTEGER NOT NULL DEFAULT 0,       -- campaigns_version under which this share was said
    acked INTEGER NOT NULL DEFAULT 0,         -- whether the device has it
    frames INTEGER NOT NULL DEFAULT 0,        -- share, a total since the campaign began
    frames_held INTEGER NOT NULL DEFAULT 0,   -- the most that the device may act upon until it has acknowledged
    frames_taken INTEGER NOT NULL DEFAULT 0,  -- as the device says
    frames_gave INTEGER NOT NULL DEFAULT 0,   -- 1 when part of its share was taken back and it has taken no frame since
    bytes INTEGER NOT NULL DEFAULT 0,
    bytes_held INTEGER NOT NULL DEFAULT 0,
    bytes_taken INTEGER NOT NULL DEFAULT 0,
    bytes_gave INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (campaign, device)
) STRICT;
CREATE INDEX campaign_share_device ON campaign_share(device);
CREATE INDEX frame_campaign ON frame(reason) WHERE arm = 'campaign';
"""
