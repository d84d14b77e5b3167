"""Builds the catalogue again from the blob store alone: frames, detections, labels, data set versions, models, devices, classes.

In: blobs, and the records among them. Out: a new catalogue file, checked, and put in place of the old one, which is kept beside it.
Tombstones win over everything. What no record holds is gone and has to come from a backup: batches, rounds, rollouts, the event log,
health history, settings, dead letters (`kept.NOT_REBUILT`), and whatever is not in the catalogue at all (keys, tokens, passwords).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bowerbird_server.blobs import LocalBlobs, sync_folder
from bowerbird_server.catalogue import frames, kept
from bowerbird_server.catalogue.core import Catalogue, Row
from bowerbird_server.catalogue.record_keeping import keep_records
from bowerbird_server.catalogue.records import HEADERS_MAGIC, HeaderRecord, decode_fact, decode_headers
from bowerbird_server.catalogue.verify import verify_rows
from bowerbird_server.errors import EnvironmentFault
from bowerbird_server.layout import ANCHORS_NAME
from bowerbird_wire.errors import WireError

OnProgress = Callable[[str, int, int], None]
_LARGEST_RECORD_BYTES = 256 * 1024**2
_PUT_BACK_FIRST = ("class", "scene_split", "dataset_version", "device", "model", "training_run", "frame")
# After the frames: what they refuse has rows to say that it is gone.
_PUT_BACK_LAST = ("erasure", "deletion", "erasure_device", "erasure_done", "erasure_package")


@dataclass
class Records:
    """Everything that the records say, in the order in which it was said."""

    headers: list[HeaderRecord] = field(default_factory=list)
    tombstones: set[str] = field(default_factory=set)
    labels: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild found and made. `lost` names what a record speaks of and no blob holds; `previous` is the old file, if any."""

    counts: dict[str, int]
    damaged_records: tuple[str, ...]
    lost: tuple[str, ...]
    previous: Path | None


def rebuild(path: Path, blobs: LocalBlobs, actor: str, on_progress: OnProgress = lambda *_: None) -> Rebuilt:
    """Build the catalogue at `path` anew. The caller sees to it that no server runs.

    Args:
        path: of the catalogue; what lies there is kept as `<name>.before-<time>`.
        on_progress: (what, done, total).

    Raises:
        EnvironmentFault: the disk cannot be written, or what was built does not hold together; the old catalogue is untouched then.
    """
    records = read_records(blobs, on_progress)
    fresh = path.with_name(f".{path.name}.rebuilt-{os.getpid()}")
    _remove(fresh)
    try:
        with Catalogue(fresh) as cat:
            lost = _fill(cat, blobs, records, on_progress)
            counts = _counts(cat)
            kept.note_rebuilt(cat, actor, counts)
            faults = [*kept.faults(cat), *(fault.text for fault in verify_rows(cat, blobs, read=False).faults)]
            if faults:
                raise EnvironmentFault(
                    f"the rebuilt catalogue does not hold together ({faults[0]}); the old one was left as it is"
                )
            keep_records(cat, blobs)
            unwanted = frames.without_live_frame(cat, frames.blobs_of_deleted(cat))
            cat.value("PRAGMA wal_checkpoint(TRUNCATE)")
            cat.value("PRAGMA journal_mode = DELETE")  # one file, whole, before it gets its name
        previous = _swap(fresh, path)
    except OSError as error:
        raise EnvironmentFault(f"cannot write {fresh}: {error.strerror}; free space and start again") from error
    finally:
        _remove(fresh)
    for blob in unwanted:  # a deletion that was cut short, or a blob put back from an old backup
        blobs.delete(blob)
    return Rebuilt(counts, tuple(records.damaged), tuple(lost), previous)


