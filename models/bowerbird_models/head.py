"""What the heads of all tasks share: their Protocol, what a network emitted for one frame, and boxes above a confidence.

In: arrays as a session returns them. Out: `Detections`, by the head of the task (`head_detect.py` and its neighbours). Which head a
model has is decided in `heads.py`. Pure NumPy, but for OpenCV in the suppression.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bowerbird_models.decode import Candidates, HeadLayout, decode_end_to_end, decode_raw, not_finite, shown
from bowerbird_models.detections import Detections
from bowerbird_models.errors import ModelOutputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bowerbird_models.letterbox import Letterbox
    from bowerbird_models.masks import PrototypeMasks


@dataclass(frozen=True)
class NetworkOutputs:
    """What a network emitted for one frame; the arrays are overwritten by the next.

    Args:
        head: the head's outputs, in the order of `Head.output_names`.
        embedding: (1, d) or None.
        loc_entropy: (1, anchors) or None.
    """

    head: list[NDArray[Any]]
    embedding: NDArray[Any] | None = None
    loc_entropy: NDArray[Any] | None = None

    def frame_embedding(self) -> NDArray[np.float32] | None:
        """(d,) float32, a copy.

        Raises:
            ModelOutputError: NaN or infinity in it.
        """
        if self.embedding is None:
            return None
        embedding: NDArray[np.float32] = self.embedding.astype(np.float32).reshape(-1)
        if not np.isfinite(embedding).all():
            raise ModelOutputError("the model's embedding holds NaN or infinity; do not use this file, export it again")
        return embedding

    def loc_entropy_at(self, anchors: NDArray[np.intp] | None) -> NDArray[np.float32] | None:
        """(n,) float32 in [0, 1], a copy; None where the model emits none or its head has no anchors any more.

        Raises:
            ModelOutputError: it does not have one value for each anchor, or NaN or infinity in those asked for.
        """
        if self.loc_entropy is None or anchors is None:
            return None
        anchor_count = self.head[0].shape[-1]
        if self.loc_entropy.shape != (1, anchor_count):
            raise ModelOutputError(
                f"the model's loc_entropy has shape {shown(self.loc_entropy.shape)} for {anchor_count} anchors; do not use this "
                "file, export it again"
            )
        values: NDArray[np.float32] = self.loc_entropy[0, anchors].astype(np.float32)
        if not np.isfinite(values).all():
            raise ModelOutputError("the model's loc_entropy holds NaN or infinity; do not use this file, export it again")
        return np.clip(values, np.float32(0), np.float32(1))


class Head(Protocol):
    """Reads one task's outputs.

    Attributes:
        layout: how the boxes are laid out.
        output_names: the outputs that `read` wants, in this order.
        is_settled: whether the layout is certain; otherwise the first real output decides (`heads.settle`).
    """

    @property
    def layout(self) -> HeadLayout: ...

    @property
    def output_names(self) -> tuple[str, ...]: ...

    @property
    def is_settled(self) -> bool: ...

    def read(self, outputs: NetworkOutputs, letterbox: Letterbox, *, confidence: float, iou: float) -> Detections:
        """Detections in source pixels, most confident first.

        Args:
            outputs: of one frame; nothing returned points into them.
            letterbox: where the frame lies in the network input.
            confidence: lowest score kept, in [0, 1].
            iou: overlap in [0, 1] above which the weaker box of one class is dropped (raw heads only).

        Raises:
            ModelOutputError: NaN or infinity, or a shape that the metadata does not explain.
        """
        ...


def kept_boxes(
    output: NDArray[Any], layout: HeadLayout, class_count: int, *, extra_count: int, confidence: float, iou: float
) -> Candidates:
    """Upright boxes that stay after suppression, most confident first, in network pixels."""
    from bowerbird_models.nms import MAX_DETECTIONS, suppress

    if layout is HeadLayout.RAW:
        candidates = decode_raw(output, class_count, confidence, extra_count=extra_count)
        return candidates.take(suppress(candidates, iou))
    candidates = decode_end_to_end(output, class_count, confidence, extra_count=extra_count)
    return candidates.take(np.arange(min(len(candidates.scores), MAX_DETECTIONS)))


def detections_of(
    kept: Candidates,
    outputs: NetworkOutputs,
    boxes_xyxy: NDArray[np.float32],
    *,
    masks: PrototypeMasks | None = None,
    keypoints: NDArray[np.float32] | None = None,
    rotated_xywhr: NDArray[np.float32] | None = None,
) -> Detections:
    """What stays of one frame, with what the model says of each box and of the whole frame.

    Args:
        boxes_xyxy: (n, 4) of `kept`, in source pixels.
        masks, keypoints, rotated_xywhr: as `Detections`.

    Raises:
        ModelOutputError: NaN or infinity in the curation outputs, or a shape that does not fit the head's.
    """
    return Detections(
        boxes_xyxy,
        kept.scores,
        kept.class_ids,
        class_scores=kept.class_scores,
        loc_entropy=outputs.loc_entropy_at(kept.anchors),
        embedding=outputs.frame_embedding(),
        masks=masks,
        keypoints=keypoints,
        rotated_xywhr=rotated_xywhr,
    )


def finite(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The values themselves.

    Raises:
        ModelOutputError: NaN or infinity among them.
    """
    if not np.isfinite(values).all():
        raise not_finite()
    return values
