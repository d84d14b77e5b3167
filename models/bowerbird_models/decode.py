"""From a head's numbers to candidate boxes; pure NumPy.

In: what the network emitted, one picture's worth. Out: `Candidates` in network pixels, above a confidence. Two layouts are
known: the raw head (1, 4 + classes + extra, anchors) of YOLOv5u, v8, v9, v10, 11, 12 and 26, and the end-to-end head
(1, rows, 6 + extra) of YOLOv10 and 26 or of an export with NMS inside. What the extra numbers mean (mask coefficients, keypoints,
an angle) is the business of the task's head. It does not drop overlaps (`nms.py`, `rotated.py`) nor map to source pixels
(`letterbox.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np

from bowerbird_models.errors import ModelOutputError, UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


_MOST_END_TO_END_ROWS = 1000  # end-to-end heads emit 300; the old heads emit thousands of anchors


class HeadLayout(Enum):
    """How a head lays out its numbers."""

    RAW = "raw"
    END_TO_END = "end_to_end"
    PROBABILITIES = "probabilities"


@dataclass(frozen=True)
class Candidates:
    """Boxes above a confidence, in network pixels.

    Args:
        boxes: (n, 4) float32, left, top, right, bottom; of an oriented head centre x, centre y, width, height.
        scores: (n,) float32, the top class's.
        class_ids: (n,) int32.
        extra: (n, e) float32, what the task adds; detection adds nothing.
        class_scores: (n, classes) float32; None for end-to-end heads.
        anchors: (n,) which anchor of a raw head each is; None for end-to-end heads.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int32]
    extra: NDArray[np.float32]
    class_scores: NDArray[np.float32] | None = None
    anchors: NDArray[np.intp] | None = None

    def take(self, rows: NDArray[np.intp]) -> Candidates:
        """The candidates of these rows, in this order."""
        return Candidates(
            self.boxes[rows],
            self.scores[rows],
            self.class_ids[rows],
            self.extra[rows],
            None if self.class_scores is None else self.class_scores[rows],
            None if self.anchors is None else self.anchors[rows],
        )


def head_layout(
    shape: Sequence[int | str | None], class_count: int, *, end2end: bool, extra_count: int | None = 0
) -> HeadLayout:
    """Which layout a declared or real output shape is; unknown dimensions (text or None) fit anything.

    Args:
        shape: the output's dimensions.
        class_count: number of classes in the metadata.
        end2end: what the metadata says.
        extra_count: numbers that the task adds to each box; None while they are unknown.

    Raises:
        UnsupportedModel: the shape is neither; the message names what it looks like.
    """
    if len(shape) != 3:
        raise UnsupportedModel(
            f"the model's first output has shape {shown(shape)}, not the three dimensions of a detection head; export a "
            "detection model"
        )
    batch, rows, columns = (size if isinstance(size, int) else None for size in shape)
    if batch not in {None, 1}:
        raise UnsupportedModel(f"the model was exported for batches of {batch}; export it again with batch=1")
    if extra_count is None:
        return HeadLayout.END_TO_END if end2end else HeadLayout.RAW
    raw_rows, end_to_end_columns = 4 + class_count + extra_count, 6 + extra_count
    if end2end and columns in {None, end_to_end_columns}:
        return HeadLayout.END_TO_END
    if rows in {None, raw_rows} and not (rows is None and columns == end_to_end_columns):
        return HeadLayout.RAW
    is_legacy = columns == 5 + class_count + extra_count
    if columns == end_to_end_columns and not (is_legacy and rows is not None and rows > _MOST_END_TO_END_ROWS):
        return HeadLayout.END_TO_END  # v10 exports and NMS exports before the metadata said end2end
    if is_legacy:
        raise UnsupportedModel(
            f"the output {shown(shape)} is the old YOLOv5 or v7 head with objectness; export the model with Ultralytics 8 "
            "(for example yolov5nu) instead"
        )
    if columns == 4 + class_count:
        raise UnsupportedModel(
            f"the output {shown(shape)} is laid out like RT-DETR's, which does not run here; use one of the models YOLOv5u, v8, "
            "v9, v10, 11, 12 or 26"
        )
    raise UnsupportedModel(
        f"the output {shown(shape)} does not fit {class_count} classes: expected (1, {raw_rows}, anchors) or "
        f"(1, rows, {end_to_end_columns}). The class names in the metadata and the head disagree; export the model again"
    )


