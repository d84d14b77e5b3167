"""The value type that every detector returns and everything after it reads.

In: nothing. Out: `Detections`, a frozen bundle of NumPy arrays in source pixels. It does no I/O and no drawing; conversion to
and from `supervision.Detections` imports that package only when asked for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Detections:
    """What a model saw in one frame, most confident first.

    Args:
        boxes_xyxy: (n, 4) float32, left, top, right, bottom in source pixels, clipped to the image.
        scores: (n,) float32 in [0, 1], the top class's confidence, descending.
        class_ids: (n,) int32, index into the model's class names.
        class_scores: (n, classes) float32 in [0, 1], every class's sigmoid; None for end-to-end heads, which give the top only.
        loc_entropy: (n,) float32 in [0, 1], normalised DFL localisation entropy; None where the head has none.
        embedding: (d,) float32, pooled features of the whole frame; None for models exported without it.

    Raises:
        ValueError: the arrays' lengths or shapes disagree.
    """

    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int32]
    class_scores: NDArray[np.float32] | None = None
    loc_entropy: NDArray[np.float32] | None = None
    embedding: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        n = len(self.scores)
        if self.boxes_xyxy.shape != (n, 4) or self.scores.shape != (n,) or self.class_ids.shape != (n,):
            raise ValueError(
                f"boxes {self.boxes_xyxy.shape}, scores {self.scores.shape} and class ids {self.class_ids.shape} disagree; "
                "expected (n, 4), (n,) and (n,)"
            )
        for name, rows in (("class_scores", self.class_scores), ("loc_entropy", self.loc_entropy)):
            if rows is not None and len(rows) != n:
                raise ValueError(f"{name} has {len(rows)} rows for {n} detections")

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def empty(cls) -> Detections:
        """No detection at all, the commonest frame of a fixed camera."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))

    def above(self, confidence: float) -> Detections:
        """The detections whose score is at least `confidence` in [0, 1]."""
        keep = self.scores >= confidence
        return Detections(
            self.boxes_xyxy[keep],
            self.scores[keep],
            self.class_ids[keep],
            None if self.class_scores is None else self.class_scores[keep],
            None if self.loc_entropy is None else self.loc_entropy[keep],
            self.embedding,
        )

    def to_supervision(self) -> Any:
        """The same boxes as a `supervision.Detections` (`pip install supervision`)."""
        import supervision  # type: ignore[import-not-found,unused-ignore]

        return supervision.Detections(
            xyxy=self.boxes_xyxy.copy(), confidence=self.scores.copy(), class_id=self.class_ids.astype(int)
        )

    @classmethod
    def from_supervision(cls, theirs: Any) -> Detections:
        """From a `supervision.Detections` with confidences and class ids, sorted by confidence.

        Raises:
            ValueError: confidences or class ids are missing.
        """
        if theirs.confidence is None or theirs.class_id is None:
            raise ValueError("supervision.Detections without confidence or class_id cannot be scored; run a detector first")
        order = np.argsort(-theirs.confidence, kind="stable")
        return cls(
            np.asarray(theirs.xyxy, np.float32)[order].reshape(-1, 4),
            np.asarray(theirs.confidence, np.float32)[order],
            np.asarray(theirs.class_id, np.int32)[order],
        )
