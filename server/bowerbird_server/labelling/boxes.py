"""The rules a labelled box obeys, and how a label differs from what the model proposed. Pure: no I/O, no catalogue.

In: boxes as a person, a file or a program gave them, and the image's size. Out: boxes that lie inside the image, or every
fault in words; counts of edits. It does not know which classes exist.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from bowerbird_server.errors import BadInput

PRELABEL_CONFIDENCE = 0.25
"""Detections from this confidence on are shown as boxes to accept; those below are only hints of what may have been missed."""

# Coordinates are kept to a thousandth of a pixel: finer than anyone can draw, and files then round-trip to the same bytes.
_DECIMALS = 3
_SMALLEST_SIDE_PX = 0.01
MOST_BOXES = 2000

Xyxy = tuple[float, float, float, float]


@dataclass(frozen=True)
class Box:
    """One labelled object: its class and left, top, right, bottom in pixels of the stored image."""

    class_name: str
    box_xyxy: Xyxy


def box_fault(box_xyxy: Sequence[float], width: int, height: int) -> str | None:
    """Why these four numbers are not a box that touches a width x height image; None when they are."""
    if len(box_xyxy) != 4 or not all(math.isfinite(value) for value in box_xyxy):
        return "a box is four finite numbers: left, top, right, bottom"
    left, top, right, bottom = box_xyxy
    shown = f"[{left:g}, {top:g}, {right:g}, {bottom:g}]"
    if right < left or bottom < top:
        return f"box {shown} is inverted: left must be less than right and top less than bottom"
    if right - left < _SMALLEST_SIDE_PX or bottom - top < _SMALLEST_SIDE_PX:
        return f"box {shown} has no area"
    inside = clip_box(box_xyxy, width, height)
    if inside[2] - inside[0] < _SMALLEST_SIDE_PX or inside[3] - inside[1] < _SMALLEST_SIDE_PX:
        return f"box {shown} is wholly outside the {width}x{height} image"
    return None


def clip_box(box_xyxy: Sequence[float], width: int, height: int) -> Xyxy:
    """The part of a box inside a width x height image, to a thousandth of a pixel; may be empty."""
    left, top, right, bottom = box_xyxy
    return (
        round(min(max(float(left), 0.0), float(width)), _DECIMALS),
        round(min(max(float(top), 0.0), float(height)), _DECIMALS),
        round(min(max(float(right), 0.0), float(width)), _DECIMALS),
        round(min(max(float(bottom), 0.0), float(height)), _DECIMALS),
    )


def fit_boxes(boxes: Sequence[Box], width: int, height: int, known_classes: Collection[str]) -> list[Box]:
    """The boxes clipped to the image.

    Raises:
        BadInput: boxes are inverted, without area, wholly outside, or of an unknown class; the message names each of them.
    """
    if len(boxes) > MOST_BOXES:
        raise BadInput(
            f"{len(boxes)} boxes on one frame; at most {MOST_BOXES} are taken. Reject the frame or label less of it."
        )
    faults = []
    for number, box in enumerate(boxes, start=1):
        fault = box_fault(box.box_xyxy, width, height)
        if fault:
            faults.append(f"box {number} ({box.class_name}): {fault}")
        if box.class_name not in known_classes:
            faults.append(f"box {number}: class {box.class_name!r} is not in the class list; add it first")
    if faults:
        raise BadInput("the label cannot be taken: " + "; ".join(faults) + ". Correct these boxes and send it again.")
    return [Box(box.class_name, clip_box(box.box_xyxy, width, height)) for box in boxes]


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes, in [0, 1]."""
    overlap_x = min(one[2], other[2]) - max(one[0], other[0])
    overlap_y = min(one[3], other[3]) - max(one[1], other[1])
    if overlap_x <= 0 or overlap_y <= 0:
        return 0.0
    overlap = overlap_x * overlap_y
    union = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1]) - overlap
    return overlap / union if union > 0 else 0.0


def count_edits(
    prelabels: Iterable[Box], boxes: Iterable[Box], *, same_iou: float = 0.5, kept_iou: float = 0.9
) -> dict[str, int]:
    """What it took to make `boxes` out of `prelabels`, for labels that were not made by editing them (files, ground truth).

    Pairs are matched greedily, best overlap first. A pair of one class overlapping by `kept_iou` was kept, by `same_iou` moved;
    a pair of two classes was reclassed; what is left was deleted or added.
    """
    old, new = list(prelabels), list(boxes)
    pairs = sorted(
        ((iou(a.box_xyxy, b.box_xyxy), i, j) for i, a in enumerate(old) for j, b in enumerate(new)),
        key=lambda pair: (-pair[0], pair[1], pair[2]),
    )
    counts = {"kept": 0, "moved": 0, "added": 0, "deleted": 0, "reclassed": 0}
    used_old: set[int] = set()
    used_new: set[int] = set()
    for overlap, i, j in pairs:
        if overlap < same_iou or i in used_old or j in used_new:
            continue
        used_old.add(i)
        used_new.add(j)
        if old[i].class_name != new[j].class_name:
            counts["reclassed"] += 1
        else:
            counts["kept" if overlap >= kept_iou else "moved"] += 1
    counts["deleted"] = len(old) - len(used_old)
    counts["added"] = len(new) - len(used_new)
    return counts
