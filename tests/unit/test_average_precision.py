"""Average precision: equal to pycocotools, and re-weighting equals repeating."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bowerbird_server.training.average_precision import (
    IOU_THRESHOLDS,
    FrameBoxes,
    PrecisionCurves,
    iou_matrix,
    match,
    match_frames,
    mean_average_precision,
)


def random_frames(
    rng: np.random.Generator, frames: int, classes: int, *, ties: bool = False
) -> tuple[list[FrameBoxes], list[FrameBoxes]]:
    """Drawn boxes and detections that are partly those boxes moved a little, partly noise, some with the wrong class."""
    found, drawn = [], []
    for _ in range(frames):
        count = int(rng.integers(0, 8))
        corner = rng.uniform(0, 200, (count, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(5, 80, (count, 2))], axis=1)
        class_ids = rng.integers(0, classes, count)
        drawn.append(FrameBoxes(boxes, class_ids))
        copies = np.repeat(boxes, 2, axis=0) + rng.normal(0, 3, (2 * count, 4))
        noise = rng.uniform(0, 200, (int(rng.integers(0, 6)), 2))
        noise = np.concatenate([noise, noise + 30], axis=1)
        all_boxes = np.concatenate([copies, noise])
        all_boxes[:, 2:] = np.maximum(all_boxes[:, 2:], all_boxes[:, :2] + 1)  # the reference ignores inside-out boxes
        copies_ids = np.where(rng.random(2 * count) < 0.85, np.repeat(class_ids, 2), rng.integers(0, classes, 2 * count))
        ids = np.concatenate([copies_ids, rng.integers(0, classes, len(noise))])
        scores = rng.random(len(all_boxes))
        if ties:
            scores = np.round(scores, 1)
        found.append(FrameBoxes(all_boxes, ids.astype(np.int64), scores))
    return found, drawn


def coco_average_precision(found: list[FrameBoxes], drawn: list[FrameBoxes], classes: int) -> NDArray[np.float64]:
    """(classes, 10) from pycocotools; NaN where a class has no ground truth."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def xywh(box: NDArray[np.float64]) -> list[float]:
        return [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]

    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for frame, (theirs, ours) in enumerate(zip(found, drawn, strict=True)):
        for box, class_id in zip(ours.boxes_xyxy, ours.class_ids, strict=True):
            size = xywh(box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": frame + 1,
                    "category_id": int(class_id) + 1,
                    "bbox": size,
                    "area": size[2] * size[3],
                    "iscrowd": 0,
                }
            )
        assert theirs.scores is not None
        for box, class_id, score in zip(theirs.boxes_xyxy, theirs.class_ids, theirs.scores, strict=True):
            results.append({"image_id": frame + 1, "category_id": int(class_id) + 1, "bbox": xywh(box), "score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": frame + 1} for frame in range(len(drawn))],
            "categories": [{"id": class_id + 1, "name": str(class_id)} for class_id in range(classes)],
            "annotations": annotations,
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # overlaps, recall points, classes
    areas: NDArray[np.float64] = precision.mean(axis=1).T.copy()
    areas[areas < 0] = np.nan
    return areas


@pytest.mark.parametrize("seed", range(12))
def test_equals_pycocotools(seed: int) -> None:
    """Per class and per overlap the numbers are pycocotools' own."""
    rng = np.random.default_rng(seed)
    classes = 1 + seed % 4
    found, drawn = random_frames(rng, frames=5 + 4 * seed, classes=classes, ties=seed % 3 == 0)
    ours = PrecisionCurves(match_frames(found, drawn, classes)).average_precision()[0]
    np.testing.assert_allclose(ours, coco_average_precision(found, drawn, classes), atol=1e-6)
    assert 0.05 < mean_average_precision(ours) < 0.95, "the case is too easy or too hard to tell anything"


