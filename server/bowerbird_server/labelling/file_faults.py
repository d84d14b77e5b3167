"""What label files of other tools have in common: faults collected with file and line, and finding the frame a file is about.

In: file stems and image files. Out: frames, or faults. Nothing is written here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bowerbird_server.blobs import BlobStore
from bowerbird_server.catalogue import batches, classes, frames
from bowerbird_server.catalogue.core import Catalogue, Row
from bowerbird_server.catalogue.labels import newest_label
from bowerbird_server.errors import BadInput
from bowerbird_server.labelling.backend import prelabels, submit_label
from bowerbird_server.labelling.boxes import PRELABEL_CONFIDENCE, Box, count_edits

_SHOWN = 50
_SHORTEST_PREFIX = 8
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Fault:
    """Something wrong in a file; `line` counts from 1, 0 when it is the file as a whole."""

    file: Path
    line: int
    words: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.words}" if self.line else f"{self.file}: {self.words}"


class BadLabelFiles(BadInput):
    """Label files that cannot be taken; `faults` holds all of them, the message the first fifty. Nothing was imported."""

    def __init__(self, faults: Sequence[Fault], *, can_skip: bool = False) -> None:
        self.faults = tuple(faults)
        lines = [str(fault) for fault in self.faults[:_SHOWN]]
        if len(self.faults) > _SHOWN:
            lines.append(f"... and {len(self.faults) - _SHOWN} more")
        plural = "" if len(self.faults) == 1 else "s"
        advice = ", or leave the faulty images out with --skip-faulty" if can_skip else ""
        super().__init__(
            "\n".join(lines)
            + f"\n{len(self.faults)} fault{plural}; nothing was imported. Correct the files and run it again{advice}."
        )


@dataclass(frozen=True)
class ImportResult:
    """What an import brought: frames that got a label, boxes in them, and classes added to the list."""

    frames: int
    boxes: int
    classes_added: tuple[str, ...]


@dataclass(frozen=True)
class FrameLabel:
    """The label that a file gives to a frame; boxes in pixels of the stored image."""

    frame: Row
    boxes: tuple[Box, ...]
    file: Path


class FrameFinder:
    """Finds the frame that a file is about: by its stem (a frame id, or at least 8 digits of its beginning), else by its image."""

    def __init__(self, cat: Catalogue) -> None:
        self._cat = cat

    def find(self, stem: str, image: Path | None) -> Row | str:
        """The frame's row, or why there is none."""
        wanted = stem.lower()
        is_hex = bool(wanted) and all(letter in "0123456789abcdef" for letter in wanted)
        if is_hex and _SHORTEST_PREFIX <= len(wanted) <= 64:
            found = self._cat.rows(
                "SELECT * FROM frame WHERE id >= ? AND id < ? || 'g' AND state != 'deleted' LIMIT 2", wanted, wanted
            )
            if len(found) > 1:
                return f"several frames begin with {stem}; use more digits of the frame id"
            if found:
                return found[0]
        if image is not None:
            digest = hashlib.sha256(image.read_bytes()).hexdigest()
            row = self._cat.row(  # a reference, which has no bytes of its own, is never meant
                "SELECT * FROM frame WHERE blob = ? AND state != 'deleted' AND bytes > 0 ORDER BY received_at, id", digest
            )
            if row is not None:
                return row
            return f"neither its name nor its image {image.name} is a frame of this catalogue; `bowerbird frames import` brings images"
        return "its name is no frame of this catalogue and no image lies beside it; name files by frame id, or add the images"


def numbers(parts: Iterable[str]) -> list[float] | None:
    """The finite numbers in text, or None when one of them is none."""
    try:
        values = [float(part) for part in parts]
    except ValueError:
        return None
    return values if all(math.isfinite(value) for value in values) else None


def apply_labels(
    cat: Catalogue, blobs: BlobStore, found: Sequence[FrameLabel], new_classes: Sequence[str], author: str
) -> ImportResult:
    """Take all labels in one transaction: all of them, or none when one is refused.

    Raises:
        ServerError: as `submit_label`.
    """
    with cat.transaction():
        added = classes.add_classes(cat, new_classes, author)
        for label in found:
            before = prelabels(cat, label.frame["id"], PRELABEL_CONFIDENCE)
            submit_label(cat, blobs, label.frame["id"], author, "labelled", label.boxes, edits=count_edits(before, label.boxes))
    return ImportResult(len(found), sum(len(label.boxes) for label in found), tuple(added))


def frames_to_export(cat: Catalogue, which: Sequence[str] | str | None) -> list[tuple[Row, list[Box] | None]]:
    """The frames of an export with their boxes, None for a frame that nobody has labelled; rejected and deleted ones are left out.

    Args:
        which: frame ids, a batch's id, or None for every labelled frame.

    Raises:
        NotFound: there is no such frame or batch.
    """
    if which is None:
        ids = [row["id"] for row in cat.rows("SELECT id FROM frame WHERE state = 'labelled' ORDER BY id")]
    else:
        ids = batches.batch_frames(cat, which) if isinstance(which, str) else list(dict.fromkeys(which))
    chosen = []
    for identity in ids:
        row = frames.get(cat, identity)
        if row["state"] in {"rejected", "deleted"}:
            continue
        label = newest_label(cat, identity)
        boxes = None if label is None else [Box(box["class"], tuple(box["box_xyxy"])) for box in label["boxes"]]
        chosen.append((row, boxes))
    return chosen


def must_be_new(folder: Path) -> None:
    """Raises BadInput for a folder with something in it, where old labels would stay among the new ones."""
    if folder.exists() and any(folder.iterdir()):
        raise BadInput(f"{folder} is not empty; name a new folder, so that no old label stays among the new ones")


def write_images(blobs: BlobStore, rows: Iterable[Row], folder: Path) -> Mapping[str, str]:
    """Write the frames' images as `<frame id>.<suffix>`; returns frame id -> file name."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {}
    for row in rows:
        suffix = "jpg" if row["image_format"] == "jpeg" else row["image_format"]
        name = f"{row['id']}.{suffix}"
        (folder / name).write_bytes(blobs.read(row["blob"]))
        names[row["id"]] = name
    return names
