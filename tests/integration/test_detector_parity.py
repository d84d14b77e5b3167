"""Our detector sees what Ultralytics sees: real architectures, real pictures, the same ONNX file."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from bowerbird_models.decode import HeadLayout
from bowerbird_models.detections import Detections
from bowerbird_models.onnx_detector import OnnxDetector
from bowerbird_models.rotated import probiou
from bowerbird_server.training.average_precision import iou_matrix
from bowerbird_testing.onnx_models import CASES, IOU, ExportedModel, Prediction, export_models

pytest.importorskip("ultralytics", reason="the train extra is not installed: pip install -e '.[train]'")

# One worker exports for all of them; a second export of the same models would cost a minute.
pytestmark = pytest.mark.xdist_group("exported_models")

BOX_TOLERANCE_PX = 1.0
SCORE_TOLERANCE = 1e-3
# Eight steps of half precision each: what the last bit of an input pixel becomes on its way through a network.
HALF_BOX_TOLERANCE_PX = 2.0
HALF_SCORE_TOLERANCE = 4e-3
ANGLE_TOLERANCE_RAD = 1e-2
IOU_TOLERANCE = 0.005
IOU_TOLERANCE_AT_EDGES = 0.3
TIE = 1e-5
MOST_ALONE = 4
LEAST_MASK_IOU = 0.6
MEAN_MASK_IOU = 0.95
LEAST_BOXES = 20
BY_NAME = {case.name: case for case in CASES}


def named(task: str) -> list[str]:
    """The cases of a task."""
    return [case.name for case in CASES if case.task == task]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ExportedModel]:
    """Every architecture, exported once."""
    return export_models(tmp_path_factory.mktemp("exported"), CASES)


def read(path: Path) -> NDArray[np.uint8]:
    """A picture, BGR."""
    image = cv2.imread(str(path))
    assert image is not None, path
    return np.asarray(image, np.uint8)


def mask_iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Overlap of two masks in [0, 1]; masks that differ by a few pixels only count as equal."""
    both, either = int((a & b).sum()), int((a | b).sum())
    return 1.0 if either - both <= 8 else both / either


def partners(
    ours: Detections, theirs: Prediction, picture_wh: tuple[int, int], *, is_suppressed: bool, is_half: bool
) -> list[tuple[int, int]]:
    """Pairs of rows, ours and theirs, with the same class, score, box, angle and keypoints; what stays alone needs a good reason."""
    box_tolerance_px = HALF_BOX_TOLERANCE_PX if is_half else BOX_TOLERANCE_PX
    score_tolerance = HALF_SCORE_TOLERANCE if is_half else SCORE_TOLERANCE
    boxes = theirs.boxes.copy()
    boxes[:, :4] = np.clip(boxes[:, :4], 0, picture_wh * 2)  # those around oriented boxes reach beyond the picture
    pairs: list[tuple[int, int]] = []
    alone = []
    free = np.ones(len(ours), bool)
    for row, box in enumerate(boxes):
        same_class = ours.class_ids == box[5]
        if ours.class_scores is not None:
            same_class |= ours.class_scores[:, int(box[5])] >= ours.scores  # two top classes with one score, in half precision
        same = (
            free
            & same_class
            & (np.abs(ours.scores - box[4]) <= score_tolerance)
            & (np.abs(ours.boxes_xyxy - box[:4]).max(axis=1) <= box_tolerance_px)
        )
        if theirs.rotated is not None and ours.rotated_xywhr is not None:
            off = np.abs(ours.rotated_xywhr - theirs.rotated[row])
            same &= (off[:, :4].max(axis=1) <= box_tolerance_px) & (off[:, 4] <= ANGLE_TOLERANCE_RAD)
        if theirs.keypoints is not None and ours.keypoints is not None:
            expected = theirs.keypoints[row]
            same &= (np.abs(ours.keypoints[:, :, :2] - expected[:, :2]) <= box_tolerance_px).all(axis=(1, 2))
            visibility = expected[:, 2] if expected.shape[1] == 3 else 1.0
            same &= (np.abs(ours.keypoints[:, :, 2] - visibility) <= score_tolerance).all(axis=1)
        if same.any():
            nearest = np.abs(ours.boxes_xyxy - box[:4]).max(axis=1) + np.where(same, 0.0, np.inf)
            pairs.append((int(nearest.argmin()), row))
            free[pairs[-1][0]] = False
        else:
            alone.append(len(ours) + row)
    alone += np.flatnonzero(free).tolist()
    if alone:
        mine = np.column_stack([ours.boxes_xyxy, ours.scores, ours.class_ids])
        alike = similarities(ours, theirs)
        everything = np.concatenate([mine, boxes])
        assert len(alone) <= MOST_ALONE, everything[alone]
        if is_half:  # a score may also cross the confidence, a box the tolerance
            return pairs
        assert is_suppressed, f"nothing is suppressed here, and yet these are alone: {everything[alone]}"
        for row in alone:
            assert is_tossed(row, everything, alike, alone, picture_wh), f"no partner for {everything[row]}"
    return pairs


def similarities(ours: Detections, theirs: Prediction) -> NDArray[np.float64]:
    """What suppression goes by, between all boxes, ours first."""
    if ours.rotated_xywhr is not None and theirs.rotated is not None:
        rotated = np.concatenate([ours.rotated_xywhr, theirs.rotated]).astype(np.float64)
        return probiou(rotated[:, None], rotated[None])
    boxes = np.concatenate([ours.boxes_xyxy, theirs.boxes[:, :4]]).astype(np.float64)
    return iou_matrix(boxes, boxes)


