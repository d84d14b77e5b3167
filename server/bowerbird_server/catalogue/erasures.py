"""Requests to forget frames: the rows that refuse what comes late, what each device was asked and has confirmed, and what knew a frame.

In: a request's criteria, devices' answers. Out: rows, frames that a request covers, `EraseWish`es for devices, and the lineage: which
data set versions held erased frames, which models learnt from them. It deletes nothing (`erase.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bowerbird_server.catalogue.core import Catalogue, Row, new_id, utc_now, utc_text
from bowerbird_wire.messages import EraseWish, FrameHeader

# What one message asks of a device at a time: some 330 KB of the megabyte that a control message may have.
_MESSAGE_FRAMES = 5000
_MESSAGE_WISHES = 500


@dataclass(frozen=True)
class Criteria:
    """What a request covers: frames of a device or camera (`""` for all) captured in an interval, UTC ms, both ends inclusive, and the
    frames named. With `to_ms` below `from_ms` only those."""

    device: str = ""
    camera: str = ""  # device/camera
    from_ms: int = 0
    to_ms: int = -1
    frames: tuple[str, ...] = ()

    @property
    def has_interval(self) -> bool:
        """Whether it covers more than what it names."""
        return self.to_ms >= self.from_ms

    def covers(self, header: FrameHeader) -> bool:
        """Whether a frame is to be forgotten."""
        in_interval = (
            self.from_ms <= header.captured_at_ms <= self.to_ms
            and self.device in ("", header.device)
            and self.camera in ("", f"{header.device}/{header.camera}")
        )
        return in_interval or header.frame_id in self.frames

    @classmethod
    def of(cls, row: Row) -> Criteria:
        """From a row of `erasure`."""
        return cls(row["device"], row["camera"], row["from_ms"], row["to_ms"], tuple(json.loads(row["frames"])))


def new_row(criteria: Criteria, actor: str, why: str) -> Row:
    """A request that is not in the catalogue yet."""
    return {
        "id": new_id(),
        "at": utc_now(),
        "actor": actor,
        "why": why,
        "device": criteria.device,
        "camera": criteria.camera,
        "from_ms": criteria.from_ms,
        "to_ms": criteria.to_ms,
        "frames": json.dumps(list(criteria.frames)),
    }


def add(cat: Catalogue, row: Row, devices: Sequence[str]) -> bool:
    """A request: from the commit on nothing that it covers is taken in, and the devices are asked. False when it is known."""
    with cat.transaction():
        if not cat.insert("erasure", row, ignore=True):
            return False
        for frame in json.loads(row["frames"]):
            cat.insert("deletion", _deletion(row, frame), ignore=True)
        ask(cat, row["id"], devices)
        cat.log(row["actor"], "erasure asked", row["id"], {"why": row["why"]})
    return True


def ask(cat: Catalogue, erasure: str, devices: Sequence[str]) -> None:
    """Have devices asked to forget what a request covers."""
    now = utc_now()
    for device in devices:
        key = f"{erasure}/{device}"
        cat.insert("erasure_device", {"id": key, "erasure": erasure, "device": device, "asked_at": now}, ignore=True)


def _deletion(row: Row, frame: str) -> Row:
    return {"frame": frame, "blob": "", "at": row["at"], "actor": row["actor"], "why": row["why"], "erasure": row["id"]}


def note_deleted(cat: Catalogue, entry: Mapping[str, Any]) -> None:
    """A deletion that was made before a restore: its frame is refused, whether it is here or not."""
    row = {name: entry[name] for name in ("frame", "blob", "at", "actor", "why", "erasure")}
    cat.insert("deletion", row, ignore=True)


def knows_camera(cat: Catalogue, camera: str) -> bool:
    """Whether there is a camera `device/camera`."""
    return cat.value("SELECT 1 FROM camera WHERE id = ?", camera) is not None


def get(cat: Catalogue, erasure: str) -> Row | None:
    """A request by id or the beginning of its id, None when there is not just one."""
    found = cat.starting_with("erasure", "id", erasure)
    return found[0] if len(found) == 1 else None


def listed(cat: Catalogue) -> list[Row]:
    """All requests, newest first, with `done_at` and how many devices have not confirmed (`waiting`)."""
    return cat.rows(
        "SELECT erasure.*, erasure_done.at AS done_at, (SELECT count(*) FROM erasure_device "
        "WHERE erasure_device.erasure = erasure.id AND confirmed_at IS NULL) AS waiting "
        "FROM erasure LEFT JOIN erasure_done ON erasure_done.erasure = erasure.id ORDER BY erasure.id DESC"
    )


def unfinished(cat: Catalogue, asked_before: str) -> list[Row]:
    """Requests made before a moment (UTC ISO text) and not done yet: their process was killed."""
    return cat.rows(
        "SELECT * FROM erasure WHERE at < ? AND id NOT IN (SELECT erasure FROM erasure_done) ORDER BY id", asked_before
    )


def finish(cat: Catalogue, erasure: str, removed: Mapping[str, int], actor: str) -> None:
    """All of it is gone from this server."""
    with cat.transaction():
        row = {"erasure": erasure, "at": utc_now(), "removed": json.dumps(dict(removed), sort_keys=True)}
        if cat.insert("erasure_done", row, ignore=True):
            cat.log(actor, "erasure done", erasure, dict(removed))


def removed_of(cat: Catalogue, erasure: str) -> tuple[str | None, dict[str, int]]:
    """When a request was done on this server, None while it is not; and how much went where."""
    row = cat.row("SELECT at, removed FROM erasure_done WHERE erasure = ?", erasure)
    return (None, {}) if row is None else (row["at"], json.loads(row["removed"]))


def frames_of(cat: Catalogue, criteria: Criteria, *, deleted: bool = False) -> list[Row]:
    """Rows `id blob device camera captured_at clock_ok state` of the frames that criteria cover, and of those with the same picture.

    Args:
        deleted: also those that are deleted already.
    """
    conditions, params = ["id IN (SELECT value FROM json_each(?))"], [json.dumps(list(criteria.frames))]
    if criteria.has_interval:
        part = "captured_at BETWEEN ? AND ?"
        params += [utc_text(criteria.from_ms), utc_text(criteria.to_ms)]
        for column, value in (("device", criteria.device), ("camera", criteria.camera)):
            if value:
                part += f" AND {column} = ?"
                params.append(value)
        conditions.append(f"({part})")
    # Columns are the constants above. One picture may be two frames: a device's and an imported one.
    return cat.rows(
        "SELECT id, blob, device, camera, captured_at, clock_ok, state FROM frame WHERE blob IN "  # noqa: S608
        f"(SELECT blob FROM frame WHERE {' OR '.join(conditions)}) "
        + ("" if deleted else "AND state <> 'deleted' ")
        + "ORDER BY captured_at, id",
        *params,
    )


def ids_of_scene(cat: Catalogue, scene: str) -> list[Row]:
    """Rows `id device camera captured_at` of a scene's frames."""
    return cat.rows("SELECT id, device, camera, captured_at FROM frame WHERE scene = ? ORDER BY id", scene)


