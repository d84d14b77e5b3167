"""The value type that every detector returns and everything after it reads.

In: nothing. Out: `Detections`, a frozen bundle of NumPy arrays in source pixels. It does no I/O and no drawing; conversion to
and from `supervision.Detections` imports that package only when asked for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bowerbird_models.masks import BitmapMasks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bowerbird_models.masks import Masks

_PER_DETECTION = ("class_scores", "loc_entropy", "masks", "keypoints", "rotated_xywhr")


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
        masks: one for each detection, drawn when asked for; only of segmentation models.
        keypoints: (n, k, 3) float32, x and y in source pixels, clipped to the image, and visibility in [0, 1]; only of pose models.
        rotated_xywhr: (n, 5) float32, centre x, centre y, width, height in source pixels, not clipped, and rotation in radians,
            clockwise; only of models for oriented boxes, whose `boxes_xyxy` enclose these.

    A classification is one detection that covers the image, with every class's probability as `class_scores`.

    Raises:
        ValueError: the arrays' lengths or shapes disagree.
    """

    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int32]
    class_scores: NDArray[np.float32] | None = None
    loc_entropy: NDArray[np.float32] | None = None
    embedding: NDArray[np.float32] | None = None
    masks: Masks | None = None
    keypoints: NDArray[np.float32] | None = None
    rotated_xywhr: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        n = len(self.scores)
        if self.boxes_xyxy.shape != (n, 4) or self.scores.shape != (n,) or self.class_ids.shape != (n,):
            raise ValueError(
                f"boxes {self.boxes_xyxy.shape}, scores {self.scores.shape} and class ids {self.class_ids.shape} disagree; "
                "expected (n, 4), (n,) and (n,)"
            )
        for name in _PER_DETECTION:
            rows = getattr(self, name)
            if rows is not None and len(rows) != n:
                raise ValueError(f"{name} has {len(rows)} rows for {n} detections")
        if self.keypoints is not None and (self.keypoints.ndim != 3 or self.keypoints.shape[2] != 3):
            raise ValueError(f"keypoints have shape {self.keypoints.shape}, expected (n, k, 3)")
        if self.rotated_xywhr is not None and self.rotated_xywhr.shape != (n, 5):
            raise ValueError(f"rotated boxes have shape {self.rotated_xywhr.shape}, expected (n, 5)")

    def __len__(self) -> int:
        return len(self.scores)

    def to_lists(self) -> tuple[list[list[float]], list[float], list[int]]:
        """Boxes, scores and class ids as plain numbers, ten times as fast for a few boxes. Made once; do not change."""
        made: tuple[list[list[float]], list[float], list[int]] | None = self.__dict__.get("_lists")
        if made is None:
            made = (self.boxes_xyxy.tolist(), self.scores.tolist(), self.class_ids.tolist())
            self.__dict__["_lists"] = made  # frozen is what it says, not how it is kept
        return made

    @classmethod
    def empty(cls) -> Detections:
        """No detection at all, the commonest frame of a fixed camera."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Detections:
        """The detections of these rows, in this order, or where a mask of rows is true."""
        return Detections(
            self.boxes_xyxy[rows],
            self.scores[rows],
            self.class_ids[rows],
            class_scores=None if self.class_scores is None else self.class_scores[rows],
            loc_entropy=None if self.loc_entropy is None else self.loc_entropy[rows],
            embedding=self.embedding,
            masks=None if self.masks is None else self.masks.take(rows),
            keypoints=None if self.keypoints is None else self.keypoints[rows],
            rotated_xywhr=None if self.rotated_xywhr is None else self.rotated_xywhr[rows],
        )

    def above(self, confidence: float) -> Detections:
        """The detections whose score is at least `confidence` in [0, 1]."""
        return self.take(self.scores >= confidence)

    def to_supervision(self) -> Any:
        """The same as a `supervision.Detections` (`pip install supervision`).

        Masks become boolean pictures. Oriented boxes travel as `data["xyxyxyxy"]`, (n, 4, 2) corners, where that package's annotators
        look for them, and as `data["xywhr"]`, (n, 5); keypoints as `data["keypoints"]`, (n, k, 3).
        """
        import supervision  # type: ignore[import-not-found,unused-ignore]

        from bowerbird_models.rotated import corners

        data = {}
        if self.rotated_xywhr is not None:
            data["xyxyxyxy"] = corners(self.rotated_xywhr)
            data["xywhr"] = self.rotated_xywhr.copy()
        if self.keypoints is not None:
            data["keypoints"] = self.keypoints.copy()
        return supervision.Detections(
            xyxy=self.boxes_xyxy.copy(),
            mask=None if self.masks is None else self.masks.bitmaps(),
            confidence=self.scores.copy(),
            class_id=self.class_ids.astype(int),
            data=data,
        )

    @classmethod
    def from_supervision(cls, theirs: Any) -> Detections:
        """From a `supervision.Detections` with confidences and class ids, sorted by confidence.

        Masks come along, and what `to_supervision` puts into `data`.

        Raises:
            ValueError: confidences or class ids are missing.
        """
        if theirs.confidence is None or theirs.class_id is None:
            raise ValueError("supervision.Detections without confidence or class_id cannot be scored; run a detector first")
        keypoints, rotated = theirs.data.get("keypoints"), theirs.data.get("xywhr")
        return cls(
            np.asarray(theirs.xyxy, np.float32).reshape(-1, 4),
            np.asarray(theirs.confidence, np.float32),
            np.asarray(theirs.class_id, np.int32),
            masks=None if theirs.mask is None else BitmapMasks(np.asarray(theirs.mask, bool)),
            keypoints=None if keypoints is None else np.asarray(keypoints, np.float32),
            rotated_xywhr=None if rotated is None else np.asarray(rotated, np.float32),
        ).take(np.argsort(-theirs.confidence, kind="stable"))