def is_tossed(
    row: int, boxes: NDArray[np.float64], alike: NDArray[np.float64], alone: list[int], picture_wh: tuple[int, int]
) -> bool:
    """Whether suppression might have decided about this box either way.

    It overlaps a stronger box of its class by just about the limit (Ultralytics decides in single precision with coordinates of half
    a million for high class ids, and before boxes are clipped: at the edge of the picture the overlap is only roughly known), or one of
    the same score to the fifth digit, or one that is tossed.
    """
    for other in np.flatnonzero((boxes[:, 5] == boxes[row, 5]) & (np.arange(len(boxes)) != row)):
        lead = boxes[other, 4] - boxes[row, 4]
        is_cut = bool((boxes[[row, other], :2] == 0).any() or (boxes[[row, other], 2:4] == picture_wh).any())
        if lead >= 0 and abs(alike[row, other] - IOU) <= (IOU_TOLERANCE_AT_EDGES if is_cut else IOU_TOLERANCE):
            return True
        if abs(lead) <= TIE and alike[row, other] > IOU:
            return True
        if other in alone and lead > 0 and alike[row, other] > IOU and is_tossed(int(other), boxes, alike, alone, picture_wh):
            return True
    return False


@pytest.mark.parametrize("name", [case.name for case in CASES if case.task != "classify"])
def test_equals_ultralytics(exported: dict[str, ExportedModel], name: str) -> None:
    """Same boxes within a pixel, same scores within a thousandth, same classes, none more and none less; and what the task adds."""
    model, case = exported[name], BY_NAME[name]
    with OnnxDetector(model.path) as detector:
        assert detector.task == case.task
        assert detector.layout is (HeadLayout.END_TO_END if case.is_end_to_end else HeadLayout.RAW)
        for theirs in model.predictions:
            assert len(theirs.boxes) >= LEAST_BOXES, "or the comparison says little"
            image_bgr = read(theirs.image_path)
            for _repetition in ("first run", "bound buffers"):
                ours = detector.detect(image_bgr, confidence=theirs.confidence, iou=case.iou)
                assert (np.diff(ours.scores) <= 0).all(), "most confident first"
                if detector.layout is HeadLayout.RAW:
                    assert ours.class_scores is not None
                    np.testing.assert_allclose(ours.class_scores.max(axis=1), ours.scores)
                pairs = partners(
                    ours,
                    theirs,
                    (image_bgr.shape[1], image_bgr.shape[0]),
                    is_suppressed=not case.is_end_to_end and case.iou < 1,
                    is_half="half" in name,
                )
            if theirs.masks is not None:
                assert ours.masks is not None
                bitmaps = ours.masks.bitmaps()
                # Theirs are enlarged in two steps, ours in one: ragged masks of an untrained model differ along their edges.
                alike = [mask_iou(bitmaps[our], theirs.masks[their]) for our, their in pairs]
                assert min(alike) >= LEAST_MASK_IOU, alike
                assert np.mean(alike) >= MEAN_MASK_IOU, alike
    assert {
        "segment": any(theirs.masks is not None for theirs in model.predictions),
        "pose": all(theirs.keypoints is not None for theirs in model.predictions) and ours.keypoints is not None,
        "obb": all(theirs.rotated is not None for theirs in model.predictions) and ours.rotated_xywhr is not None,
        "detect": True,
    }[case.task], "the task's own results were compared"


@pytest.mark.parametrize("name", named("classify"))
def test_classifies_as_ultralytics(exported: dict[str, ExportedModel], name: str) -> None:
    """The same probability of every class within a thousandth, on crops of all sizes; one detection covers the picture."""
    model = exported[name]
    assert len(model.predictions) >= LEAST_BOXES, "or the comparison says little"
    seen = []
    with OnnxDetector(model.path) as detector:
        assert detector.layout is HeadLayout.PROBABILITIES
        for theirs in model.predictions:
            image_bgr = read(theirs.image_path)
            ours = detector.detect(image_bgr)
            assert ours.boxes_xyxy.tolist() == [[0, 0, image_bgr.shape[1], image_bgr.shape[0]]]
            assert ours.class_scores is not None
            assert theirs.probabilities is not None
            np.testing.assert_allclose(ours.class_scores[0], theirs.probabilities, atol=SCORE_TOLERANCE)
            assert ours.scores[0] == ours.class_scores[0, ours.class_ids[0]] == ours.class_scores.max()
            seen.append(ours.class_scores[0])
    assert np.ptp(seen, axis=0).max() > 0.05, "a model that says the same of everything proves nothing"


def test_the_metadata_is_read_as_exported(exported: dict[str, ExportedModel]) -> None:
    """Names and sizes come from the file that Ultralytics wrote."""
    with OnnxDetector(exported["v8_rectangular"].path) as rectangular:
        assert rectangular.image_size_hw == (192, 320)
        assert len(rectangular.class_names) == 80
    with OnnxDetector(exported["v8_dynamic"].path) as dynamic:
        assert dynamic.image_size_hw == (320, 320)


def test_a_model_of_free_size_takes_every_picture(exported: dict[str, ExportedModel], tmp_path: Path) -> None:
    """More picture sizes than buffers are kept: old ones go, results stay the same."""
    rng = np.random.default_rng(3)
    pictures = [rng.integers(0, 256, (height, 200, 3), np.uint8) for height in (40, 80, 120, 160, 200, 300, 500)]
    with OnnxDetector(exported["v8_dynamic"].path) as detector:
        first = [detector.detect(picture, confidence=0.01) for picture in pictures]
        again = [detector.detect(picture, confidence=0.01) for picture in pictures]
    for before, after in zip(first, again, strict=True):
        np.testing.assert_array_equal(before.boxes_xyxy, after.boxes_xyxy)
        np.testing.assert_array_equal(before.scores, after.scores)
