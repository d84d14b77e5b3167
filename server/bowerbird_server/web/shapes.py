"""Catalogue rows as the API and the pages show them.

In: rows. Out: dictionaries in the shapes of `api_types.py`.
"""

from __future__ import annotations

import json

from bowerbird_server.catalogue import batches, fetches, frames, labels, references
from bowerbird_server.catalogue.core import Catalogue, Row
from bowerbird_server.web.why import sentence


def frame_shape(row: Row) -> Row:
    """A frame's row with its lists and numbers decoded and the address of its image."""
    return {
        **row,
        "clock_ok": bool(row["clock_ok"]),
        "reasons": [reason for reason in row["reason"].split(",") if reason],
        "strategy_scores": json.loads(row["strategy_scores"]),
        "image_url": f"/api/v1/frames/{row['id']}/image",
    }


def detection_shapes(rows: list[Row]) -> list[Row]:
    """Detections with their four sides as one box."""
    return [
        {
            "class_name": row["class_name"],
            "score": row["score"],
            "box_xyxy": [row["left"], row["top"], row["right"], row["bottom"]],
        }
        for row in rows
    ]


def queue_item(cat: Catalogue, row: Row) -> Row:
    """A row of `batches.queue` with its detections."""
    return {**frame_shape(row), "detections": detection_shapes(frames.detections(cat, row["id"]))}


def label_shape(row: Row) -> Row:
    """A label with the API's name for a box's class."""
    boxes = [{"class_name": box["class"], "box_xyxy": box["box_xyxy"]} for box in row["boxes"]]
    return {**row, "boxes": boxes}


def fetch_shapes(cat: Catalogue, frame_id: str) -> Row:
    """What was asked of a frame's device, the frames that came of it, the frame that it belongs to itself, how many refer to it."""
    return {
        "items": fetches.of_frame(cat, frame_id),
        "linked": [{"kind": row["kind"], **frame_shape(row)} for row in fetches.linked(cat, frame_id)],
        "parent": fetches.parent(cat, frame_id),
        "references": references.count_of(cat, frame_id),
    }


def frame_detail(cat: Catalogue, frame_id: str) -> Row:
    """A frame with detections, its newest label, why its device chose it and why it was queued.

    Raises:
        NotFound: there is no such frame.
    """
    row = frames.get(cat, frame_id)
    label = labels.newest_label(cat, frame_id)
    shape = frame_shape(row)
    return {
        **shape,
        "detections": detection_shapes(row["detections"]),
        "label": None if label is None else label_shape(label),
        "queued": batches.why_of(cat, frame_id),
        "explanation": sentence(shape),
    }
