"""Data set versions and the side that each scene is on.

In: labelled frames. Out: immutable versions as rows; their manifests are blobs. It decides no split (see `snapshot.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bowerbird_server.catalogue.core import Catalogue, Row, utc_now
from bowerbird_server.errors import NotFound


@dataclass(frozen=True)
class LabelledFrame:
    """A frame with its newest label. `boxes` are (class name, (left, top, right, bottom)) in pixels of the stored image."""

    frame: str
    blob: str
    image_format: str
    width: int
    height: int
    scene: str
    camera: str
    label: str
    boxes: tuple[tuple[str, tuple[float, float, float, float]], ...]


def labelled_frames(catalogue: Catalogue) -> list[LabelledFrame]:
    """Every frame in state `labelled`, by id."""
    rows = catalogue.rows(
        """SELECT frame.id, frame.blob, frame.image_format, frame.width, frame.height, frame.scene,
                  coalesce(frame.camera, '') AS camera, label_newest.id AS label, label_newest.boxes
           FROM frame JOIN label_newest ON label_newest.frame = frame.id
           WHERE frame.state = 'labelled' AND label_newest.verdict = 'labelled' ORDER BY frame.id"""
    )
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
        existing = catalogue.row("SELECT * FROM dataset_version WHERE id = ?", version)
        if existing is not None:
            return existing
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
    """A version by number, id, or a prefix of its id; `newest` for the last one.

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
    return row


def split_counts(catalogue: Catalogue, version: str) -> Mapping[str, int]:
    """Frames by split."""
    rows = catalogue.rows("SELECT split, count(*) AS n FROM dataset_frame WHERE dataset_version = ? GROUP BY split", version)
    return {row["split"]: row["n"] for row in rows}
