"""Native TensorRT against stand-ins that compute: a driver compiled from C, a TensorRT that builds and runs with ONNX Runtime.

No machine of ours has a GPU. What runs here for real: our ctypes declarations, the build in a child process, limits and kills, the
cache, binding, copying, synchronising. What does not: the vendor's code (`test_tensorrt_bindings.py` holds the stand-in's names and
arguments against the real bindings).
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from bowerbird_models.cuda import Cuda, CudaError
from bowerbird_models.engines import Stack
from bowerbird_models.errors import (
    AcceleratorMissing,
    EngineNotBuilt,
    ModelError,
    ModelOutputError,
    NotAModel,
    UnsupportedModel,
)
from bowerbird_models.model_file import ModelFile
from bowerbird_models.onnx_detector import OnnxDetector
from bowerbird_models.runtimes import RuntimeOptions
from bowerbird_models.tensorrt_build import BuildOrder, Limits, build, run_build
from bowerbird_models.tensorrt_detector import Platform, TensorrtSession, obtain_engine
from bowerbird_models.yolo import YoloDetector
from bowerbird_testing.byte_input import take_bytes
from bowerbird_testing.fake_cuda import compile_libcuda, compiler, load_libcuda
from bowerbird_testing.fake_tensorrt import PLAN, install_as_module, make_tensorrt, open_onnx
from bowerbird_testing.tiny_yolo import TinyBox, write_tiny_yolo

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler for the stand-in driver: apt-get install gcc")

TESTS = Path(__file__).parents[1]
WHITE = np.full((64, 64, 3), 255, np.uint8)
BOXES = (TinyBox((8, 8, 40, 40), 0, 0.9), TinyBox((50, 50, 60, 60), 1, 0.8, "bright"), TinyBox((2, 50, 12, 60), 1, 0.7, "dark"))
V10, V11 = "10.3.0", "11.4.0.106"
STACK = Stack("Stand-in GPU", "8.7", f"tensorrt {V10}")


@pytest.fixture(scope="module")
def libcuda_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in driver, for child processes."""
    return compile_libcuda(tmp_path_factory.mktemp("cuda"))


@pytest.fixture(scope="module")
def libcuda_here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same under another name, so that the rest of this process does not find a driver."""
    return compile_libcuda(tmp_path_factory.mktemp("here"), "stand-in.so")


@pytest.fixture
def libcuda(libcuda_here: Path) -> ctypes.CDLL:
    """It, in this process."""
    library = load_libcuda(libcuda_here)
    library.fake_set_devices(1)
    library.fake_set_memory(2**62)
    return library


@pytest.fixture
def children(tmp_path: Path, libcuda_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which our child processes find `tensorrt` (10) and the driver."""
    folder = tmp_path / "modules"
    folder.mkdir()
    install_as_module(folder, V10)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(TESTS)]))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(libcuda_file.parent))
    return folder


def platform(libcuda: ctypes.CDLL, version: str = V10) -> Platform:
    """TensorRT and a GPU, standing in."""
    return Platform(make_tensorrt(version, libcuda), Cuda(libcuda))


def options(folder: Path | None, precision: str = "fp32") -> RuntimeOptions:
    """Native TensorRT with engines in a folder."""
    return RuntimeOptions("tensorrt", precision=precision, engine_dir=folder)


def facts_of(engine: bytes) -> dict[str, object]:
    """What the stand-in was told when it built an engine."""
    found: dict[str, object] = json.loads(engine.removeprefix(PLAN).partition(b"\n")[0])
    return found


