"""The rows that are kept among the blobs and put back from there when a catalogue is built again.

In: a table's name, one of those below. Out: its rows; rows into an empty catalogue. Which rows make a record is decided here, what a
record looks like in `records.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bowerbird_server.catalogue.core import Catalogue, Row, utc_now
from bowerbird_server.catalogue.frames import forget_content
from bowerbird_server.catalogue.references import REFERENCE, SET_ASIDE

_FINAL_RUNS = "('promoted', 'rejected', 'failed', 'cancelled')"

# Rows that never change once written: those after the last kept rowid are new.
GROWING: Mapping[str, str] = {
    "class": "SELECT rowid, id, name, added_at FROM class WHERE rowid > ? ORDER BY rowid LIMIT ?",
    "scene_split": "SELECT rowid, * FROM scene_split WHERE rowid > ? ORDER BY rowid LIMIT ?",
    "dataset_version": "SELECT rowid, * FROM dataset_version WHERE rowid > ? ORDER BY rowid LIMIT ?",
    # A label's content is a record of its own; which of those became rows, and as which revision, is said here.
    "label": "SELECT rowid, id, frame, revision FROM label WHERE rowid > ? ORDER BY rowid LIMIT ?",
    # A device's frame has its header as a record; an imported one has only its row. The state follows from labels and tombstones.
    "frame": "SELECT rowid, * FROM frame WHERE rowid > ? AND device IS NULL ORDER BY rowid LIMIT ?",
    "erasure": "SELECT rowid, * FROM erasure WHERE rowid > ? ORDER BY rowid LIMIT ?",
    "deletion": "SELECT rowid, * FROM deletion WHERE rowid > ? ORDER BY rowid LIMIT ?",
    "erasure_done": "SELECT rowid, * FROM erasure_done WHERE rowid > ? ORDER BY rowid LIMIT ?",
    "erasure_package": "SELECT rowid, erasure || '/' || model AS id, erasure, model FROM erasure_package "
    "WHERE rowid > ? ORDER BY rowid LIMIT ?",
}
# Few rows that change: compared whole, key first.
CHANGING: Mapping[str, str] = {
    "device": (
        "SELECT id, site, created_at, state, desired_version, frames_total, label, serial, replaces, state_why FROM device ORDER BY id"
    ),
    "model": "SELECT * FROM model ORDER BY created_at, digest",
    "erasure_device": "SELECT * FROM erasure_device ORDER BY id",
    "training_run": f"SELECT * FROM training_run WHERE state IN {_FINAL_RUNS} ORDER BY id",  # noqa: S608 - a constant
}
NOT_REBUILT = (
    "invitation",
    "certificate",
    "batch",
    "batch_frame",
    "event",
    "health",
    "round",
    "rollout",
    "execution",
    "setting",
    "dead_letter",
    "thumbnail",
    "look",
    "second_look",
    "device_tag",
    "device_config",
    "config_history",
    "config_change",
    "config_change_device",
    "campaign",
    "campaign_share",
    "camera_hour",
    "drift_hour",
    "drift",
    "new_camera",
    "fetch",
    "unsent",
    "tombstone",
)


def rows_after(cat: Catalogue, table: str, after: int, limit: int) -> list[tuple[int, Row]]:
    """(rowid, row) of a growing table's rows after a rowid, in their order."""
    found = cat.connection.execute(GROWING[table], (after, limit))
    names = [column[0] for column in found.description][1:]
    return [(rowid, dict(zip(names, values, strict=True))) for rowid, *values in found.fetchall()]


def last_rowid(cat: Catalogue, table: str) -> int:
    """The newest row of a growing table, -1 when it has none (class ids are rowids, and start at 0)."""
    # The table's name is one of the constants above.
    return int(cat.value(f'SELECT coalesce(max(rowid), -1) FROM "{table}"'))  # noqa: S608


def rows_by_key(cat: Catalogue, table: str) -> list[tuple[str, Row]]:
    """(key, row) of all rows of a changing table."""
    return [(str(next(iter(row.values()))), row) for row in cat.rows(CHANGING[table])]


def put_back(cat: Catalogue, table: str, rows: Iterable[Row]) -> int:
    """Rows of one of the tables above, as they were, into a catalogue that is being built; returns how many."""
    count = 0
    known = {str(row["name"]) for row in cat.rows("SELECT name FROM pragma_table_info(?)", table)}
    for row in rows:
        count += cat.insert(table, {name: value for name, value in row.items() if name in known}, ignore=True)
    return count


