"""OpenVINO sees what ONNX Runtime sees, at the precision that was asked for, without copies and without telling anybody."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from bowerbird_models.engines import EngineCache
from bowerbird_models.errors import AcceleratorMissing, NotAModel, RuntimeMissing
from bowerbird_models.model_file import ModelFile
from bowerbird_models.onnx_detector import OnnxDetector, OnnxSession
from bowerbird_models.onnx_file import output_names
from bowerbird_models.runtimes import RuntimeOptions, open_model
from bowerbird_testing.byte_input import take_bytes
from bowerbird_testing.tiny_yolo import TinyBox, write_tiny_yolo

pytest.importorskip("openvino", reason="the openvino extra is not installed: pip install -e '.[openvino]'")

from bowerbird_models.openvino_detector import OpenvinoSession, engine_key, import_openvino, precisions

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
    session = OpenvinoSession(file, OPENVINO)
    assert session.runtime.startswith("openvino-cpu 20")
    assert [str(spec) for spec in session.inputs] == ["images float32(1, 3, 64, 64)"]
    graph = onnx.load_from_string(file.content).graph
    assert [spec.name for spec in session.outputs] == ["output0", "embedding"] == list(output_names(file.content))
    assert [value.name for value in graph.output] == list(output_names(file.content))


def test_the_input_is_read_where_it_lies(tmp_path: Path) -> None:
    """What is written into the bound array is what the next run sees, in the order of outputs that was asked for."""
    session = OpenvinoSession(ModelFile.read(write_tiny_yolo(tmp_path / "m.onnx", embedding_size=4)), OPENVINO)
    tensor = np.zeros((1, 3, 64, 64), np.float32)
    run = session.bind(tensor, ["embedding", "output0"], fixed=True)
    seen = [float(run()[0][0, 0])]
    tensor[...] = 0.5
    seen.append(float(run()[0][0, 0]))
    np.testing.assert_allclose(seen, [0, 0.5], atol=1e-6)
    assert run()[1].shape == (1, 6, 84)


def test_a_picture_of_bytes_goes_in_as_bytes(tmp_path: Path) -> None:
    """The uint8 input of a package, on both runtimes."""
    file = ModelFile.read(take_bytes(write_tiny_yolo(tmp_path / "m.onnx", boxes=BOXES), tmp_path / "bytes.onnx"))
    pixels = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3), np.uint8)
    found = []
    for session in (OpenvinoSession(file, OPENVINO), OnnxSession(file.content)):
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
    session = OpenvinoSession(ModelFile(model.SerializeToString(), "00" * 32), OPENVINO)
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
    session = OpenvinoSession(ModelFile.read(write_tiny_yolo(tmp_path / "m.onnx")), RuntimeOptions("openvino-cpu", threads=2))
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


# --- what was compiled is kept --------------------------------------------------------------------------------------------


def outputs_of(file: ModelFile, options: RuntimeOptions) -> list[NDArray[Any]]:
    """Every output for one picture of noise."""
    session = OpenvinoSession(file, options)
    tensor = np.random.default_rng(3).random((1, 3, 64, 64), np.float32)
    run = session.bind(tensor, [spec.name for spec in session.outputs], fixed=True)
    found = [each.copy() for each in run()]
    session.close()
    return found


def kept_in(folder: Path) -> list[Path]:
    """The compiled networks of an engine folder."""
    return sorted((folder / "openvino").glob("*.engine"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_network_is_kept_and_says_the_same_bit_for_bit(tmp_path: Path, precision: str) -> None:
    if precision not in precisions(import_openvino()):
        pytest.skip(f"this processor does not compute in {precision}")
    file = ModelFile.read(write_tiny_yolo(tmp_path / "m.onnx", boxes=BOXES, embedding_size=4))
    bare = RuntimeOptions("openvino-cpu", precision=precision)
    keeping = RuntimeOptions("openvino-cpu", precision=precision, engine_dir=tmp_path / "engines")
    expected = outputs_of(file, bare)
    for _ in range(2):  # compiled, and taken from the folder
        for ours, theirs in zip(outputs_of(file, keeping), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert len(kept_in(tmp_path / "engines")) == 1


def test_the_second_start_compiles_nothing(tmp_path: Path) -> None:
    """The file's content is not even looked at: its digest names what was compiled from it."""
    file = ModelFile.read(write_tiny_yolo(tmp_path / "m.onnx", boxes=BOXES))
    options = RuntimeOptions("openvino-cpu", engine_dir=tmp_path / "engines")
    expected = outputs_of(file, options)
    again = OpenvinoSession(ModelFile(write_tiny_yolo(tmp_path / "other.onnx").read_bytes(), file.digest), options)
    assert [spec.name for spec in again.outputs] == ["output0"]
    run = again.bind(np.random.default_rng(3).random((1, 3, 64, 64), np.float32), ["output0"], fixed=True)
    np.testing.assert_array_equal(run()[0], expected[0])


def test_another_model_precision_or_thread_count_is_compiled_for_itself(tmp_path: Path) -> None:
    engines = tmp_path / "engines"
    first = ModelFile.read(write_tiny_yolo(tmp_path / "m.onnx", boxes=BOXES))
    second = ModelFile.read(write_tiny_yolo(tmp_path / "n.onnx", boxes=BOXES[:1]))
    assert not np.array_equal(
        outputs_of(first, RuntimeOptions("openvino-cpu", engine_dir=engines))[0],
        outputs_of(second, RuntimeOptions("openvino-cpu", engine_dir=engines))[0],
    )
    outputs_of(first, RuntimeOptions("openvino-cpu", threads=2, engine_dir=engines))
    assert len(kept_in(engines)) == 3


def test_a_damaged_or_refused_compiled_network_is_compiled_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Damaged: its digest is not the index's. Refused: the index vouches for it and OpenVINO does not take it."""
    file = ModelFile.read(write_tiny_yolo(tmp_path / "m.onnx", boxes=BOXES))
    options = RuntimeOptions("openvino-cpu", engine_dir=tmp_path / "engines")
    expected = outputs_of(file, options)
    (path,) = kept_in(tmp_path / "engines")
    cache, key = EngineCache(path.parent), engine_key(import_openvino(), file, options)
    path.write_bytes(path.read_bytes()[:-100])
    assert cache.load(key) is None
    np.testing.assert_array_equal(outputs_of(file, options)[0], expected[0])
    assert cache.load(key) is not None

    with cache.building():
        cache.admit(key, b"not what OpenVINO exports")
    np.testing.assert_array_equal(outputs_of(file, options)[0], expected[0])
    assert "does not take what it compiled" in caplog.text
    assert cache.load(key) != b"not what OpenVINO exports"


def test_without_a_place_for_it_the_model_runs_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = ModelFile.read(write_tiny_yolo(tmp_path / "m.onnx", boxes=BOXES))
    (tmp_path / "taken").write_text("a file where the folder should be")
    options = RuntimeOptions("openvino-cpu", engine_dir=tmp_path / "taken")
    np.testing.assert_array_equal(outputs_of(file, options)[0], outputs_of(file, OPENVINO)[0])
    assert "is not kept" in caplog.text