def without_clock(cat: Catalogue, criteria: Criteria) -> int:
    """Frames of the same cameras whose device did not know the time: nobody can say whether they belong to the interval."""
    if not criteria.has_interval:
        return 0
    return int(
        cat.value(
            "SELECT count(*) FROM frame WHERE clock_ok = 0 AND state <> 'deleted' AND (? = '' OR device = ?) "
            "AND (? = '' OR camera = ?)",
            criteria.device,
            criteria.device,
            criteria.camera,
            criteria.camera,
        )
    )


def devices_for(cat: Catalogue, criteria: Criteria) -> list[Row]:
    """Rows `id site state` of the devices that may hold such frames: the one named, else all (a named frame may be anywhere)."""
    device = criteria.device or criteria.camera.partition("/")[0]
    known = cat.rows("SELECT id, site, state FROM device WHERE ? = '' OR id = ? ORDER BY id", device, device)
    if criteria.has_interval or not criteria.frames:
        return known
    rows = cat.rows(
        "SELECT DISTINCT device FROM frame WHERE id IN (SELECT value FROM json_each(?))", json.dumps(list(criteria.frames))
    )
    here = int(
        cat.value("SELECT count(*) FROM frame WHERE id IN (SELECT value FROM json_each(?))", json.dumps(list(criteria.frames)))
    )
    holders = {row["device"] for row in rows}
    return known if here < len(criteria.frames) else [row for row in known if row["id"] in holders]


