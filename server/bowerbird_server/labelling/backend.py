"""Where labels come from: the seam to a labelling tool, and the one function in which every label ends.

In: a frame's id and what somebody says is in it. Out: a durable label event (a JSON blob), a row, the frame's new state. The review
page, the simulated annotator and file imports all call `submit_label`; another tool is another `LabelBackend`.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Protocol

from bowerbird_server.blobs import BlobStore
from bowerbird_server.catalogue import batches, classes, frames, labels, references, second_looks
from bowerbird_server.catalogue.core import Catalogue, Row, new_id, utc_now
from bowerbird_server.errors import BadInput, Conflict, NotFound
from bowerbird_server.labelling.boxes import Box, fit_boxes

__all__ = ["EDIT_KINDS", "Box", "CatalogueLabels", "LabelBackend", "next_frames", "prelabels", "submit_label"]

EDIT_KINDS = ("kept", "moved", "added", "deleted", "reclassed", "left_out")
"""What is counted about a label: five fates of a pre-label or box, and true objects left out as too small to see."""


class LabelBackend(Protocol):
    """A labelling tool: it is offered frames and answers with labels, in its own time."""

    def next_frames(self, author: str, n: int) -> list[Row]:
        """Up to `n` frames that wait for a label, each with its detections and why it waits."""

    def submit_label(
        self,
        frame_id: str,
        author: str,
        verdict: str,
        boxes: Sequence[Box],
        *,
        classes_reviewed: Sequence[str] | None = None,
        seconds: float | None = None,
        edits: Mapping[str, int] | None = None,
        label_id: str | None = None,
    ) -> int:
        """Take a label; returns its revision."""


class CatalogueLabels:
    """The built-in backend: the queue and the labels of this catalogue."""

    def __init__(self, cat: Catalogue, blobs: BlobStore) -> None:
        self._cat, self._blobs = cat, blobs

    def next_frames(self, author: str, n: int) -> list[Row]:
        """See `LabelBackend`."""
        return next_frames(self._cat, author, n)

    def submit_label(
        self,
        frame_id: str,
        author: str,
        verdict: str,
        boxes: Sequence[Box],
        *,
        classes_reviewed: Sequence[str] | None = None,
        seconds: float | None = None,
        edits: Mapping[str, int] | None = None,
        label_id: str | None = None,
    ) -> int:
        """See the function `submit_label`."""
        return submit_label(
            self._cat, self._blobs, frame_id, author, verdict, boxes, classes_reviewed, seconds, edits, label_id=label_id
        )


def next_frames(cat: Catalogue, author: str, n: int) -> list[Row]:  # noqa: ARG001 - other backends share work out by author
    """Up to `n` frames that wait for a label, oldest batch first, each with `detections` and `why`; it changes nothing."""
    return [{**row, "detections": frames.detections(cat, row["id"])} for row in batches.queue(cat, n)]


def prelabels(cat: Catalogue, frame_id: str, confidence: float) -> list[Box]:
    """What the device's model saw in a frame with at least `confidence`, as boxes."""
    return [
        Box(row["class_name"], (row["left"], row["top"], row["right"], row["bottom"]))
        for row in frames.detections(cat, frame_id)
        if row["score"] >= confidence
    ]