def read_records(blobs: LocalBlobs, on_progress: OnProgress = lambda *_: None) -> Records:
    """Find the records among the blobs; each is read only when its digest holds."""
    digests = sorted(blobs.digests())
    found = Records()
    for done, digest in enumerate(digests, start=1):
        if done % 256 == 0 or done == len(digests):
            on_progress("reading blobs", done, len(digests))
        with blobs.open(digest) as stream:
            head = stream.read(len(HEADERS_MAGIC))
        if head != HEADERS_MAGIC and not head.startswith(b"{"):
            continue
        if blobs.path(digest).stat().st_size > _LARGEST_RECORD_BYTES:
            continue
        if not blobs.verify(digest):
            found.damaged.append(digest)
            continue
        _sort_in(found, blobs.read(digest), digest)
    found.headers.sort(key=lambda record: record.received_at)
    found.labels.sort(key=lambda event: (event["created_at"], event["id"]))
    found.rows.sort(key=lambda fact: fact["at"])
    return found


def _sort_in(found: Records, data: bytes, digest: str) -> None:
    if data.startswith(HEADERS_MAGIC):
        try:
            found.headers.append(decode_headers(data))
        except WireError:
            found.damaged.append(digest)
        return
    fact = decode_fact(data)
    if fact is None:
        return  # a manifest of a data set, or a file of somebody's that begins like one
    kind, content = fact
    if kind == "tombstone":
        found.tombstones.add(str(content["frame"]))
    elif kind == "label":
        found.labels.append(content)
    elif kind == "rows" and content["table"] in {*kept.GROWING, *kept.CHANGING}:
        found.rows.append(content)


def _fill(cat: Catalogue, blobs: LocalBlobs, records: Records, on_progress: OnProgress) -> list[str]:
    """Rows from records; returns what is lost. Foreign keys are checked at the end, since rows come in the order of their records."""
    lost: list[str] = []
    cat.connection.execute("PRAGMA foreign_keys = OFF")
    with cat.transaction(durable=False):
        said = {table: list(_newest(records.rows, table)) for table in {*kept.GROWING, *kept.CHANGING}}
        for table in _PUT_BACK_FIRST:
            kept.put_back(cat, table, _with_blobs(blobs, table, said[table], records.tombstones, lost))
        for done, record in enumerate(records.headers, start=1):
            on_progress("frames", done, len(records.headers))
            _put_back_headers(cat, blobs, record, records.tombstones, lost)
        for record in records.headers:  # behind all that they may refer to
            _put_back_references(cat, record, records.tombstones, lost)
        for table in _PUT_BACK_LAST:
            kept.put_back(cat, table, said[table])
        _put_back_labels(cat, records, said["label"])
        for version in said["dataset_version"]:
            if blobs.exists(version["manifest"]):
                manifest = json.loads(blobs.read(version["manifest"]))
                kept.put_back_members(cat, version["id"], manifest["frames"])
        kept.set_states(cat, records.tombstones)
        kept.drop_dangling(cat)
    cat.connection.execute("PRAGMA foreign_keys = ON")
    return lost


def _newest(facts: list[dict[str, Any]], table: str) -> Iterator[Row]:
    """The last that was said of each row of a table, in the order of their first mention."""
    by_key: dict[Any, Row] = {}
    for fact in facts:
        if fact["table"] == table:
            for row in fact["rows"]:
                by_key[row[_KEYS[table]]] = row
    yield from by_key.values()


_KEYS = {"class": "id", "scene_split": "scene", "dataset_version": "id", "label": "id", "frame": "id"} | {
    "device": "id",
    "model": "digest",
    "training_run": "id",
    "erasure": "id",
    "deletion": "frame",
    "erasure_device": "id",
    "erasure_done": "erasure",
    "erasure_package": "id",
}
_BLOBS_OF = {"model": ("onnx_sha256", "weights_sha256"), "dataset_version": ("manifest",), "frame": ("blob",)}


