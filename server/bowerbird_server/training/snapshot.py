"""Labelled frames -> an immutable data set version, split by scene, and its form on disk for Ultralytics.

In: the catalogue's labelled frames. Out: a manifest blob whose SHA-256 is the version's id, and a folder with `data.yaml`.
The same labels give the same version. A scene is on one side for ever, so near-duplicates never meet across the split. It
trains nothing and changes no label.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from bowerbird_server.catalogue import Catalogue, Row, drift_rows
from bowerbird_server.catalogue.classes import class_names
from bowerbird_server.catalogue.datasets import (
    LabelledFrame,
    add_version,
    assign_scene,
    chosen_scenes,
    labelled_frames,
    scene_splits,
)
from bowerbird_server.catalogue.record_keeping import keep_records
from bowerbird_server.errors import BadInput, EnvironmentFault
from bowerbird_server.training.evaluate import EvaluationFrame
from bowerbird_server.training.ignored_regions import covered, paint

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bowerbird_server.blobs import BlobStore


def split_of(scene: str, holdout_share: float) -> str:
    """The side of a scene seen for the first time: `holdout` for a stable share of all scene names, else `train`."""
    share = int.from_bytes(hashlib.sha256(b"split:" + scene.encode()).digest()[:8], "big") / 2**64
    return "holdout" if share < holdout_share else "train"


def take_snapshot(catalogue: Catalogue, blobs: BlobStore, *, holdout_share: float, actor: str) -> Row:
    """Freeze what is labelled now; returns the version's row (an existing one when nothing has changed).

    Args:
        holdout_share: share of new scenes, in [0, 1), that go to the evaluation set and never into training; of imported pictures, and
            of audit frames that were labelled without a batch. Scenes with frames that a policy chose are trained on.

    Raises:
        BadInput: nothing is labelled.
    """
    frames = labelled_frames(catalogue)
    if not frames:
        raise BadInput(
            "nothing is labelled yet; label frames on the review page or import a data set with `bowerbird dataset import`"
        )
    with catalogue.transaction():
        known, chosen = scene_splits(catalogue), chosen_scenes(catalogue)
        for scene in sorted({frame.scene for frame in frames} - known.keys()):
            # What a policy chose measures nothing: only chance and imported pictures make the evaluation set.
            assign_scene(catalogue, scene, "train" if scene in chosen else split_of(scene, holdout_share))
        splits = {scene: split for scene, (split, _) in scene_splits(catalogue).items()}
        classes = class_names(catalogue)
        manifest = {
            "schema": 1,
            "classes": classes,
            "frames": [_manifest_entry(frame, splits[frame.scene]) for frame in frames],
        }
        data = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
        blob = blobs.put(data)
        version = add_version(catalogue, blob, blob, [(frame, splits[frame.scene]) for frame in frames], actor)
    keep_records(catalogue, blobs)
    return version


def _manifest_entry(frame: LabelledFrame, split: str) -> dict[str, Any]:
    return {
        "frame": frame.frame,
        "blob": frame.blob,
        "format": frame.image_format,
        "width": frame.width,
        "height": frame.height,
        "scene": frame.scene,
        "camera": frame.camera,
        "split": split,
        "label": frame.label,
        "boxes": [{"class": name, "box_xyxy": list(box)} for name, box in frame.boxes],
        # Only where there is something to say, so that the same labels give the same version as before.
        **({"redacted": [list(box) for box in frame.redacted]} if frame.redacted else {}),
        **({"unreviewed": list(frame.unreviewed)} if frame.unreviewed else {}),
    }


def read_manifest(blobs: BlobStore, version: Row) -> dict[str, Any]:
    """The version's manifest as it was frozen, but for the frames that were deleted since (`removed` of its row)."""
    manifest: dict[str, Any] = json.loads(blobs.read(version["manifest"]))
    gone = set(version.get("removed", ()))
    manifest["frames"] = [entry for entry in manifest["frames"] if entry["frame"] not in gone]
    return manifest


def misleading(manifest: Mapping[str, Any]) -> list[str]:
    """Training frames that would teach misses: nobody looked there for a class that other training frames show.

    They are left out of training until somebody has looked at them again. While no training frame shows the class, they do no harm.
    """
    training = [entry for entry in manifest["frames"] if entry["split"] == "train"]
    taught = {box["class"] for entry in training for box in entry["boxes"]}
    return [entry["frame"] for entry in training if taught.intersection(entry.get("unreviewed", ()))]


def check_replay(manifest: Mapping[str, Any]) -> None:
    """Refuse to train on new frames alone.

    Raises:
        BadInput: more than half of the training frames were labelled before a class was added that others show.
    """
    left_out = set(misleading(manifest))
    training = [entry for entry in manifest["frames"] if entry["split"] == "train"]
    if 2 * len(left_out) <= len(training):
        return
    classes = sorted({name for entry in training if entry["frame"] in left_out for name in entry["unreviewed"]})
    raise BadInput(
        f"{len(left_out)} of {len(training)} training frames were labelled before anybody looked for {', '.join(classes)}; trained "
        "with them a model would learn to miss it, and without them it would forget. They wait on the page of second looks; if none "
        f"of them shows it, say so: bowerbird labels classes --looked-for {classes[0]}"
    )