def submit_label(
    cat: Catalogue,
    blobs: BlobStore,
    frame_id: str,
    author: str,
    verdict: str,
    boxes: Sequence[Box],
    classes_reviewed: Sequence[str] | None = None,
    seconds: float | None = None,
    edits: Mapping[str, int] | None = None,
    *,
    label_id: str | None = None,
) -> int:
    """Take a label of a frame, or a correction of one.

    Args:
        frame_id: 64 hex digits.
        author: who says so; 1 to 80 characters.
        verdict: `labelled`, or `rejected` for a frame that is no use (then without boxes).
        boxes: in pixels of the stored image; what reaches over the border is clipped.
        classes_reviewed: the classes looked for, so that this frame does not teach misses of a class added later; None: all known.
        seconds: how long it took.
        edits: counts by `EDIT_KINDS`.
        label_id: a UUID made by the caller, so that a save may be repeated; None makes one.

    Returns:
        The label's revision, from 1.

    Raises:
        BadInput: boxes inverted, wholly outside the image or of unknown classes (all are named), or another field is unusable.
        NotFound: there is no such frame.
        Conflict: the frame is deleted, shows its twin's picture, or the label id belongs to another frame.
    """
    frame = frames.get(cat, frame_id)
    twin = references.twin_of(cat, frame_id)
    if twin is not None:
        raise Conflict(f"frame {frame_id[:12]} shows the picture of frame {twin[:12]}; label that one, it counts for both")
    known = classes.class_names(cat)
    if verdict not in labels.VERDICTS:
        raise BadInput(f"verdict {verdict[:40]!r} is not one of {', '.join(labels.VERDICTS)}")
    if verdict == "rejected" and boxes:
        raise BadInput("a rejected frame has no boxes: send verdict 'labelled' with them, or 'rejected' without")
    author = author.strip()
    if not 1 <= len(author) <= 80:
        raise BadInput("the label's author needs a name of 1 to 80 characters")
    if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
        raise BadInput(f"seconds must be a number from 0 on, not {seconds}")
    reviewed = list(known) if classes_reviewed is None else list(dict.fromkeys(classes_reviewed))
    unknown = [name for name in reviewed if name not in known]
    if unknown:
        raise BadInput(f"classes_reviewed holds {', '.join(map(repr, unknown))}, not in the class list; add the class first")
    counts = _check_edits(edits or {})
    fitted = fit_boxes(boxes, frame["width"], frame["height"], known)
    identity = _check_label_id(label_id) if label_id else new_id()
    created_at = utc_now()
    rows = [{"class": box.class_name, "box_xyxy": list(box.box_xyxy)} for box in fitted]
    event = {
        "kind": "bowerbird label 1",
        "id": identity,
        "frame": frame_id,
        "author": author,
        "created_at": created_at,
        "verdict": verdict,
        "boxes": rows,
        "classes_reviewed": reviewed,
        "seconds": seconds,
        "edits": counts,
    }
    if label_id is not None:
        # Asked before the blob is written: a repeated save must leave no second event behind.
        known_label = _known_revision(cat, identity, frame_id)
        if known_label is not None:
            return known_label
    blob = blobs.put(json.dumps(event, sort_keys=True, separators=(",", ":")).encode())
    with cat.transaction():
        revision = labels.add_label(
            cat,
            label_id=identity,
            frame=frame_id,
            author=author,
            created_at=created_at,
            verdict=verdict,
            boxes=rows,
            classes_reviewed=reviewed,
            seconds=seconds,
            edits=counts,
            blob=blob,
        )
        put_back = second_looks.answer(cat, frame_id, author, identity)
    for reference in put_back:  # a gold frame keeps the label that all others are held against
        _put_back(cat, blobs, labels.get(cat, reference))
    return revision


def _put_back(cat: Catalogue, blobs: BlobStore, reference: Row) -> None:
    boxes = [Box(box["class"], tuple(box["box_xyxy"])) for box in reference["boxes"]]
    submit_label(
        cat, blobs, reference["frame"], second_looks.REFERENCE, reference["verdict"], boxes, reference["classes_reviewed"]
    )


def _known_revision(cat: Catalogue, label_id: str, frame_id: str) -> int | None:
    try:
        row = labels.get(cat, label_id)
    except NotFound:
        return None
    return int(row["revision"]) if row["frame"] == frame_id else None


def _check_edits(edits: Mapping[str, int]) -> dict[str, int]:
    for kind, count in edits.items():
        if kind not in EDIT_KINDS or count < 0:
            raise BadInput(f"edits: {kind}={count} is not understood; count from 0 on, of {', '.join(EDIT_KINDS)}")
    return dict(edits)


def _check_label_id(label_id: str) -> str:
    try:
        return str(uuid.UUID(label_id))
    except ValueError as error:
        raise BadInput(f"label_id {label_id[:60]!r} is not a UUID; leave it out to have one made") from error