def _with_blobs(blobs: LocalBlobs, table: str, rows: list[Row], tombstones: set[str], lost: list[str]) -> Iterator[Row]:
    """Rows whose blobs are here; a deleted frame needs none."""
    for row in rows:
        missing = [row[name] for name in _BLOBS_OF.get(table, ()) if row[name] and not blobs.exists(row[name])]
        if missing and row.get("id") not in tombstones:
            lost.append(f"{table} {row[_KEYS[table]][:12]}: blob {missing[0][:12]} is missing")
        else:
            yield row


def _put_back_headers(cat: Catalogue, blobs: LocalBlobs, record: HeaderRecord, tombstones: set[str], lost: list[str]) -> None:
    arrived = []
    for site, header, size in record.frames:
        if size == 0:
            continue
        if not blobs.exists(header.image_sha256) and header.frame_id not in tombstones:
            lost.append(f"frame {header.frame_id[:12]}: blob {header.image_sha256[:12]} is missing")
            continue
        kept.add_device_of_frames(cat, header.device, site, record.received_at)
        arrived.append(frames.ArrivedFrame(header, size))
    frames.add_frames(cat, arrived, received_at=record.received_at, refuse_erased=False)


def _put_back_references(cat: Catalogue, record: HeaderRecord, tombstones: set[str], lost: list[str]) -> None:
    """Frames that came without a picture. One whose twin was deleted without it was never committed, or its deletion was cut short."""
    arrived = []
    for site, header, size in record.frames:
        if size:
            continue
        if header.twin in tombstones and header.frame_id not in tombstones:
            lost.append(f"frame {header.frame_id[:12]}: its twin {header.twin[:12]} is deleted")
            continue
        kept.add_device_of_frames(cat, header.device, site, record.received_at)
        arrived.append(frames.ArrivedFrame(header, 0))
    added = frames.add_frames(cat, arrived, received_at=record.received_at, refuse_erased=False)
    lost += [f"frame {frame[:12]}: its twin is missing" for frame in added.without_twin]


def _put_back_labels(cat: Catalogue, records: Records, confirmed: list[Row]) -> None:
    """Labels that became rows, and those made after the last time anybody wrote down which did.

    A label event without a row is what an import left that was taken back as a whole.
    """
    revisions = {row["id"]: (row["frame"], row["revision"]) for row in confirmed}
    written_down = max((fact["at"] for fact in records.rows if fact["table"] == "label"), default="")
    newest = dict(sorted(revisions.values()))
    for event in records.labels:
        frame, revision = revisions.get(event["id"], (event["frame"], 0))
        if frame != event["frame"] or frames.state_of(cat, frame) is None:
            continue
        if revision == 0:
            if event["created_at"] <= written_down:
                continue
            revision = newest[frame] = newest.get(frame, 0) + 1
        kept.put_back_label(cat, event, revision)


def _counts(cat: Catalogue) -> dict[str, int]:
    tables = ("frame", "detection", "label", "dataset_version", "dataset_frame", "model", "device", "class", "scene_split")
    return {table: cat.db[table].count for table in tables}


def _swap(fresh: Path, path: Path) -> Path | None:
    handle = os.open(fresh, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    previous = None
    now = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    anchors = path.with_name(ANCHORS_NAME)
    if anchors.exists():  # of the log that is gone; they are no fault of the new one
        anchors.rename(anchors.with_name(f"{anchors.name}.before-{now}"))
    if path.exists():
        previous = path.with_name(f"{path.name}.before-{now}")
        for suffix in ("-wal", "-shm", ""):
            old = path.with_name(path.name + suffix)
            if old.exists():
                old.rename(previous.with_name(previous.name + suffix))
    for suffix in ("-wal", "-shm"):  # of a catalogue that is gone; they must not be taken for the new one's
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    fresh.rename(path)
    sync_folder(path.parent)
    return previous


def _remove(fresh: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        fresh.with_name(fresh.name + suffix).unlink(missing_ok=True)
