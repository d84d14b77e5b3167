"""Starting from what a user has: a labelled YOLO data set, or a folder of pictures.

In: `data.yaml` and perhaps `groups.csv`, or a folder. Out: frames in the catalogue, labelled ones with their side of the split. All
label files are checked before anything is written; the same import twice changes nothing.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bowerbird_server.catalogue import frames as frame_rows
from bowerbird_server.catalogue.classes import add_classes, class_names
from bowerbird_server.catalogue.datasets import assign_scene, scene_splits
from bowerbird_server.catalogue.record_keeping import keep_records
from bowerbird_server.errors import BadInput
from bowerbird_server.ingest.image_header import NotAnImage, image_size, is_upright
from bowerbird_server.ingest.image_metadata import without_metadata
from bowerbird_server.labelling.backend import submit_label
from bowerbird_server.labelling.file_faults import IMAGE_SUFFIXES
from bowerbird_server.labelling.files import YoloImage, read_yolo_dataset
from bowerbird_server.site import Site

OnProgress = Callable[[int, int], None]

# Ultralytics' names for the sides; ours has no use for a validation set that training looks at, so both are held out.
_SIDE = {"train": "train", "val": "holdout", "test": "holdout"}
# Images of one import without groups: so many neighbours in name order count as one scene.
_UNGROUPED_SCENE_IMAGES = 10
_TURNED_QUALITY = 95
# Kept as PNG: what reads headers without decoding knows JPEG, PNG and WebP.
_DECODED_SUFFIXES = {".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class DatasetImport:
    """What an import brought: frames in all, new ones, boxes, frames held out, the data set's classes, and what was read otherwise."""

    frames: int
    new: int
    boxes: int
    held_out: int
    class_names: tuple[str, ...]
    notices: tuple[str, ...] = ()

    def to_map(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class FrameImport:
    """What a folder brought; `skipped` says of each unusable file why."""

    new: int
    known: int
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class _Group:
    scene: str
    slices: tuple[str, ...]


def import_dataset(
    site: Site,
    data_yaml: Path,
    *,
    actor: str,
    groups: Path | None = None,
    skip_faulty: bool = False,
    on_progress: OnProgress = lambda *_: None,
) -> DatasetImport:
    """Take in a labelled data set.

    Args:
        data_yaml: `train` is for training; `val` and `test` are held out for the gate and never trained on.
        groups: CSV with columns `image` (file name, or the end of its path where names repeat), `scene`, and optionally `slices`
            (separated by `;`). Without it ten neighbours in name order make a scene.
        skip_faulty: leave faulty images out instead of refusing the data set.

    Raises:
        BadInput: faults in the label files or in `groups` (all are listed), or a scene that is on the other side already; then
            nothing was imported.
    """
    dataset = read_yolo_dataset(data_yaml, skip_faulty=skip_faulty)
    images, names = dataset.images, dataset.class_names
    scenes = _neighbours(images, data_yaml) if groups is None else _listed_groups(images, groups)
    _check_sides(site, images, scenes)
    add_classes(site.catalogue, [name for name in names if name not in class_names(site.catalogue)], actor)
    new = 0
    for done, image in enumerate(images, start=1):
        group = scenes[image.path]
        assign_scene(site.catalogue, group.scene, _SIDE[image.split], group.slices)
        new += _import_labelled(site, image, group.scene, done, names, actor)
        on_progress(done, len(images))
    keep_records(site.catalogue, site.blobs)
    return DatasetImport(
        frames=len(images),
        new=new,
        boxes=sum(len(image.boxes) for image in images),
        held_out=sum(_SIDE[image.split] == "holdout" for image in images),
        class_names=names,
        notices=dataset.notices,
    )


def _import_labelled(site: Site, image: YoloImage, scene: str, number: int, names: tuple[str, ...], actor: str) -> bool:
    """One image with its label; whether the frame was new. A frame that is labelled keeps its label."""
    data, image_format = _stored_form(image.path)
    blob = site.blobs.put(data)
    with site.catalogue.transaction():
        frame, new = frame_rows.add_imported_frame(
            site.catalogue,
            blob=blob,
            image_format=image_format,
            image_bytes=len(data),
            width=image.width,
            height=image.height,
            captured_at_ms=int(image.path.stat().st_mtime * 1000),
            sequence=number,
            source=image.path.name,
            scene=scene,
        )
        state = frame_rows.get(site.catalogue, frame)["state"]
        if state == "received":
            submit_label(site.catalogue, site.blobs, frame, actor, "labelled", image.boxes, classes_reviewed=names)
    if state == "deleted":
        _forget_again(site, blob)
    return new


def _forget_again(site: Site, blob: str) -> None:
    """A picture that was deleted here for good does not come back by an import."""
    for unused in frame_rows.without_live_frame(site.catalogue, [blob]):
        site.blobs.delete(unused)


def _read_groups(path: Path) -> dict[str, _Group]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            absent = {"image", "scene"} - set(reader.fieldnames or ())
            if absent:
                raise BadInput(f"{path}: the first line must name the columns image and scene (and may name slices)")
            found = {}
            for row in reader:
                slices = tuple(part for part in (row.get("slices") or "").split(";") if part)
                found[row["image"]] = _Group(row["scene"], slices)
            return found
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"cannot read {path}: {error}") from error


