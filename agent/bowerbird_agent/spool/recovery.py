"""How a spool starts after whatever ended its last run: rows and files are brought together, a lost index is made again.

In: the spool's folder. Out: an index that agrees with the files and whose account is balanced. Where the two differ, the index is right
about states and the files about existence. It runs once, before the spool is used, and never promotes what was not chosen.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
from collections.abc import Mapping
from pathlib import Path

from bowerbird_agent.spool.eviction import group_of
from bowerbird_agent.spool.files import FrameFiles, on_disk_bytes
from bowerbird_agent.spool.index import PROMOTED, SPOOLED, FrameState, Outcome, SpooledFrame, SpoolIndex, ledger_of, salvage
from bowerbird_wire import codec
from bowerbird_wire.errors import WireError

log = logging.getLogger(__name__)

_REBUILDING, _REBUILD_EXPECTS = "spool.rebuilding", "spool.rebuild_expects"


def _index_path(root: Path) -> Path:
    return root / "index.db"


def _snapshot_path(root: Path) -> Path:
    return root / "counters.json"


def write_snapshot(root: Path, index: SpoolIndex) -> None:
    """A copy of counters and notes for the day on which the index is lost. A disk that refuses it is no harm."""
    part = _snapshot_path(root).with_suffix(".part")
    with contextlib.suppress(OSError, sqlite3.Error):
        part.write_text(json.dumps({"counters": index.counters(), "notes": index.notes()}), encoding="utf-8")
        part.replace(_snapshot_path(root))


def open_index(root: Path, *, remember: int) -> SpoolIndex:
    """The index, made again when it is missing or damaged, with the best counters that can be found.

    Raises:
        SpoolError: the disk refused.
    """
    path = _index_path(root)
    try:
        index = SpoolIndex(path, remember=remember)
    except SpoolIndex.Damaged as damage:
        counters, notes = salvage(path)
        log.warning("spool %s: %s; rebuilding it from the frame files", root, damage)
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        index = SpoolIndex(path, remember=remember)
    else:
        counters, notes = {}, {}
    if index.fresh:
        _restore_counters(root, index, counters, notes)
    return index


def _restore_counters(root: Path, index: SpoolIndex, counters: Mapping[str, int], notes: Mapping[str, str]) -> None:
    saved: dict[str, int] = {}
    with contextlib.suppress(OSError, ValueError, AttributeError, KeyError, TypeError):
        read = json.loads(_snapshot_path(root).read_text(encoding="utf-8"))
        saved = {str(name): int(value) for name, value in read["counters"].items()}
        notes = {**{str(name): str(value) for name, value in read["notes"].items()}, **notes}
    # Counters only grow: of two readings the larger is the newer one.
    best = {name: max(counters.get(name, 0), saved.get(name, 0)) for name in {*counters, *saved}}
    # What was in the spool is counted again as its files are found.
    settled = ledger_of(best, {}).settled
    spooled = best.get(SPOOLED, 0)
    with index.transaction():
        for name, value in best.items():
            index.set_counter(name, value)
        for name, text in notes.items():
            index.set_note(name, text)
        index.set_counter(_REBUILDING, 1)
        index.set_counter(_REBUILD_EXPECTS, max(0, spooled - settled))
        index.set_counter(SPOOLED, settled)


def reconcile(index: SpoolIndex, files: FrameFiles, floors: Mapping[str, float]) -> None:
    """Bring files and rows together after whatever ended the last run."""
    rebuilding = index.counter(_REBUILDING) == 1  # kept in the index: a rebuild may be cut short as well
    rows = index.states()
    found: set[str] = set()
    for frame_id, candidate in list(files.scan()):
        if frame_id in found:
            continue  # both names of one frame: the rename below leaves one
        found.add(frame_id)
        if frame_id in rows:
            files.rename(frame_id, candidate=rows[frame_id] == FrameState.CANDIDATE.value)
        elif index.outcome(frame_id) is not None:
            files.delete(frame_id)  # settled, but the crash came before the file was gone
        else:
            _adopt(index, files, frame_id, floors, candidate=candidate, count_promoted=not rebuilding)
    missing = [frame_id for frame_id in rows if frame_id not in found]
    if missing:
        log.warning("%d frames of the spool have no file any more; dropped and counted", len(missing))
    with index.transaction():
        for frame_id in missing:
            index.settle(frame_id, Outcome.DROPPED, "file_missing")
        index.wake()
        if rebuilding:
            # Frames that left after the last copy of the counters: most were committed, but nobody knows any more.
            lost = max(0, index.counter(_REBUILD_EXPECTS) - len(found))
            index.count({SPOOLED: lost, f"spool.{Outcome.DROPPED.value}:index_lost": lost})
            chosen = len(index.frames(FrameState.NEW))
            index.set_counter(PROMOTED, max(chosen, index.counter(PROMOTED)))
            index.set_counter(_REBUILDING, 0)


def _adopt(
    index: SpoolIndex,
    files: FrameFiles,
    frame_id: str,
    floors: Mapping[str, float],
    *,
    candidate: bool,
    count_promoted: bool,
) -> None:
    """A whole file without a row: the crash came between the two, or the index was lost."""
    try:
        payload = files.read(frame_id) or b""
        header = codec.decode_frame(payload).header
        if header.frame_id != frame_id:
            raise WireError("the file has another frame's name")
    except WireError as error:
        log.warning("frame %s: its spool file is damaged (%s); deleted and counted", frame_id[:12], error)
        files.delete(frame_id)
        with index.transaction():
            index.count({SPOOLED: 1, f"spool.{Outcome.DROPPED.value}:file_damaged": 1})
        return
    frame = SpooledFrame(
        frame_id,
        FrameState.CANDIDATE if candidate else FrameState.NEW,
        header.arm,
        header.score,
        len(payload),
        header.camera,
        header.sequence,
        header.captured_at_ms,
        group_of(header.arm, header.reasons, floors),
        header.inclusion_probability,
    )
    with index.transaction(durable=False):
        index.insert(frame, on_disk_bytes(len(payload)), count_promoted=count_promoted)
