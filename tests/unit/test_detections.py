"""The value type keeps what belongs to a detection together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bowerbird_models.detections import Detections
from bowerbird_models.masks import BitmapMasks


def three() -> Detections:
    """Three detections with everything that any task adds; row k holds the number k."""
    rows = np.arange(3, dtype=np.float32)
    return Detections(
        np.stack([rows, rows, rows + 10, rows + 10], axis=1),
        np.array([0.9, 0.5, 0.1], np.float32),
        np.array([0, 1, 2], np.int32),
        class_scores=np.eye(3, dtype=np.float32),
        loc_entropy=rows / 10,
        embedding=np.ones(4, np.float32),
        masks=BitmapMasks(np.arange(3)[:, None, None] == np.zeros((1, 4, 5))),
        keypoints=rows[:, None, None] * np.ones((1, 2, 3), np.float32),
        rotated_xywhr=rows[:, None] * np.ones((1, 5), np.float32),
    )


def numbers(detections: Detections) -> list[list[float]]:
    """Which rows each field holds."""
    assert detections.keypoints is not None
    assert detections.rotated_xywhr is not None
    assert detections.masks is not None
    return [
        detections.boxes_xyxy[:, 0].tolist(),
        detections.keypoints[:, 0, 0].tolist(),
        detections.rotated_xywhr[:, 4].tolist(),
        [0.0 if bitmap.all() else -1.0 for bitmap in detections.masks.bitmaps()],
    ]


def test_rows_stay_together() -> None:
    """Above a confidence, in another order, none at all; the embedding is the frame's and stays."""
    above = three().above(0.5)
    assert above.loc_entropy is not None
    assert above.loc_entropy.tolist() == pytest.approx([0, 0.1])
    assert numbers(above) == [[0, 1], [0, 1], [0, 1], [0, -1]]
    turned = three().take(np.array([2, 0]))
    assert numbers(turned) == [[2, 0], [2, 0], [2, 0], [-1, 0]]
    assert turned.class_ids.tolist() == [2, 0]
    assert turned.embedding is not None
    assert len(three().above(2.0)) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("class_scores", np.zeros((2, 3), np.float32)),
        ("masks", BitmapMasks(np.zeros((2, 4, 5), bool))),
        ("keypoints", np.zeros((3, 4), np.float32)),
        ("keypoints", np.zeros((3, 4, 2), np.float32)),
        ("rotated_xywhr", np.zeros((3, 4), np.float32)),
    ],
)
def test_rows_that_disagree_are_refused(field: str, value: Any) -> None:
    """Another number of rows, or another shape."""
    boxes, scores, class_ids = np.zeros((3, 4), np.float32), np.zeros(3, np.float32), np.zeros(3, np.int32)
    with pytest.raises(ValueError, match=r"rows|shape"):
        Detections(boxes, scores, class_ids, **{field: value})


def test_supervision_and_back_is_the_same() -> None:
    """Boxes, masks, keypoints and angles; sorted by confidence again if somebody shuffled them."""
    supervision = pytest.importorskip("supervision", reason="pip install supervision (it brings opencv-python)")
    theirs = three().to_supervision()
    assert isinstance(theirs, supervision.Detections)
    assert theirs.mask.dtype == bool
    assert theirs.data["xyxyxyxy"].shape == (3, 4, 2)
    back = Detections.from_supervision(theirs[[2, 0, 1]])
    assert numbers(back)[0] == [0, 1, 2]
    assert numbers(back)[1:3] == [[0, 1, 2], [0, 1, 2]]
    assert numbers(back)[3] == [0, -1, -1]
    empty = Detections.from_supervision(three().above(2.0).to_supervision())
    assert len(empty) == 0
