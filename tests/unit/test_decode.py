"""Heads become boxes, and nonsense becomes an error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bowerbird_models.decode import Candidates, HeadLayout, decode_end_to_end, decode_raw, head_layout
from bowerbird_models.errors import ModelOutputError, UnsupportedModel
from bowerbird_models.nms import suppress
from bowerbird_server.training.average_precision import iou_matrix


def raw(rows: list[list[float]]) -> NDArray[np.float32]:
    """One anchor a row: centre x, centre y, width, height, scores."""
    return np.array(rows, np.float32).T[None]


def plain(boxes: NDArray[np.float32], scores: NDArray[np.float32], class_ids: NDArray[np.int32]) -> Candidates:
    """Candidates of an end-to-end detection head."""
    return Candidates(boxes, scores, class_ids, np.zeros((len(scores), 0), np.float32))


def test_a_raw_head_gives_corners_and_the_top_class() -> None:
    """Centre and size become corners; anchors below the confidence are gone."""
    found = decode_raw(raw([[50, 40, 20, 10, 0.1, 0.8], [5, 5, 2, 2, 0.04, 0.01], [9, 9, 4, 4, 0.3, 0.2]]), 2, 0.05)
    assert found.boxes.tolist() == [[40, 35, 60, 45], [7, 7, 11, 11]]
    assert found.class_ids.tolist() == [1, 0]
    assert found.scores.tolist() == pytest.approx([0.8, 0.3])
    assert found.class_scores is not None
    assert found.class_scores.tolist() == [pytest.approx([0.1, 0.8]), pytest.approx([0.3, 0.2])]


def test_what_the_task_adds_follows_the_class_scores() -> None:
    """Extra numbers never count as scores, and stay with their boxes and anchors."""
    head = raw([[5, 5, 2, 2, 0.01, 0.02, 99, 98], [50, 40, 20, 10, 0.1, 0.8, 7, -3]])
    found = decode_raw(head, 2, 0.05, extra_count=2)
    assert found.scores.tolist() == pytest.approx([0.8])
    assert found.extra.tolist() == [[7, -3]]
    assert found.anchors is not None
    assert found.anchors.tolist() == [1]
    rows = np.array([[[0, 0, 5, 5, 0.3, 1, 7, 8], [1, 1, 9, 9, 0.9, 0, -1, -2]]], np.float32)
    assert decode_end_to_end(rows, 2, 0.05, extra_count=2).extra.tolist() == [[-1, -2], [7, 8]]


def test_oriented_boxes_keep_centre_and_size() -> None:
    """Their corners are known only with the angle."""
    assert decode_raw(raw([[50, 40, 20, 10, 0.8, 0.3]]), 1, 0.05, extra_count=1, corners=False).boxes.tolist() == [
        [50, 40, 20, 10]
    ]


def test_the_confidence_itself_is_kept() -> None:
    """At least, not above: a score equal to the limit stays, in half precision too."""
    for dtype in (np.float32, np.float16):
        assert len(decode_raw(raw([[5, 5, 2, 2, 0.25]]).astype(dtype), 1, 0.25).scores) == 1


def test_an_end_to_end_head_is_sorted_and_cut() -> None:
    """Rows above the confidence, most confident first, class ids as integers."""
    rows = np.array([[[0, 0, 5, 5, 0.3, 1], [1, 1, 9, 9, 0.9, 0], [0, 0, 0, 0, 0, 0]]], np.float32)
    found = decode_end_to_end(rows, 2, 0.05)
    assert found.boxes.tolist() == [[1, 1, 9, 9], [0, 0, 5, 5]]
    assert found.class_ids.tolist() == [0, 1]
    assert found.class_scores is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("row", [0, 5])
def test_nan_and_infinity_are_refused(value: float, row: int) -> None:
    """In a score or in a box that would be reported, both heads."""
    output = raw([[5, 5, 2, 2, 0.5, 0.1]])
    output[0, row, 0] = value
    with pytest.raises(ModelOutputError, match="NaN"):
        decode_raw(output, 2, 0.05)
    rows = np.array([[[0, 0, 5, 5, 0.3, 1]]], np.float32)
    rows[0, 0, row] = value
    with pytest.raises(ModelOutputError, match="NaN"):
        decode_end_to_end(rows, 2, 0.05)


@pytest.mark.parametrize("shape", [(1, 7, 84), (2, 6, 84), (6, 84), (1, 6, 84, 1)])
def test_a_raw_output_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    """The error names both shapes."""
    with pytest.raises(ModelOutputError, match="expected \\(1, 6, anchors\\)"):
        decode_raw(np.zeros(shape, np.float32), 2, 0.05)


@pytest.mark.parametrize("class_id", [-1, 2, 0.5, 1e30])
def test_a_class_without_a_name_is_refused(class_id: float) -> None:
    """An end-to-end head may not invent classes."""
    with pytest.raises(ModelOutputError, match="class id"):
        decode_end_to_end(np.array([[[0, 0, 5, 5, 0.3, class_id]]], np.float32), 2, 0.05)


def test_a_head_without_anchors_sees_nothing() -> None:
    """Zero anchors are zero detections."""
    assert len(decode_raw(np.zeros((1, 6, 0), np.float32), 2, 0.05).scores) == 0


@pytest.mark.parametrize(
    ("shape", "classes", "end2end", "layout"),
    [
        ((1, 84, 8400), 80, False, HeadLayout.RAW),
        ((1, 300, 6), 80, True, HeadLayout.END_TO_END),
        ((1, 300, 6), 80, False, HeadLayout.END_TO_END),
        ((1, 6, 8400), 2, False, HeadLayout.RAW),
        ((1, 6, 84), 2, True, HeadLayout.RAW),
        (("batch", 84, "anchors"), 80, False, HeadLayout.RAW),
        (("batch", "rows", "columns"), 80, True, HeadLayout.END_TO_END),
        (("batch", None, 6), 80, False, HeadLayout.END_TO_END),
    ],
)
def test_the_layout_is_told_by_shape_and_metadata(
    shape: tuple[int | str | None, ...], classes: int, end2end: bool, layout: HeadLayout
) -> None:
    """Every export of the supported generations is recognised."""
    assert head_layout(shape, classes, end2end=end2end) is layout


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((1, 25200, 85), "YOLOv5"),
        ((4, 84, 8400), "batch=1"),
        ((1, 1000), "detection model"),
        ((1, 90, 8400), "disagree"),
        ((1, 300, 84), "RT-DETR"),
    ],
)
def test_other_heads_are_refused_with_advice(shape: tuple[int, ...], says: str) -> None:
    """The message says what it looks like and what to do."""
    with pytest.raises(UnsupportedModel, match=says):
        head_layout(shape, 80, end2end=False)


def test_an_old_head_of_one_class_is_not_taken_for_an_end_to_end_one() -> None:
    """Both have six columns: thousands of anchors tell."""
    with pytest.raises(UnsupportedModel, match="objectness"):
        head_layout((1, 25200, 6), 1, end2end=False)
    assert head_layout((1, 300, 6), 1, end2end=False) is HeadLayout.END_TO_END


@pytest.mark.parametrize(
    ("shape", "extra_count", "end2end", "layout"),
    [
        ((1, 116, 8400), 32, False, HeadLayout.RAW),
        ((1, 300, 38), 32, True, HeadLayout.END_TO_END),
        ((1, 300, 38), 32, False, HeadLayout.END_TO_END),
        ((1, 85, None), 1, False, HeadLayout.RAW),
        ((1, None, None), None, False, HeadLayout.RAW),
        ((1, None, None), None, True, HeadLayout.END_TO_END),
    ],
)
def test_the_layout_allows_for_what_the_task_adds(
    shape: tuple[int | None, ...], extra_count: int | None, end2end: bool, layout: HeadLayout
) -> None:
    """Mask coefficients, keypoints, an angle."""
    assert head_layout(shape, 80, end2end=end2end, extra_count=extra_count) is layout


def reference_suppression(candidates: Candidates, iou: float) -> list[int]:
    """Greedy by score, written plainly."""
    kept: list[int] = []
    boxes = candidates.boxes.astype(np.float64)
    for row in np.argsort(-candidates.scores, kind="stable"):
        rivals = [other for other in kept if candidates.class_ids[other] == candidates.class_ids[row]]
        if not rivals or iou_matrix(boxes[row : row + 1], boxes[rivals]).max() <= iou:
            kept.append(int(row))
    return kept


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(0, 80), st.integers(1, 90), st.sampled_from([0.3, 0.5, 0.7]))
def test_suppression_is_greedy_within_a_class(seed: int, count: int, classes: int, iou: float) -> None:
    """OpenCV's suppression with classes moved apart equals the plain rule."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 60, (count, 2))], axis=1).astype(np.float32)
    scores = rng.permutation(np.linspace(0.05, 0.95, count)).astype(np.float32)
    candidates = plain(boxes, scores, rng.integers(0, classes, count).astype(np.int32))
    assert suppress(candidates, iou).tolist() == reference_suppression(candidates, iou)


def test_an_undecided_model_is_cut_to_300_boxes() -> None:
    """Five thousand boxes that do not overlap: the 300 most confident stay, in order."""
    rng = np.random.default_rng(4)
    corner = np.stack(np.meshgrid(np.arange(100), np.arange(50)), axis=-1).reshape(-1, 2) * 10.0
    scores = rng.permutation(np.linspace(0.1, 0.9, 5000)).astype(np.float32)
    boxes = np.concatenate([corner, corner + 9], axis=1).astype(np.float32)
    kept = suppress(plain(boxes, scores, np.zeros(5000, np.int32)), 0.7)
    assert kept.tolist() == np.argsort(-scores)[:300].tolist()


def test_overlaps_beyond_the_first_thousand_are_still_suppressed() -> None:
    """Thousands of copies of two objects leave two boxes, however deep the second one lies."""
    boxes = np.array([[0, 0, 10, 10]] * 2500 + [[100, 100, 110, 110]] * 2500, np.float32)
    scores = np.linspace(0.9, 0.1, 5000).astype(np.float32)
    kept = suppress(plain(boxes, scores, np.zeros(5000, np.int32)), 0.7)
    assert kept.tolist() == [0, 2500]
