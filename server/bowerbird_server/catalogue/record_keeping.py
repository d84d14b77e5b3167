"""Keeps among the blobs what only the catalogue knew, so that a lost catalogue can be built again; and deletes, with a tombstone.

In: the catalogue and the blob store. Out: records (see `records.py`) of what is new since the last call. Headers of frames and labels
are kept when they are made; devices, classes, sides of scenes, imported frames, models, data set versions and finished trainings
here, by the scheduler within seconds and by the commands that make them before they end. It reads no record; `catalogue/rebuild.py`
does.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bowerbird_server.blobs import BlobStore
from bowerbird_server.catalogue import fetches, frames, kept
from bowerbird_server.catalogue.batches import finish_batches
from bowerbird_server.catalogue.core import Catalogue, Row, utc_now
from bowerbird_server.catalogue.datasets import versions_with
from bowerbird_server.catalogue.records import encode_fact
from bowerbird_server.layout import DataFolder
from bowerbird_server.privacy.deletion_log import DeletionLog

ROWS_PER_RECORD = 1000


@dataclass(frozen=True)
class Deleted:
    """Frames that are deleted now, and image files that went with them (an image that another frame shares stays)."""

    frames: int
    images: int


def keep_records(cat: Catalogue, blobs: BlobStore) -> int:
    """Keep what is new; returns how many rows. Killed in between it keeps some of them twice, which changes nothing."""
    count = 0
    for table in kept.GROWING:
        after, last = int(cat.setting(_note(table), -1)), kept.last_rowid(cat, table)
        while after < last:
            batch = kept.rows_after(cat, table, after, ROWS_PER_RECORD)
            if batch:
                blobs.put(_record(table, [row for _, row in batch]))
            after = batch[-1][0] if len(batch) == ROWS_PER_RECORD else last
            cat.set_setting(_note(table), after)
            count += len(batch)
    for table in kept.CHANGING:
        known: dict[str, str] = cat.setting(_note(table), {})
        now = {key: (_digest(row), row) for key, row in kept.rows_by_key(cat, table)}
        changed = [row for key, (digest, row) in now.items() if known.get(key) != digest]
        if changed:
            for batch_of_rows in _batches(changed):
                blobs.put(_record(table, batch_of_rows))
            cat.set_setting(_note(table), {key: digest for key, (digest, _) in now.items()})
            count += len(changed)
    return count


def delete_frames(cat: Catalogue, blobs: BlobStore, ids: Sequence[str], actor: str, why: str, *, erasure: str = "") -> Deleted:
    """Delete frames for good: the log of deletions, a tombstone, then the state, then the image, also where a data set version is
    laid out. A device that sends one again is refused.

    Killed in between, deleting again finishes it.

    Args:
        ids: frame ids; those deleted already only lose what is left of them. Originals and surroundings that were fetched go as well.
        erasure: the request that it belongs to, "" for none.

    Raises:
        NotFound: a frame is not in the catalogue; then none is deleted.
    """
    rows = [frames.get(cat, identity) for identity in fetches.with_linked(cat, list(ids))]
    now = utc_now()
    gone = [
        {"frame": row["id"], "blob": row["blob"], "at": now, "actor": actor, "why": why, "erasure": erasure}
        for row in rows
        if row["state"] != "deleted"
    ]
    DeletionLog.beside(cat.path).append([{"kind": "frame", **row} for row in gone])
    blobs.put_many([encode_fact("tombstone", {"frame": row["id"], "at": now, "by": actor, "why": why}) for row in rows])
    with cat.transaction():
        changed = frames.change_state(cat, [row["id"] for row in rows], "deleted", actor)
        for row in gone:
            cat.insert("deletion", row, ignore=True)
            finish_batches(cat, row["frame"])
    drop_laid_out(cat, [row["id"] for row in rows])
    late = [row["id"] for row in fetches.live_linked(cat, list(ids))]  # a reference may have been taken in while this began
    more = delete_frames(cat, blobs, late, actor, why, erasure=erasure) if late else Deleted(0, 0)
    unused = frames.without_live_frame(cat, sorted({row["blob"] for row in rows}))
    return Deleted(changed + more.frames, more.images + sum(blobs.delete(blob) for blob in unused))


def drop_laid_out(cat: Catalogue, ids: Sequence[str]) -> int:
    """Remove the folders of data set versions that hold one of these frames: their pictures are links that would keep the bytes.

    They are laid out again, without the deleted frames, when they are needed. A layout under way goes as well: it began before the
    deletion, and the training that waits for it fails and says so. Returns how many there were.
    """
    dropped = 0
    datasets = DataFolder(cat.path.parent).datasets
    for version in versions_with(cat, ids):
        for folder in (datasets / version, *datasets.glob(f".{version}.*")):
            dropped += folder.exists()
            shutil.rmtree(folder, ignore_errors=True)
    return dropped


def _record(table: str, rows: Sequence[Row]) -> bytes:
    return encode_fact("rows", {"table": table, "at": utc_now(), "rows": list(rows)})


def _batches(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    for start in range(0, len(rows), ROWS_PER_RECORD):
        yield rows[start : start + ROWS_PER_RECORD]


def _digest(row: Row) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:16]


def _note(table: str) -> str:
    return f"records.{table}"
