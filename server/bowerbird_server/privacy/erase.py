"""Delete by request: a plan that says what is held where, carrying it out everywhere, and a report of what is gone and who knew it.

In: criteria (device, camera, interval, frames), a reason. Out: `Plan`, then a request in the catalogue that refuses what comes late,
then a report as plain values. Gone are: images (whole, in parts, as refused messages, as links in data sets that are laid out, in the
folders of trainings), thumbnails, detections, and by a wish to each device what waits there. Not gone, and named in the report: models
that learnt from the frames, packages that carry a small copy as golden picture, exports and backups elsewhere, and the text of labels
and manifests. Every step may be repeated, so a process that is killed is followed by another that finishes.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bowerbird_server.blobs import LocalBlobs
from bowerbird_server.catalogue import erasures, frames, identity
from bowerbird_server.catalogue.core import Catalogue, Row, utc_text
from bowerbird_server.catalogue.erasures import Criteria
from bowerbird_server.catalogue.record_keeping import delete_frames, keep_records
from bowerbird_server.errors import BadInput
from bowerbird_server.ingest.chunks import ChunkStore
from bowerbird_server.ingest.dead_letters import DeadLetters
from bowerbird_server.privacy.deletion_log import DeletionLog
from bowerbird_server.privacy.golden_pictures import packages_showing
from bowerbird_server.site import Site

logger = logging.getLogger(__name__)

MAX_NAMED = 5000
_GROUP = 200
# What a training may have left beside the weights: pictures, and arrays made of them.
_PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".npy", ".npz", ".cache"})


@dataclass(frozen=True)
class Plan:
    """What a request would do, without doing it.

    Args:
        criteria: what it covers.
        frames: rows of the frames that are here.
        by_state: frame state -> how many.
        versions: data set versions that hold one of them, with the frames by split.
        models: models that these had a part in.
        devices: rows of the devices that would be asked.
        not_asked: devices that cannot be: retired ones.
        without_clock: frames of the same cameras whose time nobody knows; they are left, look at them by hand.
        trainings: runs in work that read them.
    """

    criteria: Criteria
    frames: tuple[Row, ...]
    by_state: Mapping[str, int]
    versions: tuple[Row, ...]
    models: tuple[Row, ...]
    devices: tuple[str, ...]
    not_asked: tuple[str, ...]
    without_clock: int
    trainings: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "criteria": criteria_plain(self.criteria),
            "frames": [row["id"] for row in self.frames],
            "by_state": dict(self.by_state),
            "images": len({row["blob"] for row in self.frames}),
            "dataset_versions": [_version_plain(row) for row in self.versions],
            "models": list(self.models),
            "devices": list(self.devices),
            "devices_not_asked": list(self.not_asked),
            "frames_without_clock": self.without_clock,
            "trainings_in_work": list(self.trainings),
        }


def plan(site: Site, criteria: Criteria) -> Plan:
    """What a request with these criteria would do.

    Raises:
        BadInput: it would cover nothing in particular, or name too many frames at once.
    """
    if not criteria.has_interval and not criteria.frames:
        raise BadInput("name what to erase: frames, a scene, a device, a camera or a time range; nothing was erased")
    if len(criteria.frames) > MAX_NAMED:
        raise BadInput(
            f"{len(criteria.frames)} frames are named and at most {MAX_NAMED} fit into one request; use a time range"
        )
    cat = site.catalogue
    rows = erasures.frames_of(cat, criteria)
    states: dict[str, int] = {}
    for row in rows:
        states[row["state"]] = states.get(row["state"], 0) + 1
    ids = [row["id"] for row in rows]
    versions = erasures.versions_that_held(cat, ids)
    devices = erasures.devices_for(cat, criteria)
    return Plan(
        criteria=criteria,
        frames=tuple(rows),
        by_state=states,
        versions=tuple(versions),
        models=tuple(erasures.models_that_learnt(cat, versions)),
        devices=tuple(row["id"] for row in devices if row["state"] != "retired"),
        not_asked=tuple(row["id"] for row in devices if row["state"] == "retired"),
        without_clock=erasures.without_clock(cat, criteria),
        trainings=tuple(erasures.runs_in_work(cat, versions)),
    )


def erase(site: Site, made: Plan, actor: str, why: str) -> str:
    """Carry a plan out; returns the request's id. What was received since the plan was made goes as well.

    Raises:
        BadInput: no reason is given.
        EnvironmentFault: the disk refuses; what is left is finished by the scheduler, or by asking again.
    """
    if not why.strip():
        raise BadInput("say why: the reason is kept with the deletion")
    row = erasures.new_row(made.criteria, actor, why)
    # The log before the catalogue: a restore of any backup must find the request, whatever happens to this process.
    DeletionLog(site.folder.deletions).append([{"kind": "erasure", **row}])
    erasures.add(site.catalogue, row, made.devices)
    carry_out(site, row)
    return str(row["id"])


def carry_out(site: Site, row: Row) -> Mapping[str, int]:
    """Delete what a request covers from this server; also what a killed process left of it. Returns counts by place."""
    cat, criteria = site.catalogue, Criteria.of(row)
    ids = [frame["id"] for frame in erasures.frames_of(cat, criteria, deleted=True)]
    live = erasures.frames_of(cat, criteria)
    erasures.note_packages(cat, row["id"], packages_showing(site, [frame["blob"] for frame in live]))
    counts = {"frames": 0, "images": 0}
    for start in range(0, len(ids), _GROUP):
        deleted = delete_frames(cat, site.blobs, ids[start : start + _GROUP], row["actor"], row["why"], erasure=row["id"])
        counts["frames"] += deleted.frames
        counts["images"] += deleted.images
    chunks = ChunkStore(site.folder.parts)
    devices = [criteria.device or criteria.camera.partition("/")[0]] if criteria.device or criteria.camera else chunks.devices()
    counts["unfinished_transfers"] = sum(chunks.erase(device, criteria.covers) for device in devices)
    letters = DeadLetters(site.folder.root / "dead-letters")
    is_scoped = bool(criteria.device or criteria.camera)
    counts["refused_messages"] = (
        sum(letters.erase(cat, device, criteria.covers) for device in devices)
        if is_scoped
        else letters.erase(cat, None, criteria.covers)
    )
    versions = erasures.versions_that_held(cat, ids)
    counts["training_files"] = sum(_drop_pictures(site.folder.training / run) for run in erasures.runs_of(cat, versions))
    counts["dataset_versions_redacted"] = len(versions)
    erasures.finish(cat, row["id"], counts, row["actor"])
    keep_records(cat, site.blobs)
    cat.fold_log()  # pages of before stand in the log until then
    logger.warning("erasure %s: %s", row["id"], counts)
    return counts


def finish_all(site: Site, *, older_than_s: float = 600.0) -> int:
    """Finish the requests that a killed process left; returns how many.

    Args:
        older_than_s: younger ones may be in work.
    """
    rows = erasures.unfinished(site.catalogue, utc_text((time.time() - older_than_s) * 1000))
    for row in rows:
        carry_out(site, row)
    return len(rows)


def report(site: Site, row: Row) -> dict[str, Any]:
    """What became of a request: plain values for JSON; `text_of` makes lines of it."""
    cat, criteria = site.catalogue, Criteria.of(row)
    covered = erasures.frames_of(cat, criteria, deleted=True)
    ids = [frame["id"] for frame in covered]
    versions = erasures.versions_that_held(cat, ids)
    done_at, counts = erasures.removed_of(cat, row["id"])
    asked = erasures.asked_of(cat, row["id"])
    since = min((frame["captured_at"] for frame in covered), default=row["at"])
    found: dict[str, Any] = {
        "erasure": row["id"],
        "at": row["at"],
        "by": row["actor"],
        "why": row["why"],
        "criteria": criteria_plain(criteria),
        "done_at": done_at,
        "removed": counts,
        "frames": ids,
        "left": [frame["id"] for frame in covered if frame["state"] != "deleted" or site.blobs.exists(frame["blob"])],
        "devices": {
            "confirmed": [
                {"device": one["device"], "at": one["confirmed_at"], "frames": one["frames"]}
                for one in asked
                if one["confirmed_at"] is not None
            ],
            "waiting": [
                {"device": one["device"], "state": one["state"], "online": bool(one["online"])}
                for one in asked
                if one["confirmed_at"] is None
            ],
            "not_asked": [
                one["id"] for one in erasures.devices_for(cat, criteria) if one["id"] not in {a["device"] for a in asked}
            ],
        },
        "dataset_versions": [_version_plain(version) for version in versions],
        "models": erasures.models_that_learnt(cat, versions),
        "packages_with_a_picture": erasures.packages_of(cat, row["id"]),
        "trainings_in_work": erasures.runs_in_work(cat, versions),
        "copies_elsewhere": erasures.copies_outside(cat, versions, since),
        "frames_without_clock": erasures.without_clock(cat, criteria),
    }
    found["seen_by"] = erasures.sights(cat, ids)
    return found


def text_of(found: Mapping[str, Any]) -> list[str]:
    """A report as lines for a person."""
    devices = found["devices"]
    lines = [
        f"erasure {found['erasure']} of {found['at']} by {found['by']}: {found['why']}",
        f"here: {len(found['frames'])} frames, {len(found['left'])} of them left"
        + ("" if found["done_at"] else "; NOT FINISHED, the scheduler goes on with it"),
        *(f"  {count} {place.replace('_', ' ')}" for place, count in sorted(found["removed"].items()) if count),
        f"devices: {len(devices['confirmed'])} have confirmed, {len(devices['waiting'])} have not yet"
        + (f", {len(devices['not_asked'])} cannot be asked" if devices["not_asked"] else ""),
        *(f"  {one['device']} deleted {one['frames']} frames, {one['at']}" for one in devices["confirmed"]),
        *(
            f"  {one['device']} waits ({'online' if one['online'] else 'offline'}, {one['state']})"
            for one in devices["waiting"]
        ),
        *(f"  {name} is retired: wipe or destroy its disk" for name in devices["not_asked"]),
    ]
    for version in found["dataset_versions"]:
        splits = ", ".join(f"{len(gone)} {split}" for split, gone in sorted(version["removed"].items()))
        lines.append(f"data set version {version['number']} held it and is redacted: {splits}")
    for model in found["models"]:
        where = f", runs on {', '.join(model['devices'])}" if model["devices"] else ""
        lines.append(f"model {model['digest'][:12]} ({model['state']}): {model['relation'].replace('_', ' ')}{where}")
    lines += [
        f"package {digest[:12]} carries a small copy as a golden picture: roll out another model, then delete it"
        for digest in found["packages_with_a_picture"]
    ]
    lines += [f"training {run} reads it now: cancel it and train again" for run in found["trainings_in_work"]]
    lines += [
        f"copy elsewhere: {copy['kind']} on {copy['at']} to {copy['why'].get('folder', '?')}"
        for copy in found["copies_elsewhere"]
    ]
    if found["frames_without_clock"]:
        lines.append(f"{found['frames_without_clock']} frames of these cameras have no trusted time; look at them by hand")
    if found["seen_by"]:
        people = ", ".join(sorted({row["person"] for row in found["seen_by"]}))
        lines.append(f"seen by {people} ({len(found['seen_by'])} sights on record)")
    return lines


def criteria_plain(criteria: Criteria) -> dict[str, Any]:
    """For JSON."""
    found: dict[str, Any] = {"device": criteria.device, "camera": criteria.camera, "frames": list(criteria.frames)}
    if criteria.has_interval:
        found |= {"from_ms": criteria.from_ms, "to_ms": criteria.to_ms}
    return found


def replay(log: DeletionLog, cat: Catalogue, blobs: LocalBlobs, actor: str) -> int:
    """Carry the log of deletions out on a catalogue that was restored from a backup; returns how many frames it deleted.

    Args:
        log: with every entry that is known, of whatever source.
        cat: the restored catalogue.
        blobs: the restored blob store.
    """
    known = {row["id"] for row in frames.blobs_of(cat)}
    doomed: dict[str, list[str]] = {}
    entries = log.read()
    identity.shut_out_again(cat, (entry for entry in entries if entry["kind"] == "device"), actor)
    for entry in entries:
        if entry["kind"] == "erasure":
            row = {name: entry[name] for name in ("id", "at", "actor", "why", "device", "camera", "from_ms", "to_ms", "frames")}
            criteria = Criteria.of(row)
            asked = [one["id"] for one in erasures.devices_for(cat, criteria) if one["state"] != "retired"]
            erasures.add(cat, row, asked)
            doomed.setdefault(row["id"], []).extend(one["id"] for one in erasures.frames_of(cat, criteria, deleted=True))
        elif entry["kind"] == "frame":
            erasures.note_deleted(cat, entry)
            if entry["frame"] in known:
                doomed.setdefault(entry["erasure"], []).append(entry["frame"])
    count = 0
    for erasure, ids in doomed.items():
        for start in range(0, len(ids), _GROUP):
            count += delete_frames(
                cat, blobs, ids[start : start + _GROUP], actor, "deleted before this site was restored", erasure=erasure
            ).frames
    return count


def _version_plain(version: Row) -> dict[str, Any]:
    return {"id": version["id"], "number": version["number"], "removed": version["splits"]}


def _drop_pictures(folder: Path) -> int:
    """Remove pictures from a training's folder; weights, models and figures stay."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in _PICTURE_SUFFIXES]
    for path in files:
        path.unlink(missing_ok=True)
    return len(files)


def as_json(found: Mapping[str, Any]) -> str:
    """A report as JSON text."""
    return json.dumps(found, indent=1, sort_keys=True)


def named(ids: Sequence[str]) -> Criteria:
    """Criteria for frames by id only."""
    return Criteria(frames=tuple(dict.fromkeys(ids)))
