"""From a head's numbers to candidate boxes; pure NumPy.

In: what the network emitted, one picture's worth. Out: `Candidates` in network pixels, above a confidence. Two layouts are
known: the raw head (1, 4 + classes, anchors) of YOLOv5u, v8, v9, v10, 11, 12 and 26, and the end-to-end head
(1, rows, 6) of YOLOv10 and 26 or of an export with NMS inside. It does not drop overlaps (`nms.py`) nor map to source
pixels (`letterbox.py`).
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


class HeadLayout(Enum):
    """How a head lays out its numbers."""

    RAW = "raw"
    END_TO_END = "end_to_end"


@dataclass(frozen=True)
class Candidates:
    """Boxes above a confidence, in network pixels.

    Args:
        boxes_xyxy: (n, 4) float32.
        scores: (n,) float32, the top class's.
        class_ids: (n,) int32.
        class_scores: (n, classes) float32; None for end-to-end heads.
    """

    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int32]
    class_scores: NDArray[np.float32] | None

    def take(self, rows: NDArray[np.intp]) -> Candidates:
        """The candidates of these rows, in this order."""
        return Candidates(
            self.boxes_xyxy[rows],
            self.scores[rows],
            self.class_ids[rows],
            None if self.class_scores is None else self.class_scores[rows],
        )


def head_layout(shape: Sequence[int | str | None], class_count: int, *, end2end: bool) -> HeadLayout:
    """Which layout a declared or real output shape is; unknown dimensions (text or None) fit anything.

    Args:
        shape: the output's dimensions.
        class_count: number of classes in the metadata.
        end2end: what the metadata says.

    Raises:
        UnsupportedModel: the shape is neither; the message names what it looks like.
    """
    if len(shape) != 3:
        raise UnsupportedModel(
            f"the model's first output has shape {_shown(shape)}, not the three dimensions of a detection head; export a "
            "detection model"
        )
    batch, rows, columns = (size if isinstance(size, int) else None for size in shape)
    if batch not in {None, 1}:
        raise UnsupportedModel(f"the model was exported for batches of {batch}; export it again with batch=1")
    if end2end and columns in {None, 6}:
        return HeadLayout.END_TO_END
    if rows in {None, 4 + class_count} and not (rows is None and columns == 6):
        return HeadLayout.RAW
    if columns == 6:
        return HeadLayout.END_TO_END  # v10 exports and NMS exports before the metadata said end2end
    if columns == 5 + class_count:
        raise UnsupportedModel(
            f"the output {_shown(shape)} is the old YOLOv5 or v7 head with objectness; export the model with Ultralytics 8 "
            "(for example yolov5nu) instead"
        )
    raise UnsupportedModel(
        f"the output {_shown(shape)} does not fit {class_count} classes: expected (1, {4 + class_count}, anchors) or "
        "(1, rows, 6). The class names in the metadata and the head disagree; export the model again"
    )


def decode_raw(output: NDArray[Any], class_count: int, confidence: float) -> Candidates:
    """Candidates of a raw head.

    Args:
        output: (1, 4 + classes, anchors), centre x, centre y, width, height in network pixels and one sigmoid a class.
        class_count: number of classes.
        confidence: lowest top-class score kept, in [0, 1].

    Raises:
        ModelOutputError: the shape does not fit, or NaN or infinity among scores or candidates.
    """
    if output.ndim != 3 or output.shape[:2] != (1, 4 + class_count):
        raise ModelOutputError(
            f"the model emitted {_shown(output.shape)} for {class_count} classes, expected (1, {4 + class_count}, anchors); "
            "this file is damaged or mislabelled, do not use it"
        )
    class_rows = output[0, 4:]
    # One pass over contiguous rows finds the few anchors that matter; everything after touches only those.
    top = class_rows.max(axis=0, initial=0.0)
    best = top.max(initial=0.0)
    if not np.isfinite(best):  # max carries NaN along, so this one value speaks for all
        raise _not_finite()
    anchors = np.flatnonzero(top >= top.dtype.type(confidence))
    class_scores = np.ascontiguousarray(class_rows[:, anchors].T, np.float32)
    boxes_xywh = output[0, :4, anchors].astype(np.float32)  # (n, 4): advanced indexing puts the anchors first
    if not np.isfinite(boxes_xywh).all():
        raise _not_finite()
    half = boxes_xywh[:, 2:] / 2
    centre = boxes_xywh[:, :2]
    return Candidates(
        np.concatenate([centre - half, centre + half], axis=1),
        top[anchors].astype(np.float32),
        class_scores.argmax(axis=1).astype(np.int32),
        class_scores,
    )


def decode_end_to_end(output: NDArray[Any], class_count: int, confidence: float) -> Candidates:
    """Detections of an end-to-end head, most confident first; nothing is left to suppress.

    Args:
        output: (1, rows, 6), left, top, right, bottom in network pixels, score, class id.
        class_count: number of classes.
        confidence: lowest score kept, in [0, 1].

    Raises:
        ModelOutputError: the shape does not fit, NaN or infinity, or a class id that has no name.
    """
    if output.ndim != 3 or output.shape[0] != 1 or output.shape[2] != 6:
        raise ModelOutputError(
            f"the model emitted {_shown(output.shape)}, expected (1, rows, 6); this file is damaged or mislabelled, do not use it"
        )
    rows = output[0].astype(np.float32)
    if not np.isfinite(rows).all():
        raise _not_finite()
    rows = rows[rows[:, 4] >= np.float32(confidence)]
    rows = rows[np.argsort(-rows[:, 4], kind="stable")]
    class_ids = rows[:, 5].astype(np.int32)
    if ((class_ids < 0) | (class_ids >= class_count)).any():
        raise ModelOutputError(
            f"the model emitted class id {class_ids.min() if class_ids.min() < 0 else class_ids.max()} but its metadata names "
            f"{class_count} classes; this file is damaged or mislabelled, do not use it"
        )
    return Candidates(rows[:, :4].copy(), rows[:, 4].copy(), class_ids, None)


def _not_finite() -> ModelOutputError:
    return ModelOutputError(
        "the model emitted NaN or infinity; do not use this file, export it again (half precision can overflow: try float32)"
    )


def _shown(shape: Sequence[int | str | None]) -> str:
    return "(" + ", ".join("?" if size is None else str(size) for size in shape) + ")"