@pytest.mark.parametrize("half", [False, True])
def test_an_engine_detects_what_onnx_runtime_detects(tmp_path: Path, children: Path, libcuda: ctypes.CDLL, half: bool) -> None:
    """Frame by frame, with an extra output, and nothing is left on the GPU afterwards."""
    path = write_tiny_yolo(tmp_path / "m.onnx", boxes=BOXES, embedding_size=4, half=half)
    file = ModelFile.read(path)
    frames = [WHITE, np.zeros_like(WHITE), WHITE // 2, WHITE]
    session = TensorrtSession(file, options(tmp_path / "engines"), platform=platform(libcuda))
    with OnnxDetector(path) as reference, YoloDetector(session, file.metadata(), file.digest) as detector:
        assert detector.runtime == f"tensorrt {V10}"
        for frame in frames:
            ours, theirs = detector.detect(frame), reference.detect(frame)
            np.testing.assert_array_equal(ours.boxes_xyxy, theirs.boxes_xyxy)
            np.testing.assert_array_equal(ours.scores, theirs.scores)
            assert ours.embedding is not None
            assert theirs.embedding is not None
            np.testing.assert_array_equal(ours.embedding, theirs.embedding)
    del session, detector, ours
    assert libcuda.fake_allocations() == 0
    assert libcuda.fake_contexts() == 0


def test_a_detector_may_move_to_another_thread(tmp_path: Path, children: Path, libcuda: ctypes.CDLL) -> None:
    """Loaded by the control thread, run by the inference thread: the GPU is made current where it is used."""
    file = ModelFile.read(write_tiny_yolo(tmp_path / "m.onnx", boxes=BOXES))
    detector = YoloDetector(
        TensorrtSession(file, options(tmp_path / "engines"), platform=platform(libcuda)), file.metadata(), file.digest
    )
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(len(detector.detect(WHITE))))
    thread.start()
    thread.join()
    assert found == [2]


def test_a_picture_of_bytes_goes_in_as_bytes(tmp_path: Path, children: Path, libcuda: ctypes.CDLL) -> None:
    """The uint8 input of a package: a quarter of the bytes to copy."""
    path = take_bytes(write_tiny_yolo(tmp_path / "m.onnx", boxes=BOXES), tmp_path / "bytes.onnx")
    file, pixels = ModelFile.read(path), np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3), np.uint8)
    session = TensorrtSession(file, options(tmp_path / "engines"), platform=platform(libcuda))
    assert str(session.inputs[0]) == "pixels uint8(1, 64, 64, 3)"
    expected = open_onnx(file.content).run(["output0"], {"pixels": pixels})[0]
    np.testing.assert_array_equal(session.bind(pixels, ["output0"], fixed=True)()[0], expected)


