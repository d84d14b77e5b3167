"""What the dashboard and the JSON API show: rows of several subjects, JSON columns decoded, newest first. It reads and never writes.

In: an open catalogue. Out: dictionaries.
"""

from __future__ import annotations

import json
from typing import Any

from bowerbird_server.catalogue import batches, fleet, frames
from bowerbird_server.catalogue.core import Catalogue, Row
from bowerbird_server.catalogue.datasets import removed
from bowerbird_server.errors import BadInput, NotFound

_JSON_COLUMNS = frozenset(
    {"metrics", "verdict", "manifest", "class_names", "request", "result", "settings", "why", "strategy_scores"}
)


def _decoded(row: Row) -> Row:
    return {name: _json(value) if name in _JSON_COLUMNS else value for name, value in row.items()}


def _json(text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return text  # a blob's digest, or what an older release wrote


def summary(cat: Catalogue) -> Row:
    """Counts over everything: frames by state, labels, boxes, data sets, models, the champion's digest, devices online."""
    return {
        "frames": frames.count_by_state(cat),
        "frame_bytes": int(cat.value("SELECT coalesce(sum(bytes), 0) FROM frame WHERE state != 'deleted'")),
        "queue": batches.queue_length(cat),
        "labels": int(cat.value("SELECT count(DISTINCT frame) FROM label")),
        "label_seconds": float(cat.value("SELECT coalesce(sum(seconds), 0.0) FROM label")),
        "devices": int(cat.value("SELECT count(*) FROM device WHERE state = 'active'")),
        "devices_online": int(cat.value("SELECT count(*) FROM device WHERE online = 1 AND state = 'active'")),
        "datasets": int(cat.value("SELECT count(*) FROM dataset_version")),
        "models": int(cat.value("SELECT count(*) FROM model")),
        "champion": cat.value("SELECT digest FROM model WHERE state = 'champion' ORDER BY created_at DESC"),
        "classes": [row["name"] for row in cat.rows("SELECT name FROM class ORDER BY id")],
    }


def dead_letters_by_code(cat: Catalogue) -> dict[str, int]:
    """Refused messages that are kept, by the code that their senders were told."""
    return {row["code"]: row["n"] for row in cat.rows("SELECT code, count(*) AS n FROM dead_letter GROUP BY code")}


def rollout_states(cat: Catalogue) -> dict[str, int]:
    """Devices of the rollouts that run, by how far each is."""
    rows = cat.rows(
        "SELECT execution.state, count(*) AS n FROM execution JOIN rollout ON rollout.id = execution.rollout "
        "WHERE rollout.state = 'running' GROUP BY execution.state"
    )
    return {row["state"]: row["n"] for row in rows}


def devices(cat: Catalogue) -> list[Row]:
    """Devices with their health, cameras, and how many frames and image bytes have arrived from them."""
    arrived = {
        row["device"]: row
        for row in cat.rows(
            "SELECT device, count(*) AS frames, sum(bytes) AS bytes FROM frame WHERE device IS NOT NULL AND arm <> 'fetched' "
            "GROUP BY device"
        )
    }
    return [
        {
            **row,
            "frames_received": arrived.get(row["id"], {}).get("frames", 0),
            "image_bytes": arrived.get(row["id"], {}).get("bytes", 0),
        }
        for row in fleet.list_devices(cat)
    ]


def models(cat: Catalogue, limit: int = 100) -> list[Row]:
    """Models, newest first, with the number of the data set version each was trained on."""
    rows = cat.rows(
        "SELECT model.*, dataset_version.number AS dataset_number FROM model "
        "LEFT JOIN dataset_version ON dataset_version.id = model.dataset_version ORDER BY model.created_at DESC, digest LIMIT ?",
        limit,
    )
    return [_decoded(row) for row in rows]


def model(cat: Catalogue, digest: str) -> Row:
    """One model by its digest or an unambiguous beginning of it, with `devices` that report to run it.

    Raises:
        NotFound: there is no such model.
        BadInput: several models' digests begin so.
    """
    found = cat.rows(
        "SELECT model.*, dataset_version.number AS dataset_number FROM model "
        "LEFT JOIN dataset_version ON dataset_version.id = model.dataset_version WHERE substr(digest, 1, ?) = ? LIMIT 2",
        len(digest),
        digest,
    )
    if not found or len(digest) < 6:
        raise NotFound(f"no model {digest[:64]!r}; `bowerbird models list` shows what there is (at least 6 digits)")
    if len(found) > 1:
        raise BadInput(f"several models begin with {digest!r}; give more digits")
    running = [row["id"] for row in cat.rows("SELECT id FROM device WHERE model_digest = ? ORDER BY id", found[0]["digest"])]
    return {**_decoded(found[0]), "devices": running}


def datasets(cat: Catalogue, limit: int = 100) -> list[Row]:
    """Data set versions, newest first, with `splits`: frames in each."""
    rows = cat.rows("SELECT * FROM dataset_version ORDER BY number DESC LIMIT ?", limit)
    for row in rows:
        splits = cat.rows("SELECT split, count(*) AS n FROM dataset_frame WHERE dataset_version = ? GROUP BY split", row["id"])
        row["splits"] = {split["split"]: split["n"] for split in splits}
        row["removed"] = removed(cat, row["id"])
    return rows


def runs(cat: Catalogue, limit: int = 100) -> list[Row]:
    """Training runs, newest first, with their data set's number and the digest of the model that came out."""
    rows = cat.rows(
        "SELECT training_run.*, dataset_version.number AS dataset_number, "
        "(SELECT digest FROM model WHERE model.training_run = training_run.id ORDER BY created_at DESC LIMIT 1) AS model "
        "FROM training_run LEFT JOIN dataset_version ON dataset_version.id = training_run.dataset_version "
        "ORDER BY training_run.created_at DESC, training_run.id DESC LIMIT ?",
        limit,
    )
    return [_decoded(row) for row in rows]


def rollouts(cat: Catalogue, limit: int = 100) -> list[Row]:
    """Rollouts, newest first, each with its `executions`, one a device."""
    return [
        _with_executions(cat, row) for row in cat.rows("SELECT * FROM rollout ORDER BY created_at DESC, id DESC LIMIT ?", limit)
    ]


def rollout(cat: Catalogue, identity: str) -> Row:
    """One rollout, likewise.

    Raises:
        NotFound: there is none of that id.
    """
    row = cat.row("SELECT * FROM rollout WHERE id = ?", identity)
    if row is None:
        raise NotFound(f"no rollout {identity[:80]!r}; `bowerbird rollout list` shows all")
    return _with_executions(cat, row)


def _with_executions(cat: Catalogue, row: Row) -> Row:
    found = cat.rows(
        "SELECT device, wave, state, code, detail, updated_at FROM execution WHERE rollout = ? ORDER BY device", row["id"]
    )
    return {**_decoded(row), "executions": found}


def events(
    cat: Catalogue, *, limit: int = 100, after: str | None = None, subject: str | None = None, each_frame: bool = True
) -> list[Row]:
    """The event log, newest first.

    Args:
        after: id of the last event already seen.
        subject: only events about this row.
        each_frame: False leaves out what happens to every single frame, so that the rest can be seen.
    """
    rows = cat.rows(
        "SELECT * FROM event WHERE (?1 IS NULL OR id < ?1) AND (?2 IS NULL OR subject = ?2) "
        "AND (?3 OR NOT (kind LIKE 'frame %' OR kind = 'label added')) ORDER BY id DESC LIMIT ?4",
        after,
        subject,
        each_frame,
        limit,
    )
    return [_decoded(row) for row in rows]