def put_back_label(cat: Catalogue, event: Mapping[str, Any], revision: int) -> bool:
    """A label from its event; whether it is new."""
    boxes = [{"class": box["class"], "box_xyxy": box["box_xyxy"]} for box in event["boxes"]]
    row = {
        "id": event["id"],
        "frame": event["frame"],
        "revision": revision,
        "author": event["author"],
        "created_at": event["created_at"],
        "verdict": event["verdict"],
        "boxes": json.dumps(boxes),
        "classes_reviewed": json.dumps(event["classes_reviewed"]),
        "seconds": event["seconds"],
        "edits": json.dumps(event["edits"], sort_keys=True),
    }
    return cat.insert("label", row, ignore=True)


def put_back_members(cat: Catalogue, version: str, members: Sequence[Mapping[str, str]]) -> None:
    """The frames of a data set version, from its manifest, but for those whose frame or label is gone."""
    for member in members:
        cat.execute(
            "INSERT OR IGNORE INTO dataset_frame (dataset_version, frame, split, label) SELECT ?, frame.id, ?, label.id "
            "FROM frame JOIN label ON label.frame = frame.id WHERE frame.id = ? AND label.id = ?",
            version,
            member["split"],
            member["frame"],
            member["label"],
        )


def set_states(cat: Catalogue, deleted: Iterable[str]) -> None:
    """Frame states as labels and tombstones say."""
    cat.execute(
        "UPDATE frame SET state = coalesce((SELECT verdict FROM label_newest WHERE label_newest.frame = frame.id), "
        "(SELECT ?1 FROM linked_frame WHERE linked_frame.frame = frame.id AND kind = ?2), 'received')",
        SET_ASIDE,
        REFERENCE,
    )
    for frame in deleted:
        cat.execute("UPDATE frame SET state = 'deleted' WHERE id = ?", frame)
        forget_content(cat, frame)


def drop_dangling(cat: Catalogue) -> int:
    """Let go of references from models to what could not be put back; returns how many."""
    dropped = 0
    for column, table, key in (
        ("parent", "model", "digest"),
        ("dataset_version", "dataset_version", "id"),
        ("training_run", "training_run", "id"),
    ):
        # Names are the constants above.
        dropped += cat.execute(
            f"UPDATE model SET {column} = NULL WHERE {column} IS NOT NULL "  # noqa: S608
            f"AND {column} NOT IN (SELECT {key} FROM {table})"
        )
    dropped += cat.execute(
        "UPDATE training_run SET base_model = NULL WHERE base_model IS NOT NULL AND base_model NOT IN (SELECT digest FROM model)"
    )
    cat.execute("DELETE FROM training_run WHERE dataset_version NOT IN (SELECT id FROM dataset_version)")
    return dropped


def add_device_of_frames(cat: Catalogue, device: str, site: str, seen_at: str) -> bool:
    """A device that only its frames speak of; whether it is new."""
    return cat.insert("device", {"id": device, "site": site, "created_at": seen_at}, ignore=True)


def faults(cat: Catalogue) -> list[str]:
    """Rows that name rows which are not there, and damage to the file."""
    found = [
        f"{row['table']} row {row['rowid']} names no row of {row['parent']}" for row in cat.rows("PRAGMA foreign_key_check")
    ]
    damage = cat.damage()
    return [*found, *([f"the file is damaged: {damage}"] if damage else [])]


def note_rebuilt(cat: Catalogue, actor: str, counts: Mapping[str, int]) -> None:
    """Say in the event log that this catalogue was built again, and count its records as kept."""
    with cat.transaction():
        cat.log(actor, "catalogue rebuilt", utc_now(), counts)


def named_blobs(cat: Catalogue) -> list[Row]:
    """Every blob that a row needs: `blob`, `what` (frame, model, weights, manifest, batch), its `key`; deleted frames need none."""
    return cat.rows(
        "SELECT blob, 'frame' AS what, id AS key FROM frame WHERE state <> 'deleted' "
        "UNION ALL SELECT onnx_sha256, 'model', digest FROM model "
        "UNION ALL SELECT weights_sha256, 'weights', digest FROM model WHERE weights_sha256 IS NOT NULL "
        "UNION ALL SELECT manifest, 'manifest', id FROM dataset_version "
        "UNION ALL SELECT manifest, 'batch', id FROM batch WHERE manifest IS NOT NULL"
    )