def free_size(path: Path) -> Path:
    """The tests' model, its sides declared open (it still wants 64 by 64)."""
    model = onnx.load(write_tiny_yolo(path, boxes=BOXES))
    for axis, name in ((0, "batch"), (2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    path.write_bytes(model.SerializeToString())
    return path


def test_a_model_of_free_size_gets_a_profile(tmp_path: Path, children: Path, libcuda: ctypes.CDLL) -> None:
    """From its stride to the size it was exported for; a picture outside it is an error that says so."""
    file = ModelFile.read(free_size(tmp_path / "m.onnx"))
    chosen = options(tmp_path / "engines")
    here = platform(libcuda)
    session = TensorrtSession(file, chosen, platform=here)
    assert session.inputs[0].shape == (None, 3, None, None)
    facts = facts_of(obtain_engine(file, chosen, here.stack))
    assert facts["profiles"] == {"images": [[1, 3, 32, 32], [1, 3, 64, 64], [1, 3, 64, 64]]}
    big, small = np.zeros((1, 3, 128, 64), np.float32), np.ones((1, 3, 64, 64), np.float32)
    with pytest.raises(ModelOutputError, match="outside the profile"):
        session.bind(big, ["output0"], fixed=True)
    run = session.bind(small, ["output0"], fixed=True)
    again = session.bind(small * 0, ["output0"], fixed=True)
    reference = open_onnx(file.content)
    for turn, picture in ((run, small), (again, small * 0), (run, small)):
        np.testing.assert_array_equal(turn()[0], reference.run(["output0"], {"images": picture})[0])
    with_both = libcuda.fake_allocations()
    del again
    assert libcuda.fake_allocations() == with_both - 3, "input, output and what is copied back go with a dropped size"


def test_an_output_whose_shape_depends_on_the_picture_is_refused(tmp_path: Path, children: Path, libcuda: ctypes.CDLL) -> None:
    file = ModelFile.read(write_tiny_yolo(tmp_path / "m.onnx", wrong_shape=True))
    session = TensorrtSession(file, options(tmp_path / "engines"), platform=platform(libcuda))
    with (
        YoloDetector(session, file.metadata(), file.digest) as detector,
        pytest.raises(ModelError, match="depends on what is in the picture"),
    ):
        detector.detect(WHITE)


def test_an_engine_is_built_once_and_again_when_anything_changes(tmp_path: Path, children: Path) -> None:
    """The second start takes it from the folder; another TensorRT, precision or file does not."""
    file = ModelFile.read(write_tiny_yolo(tmp_path / "m.onnx"))
    other = ModelFile.read(write_tiny_yolo(tmp_path / "n.onnx", salt="other"))
    here = tmp_path / "engines"
    first = obtain_engine(file, options(here), STACK)
    (children / "tensorrt.py").write_text("raise ImportError('nothing may be built now')", "utf-8")
    assert obtain_engine(file, options(here), STACK) == first
    for changed in (
        lambda: obtain_engine(other, options(here), STACK),
        lambda: obtain_engine(file, options(here, "fp16"), STACK),
        lambda: obtain_engine(file, options(here), replace(STACK, runtime="tensorrt 10.7.0")),
        lambda: obtain_engine(file, options(None), STACK),
    ):
        with pytest.raises(ModelError, match="nothing may be built now"):
            changed()


def test_the_second_build_knows_what_the_first_measured(tmp_path: Path, children: Path) -> None:
    """The timing cache is carried on from build to build, and begun anew when it cannot be used."""
    files = [ModelFile.read(write_tiny_yolo(tmp_path / f"{salt}.onnx", salt=salt)) for salt in "abc"]
    known = [facts_of(obtain_engine(file, options(tmp_path / "engines"), STACK))["timings_known"] for file in files[:2]]
    assert known == [0, 1]
    engine, timings = build(make_tensorrt(V10, None), files[2].content, BuildOrder("fp32", (64, 64), 32), b"")
    engine, _ = build(make_tensorrt("10.7.0", None), files[2].content, BuildOrder("fp32", (64, 64), 32), timings)
    assert facts_of(engine)["timings_known"] == 0


def test_tensorrt_10_is_told_the_precision(tmp_path: Path) -> None:
    """By flag; fp32 means fp32, not TF32. The workspace has a limit."""
    content = write_tiny_yolo(tmp_path / "m.onnx").read_bytes()
    flags = {
        precision: facts_of(build(make_tensorrt(V10, None), content, BuildOrder(precision, (64, 64), 32, 2**20), b"")[0])
        for precision in ("fp32", "fp16", "bf16")
    }
    assert {name: facts["flags"] for name, facts in flags.items()} == {
        "fp32": [],
        "fp16": ["FP16", "TF32"],
        "bf16": ["BF16", "TF32"],
    }
    assert flags["fp32"]["pools"] == {"WORKSPACE": 2**20}


def convolution(dtype: type[np.generic]) -> bytes:
    """A network of one convolution with weights of a type."""
    weights = onnx.numpy_helper.from_array(np.ones((4, 3, 1, 1), dtype), "w")
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["images", "w"], ["output0"])],
        "convolution",
        [onnx.helper.make_tensor_value_info("images", kind, (1, 3, 32, 32))],
        [onnx.helper.make_tensor_value_info("output0", kind, (1, 4, 32, 32))],
        [weights],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def test_tensorrt_11_takes_the_precision_from_the_file(tmp_path: Path) -> None:
    """It has no flags: a half-precision file is half precision, and asking it of another file is an error, not a slower engine."""
    order = BuildOrder("fp16", (32, 32), 32)
    engine, _ = build(make_tensorrt(V11, None), convolution(np.float16), order, b"")
    assert facts_of(engine)["flags"] == ["TF32"]
    with pytest.raises(AcceleratorMissing, match="computes in what the file says"):
        build(make_tensorrt(V11, None), convolution(np.float32), order, b"")
    engine, _ = build(make_tensorrt(V11, None), convolution(np.float32), replace(order, precision="fp32"), b"")
    assert facts_of(engine)["flags"] == []