def decode_raw(
    output: NDArray[Any], class_count: int, confidence: float, *, extra_count: int = 0, corners: bool = True
) -> Candidates:
    """Candidates of a raw head.

    Args:
        output: (1, 4 + classes + extra, anchors): centre x, centre y, width, height in network pixels, one sigmoid a class, and
            what the task adds.
        class_count: number of classes.
        confidence: lowest top-class score kept, in [0, 1].
        extra_count: numbers that the task adds to each box.
        corners: boxes as left, top, right, bottom; otherwise as the head has them, for oriented boxes.

    Raises:
        ModelOutputError: the shape does not fit, or NaN or infinity among scores or candidates.
    """
    row_count = 4 + class_count + extra_count
    if output.ndim != 3 or output.shape[:2] != (1, row_count):
        raise ModelOutputError(
            f"the model emitted {shown(output.shape)} for {class_count} classes, expected (1, {row_count}, anchors); "
            "this file is damaged or mislabelled, do not use it"
        )
    class_rows = output[0, 4 : 4 + class_count]
    # One pass over contiguous rows finds the few anchors that matter; everything after touches only those.
    top = class_rows.max(axis=0, initial=0.0)
    best = top.max(initial=0.0)
    if not np.isfinite(best):  # max carries NaN along, so this one value speaks for all
        raise not_finite()
    anchors = np.flatnonzero(top >= top.dtype.type(confidence))
    class_scores = np.ascontiguousarray(class_rows[:, anchors].T, np.float32)
    boxes = output[0, :4, anchors].astype(np.float32)  # (n, 4): advanced indexing puts the anchors first
    extra = output[0, 4 + class_count :, anchors].astype(np.float32)
    if not np.isfinite(boxes).all() or (extra_count and not np.isfinite(extra).all()):
        raise not_finite()
    if corners:
        half = boxes[:, 2:] / 2
        centre = boxes[:, :2]
        boxes = np.concatenate([centre - half, centre + half], axis=1)
    return Candidates(
        boxes,
        top[anchors].astype(np.float32),
        class_scores.argmax(axis=1).astype(np.int32),
        extra,
        class_scores,
        anchors,
    )


def decode_end_to_end(output: NDArray[Any], class_count: int, confidence: float, *, extra_count: int = 0) -> Candidates:
    """Detections of an end-to-end head, most confident first; nothing is left to suppress.

    Args:
        output: (1, rows, 6 + extra): a box in network pixels (left, top, right, bottom, or of an oriented head centre and size),
            score, class id, and what the task adds.
        class_count: number of classes.
        confidence: lowest score kept, in [0, 1].
        extra_count: numbers that the task adds to each box.

    Raises:
        ModelOutputError: the shape does not fit, NaN or infinity, or a class id that has no name.
    """
    if output.ndim != 3 or output.shape[0] != 1 or output.shape[2] != 6 + extra_count:
        raise ModelOutputError(
            f"the model emitted {shown(output.shape)}, expected (1, rows, {6 + extra_count}); this file is damaged or "
            "mislabelled, do not use it"
        )
    rows = output[0].astype(np.float32)
    if not np.isfinite(rows).all():
        raise not_finite()
    rows = rows[rows[:, 4] >= np.float32(confidence)]
    rows = rows[np.argsort(-rows[:, 4], kind="stable")]
    named = (rows[:, 5] >= 0) & (rows[:, 5] < class_count) & (rows[:, 5] == np.floor(rows[:, 5]))
    if not named.all():
        raise ModelOutputError(
            f"the model emitted class id {rows[~named][0, 5]:g} but its metadata names {class_count} classes, from 0; this file "
            "is damaged or mislabelled, do not use it"
        )
    return Candidates(rows[:, :4].copy(), rows[:, 4].copy(), rows[:, 5].astype(np.int32), rows[:, 6:].copy())


def not_finite() -> ModelOutputError:
    """The error of a model that emits no numbers."""
    return ModelOutputError(
        "the model emitted NaN or infinity; do not use this file, export it again (half precision can overflow: try float32)"
    )


def shown(shape: Sequence[int | str | None]) -> str:
    """A shape as text, unknown sides as a question mark."""
    return "(" + ", ".join("?" if size is None else str(size) for size in shape) + ")"
