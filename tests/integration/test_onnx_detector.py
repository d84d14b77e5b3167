"""The detector on real ONNX Runtime: what it reads, what it refuses, what it reports."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from bowerbird_models.errors import ModelOutputError, NotAModel, UnsupportedModel
from bowerbird_models.onnx_detector import OnnxDetector
from bowerbird_testing.tiny_yolo import ANGLE_RAD, TinyBox, write_tiny_yolo

WHITE = np.full((64, 64, 3), 255, np.uint8)
BOXES = (
    TinyBox((8, 8, 40, 40), 0, 0.9),
    TinyBox((10, 8, 42, 40), 0, 0.6),  # overlaps the first by more than 0.7
    TinyBox((10, 8, 42, 40), 1, 0.5),  # the same place, another class
    TinyBox((50, 50, 60, 60), 1, 0.8, "bright"),
    TinyBox((50, 2, 60, 12), 1, 0.7, "dark"),
)


@pytest.mark.parametrize("half", [False, True])
def test_a_raw_head_is_read(tmp_path: Path, half: bool) -> None:
    """Overlaps within a class are dropped, other classes stay, float16 or float32."""
    with OnnxDetector(write_tiny_yolo(tmp_path / "m.onnx", boxes=BOXES, half=half)) as detector:
        for _ in range(2):
            found = detector.detect(WHITE)
            assert found.class_ids.tolist() == [0, 1, 1]
            np.testing.assert_allclose(found.scores, [0.9, 0.8, 0.5], atol=1e-3)
            np.testing.assert_allclose(found.boxes_xyxy, [[8, 8, 40, 40], [50, 50, 60, 60], [10, 8, 42, 40]], atol=0.1)


def test_an_end_to_end_head_is_read(tmp_path: Path) -> None:
    """Nothing is suppressed, that is the head's own work."""
    with OnnxDetector(write_tiny_yolo(tmp_path / "m.onnx", boxes=BOXES, end2end=True)) as detector:
        found = detector.detect(WHITE)
    np.testing.assert_allclose(found.scores, [0.9, 0.8, 0.6, 0.5], atol=1e-6)
    assert found.class_scores is None


@pytest.mark.parametrize("end2end", [False, True])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("task", ["segment", "pose", "obb", "classify"])
def test_every_task_is_read_from_its_file(tmp_path: Path, task: str, half: bool, end2end: bool) -> None:
    """Masks, keypoints, angles, probabilities, on the first run and with bound buffers."""
    box = TinyBox((8, 16, 40, 32), 1, 0.9)
    path = write_tiny_yolo(tmp_path / "m.onnx", boxes=[box], task=task, half=half, end2end=end2end, loc_entropy=0.25)
    with OnnxDetector(path) as detector:
        assert detector.task == task
        for _ in range(2):
            found = detector.detect(np.full((128, 128, 3), 255, np.uint8))
            assert found.class_ids.tolist() == [1]
            if task == "classify":
                assert found.boxes_xyxy.tolist() == [[0, 0, 128, 128]]
                assert found.class_scores is not None
                np.testing.assert_allclose(found.class_scores, [[1 / (1 + np.e**9), 1 / (1 + np.e**-9)]], atol=1e-3)
                continue
            np.testing.assert_allclose(found.scores, [0.9], atol=1e-3)
            assert (found.loc_entropy is None) == end2end
            if task == "obb":
                assert found.rotated_xywhr is not None
                np.testing.assert_allclose(found.rotated_xywhr[0, 4], ANGLE_RAD, atol=1e-3)
                assert found.boxes_xyxy[0, 3] - found.boxes_xyxy[0, 1] > 32, "the upright box is higher than the oriented one"
                continue
            np.testing.assert_allclose(found.boxes_xyxy, [[16, 32, 80, 64]], atol=0.2)
            if task == "segment":
                assert found.masks is not None
                assert found.masks.bitmaps().sum() == 64 * 32
            else:
                np.testing.assert_allclose(found.keypoints, [[[16, 32, 0.9], [80, 64, 0.1]]], atol=0.2)


