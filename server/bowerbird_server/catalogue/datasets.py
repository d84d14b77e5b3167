"""Data set versions and the side that each scene is on.

In: labelled frames. Out: immutable versions as rows; their manifests are blobs. It decides no split (see `snapshot.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bowerbird_server.catalogue.classes import class_names, declared_looked_for, unreviewed
from bowerbird_server.catalogue.core import Catalogue, Row, utc_now
from bowerbird_server.errors import NotFound


@dataclass(frozen=True)
class LabelledFrame:
    """A frame with its newest label. `boxes` are (class name, (left, top, right, bottom)) in pixels of the stored image, `redacted`
    the regions that its device covered, which teach nothing, `unreviewed` the classes that the label's author did not look for."""

    frame: str
    blob: str
    image_format: str
    width: int
    height: int
    scene: str
    camera: str
    label: str
    boxes: tuple[tuple[str, tuple[float, float, float, float]], ...]
    redacted: tuple[tuple[float, float, float, float], ...] = ()
    unreviewed: tuple[str, ...] = ()


def labelled_frames(catalogue: Catalogue) -> list[LabelledFrame]:
    """Every frame in state `labelled`, by id."""
    rows = catalogue.rows(
        """SELECT frame.id, frame.blob, frame.image_format, frame.width, frame.height, frame.scene,
                  coalesce(frame.camera, '') AS camera, label_newest.id AS label, label_newest.boxes,
                  label_newest.classes_reviewed, label_newest.created_at AS labelled_at
           FROM frame JOIN label_newest ON label_newest.frame = frame.id
           WHERE frame.state = 'labelled' AND label_newest.verdict = 'labelled' ORDER BY frame.id"""
    )
    known, looked_for = class_names(catalogue), declared_looked_for(catalogue)
    covered: dict[str, list[tuple[float, float, float, float]]] = {}
    for region in catalogue.rows(
        'SELECT frame, "left", top, "right", bottom FROM redaction JOIN frame ON frame.id = redaction.frame '
        "WHERE frame.state = 'labelled' ORDER BY frame, position"
    ):
        covered.setdefault(region["frame"], []).append((region["left"], region["top"], region["right"], region["bottom"]))
    return [
        LabelledFrame(
            frame=row["id"],
            blob=row["blob"],
            image_format=row["image_format"],
            width=row["width"],
            height=row["height"],
            scene=row["scene"],
            camera=row["camera"],
            label=row["label"],
            boxes=tuple((box["class"], tuple(box["box_xyxy"])) for box in json.loads(row["boxes"])),
            redacted=tuple(covered.get(row["id"], ())),
            unreviewed=unreviewed(known, json.loads(row["classes_reviewed"]), row["labelled_at"], looked_for),
        )
        for row in rows
    ]


def scene_splits(catalogue: Catalogue) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Scene -> (split, slices) for every scene that has a side."""
    return {
        row["scene"]: (row["split"], tuple(json.loads(row["slices"]))) for row in catalogue.rows("SELECT * FROM scene_split")
    }


def chosen_scenes(catalogue: Catalogue) -> set[str]:
    """Scenes of which something else than chance or an import brought a labelled frame."""
    rows = catalogue.rows("SELECT DISTINCT scene FROM frame WHERE state = 'labelled' AND arm NOT IN ('explore', 'import')")
    return {row["scene"] for row in rows}


def assign_scene(catalogue: Catalogue, scene: str, split: str, slices: Sequence[str] = ()) -> None:
    """Give a scene its side; a scene that has one keeps it, because an evaluation set must never move into training."""
    catalogue.insert("scene_split", {"scene": scene, "split": split, "slices": json.dumps(list(slices))}, ignore=True)


def add_version(
    catalogue: Catalogue,
    version: str,
    manifest_blob: str,
    frames: Iterable[tuple[LabelledFrame, str]],
    actor: str,
) -> Row:
    """A new version, or the existing one of the same content."""
    with catalogue.transaction():
        if catalogue.row("SELECT * FROM dataset_version WHERE id = ?", version) is not None:
            return dataset_version(catalogue, version)
        members = list(frames)
        catalogue.insert(
            "dataset_version",
            {
                "id": version,
                "number": int(catalogue.value("SELECT coalesce(max(number), 0) + 1 FROM dataset_version")),
                "created_at": utc_now(),
                "manifest": manifest_blob,
                "frames": len(members),
                "boxes": sum(len(frame.boxes) for frame, _ in members),
            },
        )
        for frame, split in members:
            catalogue.insert(
                "dataset_frame", {"dataset_version": version, "frame": frame.frame, "split": split, "label": frame.label}
            )
        catalogue.log(actor, "dataset.version", version, {"frames": len(members)})
    return dataset_version(catalogue, version)


def dataset_version(catalogue: Catalogue, which: str | int) -> Row:
    """A version by number, id, or a prefix of its id; `newest` for the last one. `removed` are the frames in its manifest that were
    deleted since, sorted: a version is never changed, but it is used without them.

    Raises:
        NotFound: there is none such.
    """
    text = str(which)
    if text == "newest":
        row = catalogue.row("SELECT * FROM dataset_version ORDER BY number DESC")
    elif text.isdigit():
        row = catalogue.row("SELECT * FROM dataset_version WHERE number = ?", int(text))
    else:
        found = catalogue.starting_with("dataset_version", "id", text)
        row = found[0] if len(found) == 1 else None
    if row is None:
        raise NotFound(
            f"no data set version {text!r}; `bowerbird dataset list` shows them, `bowerbird dataset snapshot` makes one"
        )
    return {**row, "removed": removed(catalogue, row["id"])}


def removed(catalogue: Catalogue, version: str) -> list[str]:
    """Frames of a version that were deleted after it was made; then the version is *redacted*."""
    rows = catalogue.rows(
        "SELECT frame.id FROM dataset_frame JOIN frame ON frame.id = dataset_frame.frame "
        "WHERE dataset_version = ? AND frame.state = 'deleted' ORDER BY frame.id",
        version,
    )
    return [row["id"] for row in rows]


def versions_with(catalogue: Catalogue, frames: Sequence[str]) -> list[str]:
    """The versions that hold one of these frames, by number."""
    rows = catalogue.rows(
        "SELECT id FROM dataset_version WHERE id IN (SELECT dataset_version FROM dataset_frame "
        "WHERE frame IN (SELECT value FROM json_each(?))) ORDER BY number",
        json.dumps(list(frames)),
    )
    return [row["id"] for row in rows]


def split_counts(catalogue: Catalogue, version: str) -> Mapping[str, int]:
    """Frames by split."""
    rows = catalogue.rows("SELECT split, count(*) AS n FROM dataset_frame WHERE dataset_version = ? GROUP BY split", version)
    return {row["split"]: row["n"] for row in rows}