def _listed_groups(images: Sequence[YoloImage], groups: Path) -> dict[Path, _Group]:
    """Each image's group in the CSV: by the end of its path, the longest that the CSV names."""
    listed = _read_groups(groups)
    found: dict[Path, _Group] = {}
    missing = []
    for image in images:
        parts = image.path.parts
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        group = next((listed[end] for end in ends if end in listed), None)
        if group is None:
            missing.append(image.path.name)
        else:
            found[image.path] = group
    if missing:
        raise BadInput(f"{groups} says nothing about {len(missing)} images, {missing[0]} first; add a line for each")
    return found


def _neighbours(images: Sequence[YoloImage], data_yaml: Path) -> dict[Path, _Group]:
    groups: dict[Path, _Group] = {}
    for split in _SIDE:
        inside = sorted(image.path for image in images if image.split == split)
        for place, path in enumerate(inside):
            scene = f"import/{data_yaml.resolve().parent.name}/{split}/{place // _UNGROUPED_SCENE_IMAGES:05d}"
            groups[path] = _Group(scene, ())
    return groups


def _check_sides(site: Site, images: Sequence[YoloImage], groups: Mapping[Path, _Group]) -> None:
    """A scene is on one side for ever, within this data set and with what is here already."""
    sides = {scene: side for scene, (side, _) in scene_splits(site.catalogue).items()}
    faults = []
    for image in images:
        scene, side = groups[image.path].scene, _SIDE[image.split]
        if sides.setdefault(scene, side) != side:
            faults.append(f"{image.path.name}: scene {scene} is in {sides[scene]} already, so it cannot be in {side}")
    if faults:
        raise BadInput(
            "near-duplicates would be on both sides:\n  " + "\n  ".join(faults[:20]) + "\nPut each scene on one side."
        )


def import_frames(site: Site, folder: Path, on_progress: OnProgress = lambda *_: None) -> FrameImport:
    """Take in every picture of a folder, unlabelled; files that are none are skipped and told.

    Raises:
        BadInput: the folder does not exist or holds no picture.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder; name one with JPEG, PNG or WebP pictures")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not paths:
        raise BadInput(f"{folder} holds no picture ({', '.join(sorted(IMAGE_SUFFIXES))})")
    new, skipped = 0, []
    for done, path in enumerate(paths, start=1):
        on_progress(done, len(paths))
        try:
            data, image_format = _stored_form(path)
            header = image_size(data)
        except (OSError, BadInput) as error:
            skipped.append(str(error))
            continue
        blob = site.blobs.put(data)
        frame, added = frame_rows.add_imported_frame(
            site.catalogue,
            blob=blob,
            image_format=image_format,
            image_bytes=len(data),
            width=header.width,
            height=header.height,
            captured_at_ms=int(path.stat().st_mtime * 1000),
            sequence=done,
            source=folder.resolve().name,
            scene=f"import/{folder.resolve().name}/{(done - 1) // _UNGROUPED_SCENE_IMAGES:05d}",
        )
        new += added
        if not added and frame_rows.state_of(site.catalogue, frame) == "deleted":
            _forget_again(site, blob)
    return FrameImport(new, len(paths) - new - len(skipped), tuple(skipped))


def _stored_form(path: Path) -> tuple[bytes, str]:
    """A picture's bytes as they are kept, and their format.

    As they are, without the metadata of their source (`image_metadata.py`), except where a reader of headers would be misled: a JPEG
    that its EXIF turns is turned for good, and what is neither JPEG, PNG nor WebP becomes PNG.

    Raises:
        BadInput: not a picture, or larger than is accepted.
    """
    data = path.read_bytes()
    try:
        image_format = image_size(data).image_format
        if is_upright(data):
            return without_metadata(data, image_format), image_format
    except NotAnImage as error:
        if path.suffix.lower() not in _DECODED_SUFFIXES:
            raise BadInput(f"{path}: {error}") from error
        image_format = "png"
    import cv2

    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise BadInput(f"{path}: cannot be decoded; replace or remove it")
    if image_format == "jpeg":
        return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _TURNED_QUALITY])[1].tobytes(), "jpeg"
    return cv2.imencode(".png", image)[1].tobytes(), "png"
