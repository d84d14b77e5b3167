"""Our detector sees what Ultralytics sees: real architectures, real pictures, the same ONNX file."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from bowerbird_models.decode import HeadLayout
from bowerbird_models.onnx_detector import OnnxDetector
from bowerbird_testing.onnx_models import CASES, IOU, ExportedModel, export_models

pytest.importorskip("ultralytics", reason="the train extra is not installed: pip install -e '.[train]'")

# One worker exports for all of them; a second export of the same models would cost a minute.
pytestmark = pytest.mark.xdist_group("exported_models")

BOX_TOLERANCE_PX = 1.0
SCORE_TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ExportedModel]:
    """Every architecture, exported once."""
    return export_models(tmp_path_factory.mktemp("exported"), CASES)


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_equals_ultralytics(exported: dict[str, ExportedModel], name: str) -> None:
    """Same boxes within a pixel, same scores within a thousandth, same classes, none more and none less."""
    model = exported[name]
    compared = 0
    with OnnxDetector(model.path) as detector:
        assert detector.layout is (HeadLayout.END_TO_END if "end_to_end" in name else HeadLayout.RAW)
        for prediction in model.predictions:
            image_bgr = cv2.imread(str(prediction.image_path))
            assert image_bgr is not None
            for repetition in ("first run", "bound buffers"):
                ours = detector.detect(image_bgr.astype(np.uint8), confidence=prediction.confidence, iou=IOU)
                theirs = prediction.boxes
                # In half precision two overlapping boxes can have the same score, and either may be the one that stays.
                unlike = 2 if "half" in name else 0
                assert abs(len(ours) - len(theirs)) <= unlike, repetition
                free = np.ones(len(ours), bool)
                for box in theirs:
                    same = (
                        free
                        & (ours.class_ids == box[5])
                        & (np.abs(ours.scores - box[4]) <= SCORE_TOLERANCE)
                        & (np.abs(ours.boxes_xyxy - box[:4]).max(axis=1) <= BOX_TOLERANCE_PX)
                    )
                    if same.any():
                        free[np.flatnonzero(same)[0]] = False
                    else:
                        unlike -= 1
                    assert unlike >= 0, f"{repetition}: nothing of ours is like {box}"
            compared += len(theirs)
            assert (np.diff(ours.scores) <= 0).all(), "most confident first"
            if detector.layout is HeadLayout.RAW:
                assert ours.class_scores is not None
                np.testing.assert_allclose(ours.class_scores.max(axis=1), ours.scores)
    assert compared >= 40, "two pictures with at least 20 boxes each, or the comparison says little"


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