def takes_bytes(path: Path) -> Path:
    """Put what a preprocessing graph does in front of a model: (1, H, W, 3) BGR bytes become RGB planes in [0, 1]."""
    model = onnx.load(path)
    side = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    before = [
        helper.make_node("Cast", ["picture"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["numbers", "backwards"], ["rgb"], axis=3),
        helper.make_node("Transpose", ["rgb"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Div", ["planes", "white"], ["images"]),
    ]
    nodes = [*before, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("picture", TensorProto.UINT8, (1, side, side, 3)))
    model.graph.initializer.extend(
        [
            onnx.numpy_helper.from_array(np.array([2, 1, 0]), "backwards"),
            onnx.numpy_helper.from_array(np.array(255, np.float32), "white"),
        ]
    )
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_a_graph_that_takes_bytes_sees_the_same(tmp_path: Path, task: str) -> None:
    """Letterboxed bytes in, the same detections out, frame after frame of different sizes."""
    rng = np.random.default_rng(6)
    frames = [rng.integers(0, 256, size, np.uint8) for size in ((64, 64, 3), (90, 120, 3), (333, 201, 3), (90, 120, 3))]
    floats = write_tiny_yolo(tmp_path / "floats.onnx", boxes=BOXES, task=task)
    picture = takes_bytes(write_tiny_yolo(tmp_path / "bytes.onnx", boxes=BOXES, task=task))
    with OnnxDetector(floats) as expected, OnnxDetector(picture) as actual:
        assert actual.image_size_hw == (64, 64)
        for frame in frames:
            theirs, ours = expected.detect(frame), actual.detect(frame)
            np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-5)
            np.testing.assert_allclose(ours.boxes_xyxy, theirs.boxes_xyxy, atol=1e-3)


def test_a_classifier_that_takes_bytes_is_refused(tmp_path: Path) -> None:
    """Nothing writes such a file; it is told rather than guessed at."""
    path = takes_bytes(write_tiny_yolo(tmp_path / "m.onnx", task="classify"))
    with pytest.raises(UnsupportedModel, match="float32"):
        OnnxDetector(path)


def test_each_frame_is_its_own(tmp_path: Path) -> None:
    """Reused buffers carry nothing from one frame to the next, and earlier results do not change."""
    with OnnxDetector(write_tiny_yolo(tmp_path / "m.onnx", boxes=BOXES, embedding_size=4)) as detector:
        black = np.zeros((64, 64, 3), np.uint8)
        results = [detector.detect(frame) for frame in (WHITE, black, WHITE)]
    bright, dark, again = results
    assert bright.scores.tolist() == again.scores.tolist()
    assert bright.scores.tolist() != dark.scores.tolist()
    assert bright.embedding is not None
    assert dark.embedding is not None
    np.testing.assert_allclose(bright.embedding, np.ones(4), atol=1e-5)
    np.testing.assert_allclose(dark.embedding, np.zeros(4), atol=1e-5)


def test_it_reports_what_it_runs(tmp_path: Path) -> None:
    """Digest of the very bytes, names, size, runtime."""
    path = write_tiny_yolo(tmp_path / "m.onnx", class_names=("owl", "fox"), image_size=96)
    with OnnxDetector(path, threads=2) as detector:
        assert detector.file_digest == hashlib.sha256(path.read_bytes()).hexdigest()
        assert detector.class_names == ("owl", "fox")
        assert detector.image_size_hw == (96, 96)
        assert detector.runtime.startswith("onnxruntime-cpu ")


def test_equal_arguments_write_equal_models(tmp_path: Path) -> None:
    """The tests' model is reproducible, and salt makes another."""
    one, two = write_tiny_yolo(tmp_path / "1.onnx").read_bytes(), write_tiny_yolo(tmp_path / "2.onnx").read_bytes()
    assert one == two
    assert write_tiny_yolo(tmp_path / "3.onnx", salt="other").read_bytes() != one


@pytest.mark.parametrize("fault", [{"emit_nan": True}, {"wrong_shape": True}])
@pytest.mark.parametrize("end2end", [False, True])
@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb"])
def test_nonsense_output_is_an_error(tmp_path: Path, fault: dict[str, bool], end2end: bool, task: str) -> None:
    """NaN and unexplained shapes are told, in every frame."""
    options: dict[str, Any] = {**fault, "end2end": end2end, "task": task}
    with OnnxDetector(write_tiny_yolo(tmp_path / "m.onnx", **options)) as detector:
        for _ in range(2):
            with pytest.raises(ModelOutputError):
                detector.detect(WHITE)


def test_a_classifier_that_emits_nan_is_an_error(tmp_path: Path) -> None:
    """Told, in every frame."""
    with OnnxDetector(write_tiny_yolo(tmp_path / "m.onnx", task="classify", emit_nan=True)) as detector:
        for _ in range(2):
            with pytest.raises(ModelOutputError, match="NaN"):
                detector.detect(WHITE)


def plain_onnx(path: Path, shape: list[int | str], *, inputs: int = 1, elem: int = TensorProto.FLOAT) -> Path:
    """An ONNX model that is no YOLO: it copies its input."""
    names = [f"in{number}" for number in range(inputs)]
    graph = helper.make_graph(
        [helper.make_node("Identity", [names[0]], ["out"])],
        "plain",
        [helper.make_tensor_value_info(name, elem, shape) for name in names],
        [helper.make_tensor_value_info("out", elem, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {"names": "{0: 'a'}", "imgsz": "[64, 64]"})
    path.write_bytes(model.SerializeToString())
    return path


def test_files_that_are_no_model_are_refused(tmp_path: Path) -> None:
    """Missing, a folder, empty, text, cut off: each says which file and what to do."""
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "text.onnx").write_text("hello")
    (tmp_path / "cut.onnx").write_bytes(write_tiny_yolo(tmp_path / "m.onnx").read_bytes()[:3000])
    for name, says in {
        "missing.onnx": "check the path",
        ".": "check the path",
        "empty.onnx": "0 bytes",
        "text.onnx": "not an ONNX model",
        "cut.onnx": "not an ONNX model",
    }.items():
        with pytest.raises(NotAModel, match=says) as caught:
            OnnxDetector(tmp_path / name)
        assert str(tmp_path) in str(caught.value)


def test_models_that_are_no_yolo_are_refused(tmp_path: Path) -> None:
    """No names, another task, a batch, two inputs, another input type, names that do not fit the head."""
    plain = write_tiny_yolo(tmp_path / "nameless.onnx", metadata={"names": None})
    with pytest.raises(NotAModel, match="no class names"):
        OnnxDetector(plain)
    for path, says in (
        (write_tiny_yolo(tmp_path / "1.onnx", metadata={"task": "semantic"}), "semantic"),
        (write_tiny_yolo(tmp_path / "9.onnx", metadata={"task": "segment"}), "expected 2 outputs"),
        (write_tiny_yolo(tmp_path / "2.onnx", metadata={"names": "{0: 'a', 1: 'b', 2: 'c'}"}), "3 classes"),
        (write_tiny_yolo(tmp_path / "3.onnx", external_data=True), "one file"),
        (plain_onnx(tmp_path / "4.onnx", [4, 3, 64, 64]), "batch 1"),
        (plain_onnx(tmp_path / "5.onnx", [1, 3, 64, 64], inputs=2), "expected one"),
        (plain_onnx(tmp_path / "6.onnx", [1, 3, 64, 64], elem=TensorProto.INT32), "float"),
        (plain_onnx(tmp_path / "7.onnx", [1, 1, 64, 64]), "colour channels"),
        (plain_onnx(tmp_path / "8.onnx", [1, 3, 64, 64]), "detection head"),
    ):
        with pytest.raises(UnsupportedModel, match=says) as caught:
            OnnxDetector(path)
        assert path.name in str(caught.value)


def test_an_operator_that_the_runtime_does_not_know_is_refused(tmp_path: Path) -> None:
    """The runtime's own words are kept, on one line."""
    model = onnx.load(write_tiny_yolo(tmp_path / "m.onnx"))
    model.graph.node[0].op_type = "NoSuchOperator"
    (tmp_path / "odd.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(NotAModel, match="NoSuchOperator") as caught:
        OnnxDetector(tmp_path / "odd.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((64, 64), np.uint8),
        np.zeros((64, 64, 4), np.uint8),
        np.zeros((64, 64, 3), np.float32),
        np.zeros((0, 64, 3), np.uint8),
    ],
)
def test_a_frame_of_another_form_is_refused(tmp_path: Path, frame: NDArray[Any]) -> None:
    """Gray, alpha, float, empty: an error that says what is expected, and the detector goes on."""
    with OnnxDetector(write_tiny_yolo(tmp_path / "m.onnx")) as detector:
        with pytest.raises(ValueError, match=r"expected \(H, W, 3\) uint8"):
            detector.detect(frame)
        assert len(detector.detect(WHITE)) == 1


def test_a_closed_detector_says_so(tmp_path: Path) -> None:
    """Closing twice is fine, detecting afterwards is not."""
    detector = OnnxDetector(write_tiny_yolo(tmp_path / "m.onnx"))
    detector.close()
    detector.close()
    with pytest.raises(ValueError, match="closed"):
        detector.detect(WHITE)
