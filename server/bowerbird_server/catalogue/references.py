"""Frames of the random audit that came without a picture of their own: nothing in them was different from an earlier frame, their twin.

In: headers that name a twin. Out: the twins that can stand in for them; what their rows take from it. A reference has its own
detections, probability and time; its picture, and what was covered in it, are the twin's, and so is the answer that a label gives to
estimates (`audited.py`). It is set aside from the beginning: nobody is asked about it, nothing trains on it, and it goes with its twin.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from bowerbird_server.catalogue.core import Catalogue, Row
from bowerbird_server.catalogue.fleet import camera_id
from bowerbird_wire.messages import FrameHeader

REFERENCE = "reference"  # kind of its row in `linked_frame`
SET_ASIDE = "rejected"  # its state, as that of every other copy


def twins(cat: Catalogue, headers: Sequence[FrameHeader]) -> dict[str, Row]:
    """Frame id -> row `id blob` of its twin, of those of `headers` whose twin can stand in.

    It can when it is a frame of the audit of the same device and camera, with a picture of its own in the same format and size (the
    boxes are in its pixels), and not deleted.
    """
    rows = cat.rows(
        "SELECT id, blob, device, camera, image_format, width, height FROM frame WHERE id IN (SELECT value FROM json_each(?)) "
        "AND state <> 'deleted' AND arm = 'explore' AND NOT EXISTS (SELECT 1 FROM linked_frame WHERE linked_frame.frame = frame.id)",
        json.dumps(sorted({header.twin for header in headers})),
    )
    by_id = {row["id"]: row for row in rows}
    found = {}
    for header in headers:
        twin = by_id.get(header.twin)
        if twin is not None and _place(header) == tuple(twin[name] for name in _PLACE):
            found[header.frame_id] = {"id": twin["id"], "blob": twin["blob"]}
    return found


_PLACE = ("device", "camera", "image_format", "width", "height")


def _place(header: FrameHeader) -> tuple[object, ...]:
    camera = camera_id(header.device, header.camera)
    return header.device, camera, header.image_format, header.width, header.height


def redactions_of_twin(cat: Catalogue, frame: str, twin: str) -> list[Row]:
    """What is covered in the picture that a reference shows, as rows of its own."""
    rows = cat.rows(
        'SELECT position, "left", top, "right", bottom, class_name, method FROM redaction WHERE frame = ? ORDER BY position',
        twin,
    )
    return [{"frame": frame, **row} for row in rows]


def twin_of(cat: Catalogue, frame: str) -> str | None:
    """The frame whose picture a reference shows; None for a frame with its own."""
    twin: str | None = cat.value("SELECT of_frame FROM linked_frame WHERE frame = ? AND kind = ?", frame, REFERENCE)
    return twin


def count_of(cat: Catalogue, twin: str) -> int:
    """How many frames show this one's picture beside itself."""
    return int(
        cat.value(
            "SELECT count(*) FROM linked_frame JOIN frame ON frame.id = linked_frame.frame WHERE of_frame = ? AND kind = ? "
            "AND frame.state <> 'deleted'",
            twin,
            REFERENCE,
        )
    )


def count(cat: Catalogue) -> int:
    """How many frames are references, deleted ones included."""
    return int(cat.value("SELECT count(*) FROM linked_frame WHERE kind = ?", REFERENCE))