def test_a_file_that_tensorrt_cannot_read_or_build_is_told_with_its_words(tmp_path: Path, children: Path) -> None:
    """Through the child: the error keeps its kind and the parser's reason."""
    model = onnx.load(write_tiny_yolo(tmp_path / "m.onnx"))
    model.graph.node[0].op_type = "NoSuchOperator"
    (tmp_path / "odd.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(NotAModel, match="NoSuchOperator"):
        obtain_engine(ModelFile.read(tmp_path / "odd.onnx"), options(tmp_path / "engines"), STACK)
    install_as_module(children, V10, before_build="self._logger.log(_module.ILogger.Severity.ERROR, 'no kernel'); return None")
    with pytest.raises(UnsupportedModel, match="no kernel"):
        obtain_engine(ModelFile.read(tmp_path / "m.onnx"), options(tmp_path / "engines"), STACK)


@pytest.mark.parametrize(
    ("line", "limits", "says"),
    [
        ("import time; time.sleep(600)", Limits(timeout_s=3), "more than 3 s"),
        ("ballast = b'x' * 2**30; import time; time.sleep(600)", Limits(memory_bytes=2**29), "of memory"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", Limits(), "signal 11"),
        ("import os; os._exit(7)", Limits(), "exit code 7"),
        ("raise ValueError('surprise')", Limits(), "surprise"),
        ("raise MemoryError", Limits(), "ran out of memory"),
    ],
)
def test_a_build_that_hangs_swells_or_dies_is_ended_and_told(
    tmp_path: Path, children: Path, line: str, limits: Limits, says: str
) -> None:
    install_as_module(children, V10, before_build=line)
    file = ModelFile.read(write_tiny_yolo(tmp_path / "m.onnx"))
    with pytest.raises(EngineNotBuilt, match=says):
        obtain_engine(file, options(tmp_path / "engines"), STACK, limits)
    assert not list((tmp_path / "engines").glob("*.engine"))
    install_as_module(children, V10)
    assert obtain_engine(file, options(tmp_path / "engines"), STACK).startswith(PLAN)


BUILDER = """
import sys
from pathlib import Path
from bowerbird_models.model_file import ModelFile
from bowerbird_models.runtimes import RuntimeOptions
from bowerbird_models.tensorrt_detector import Platform, obtain_engine
obtain_engine(ModelFile.read(Path(sys.argv[1])), RuntimeOptions("tensorrt", engine_dir=Path(sys.argv[2])), Platform.load().stack)
"""
HALF_WRITTEN = "from pathlib import Path; Path({marker!r}).write_text(str(__import__('os').getpid()))"
WAIT = "import time; time.sleep(600)"


def wait_for(path: Path) -> str:
    """The text of a file that another process is about to write."""
    for _ in range(600):
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path} was not written")


@pytest.mark.parametrize("moment", ["while it builds", "while it writes", "before it is admitted"])
def test_killed_in_a_build_leaves_no_engine_that_loads(
    tmp_path: Path, children: Path, moment: str, libcuda: ctypes.CDLL
) -> None:
    """SIGKILL of the agent: its builder dies with it, and the next start builds from the beginning and works."""
    path, engines, marker = write_tiny_yolo(tmp_path / "m.onnx", boxes=BOXES), tmp_path / "engines", tmp_path / "marker"
    reached = HALF_WRITTEN.format(marker=str(marker))
    script = BUILDER
    if moment == "while it builds":
        install_as_module(children, V10, before_build=f"{reached}; {WAIT}")
    elif moment == "while it writes":
        part = engines / ".engine.part"
        install_as_module(
            children, V10, before_build=f"from pathlib import Path; Path({str(part)!r}).write_bytes(b'half'); {reached}; {WAIT}"
        )
    else:
        script = (
            "from bowerbird_models import engines\n"
            f"def admit(self, key, engine):\n    self._folder.joinpath(key.digest() + '.engine').write_bytes(engine)\n"
            f"    {reached}; {WAIT}\n"
            "engines.EngineCache.admit = admit\n"
        ) + BUILDER
    agent = subprocess.Popen([sys.executable, "-c", script, str(path), str(engines)])
    try:
        builder = int(wait_for(marker))
    finally:
        agent.send_signal(signal.SIGKILL)
        agent.wait()
    for _ in range(200):
        if builder == agent.pid or not Path(f"/proc/{builder}").exists() or "Z" in Path(f"/proc/{builder}/stat").read_text():
            break
        time.sleep(0.05)
    else:
        raise AssertionError("the builder outlived its agent")
    assert any(engines.iterdir()), "it was killed in the middle of something"

    install_as_module(children, V10)
    file, here = ModelFile.read(path), platform(libcuda)
    session = TensorrtSession(file, options(engines), platform=here)
    with YoloDetector(session, file.metadata(), file.digest) as detector:
        assert len(detector.detect(WHITE)) == 2
    names = {found.name for found in engines.iterdir()}
    assert len([name for name in names if name.endswith(".engine")]) == 1
    assert not [name for name in names if name.endswith(".part")]


def test_two_processes_build_one_engine(tmp_path: Path, children: Path) -> None:
    """Whoever comes second waits and takes what the first has built."""
    path, engines, log = write_tiny_yolo(tmp_path / "m.onnx"), tmp_path / "engines", tmp_path / "log"
    install_as_module(children, V10, before_build=f"open({str(log)!r}, 'a').write('built\\n'); import time; time.sleep(1)")
    agents = [subprocess.Popen([sys.executable, "-c", BUILDER, str(path), str(engines)]) for _ in range(2)]
    assert [agent.wait(120) for agent in agents] == [0, 0]
    assert log.read_text() == "built\n"


def test_a_gpu_without_memory_is_an_error_and_not_the_processor(tmp_path: Path, children: Path, libcuda: ctypes.CDLL) -> None:
    file = ModelFile.read(write_tiny_yolo(tmp_path / "m.onnx"))
    session = TensorrtSession(file, options(tmp_path / "engines"), platform=platform(libcuda))
    libcuda.fake_set_memory(1000)
    with (
        YoloDetector(session, file.metadata(), file.digest) as detector,
        pytest.raises(ModelOutputError, match="OUT_OF_MEMORY"),
    ):
        detector.detect(WHITE)


def test_an_engine_that_tensorrt_refuses_is_an_error(tmp_path: Path, children: Path, libcuda: ctypes.CDLL) -> None:
    """The child built with another TensorRT than ours: its words are passed on."""
    install_as_module(children, "10.7.0")
    file = ModelFile.read(write_tiny_yolo(tmp_path / "m.onnx"))
    with pytest.raises(AcceleratorMissing, match=r"plan file is of 10\.7\.0"):
        TensorrtSession(file, options(tmp_path / "engines"), platform=platform(libcuda))


def test_the_driver_is_asked_for_its_gpu(libcuda: ctypes.CDLL) -> None:
    cuda = Cuda(libcuda)
    assert (cuda.gpu.name, cuda.gpu.compute_capability, cuda.gpu.driver) == ("Stand-in GPU", "8.7", "12.6")
    libcuda.fake_set_devices(0)
    with pytest.raises(CudaError, match="CUDA_ERROR_NO_DEVICE"):
        Cuda(libcuda)


def test_a_failed_call_of_the_driver_is_told_by_name(libcuda: ctypes.CDLL) -> None:
    """A use after free, a copy past the end: the driver's code becomes an exception."""
    cuda = Cuda(libcuda)
    cuda.use()
    stream, memory = cuda.stream(), cuda.allocate(16)
    with pytest.raises(CudaError, match="cuMemcpyHtoDAsync_v2 failed: CUDA_ERROR_INVALID_VALUE"):
        cuda.to_device(memory, np.zeros(17, np.uint8), stream)
    memory.free()
    memory.free()
    with pytest.raises(CudaError, match="INVALID_VALUE"):
        cuda.to_device(memory, np.zeros(4, np.uint8), stream)


def test_an_array_in_page_locked_memory_outlives_everything_but_itself(libcuda: ctypes.CDLL) -> None:
    cuda = Cuda(libcuda)
    cuda.use()
    view = cuda.allocate_host((4, 4), "float32")[1:]
    del cuda
    view[...] = 1
    assert libcuda.fake_allocations() == 1
    del view
    assert libcuda.fake_allocations() == 0


def test_a_program_with_tensorrt_opens_a_model_by_name(tmp_path: Path, children: Path) -> None:
    """The whole way as the agent goes it: `available` says usable, `open_model` builds and detects."""
    path = write_tiny_yolo(tmp_path / "m.onnx", boxes=BOXES)
    script = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from bowerbird_models.runtimes import RuntimeOptions, available, open_model\n"
        "found = {one.name: one for one in available()}['tensorrt']\n"
        "options = RuntimeOptions('tensorrt', precision='fp16', engine_dir=Path(sys.argv[2]))\n"
        "with open_model(Path(sys.argv[1]), options) as detector:\n"
        "    print(found.usable, found.version, found.precisions, detector.runtime)\n"
        "    print(len(detector.detect(np.full((64, 64, 3), 255, np.uint8))))\n"
    )
    command = [sys.executable, "-c", script, str(path), str(tmp_path / "engines")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == f"True {V10} ('fp32', 'fp16', 'bf16') tensorrt {V10}\n2\n", done.stderr


def test_run_build_leaves_both_files(tmp_path: Path, children: Path) -> None:
    """What the parent admits: an engine and what was measured."""
    content = write_tiny_yolo(tmp_path / "m.onnx").read_bytes()
    run_build(content, BuildOrder("fp16", (64, 64), 32), engine=tmp_path / "e", timing_cache=tmp_path / "t")
    assert facts_of((tmp_path / "e").read_bytes())["flags"] == ["FP16", "TF32"]
    assert json.loads((tmp_path / "t").read_bytes())["version"] == V10
