"""Labels in the catalogue: append-only rows, a correction is a new row with the next revision.

In: labels whose boxes have been checked. Out: rows with `boxes`, `classes_reviewed` and `edits` as values. The rules for boxes are in
`labelling/`; the frame's state changes through `frames.change_state`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from bowerbird_server.catalogue import batches, frames
from bowerbird_server.catalogue.core import Catalogue, Row
from bowerbird_server.errors import Conflict, NotFound

VERDICTS = ("labelled", "rejected")


def add_label(
    cat: Catalogue,
    *,
    label_id: str,
    frame: str,
    author: str,
    created_at: str,
    verdict: str,
    boxes: Sequence[Mapping[str, object]],
    classes_reviewed: Sequence[str],
    seconds: float | None,
    edits: Mapping[str, int],
    blob: str,
) -> int:
    """One more label of a frame, the frame's new state and, when it was the last, its batch's: all in one transaction.

    Args:
        label_id: UUID. The same id again for the same frame changes nothing, so that a save may be repeated.
        boxes: `{"class": name, "box_xyxy": [l, t, r, b]}`, pixels of the stored image.
        blob: digest of the label event in the blob store, for the event log.

    Returns:
        The label's revision, from 1.

    Raises:
        NotFound: there is no such frame.
        Conflict: the frame is deleted, or the label id belongs to another frame.
    """
    with cat.transaction():
        known = cat.row("SELECT frame, revision FROM label WHERE id = ?", label_id)
        if known is not None:
            if known["frame"] != frame:
                raise Conflict(f"label id {label_id} belongs to another frame; make a new id for each label")
            return int(known["revision"])
        state = frames.get(cat, frame)["state"]
        if state == "deleted":
            raise Conflict(f"frame {frame[:12]} is deleted; it takes no labels any more. Go on with the next one.")
        revision = int(cat.value("SELECT coalesce(max(revision), 0) + 1 FROM label WHERE frame = ?", frame))
        cat.insert(
            "label",
            {
                "id": label_id,
                "frame": frame,
                "revision": revision,
                "author": author,
                "created_at": created_at,
                "verdict": verdict,
                "boxes": json.dumps(list(boxes)),
                "classes_reviewed": json.dumps(list(classes_reviewed)),
                "seconds": seconds,
                "edits": json.dumps(dict(edits), sort_keys=True),
            },
        )
        if state != verdict:
            frames.change_state(cat, [frame], verdict, author)
        cat.log(author, "label added", frame, {"label": label_id, "revision": revision, "blob": blob})
        batches.finish_batches(cat, frame)
    return revision


def labels_of(cat: Catalogue, frame: str) -> list[Row]:
    """All labels of a frame, oldest first."""
    return [_decoded(row) for row in cat.rows("SELECT * FROM label WHERE frame = ? ORDER BY revision", frame)]


def newest_label(cat: Catalogue, frame: str) -> Row | None:
    """The label that holds for a frame, or None."""
    row = cat.row("SELECT * FROM label_newest WHERE frame = ?", frame)
    return None if row is None else _decoded(row)


def get(cat: Catalogue, label_id: str) -> Row:
    """One label by id.

    Raises:
        NotFound: there is no such label.
    """
    row = cat.row("SELECT * FROM label WHERE id = ?", label_id)
    if row is None:
        raise NotFound(f"no label {label_id[:40]!r} in the catalogue")
    return _decoded(row)


def _decoded(row: Row) -> Row:
    return {
        **row,
        "boxes": json.loads(row["boxes"]),
        "classes_reviewed": json.loads(row["classes_reviewed"]),
        "edits": json.loads(row["edits"]),
    }