def materialise(blobs: BlobStore, version: Row, folder: Path, *, copy: bool = False) -> Path:
    """Lay a version out as an Ultralytics data set (`images/`, `labels/`, `data.yaml`); returns the path of `data.yaml`.

    The folder can be thrown away at any time. A finished one is used again; a half-written one is made anew.

    Args:
        copy: give pictures of their own to a folder that leaves our hands; otherwise they are links to the blobs, never to be written.

    Raises:
        EnvironmentFault: the folder cannot be written.
    """
    target = folder / str(version["id"])
    data_yaml = target / "data.yaml"
    if data_yaml.exists():
        return data_yaml
    manifest = read_manifest(blobs, version)
    scratch = folder / f".{version['id']}.{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        _lay_out(blobs, manifest, scratch, target.resolve(), copy=copy)
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise EnvironmentFault(
            f"cannot write the data set to {folder}: {error.strerror}; free space or set its owner right"
        ) from error
    return data_yaml


def _lay_out(blobs: BlobStore, manifest: dict[str, Any], scratch: Path, target: Path, *, copy: bool) -> None:
    class_id = {name: i for i, name in enumerate(manifest["classes"])}
    left_out = set(misleading(manifest))
    entries = [entry for entry in manifest["frames"] if entry["frame"] not in left_out]
    for entry in entries:
        images, labels = (scratch / kind / entry["split"] for kind in ("images", "labels"))
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        suffix = ".jpg" if entry["format"] == "jpeg" else f".{entry['format']}"
        put = shutil.copyfile if copy else _link
        regions = entry.get("redacted", [])
        if regions:  # a picture of its own: the blob is never written to
            paint(blobs.path(entry["blob"]), images / f"{entry['frame']}{suffix}", regions)
        else:
            put(blobs.path(entry["blob"]), images / f"{entry['frame']}{suffix}")
        (labels / f"{entry['frame']}.txt").write_text(_yolo_lines(entry, class_id))
    used = {entry["split"] for entry in entries}
    description = {
        "path": str(target),
        "train": "images/train",
        # Ultralytics insists on a `val` entry; our trainer validates only where there is such a split.
        "val": "images/val" if "val" in used else "images/train",
        "names": dict(enumerate(manifest["classes"])),
    }
    (scratch / "data.yaml").write_text(yaml.safe_dump(description, sort_keys=False))


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def _yolo_lines(entry: dict[str, Any], class_id: dict[str, int]) -> str:
    width, height = entry["width"], entry["height"]
    lines = []
    for box in _counting(entry):
        left, top, right, bottom = box["box_xyxy"]
        centre_x, centre_y = (left + right) / 2 / width, (top + bottom) / 2 / height
        lines.append(
            f"{class_id[box['class']]} {centre_x:.6f} {centre_y:.6f} {(right - left) / width:.6f} {(bottom - top) / height:.6f}\n"
        )
    return "".join(lines)


def _counting(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The boxes of a manifest's entry that show something of their object."""
    boxes = entry["boxes"]
    hidden = covered(_array([box["box_xyxy"] for box in boxes]), _array(entry.get("redacted", [])))
    return [box for box, is_hidden in zip(boxes, hidden, strict=True) if not is_hidden]


def _array(boxes: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    return np.array(boxes, np.float64).reshape(-1, 4)


def evaluation_frames(catalogue: Catalogue, blobs: BlobStore, version: Row) -> tuple[list[EvaluationFrame], Sequence[str]]:
    """The held-out frames of a version and the class names, ready for `evaluate.evaluate_model`."""
    manifest = read_manifest(blobs, version)
    class_id = {name: i for i, name in enumerate(manifest["classes"])}
    slices = {scene: slices for scene, (_, slices) in scene_splits(catalogue).items()}
    marked = drift_rows.marks(catalogue)
    frames = []
    for entry in manifest["frames"]:
        if entry["split"] != "holdout":
            continue
        camera = (f"camera:{entry['camera']}",) if entry["camera"] else ()
        frames.append(
            EvaluationFrame(
                image_path=blobs.path(entry["blob"]),
                scene=entry["scene"],
                slices=camera + slices.get(entry["scene"], ()) + drift_rows.slices_of(entry["scene"], marked),
                boxes_xyxy=np.array([box["box_xyxy"] for box in _counting(entry)], np.float32).reshape(-1, 4),
                class_ids=np.array([class_id[box["class"]] for box in _counting(entry)], np.int32),
                ignored_xyxy=_array(entry.get("redacted", [])),
                unreviewed=tuple(class_id[name] for name in entry.get("unreviewed", ())),
            )
        )
    return frames, manifest["classes"]


def calibration_frames(blobs: BlobStore, version: Row, count: int) -> list[Path]:
    """Pictures of the training split, spread evenly over its scenes; never one that is held out.

    What int8 is calibrated on must not be what it is measured on: an evaluation frame that set the ranges would flatter them.

    Args:
        count: at most so many.
    """
    entries = [entry for entry in read_manifest(blobs, version)["frames"] if entry["split"] == "train"]
    by_scene: dict[str, list[str]] = {}
    for entry in sorted(entries, key=lambda entry: (entry["scene"], entry["frame"])):
        by_scene.setdefault(entry["scene"], []).append(entry["blob"])
    # One of every scene, then a second one: neighbouring frames of a scene teach the ranges nothing new.
    turns = max(map(len, by_scene.values()), default=0)
    chosen = [blobs_of[turn] for turn in range(turns) for blobs_of in by_scene.values() if turn < len(blobs_of)]
    return [blobs.path(blob) for blob in chosen[:count]]
