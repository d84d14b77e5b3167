"""OpenVINO sees what ONNX Runtime sees, at the precision that was asked for, without copies and without telling anybody."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from bowerbird_models.errors import AcceleratorMissing, NotAModel, RuntimeMissing
from bowerbird_models.model_file import ModelFile
from bowerbird_models.onnx_detector import OnnxDetector, OnnxSession
from bowerbird_models.onnx_file import output_names
from bowerbird_models.runtimes import RuntimeOptions, open_model
from bowerbird_testing.byte_input import take_bytes
from bowerbird_testing.tiny_yolo import TinyBox, write_tiny_yolo

pytest.importorskip("openvino", reason="the openvino extra is not installed: pip install -e '.[openvino]'")

from bowerbird_models.openvino_detector import OpenvinoSession, import_openvino, precisions

WHITE = np.full((64, 64, 3), 255, np.uint8)
BOXES = (
    TinyBox((8, 8, 40, 40), 0, 0.9),
    TinyBox((10, 8, 42, 40), 0, 0.6),
    TinyBox((50, 50, 60, 60), 1, 0.8, "bright"),
    TinyBox((50, 2, 60, 12), 1, 0.7, "dark"),
)
OPENVINO = RuntimeOptions("openvino-cpu")


@pytest.mark.parametrize("kind", [{}, {"half": True}, {"end2end": True}, {"embedding_size": 4}])
def test_the_same_detections_as_onnx_runtime(tmp_path: Path, kind: dict[str, Any]) -> None:
    """Within a pixel and a thousandth, frame after frame."""
    path = write_tiny_yolo(tmp_path / "m.onnx", boxes=BOXES, **kind)
    with OnnxDetector(path) as reference, open_model(path, OPENVINO) as detector:
        for frame in (WHITE, np.zeros_like(WHITE), WHITE // 2, WHITE):
            ours, theirs = detector.detect(frame), reference.detect(frame)
            assert ours.class_ids.tolist() == theirs.class_ids.tolist()
            np.testing.assert_allclose(ours.boxes_xyxy, theirs.boxes_xyxy, atol=1.0)
            np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-3)
            if "embedding_size" in kind:
                assert ours.embedding is not None
                assert theirs.embedding is not None
                np.testing.assert_allclose(ours.embedding, theirs.embedding, atol=1e-3)


def test_it_says_what_it_is_and_takes_the_names_of_the_file(tmp_path: Path) -> None:
    """A tensor has several names inside OpenVINO; the graph's are reported, in the graph's order."""
    file = ModelFile.read(write_tiny_yolo(tmp_path / "m.onnx", embedding_size=4))
    session = OpenvinoSession(file.content, OPENVINO)
    assert session.runtime.startswith("openvino-cpu 20")
    assert [str(spec) for spec in session.inputs] == ["images float32(1, 3, 64, 64)"]
    graph = onnx.load_from_string(file.content).graph
    assert [spec.name for spec in session.outputs] == ["output0", "embedding"] == list(output_names(file.content))
    assert [value.name for value in graph.output] == list(output_names(file.content))


def test_the_input_is_read_where_it_lies(tmp_path: Path) -> None:
    """What is written into the bound array is what the next run sees, in the order of outputs that was asked for."""
    session = OpenvinoSession(write_tiny_yolo(tmp_path / "m.onnx", embedding_size=4).read_bytes(), OPENVINO)
    tensor = np.zeros((1, 3, 64, 64), np.float32)
    run = session.bind(tensor, ["embedding", "output0"], fixed=True)
    seen = [float(run()[0][0, 0])]
    tensor[...] = 0.5
    seen.append(float(run()[0][0, 0]))
    np.testing.assert_allclose(seen, [0, 0.5], atol=1e-6)
    assert run()[1].shape == (1, 6, 84)


def test_a_picture_of_bytes_goes_in_as_bytes(tmp_path: Path) -> None:
    """The uint8 input of a package, on both runtimes."""
    content = take_bytes(write_tiny_yolo(tmp_path / "m.onnx", boxes=BOXES), tmp_path / "bytes.onnx").read_bytes()
    pixels = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3), np.uint8)
    found = []
    for session in (OpenvinoSession(content, OPENVINO), OnnxSession(content)):
        assert str(session.inputs[0]) == "pixels uint8(1, 64, 64, 3)"
        run = session.bind(pixels, ["output0"], fixed=True)
        found.append([run()[0].copy(), run()[0].copy()])
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)


def test_sizes_left_open_are_bound_one_by_one(tmp_path: Path) -> None:
    """Two inputs of different size take turns."""
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("ReduceMean", ["images"], ["output0"], axes=[1], keepdims=1)],
        "free",
        [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, ("n", 3, "h", "w"))],
        [onnx.helper.make_tensor_value_info("output0", onnx.TensorProto.FLOAT, ("n", 1, "h", "w"))],
    )
    graph.node.insert(0, onnx.helper.make_node("Cast", ["images"], ["real"], to=onnx.TensorProto.FLOAT))
    graph.node[1].input[0] = "real"
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    session = OpenvinoSession(model.SerializeToString(), OPENVINO)
    assert str(session.inputs[0]) == "images uint8(?, 3, ?, ?)"
    small, wide = np.full((1, 3, 4, 4), 7, np.uint8), np.full((1, 3, 2, 8), 9, np.uint8)
    runs = [session.bind(tensor, ["output0"], fixed=False) for tensor in (small, wide)]
    for _ in range(2):
        np.testing.assert_array_equal(runs[0]()[0], np.full((1, 1, 4, 4), 7, np.float32))
        np.testing.assert_array_equal(runs[1]()[0], np.full((1, 1, 2, 8), 9, np.float32))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_precision_is_used_or_refused(tmp_path: Path, precision: str) -> None:
    """OpenVINO would take another one in silence; what it compiled for is read back."""
    path, options = write_tiny_yolo(tmp_path / "m.onnx"), RuntimeOptions("openvino-cpu", precision=precision)
    can = precisions(import_openvino())
    assert "fp32" in can
    if precision in can:
        with open_model(path, options) as detector:
            assert len(detector.detect(WHITE)) == 1
    else:
        with pytest.raises(AcceleratorMissing, match=f"does not compute in {precision}"):
            open_model(path, options)


def test_threads_streams_and_precision_are_what_was_asked(tmp_path: Path) -> None:
    """Read back from the compiled model; no thread is tied to a core."""
    session = OpenvinoSession(write_tiny_yolo(tmp_path / "m.onnx").read_bytes(), RuntimeOptions("openvino-cpu", threads=2))
    asked = ("INFERENCE_NUM_THREADS", "NUM_STREAMS", "ENABLE_CPU_PINNING", "PERFORMANCE_HINT")
    assert [str(session._compiled.get_property(name)) for name in asked[:3]] == ["2", "1", "False"]
    assert "LATENCY" in str(session._compiled.get_property(asked[3]))
    assert session._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"


def test_a_closed_detector_says_so(tmp_path: Path) -> None:
    detector = open_model(write_tiny_yolo(tmp_path / "m.onnx"), OPENVINO)
    kept = detector.detect(WHITE)
    detector.close()
    detector.close()
    assert kept.scores.tolist() == pytest.approx([0.9])
    with pytest.raises(ValueError, match="closed"):
        detector.detect(WHITE)


def test_what_it_cannot_load_is_told_in_one_line(tmp_path: Path) -> None:
    """With OpenVINO's reason, without the places in its source."""
    model = onnx.load(write_tiny_yolo(tmp_path / "m.onnx"))
    model.graph.node[0].op_type = "NoSuchOperator"
    (tmp_path / "odd.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(NotAModel, match=r"odd\.onnx.*NoSuchOperator") as caught:
        open_model(tmp_path / "odd.onnx", OPENVINO)
    assert "\n" not in str(caught.value)
    assert "src/" not in str(caught.value)


def test_its_telemetry_is_never_loaded(tmp_path: Path) -> None:
    """In a fresh process: OpenVINO is there, the module that reports its users is not, and no socket was opened."""
    path = write_tiny_yolo(tmp_path / "m.onnx")
    script = (
        "import sys\n"
        "def watch(event, args):\n"
        "    if event.startswith('socket.'): print('socket', event)\n"
        "sys.addaudithook(watch)\n"
        "from pathlib import Path\n"
        "from bowerbird_models.runtimes import RuntimeOptions, open_model\n"
        "open_model(Path(sys.argv[1]), RuntimeOptions('openvino-cpu')).close()\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'openvino_telemetry'], 'openvino' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "[] True\n"


def test_without_openvino_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(RuntimeMissing, match=r"pip install 'bowerbird\[openvino\]'"):
        import_openvino()
