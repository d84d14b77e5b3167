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
from bowerbird_testing.onnx_models import CASES, IOU, ExportedModel, Prediction, export_models

pytest.importorskip("ultralytics", reason="the train extra is not installed: pip install -e '.[train]'")

# One worker exports for all of them; a second export of the same models would cost a minute.
pytestmark = pytest.mark.xdist_group("exported_models")

BOX_TOLERANCE_PX = 1.0
SCORE_TOLERANCE = 1e-3
ANGLE_TOLERANCE_RAD = 1e-2
MASK_IOU = 0.97
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


def partners(ours: Detections, theirs: Prediction, *, unlike: int) -> list[tuple[int, int]]:
    """Pairs of rows, ours and theirs, with the same class, score and box; at most `unlike` of either stay alone."""
    assert abs(len(ours) - len(theirs.boxes)) <= unlike
    free = np.ones(len(ours), bool)
    pairs = []
    for row, box in enumerate(theirs.boxes):
        same = (
            free
            & (ours.class_ids == box[5])
            & (np.abs(ours.scores - box[4]) <= SCORE_TOLERANCE)
            & (np.abs(ours.boxes_xyxy - box[:4]).max(axis=1) <= BOX_TOLERANCE_PX)
        )
        if theirs.rotated is not None and ours.rotated_xywhr is not None:
            off = np.abs(ours.rotated_xywhr - theirs.rotated[row])
            same &= (off[:, :4].max(axis=1) <= BOX_TOLERANCE_PX) & (off[:, 4] <= ANGLE_TOLERANCE_RAD)
        if same.any():
            pairs.append((int(np.flatnonzero(same)[0]), row))
            free[pairs[-1][0]] = False
        else:
            unlike -= 1
        assert unlike >= 0, f"nothing of ours is like {box}"
    return pairs


@pytest.mark.parametrize("name", [case.name for case in CASES if case.task != "classify"])
def test_equals_ultralytics(exported: dict[str, ExportedModel], name: str) -> None:
    """Same boxes within a pixel, same scores within a thousandth, same classes, none more and none less; and what the task adds."""
    model, case = exported[name], BY_NAME[name]
    # In half precision two overlapping boxes can have the same score, and either may be the one that stays.
    unlike = 2 if "half" in name else 0
    with OnnxDetector(model.path) as detector:
        assert detector.task == case.task
        assert detector.layout is (HeadLayout.END_TO_END if case.is_end_to_end else HeadLayout.RAW)
        for theirs in model.predictions:
            assert len(theirs.boxes) >= LEAST_BOXES, "or the comparison says little"
            image_bgr = read(theirs.image_path)
            for _repetition in ("first run", "bound buffers"):
                ours = detector.detect(image_bgr, confidence=theirs.confidence, iou=IOU)
                assert (np.diff(ours.scores) <= 0).all(), "most confident first"
                if detector.layout is HeadLayout.RAW:
                    assert ours.class_scores is not None
                    np.testing.assert_allclose(ours.class_scores.max(axis=1), ours.scores)
                pairs = partners(ours, theirs, unlike=unlike)
            if theirs.keypoints is not None:
                assert ours.keypoints is not None
                for our, their in pairs:
                    expected = theirs.keypoints[their]
                    np.testing.assert_allclose(ours.keypoints[our, :, :2], expected[:, :2], atol=BOX_TOLERANCE_PX)
                    visibility = expected[:, 2] if expected.shape[1] == 3 else 1.0
                    np.testing.assert_allclose(ours.keypoints[our, :, 2], visibility, atol=SCORE_TOLERANCE)
            if theirs.masks is not None:
                assert ours.masks is not None
                bitmaps = ours.masks.bitmaps()
                for our, their in pairs:
                    both = (bitmaps[our] & theirs.masks[their]).sum()
                    either = (bitmaps[our] | theirs.masks[their]).sum()
                    assert both >= MASK_IOU * either or either - both <= 8, (both, either)
    assert {
        "segment": any(theirs.masks is not None for theirs in model.predictions),
        "pose": all(theirs.keypoints is not None for theirs in model.predictions),
        "obb": all(theirs.rotated is not None for theirs in model.predictions),
        "detect": True,
    }[case.task], "the task's own results were compared"


@pytest.mark.parametrize("name", named("classify"))
def test_classifies_as_ultralytics(exported: dict[str, ExportedModel], name: str) -> None:
    """The same probability of every class within a thousandth, on crops of all sizes; one detection covers the picture."""
    model = exported[name]
    assert len(model.predictions) >= LEAST_BOXES, "or the comparison says little"
    seen = set()
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
            seen.add(int(ours.class_ids[0]))
    assert len(seen) > 1, "a model that says the same of everything proves nothing"


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
