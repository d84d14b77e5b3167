"""A real ONNX model over real picture files gets the numbers that it deserves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from bowerbird_models.errors import NotAModel
from bowerbird_server.errors import BadInput
from bowerbird_server.training.evaluate import EvaluationFrame, evaluate_model
from bowerbird_server.training.promotion_gate import POINT_ESTIMATE, compare
from bowerbird_testing.tiny_yolo import TinyBox, write_tiny_yolo

PERSON, CAR = (8.0, 8.0, 40.0, 40.0), (44.0, 44.0, 60.0, 60.0)
NAMES = ("person", "car")


def frames(folder: Path, count: int = 24) -> list[EvaluationFrame]:
    """Bright and dark pictures in turn, each with one person and one car drawn."""
    result = []
    for number in range(count):
        dark = number % 2 == 1
        path = folder / f"{number}.png"
        cv2.imwrite(str(path), np.full((64, 64, 3), 20 if dark else 230, np.uint8))
        result.append(
            EvaluationFrame(
                path,
                f"scene-{number // 4}",
                ("condition:night" if dark else "condition:day", "camera:cam-1"),
                np.array([PERSON, CAR], np.float32),
                np.array([0, 1], np.int32),
            )
        )
    return result


def test_a_perfect_model_scores_one(tmp_path: Path) -> None:
    """Every box found, nothing else: 1 everywhere, with progress told for each frame."""
    model = write_tiny_yolo(tmp_path / "m.onnx", class_names=NAMES, boxes=(TinyBox(PERSON, 0), TinyBox(CAR, 1)))
    told: list[tuple[int, int]] = []
    run = evaluate_model(model, frames(tmp_path), NAMES, on_progress=lambda done, of: told.append((done, of)))
    evaluation = run.evaluation
    assert evaluation.map50_95 == pytest.approx(1.0)
    assert evaluation.map50 == pytest.approx(1.0)
    assert evaluation.per_class == {"person": pytest.approx(1.0), "car": pytest.approx(1.0)}
    assert set(evaluation.per_slice) == {"condition:day", "condition:night", "camera:cam-1"}
    assert (evaluation.frames, evaluation.scenes, evaluation.boxes) == (24, 6, 48)
    assert told == [(done, 24) for done in range(1, 25)]
    assert evaluation.latency_ms_p50 > 0


def test_a_model_that_is_blind_at_night_is_weak_there_only(tmp_path: Path) -> None:
    """The slice shows what the mean hides, and the gate lets the model that sees at night replace it."""
    data = frames(tmp_path)
    blind = write_tiny_yolo(
        tmp_path / "blind.onnx", class_names=NAMES, boxes=(TinyBox(PERSON, 0, 0.9, "bright"), TinyBox(CAR, 1, 0.9, "bright"))
    )
    seeing = write_tiny_yolo(tmp_path / "seeing.onnx", class_names=NAMES, boxes=(TinyBox(PERSON, 0), TinyBox(CAR, 1)))
    champion, challenger = evaluate_model(blind, data, NAMES), evaluate_model(seeing, data, NAMES)
    assert champion.evaluation.per_slice["condition:day"] == pytest.approx(1.0)
    assert champion.evaluation.per_slice["condition:night"] == 0.0
    assert champion.evaluation.map50_95 == pytest.approx(0.5, abs=0.01)
    assert compare(champion, challenger, POINT_ESTIMATE, seed=1).promoted
    assert not compare(challenger, champion, POINT_ESTIMATE, seed=1).promoted


def test_classes_meet_by_name_not_by_number(tmp_path: Path) -> None:
    """The model numbers its classes otherwise and knows one that the data set does not."""
    model = write_tiny_yolo(
        tmp_path / "m.onnx",
        class_names=("dog", "car", "person"),
        boxes=(TinyBox(PERSON, 2), TinyBox(CAR, 1), TinyBox((0, 0, 64, 64), 0, 0.95)),
    )
    assert evaluate_model(model, frames(tmp_path), NAMES).evaluation.map50_95 == pytest.approx(1.0)


def test_a_class_that_the_model_lacks_counts_as_missed(tmp_path: Path) -> None:
    """Its average precision is 0 and it is named; a class never drawn has none."""
    model = write_tiny_yolo(tmp_path / "m.onnx", class_names=("person",), boxes=(TinyBox(PERSON, 0),))
    evaluation = evaluate_model(model, frames(tmp_path), (*NAMES, "bus")).evaluation
    assert evaluation.per_class == {"person": pytest.approx(1.0), "car": 0.0, "bus": None}
    assert evaluation.map50_95 == pytest.approx(0.5)
    assert evaluation.missing_classes == ("car", "bus")


def test_what_nobody_looked_for_is_neither_right_nor_wrong(tmp_path: Path) -> None:
    """Frames that were labelled before a class was added do not count against a model that knows it; frames since then do."""
    model = write_tiny_yolo(
        tmp_path / "m.onnx",
        class_names=(*NAMES, "bus"),
        boxes=(TinyBox(PERSON, 0), TinyBox(CAR, 1), TinyBox((20, 2, 62, 30), 2)),
    )
    drawn = np.array([PERSON, CAR, (20, 2, 62, 30)], np.float32)
    old, new = frames(tmp_path)[:12], frames(tmp_path)[12:]
    new = [replace(frame, boxes_xyxy=drawn, class_ids=np.array([0, 1, 2], np.int32)) for frame in new]
    wrong = evaluate_model(model, [*old, *new], (*NAMES, "bus")).evaluation
    assert wrong.per_class["bus"] == pytest.approx(0.5, abs=0.1)
    right = evaluate_model(model, [*(replace(frame, unreviewed=(2,)) for frame in old), *new], (*NAMES, "bus")).evaluation
    assert right.per_class["bus"] == pytest.approx(1.0)
    assert right.per_class["person"] == pytest.approx(1.0)


def test_what_cannot_be_evaluated_is_refused(tmp_path: Path) -> None:
    """No frames, no labels, a lost picture, a label without a name, no model."""
    model = write_tiny_yolo(tmp_path / "m.onnx", class_names=NAMES)
    data = frames(tmp_path, 2)
    empty = EvaluationFrame(data[0].image_path, "s", (), np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
    lost = EvaluationFrame(tmp_path / "lost.png", "s", (), data[0].boxes_xyxy, data[0].class_ids)
    for given, names, says in (
        ([], NAMES, "no held-out frames"),
        ([empty], NAMES, "no labelled box"),
        ([*data, lost], NAMES, "lost.png"),
        (data, ("person",), "class names"),
    ):
        with pytest.raises(BadInput, match=says):
            evaluate_model(model, given, names)
    with pytest.raises(NotAModel):
        evaluate_model(tmp_path / "none.onnx", data, NAMES)