# -- what devices are asked


def wishes(cat: Catalogue) -> dict[str, tuple[EraseWish, ...]]:
    """What each device is to forget and has not confirmed. A device that has confirmed all it was ever asked has an empty entry,
    so that its retained message is replaced."""
    found: dict[str, list[EraseWish]] = {}
    for row in cat.rows(
        "SELECT erasure_device.device AS asked, erasure_device.confirmed_at, erasure.* FROM erasure_device "
        "JOIN erasure ON erasure.id = erasure_device.erasure ORDER BY erasure.id"
    ):
        of_device = found.setdefault(row["asked"], [])
        if row["confirmed_at"] is None:
            criteria = Criteria.of(row)
            camera = criteria.camera.partition("/")[2]
            wish = EraseWish(row["id"], camera, criteria.from_ms, criteria.to_ms, criteria.frames)
            named = sum(len(one.frames) for one in of_device) + len(wish.frames)
            # The others follow when these are confirmed; a message has its limit, and a device may be offline for a year.
            if not of_device or (named <= _MESSAGE_FRAMES and len(of_device) < _MESSAGE_WISHES):
                of_device.append(wish)
    return {device: tuple(of_device) for device, of_device in found.items()}


def confirm(cat: Catalogue, device: str, done: Mapping[str, Any]) -> list[str]:
    """Note which wishes a device says are done, and how many frames went; returns those that are new."""
    new = []
    with cat.transaction():
        for erasure, count in done.items():
            frames = count if isinstance(count, int) and 0 <= count < 2**53 else 0
            key = f"{erasure}/{device}"
            if cat.execute(
                "UPDATE erasure_device SET confirmed_at = ?, frames = ? WHERE id = ? AND confirmed_at IS NULL",
                utc_now(),
                frames,
                key,
            ):
                new.append(str(erasure))
                cat.log(device, "erasure confirmed", str(erasure), {"frames": frames})
    return new


def asked_of(cat: Catalogue, erasure: str) -> list[Row]:
    """Rows `device state asked_at confirmed_at frames online` of a request."""
    return cat.rows(
        "SELECT erasure_device.device, device.state, asked_at, confirmed_at, frames, online FROM erasure_device "
        "LEFT JOIN device ON device.id = erasure_device.device WHERE erasure = ? ORDER BY erasure_device.device",
        erasure,
    )


# -- what knew the frames


def versions_that_held(cat: Catalogue, frames: Sequence[str]) -> list[Row]:
    """Rows `id number` of the data set versions that hold one of the frames, each with `splits`: split -> the frames in it."""
    held: dict[str, Row] = {}
    for row in cat.rows(
        "SELECT dataset_version.id, number, dataset_frame.split, dataset_frame.frame FROM dataset_frame "
        "JOIN dataset_version ON dataset_version.id = dataset_frame.dataset_version "
        "WHERE dataset_frame.frame IN (SELECT value FROM json_each(?)) ORDER BY number, dataset_frame.frame",
        json.dumps(list(frames)),
    ):
        version = held.setdefault(row["id"], {"id": row["id"], "number": row["number"], "splits": {}})
        version["splits"].setdefault(row["split"], []).append(row["frame"])
    return list(held.values())