def test_only_the_hundred_best_of_a_class_in_a_frame_count() -> None:
    """A crowd of 150 detections is cut to the 100 most confident, as in pycocotools."""
    rng = np.random.default_rng(5)
    corner = rng.uniform(0, 2000, (120, 2))
    boxes = np.concatenate([corner, corner + 30], axis=1)
    ids = np.zeros(120, np.int64)
    noise = np.concatenate([boxes[:60] + 300, boxes])[:150]
    found = [FrameBoxes(noise, np.zeros(len(noise), np.int64), rng.random(len(noise)))]
    drawn = [FrameBoxes(boxes, ids)]
    table = match_frames(found, drawn, 1)
    assert len(table.scores) == 100
    np.testing.assert_allclose(
        PrecisionCurves(table).average_precision()[0], coco_average_precision(found, drawn, 1), atol=1e-6
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("frames_a_group", [1, 4])
def test_a_weight_is_a_repetition(seed: int, frames_a_group: int) -> None:
    """Weighting groups of frames 0 to 3 times gives what matching the repeated frames gives."""
    rng = np.random.default_rng(100 + seed)
    found, drawn = random_frames(rng, frames=20, classes=3)
    groups = np.arange(20) // frames_a_group
    weights = rng.integers(0, 4, (3, groups.max() + 1))
    weighted = PrecisionCurves(match_frames(found, drawn, 3), groups).average_precision(weights.astype(np.float64))
    for row, times in enumerate(weights):
        order = np.repeat(np.arange(20), times[groups])
        repeated = match_frames([found[i] for i in order], [drawn[i] for i in order], 3)
        np.testing.assert_allclose(weighted[row], PrecisionCurves(repeated).average_precision()[0], atol=1e-9)


def test_frames_outside_count_neither_as_hits_nor_as_misses() -> None:
    """Restricting to some frames equals evaluating only those."""
    rng = np.random.default_rng(8)
    found, drawn = random_frames(rng, frames=30, classes=2)
    inside = rng.random(30) < 0.5
    some = [i for i in range(30) if inside[i]]
    alone = match_frames([found[i] for i in some], [drawn[i] for i in some], 2)
    restricted = PrecisionCurves(match_frames(found, drawn, 2), inside=inside).average_precision()
    np.testing.assert_allclose(restricted, PrecisionCurves(alone).average_precision(), atol=1e-12)


def test_a_class_that_was_never_drawn_has_no_average_precision() -> None:
    """No ground truth is NaN, not 0, and does not enter the mean."""
    box = np.array([[0.0, 0.0, 10.0, 10.0]])
    found = [FrameBoxes(box, np.array([0]), np.array([0.9]))]
    per_class = PrecisionCurves(match_frames(found, [FrameBoxes(box, np.array([0]))], 2)).average_precision()[0]
    assert per_class[0].tolist() == pytest.approx([1.0] * len(IOU_THRESHOLDS))
    assert np.isnan(per_class[1]).all()
    assert mean_average_precision(per_class) == pytest.approx(1.0)


def test_a_drawn_class_that_is_never_found_scores_zero() -> None:
    """Silence on a labelled object is a miss."""
    nothing = FrameBoxes(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0))
    drawn = FrameBoxes(np.array([[0.0, 0.0, 10.0, 10.0]]), np.array([0]))
    per_class = PrecisionCurves(match_frames([nothing], [drawn], 1)).average_precision()[0]
    assert per_class.tolist() == [[0.0] * 10]


def test_one_drawn_box_is_matched_once() -> None:
    """The second detection of the same object is wrong."""
    right = match(np.array([[0.9], [0.95]]))
    assert right[0, 0]
    assert not right[1, :9].any()


def test_overlap_of_empty_boxes_is_zero() -> None:
    """Two points overlap by 0, not by NaN."""
    point = np.array([[3.0, 3.0, 3.0, 3.0]])
    assert iou_matrix(point, point).tolist() == [[0.0]]
