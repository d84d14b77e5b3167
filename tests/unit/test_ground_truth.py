"""Ground truth for the simulated annotator: MOT files, synthetic scenes, and the label that follows for the stored image."""

from __future__ import annotations

from pathlib import Path

import pytest

from bowerbird_models.scenes import CLASS_NAMES, SceneStream
from bowerbird_server.errors import BadInput
from bowerbird_server.labelling.ground_truth import MotTruth, SceneTruth
from bowerbird_server.labelling.simulated import answer


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_mot_frame_n_is_sequence_n_minus_one(tmp_path: Path) -> None:
    """Files count from 1, sequences from 0; a frame between with no line is empty, one after the last unknown."""
    truth = MotTruth(write(tmp_path / "gt.txt", "1,7,10,20,30,40,1,-1,-1,-1\n3,7,11,20,30,40,1\n"))
    assert truth.boxes("any/camera", 0) == [("person", (10, 20, 40, 60))]
    assert truth.boxes("any/camera", 1) == []
    assert truth.boxes("any/camera", 2) == [("person", (11, 20, 41, 60))]
    assert truth.boxes("any/camera", 3) is None


def test_mot_boxes_are_clipped_and_those_outside_left_out(tmp_path: Path) -> None:
    """Boxes may reach past the border; one with flag 0 (left out of tracking scores) is there all the same."""
    text = "1,1,-10,-5,30,40,1\n1,2,900,10,30,40,1\n1,3,50,50,10,10,0\n"
    assert MotTruth(write(tmp_path / "gt.txt", text), source_wh=(768, 576)).boxes("c", 0) == [
        ("person", (0, 0, 20, 35)),
        ("person", (50, 50, 60, 60)),
    ]


def test_every_fault_of_a_mot_file_is_listed_with_its_line(tmp_path: Path) -> None:
    """All at once, so that one look at the file is enough."""
    path = write(tmp_path / "gt.txt", "1,1,0,0,5,5,1\nhello\n0,1,0,0,5,5,1\n2,1,0,0,-5,5,1\n")
    with pytest.raises(BadInput) as caught:
        MotTruth(path)
    for line in (2, 3, 4):
        assert f"gt.txt:{line}:" in str(caught.value)
    assert "gt.txt:1:" not in str(caught.value)
    with pytest.raises(BadInput, match="no boxes"):
        MotTruth(write(tmp_path / "empty.txt", ""))
    with pytest.raises(BadInput, match="cannot read"):
        MotTruth(tmp_path / "missing.txt")


def test_of_a_file_with_classes_the_people_in_view_are_taken(tmp_path: Path) -> None:
    """Since MOT16 the eighth column is a class and the ninth what can be seen: cars, mirrors and hidden people are not labelled."""
    first = ("1,1,0,0,5,5,1,1,0.9", "1,2,10,0,5,5,1,3,1", "1,3,20,0,5,5,0,7,1", "1,4,30,0,5,5,0,12,1", "1,5,40,0,5,5,1,1,0.05")
    text = "\n".join((*first, "2,2,11,0,5,5,1,3,1"))
    truth = MotTruth(write(tmp_path / "gt.txt", text))
    assert truth.boxes("c", 0) == [("person", (0, 0, 5, 5)), ("person", (20, 0, 25, 5))]
    assert truth.boxes("c", 1) == []  # a car only: an empty frame, not an unknown one
    with pytest.raises(BadInput, match="no line is a person"):
        MotTruth(write(tmp_path / "cars.txt", "1,2,10,0,5,5,1,3,1\n"))


def test_nine_columns_without_a_class_are_taken_as_they_are(tmp_path: Path) -> None:
    """Other tools fill the columns with -1, or number their own classes past the benchmark's."""
    truth = MotTruth(write(tmp_path / "gt.txt", "1,1,0,0,5,5,1,-1,-1\n1,2,10,0,5,5,1,3,1\n"))
    assert len(truth.boxes("c", 0) or []) == 2


def test_the_real_film_has_its_4650_boxes() -> None:
    """The ground truth beside the real footage is read whole."""
    path = Path(__file__).parents[2] / "../shared/data/pets09-s2l1/gt.txt"
    if not path.exists():
        pytest.skip("the real footage is not here")
    truth = MotTruth(path)
    found = [truth.boxes("c", n) for n in range(795)]
    assert sum(len(boxes or []) for boxes in found) == 4650


def test_scene_truth_answers_for_its_cameras_only() -> None:
    """The same boxes as the stream renders; None for a camera nobody told it about."""
    stream = SceneStream(3)
    truth = SceneTruth({"cam-01/gate": stream})
    busy = next(n for n in range(0, 200, 10) if len(stream.truth(n)))
    boxes = truth.boxes("cam-01/gate", busy)
    assert boxes is not None
    assert [name for name, _ in boxes] == [CLASS_NAMES[i] for i in stream.truth(busy).class_ids]
    assert truth.boxes("cam-02/gate", busy) is None
    assert tuple(truth.class_names) == tuple(CLASS_NAMES)


def test_an_answer_is_scaled_clipped_and_says_what_was_too_small() -> None:
    """Half the size: a 4-pixel object becomes 2 pixels wide and is left out, as is one outside the picture."""
    given = answer(
        [("car", (10, 20, 110, 80)), ("fox", (50, 50, 54, 90)), ("car", (600, 10, 700, 60)), ("car", (900, 0, 950, 50))],
        (640, 480),
        (320, 240),
    )
    assert [box.box_xyxy for box in given.boxes] == [(5, 10, 55, 40), (300, 5, 320, 30)]
    assert given.left_out == 2