def models_that_learnt(cat: Catalogue, versions: Sequence[Row]) -> list[Row]:
    """Rows `digest state release relation devices` of the models that the frames of these versions had a part in.

    `relation`: `trained_on` (a frame was in its training or validation split), `descended` (it began from the weights of such a model,
    or replaced it as champion and names it as parent) or `evaluated_on` (a frame was held out to judge it, and taught it nothing).
    """
    teaching = {row["id"] for row in versions if set(row["splits"]) - {"holdout"}}
    judging = {row["id"] for row in versions if "holdout" in row["splits"]}
    models = cat.rows(
        "SELECT model.digest, model.parent, model.state, model.release, model.created_at, model.dataset_version, "
        "training_run.dataset_version AS run_version, training_run.base_model FROM model "
        "LEFT JOIN training_run ON training_run.id = model.training_run ORDER BY model.created_at, model.digest"
    )
    relation = {
        row["digest"]: "trained_on" for row in models if row["dataset_version"] in teaching or row["run_version"] in teaching
    }
    grows = True
    while grows:  # a line of models is short; each pass adds a generation
        grows = False
        for row in models:
            if row["digest"] not in relation and (row["parent"] in relation or row["base_model"] in relation):
                relation[row["digest"]] = "descended"
                grows = True
    for row in models:
        if row["digest"] not in relation and (row["dataset_version"] in judging or row["run_version"] in judging):
            relation[row["digest"]] = "evaluated_on"
    runs_on: dict[str, list[str]] = {}
    for row in cat.rows("SELECT id, model_digest FROM device WHERE model_digest <> '' ORDER BY id"):
        runs_on.setdefault(row["model_digest"], []).append(row["id"])
    return [
        {
            "digest": row["digest"],
            "state": row["state"],
            "release": row["release"],
            "relation": relation[row["digest"]],
            "devices": runs_on.get(row["digest"], []),
        }
        for row in models
        if row["digest"] in relation
    ]


def runs_in_work(cat: Catalogue, versions: Sequence[Row]) -> list[str]:
    """Trainings that read these versions and have not ended."""
    rows = cat.rows(
        "SELECT id FROM training_run WHERE state IN ('queued', 'training', 'evaluating') "
        "AND dataset_version IN (SELECT value FROM json_each(?)) ORDER BY id",
        json.dumps([row["id"] for row in versions]),
    )
    return [row["id"] for row in rows]


def runs_of(cat: Catalogue, versions: Sequence[Row]) -> list[str]:
    """Every training that read these versions."""
    rows = cat.rows(
        "SELECT id FROM training_run WHERE dataset_version IN (SELECT value FROM json_each(?)) ORDER BY id",
        json.dumps([row["id"] for row in versions]),
    )
    return [row["id"] for row in rows]


def copies_outside(cat: Catalogue, versions: Sequence[Row], since: str) -> list[Row]:
    """Rows `at actor kind subject why` of what left this folder and may hold the frames: exports of these versions, exports of labels
    and backups since the first of the frames was here.

    Args:
        since: UTC ISO text.
    """
    rows = cat.rows(
        "SELECT at, actor, kind, subject, why FROM event WHERE (kind = 'dataset exported' AND subject IN "
        "(SELECT value FROM json_each(?))) OR (kind IN ('labels exported', 'site backed up') AND at >= ?) ORDER BY at",
        json.dumps([row["id"] for row in versions]),
        since,
    )
    return [{**row, "why": json.loads(row["why"])} for row in rows]


def note_packages(cat: Catalogue, erasure: str, models: Sequence[str]) -> None:
    """Packages whose golden pictures show an erased frame."""
    for model in models:
        cat.insert("erasure_package", {"erasure": erasure, "model": model}, ignore=True)


def packages_of(cat: Catalogue, erasure: str) -> list[str]:
    """Digests of those packages."""
    return [row["model"] for row in cat.rows("SELECT model FROM erasure_package WHERE erasure = ? ORDER BY model", erasure)]


def sights(cat: Catalogue, frames: Sequence[str]) -> list[Row]:
    """Who has seen the frames, and when."""
    return cat.rows(
        "SELECT person, frame, at FROM sight WHERE frame IN (SELECT value FROM json_each(?)) ORDER BY at, person",
        json.dumps(list(frames)),
    )
