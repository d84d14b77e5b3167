"""A runtime is asked for by name: it is what runs, or there is an error that says what to do. Never something else instead."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from bowerbird_models import onnx_detector
from bowerbird_models.errors import AcceleratorMissing, NotAModel, RuntimeMissing, UnsupportedModel
from bowerbird_models.onnx_detector import OnnxSession, session_options
from bowerbird_models.onnx_providers import PROVIDERS, Provider
from bowerbird_models.runtimes import RUNTIMES, RuntimeOptions, available, available_elsewhere, open_model
from bowerbird_testing.tiny_yolo import write_tiny_yolo

WHITE = np.full((64, 64, 3), 255, np.uint8)


def test_the_default_is_the_reference(tmp_path: Path) -> None:
    with open_model(write_tiny_yolo(tmp_path / "m.onnx")) as detector:
        assert detector.runtime == f"onnxruntime-cpu {onnxruntime.__version__}"
        assert len(detector.detect(WHITE)) == 1


def test_every_runtime_is_reported_with_what_to_do() -> None:
    found = {one.name: one for one in available()}
    assert tuple(found) == RUNTIMES
    assert found["onnxruntime-cpu"].usable
    for one in found.values():
        assert bool(one.reason) is not one.usable
        assert bool(one.precisions) is one.usable


def test_a_child_finds_what_this_process_would_find() -> None:
    assert available_elsewhere() == available()


@pytest.mark.parametrize("name", [name for name in RUNTIMES if name != "onnxruntime-cpu"])
def test_what_is_reported_as_not_usable_is_refused_and_nothing_runs_in_its_place(tmp_path: Path, name: str) -> None:
    """And what is reported as usable opens."""
    path = write_tiny_yolo(tmp_path / "m.onnx")
    found = {one.name: one for one in available()}[name]
    if found.usable:
        with open_model(path, RuntimeOptions(name, engine_dir=tmp_path / "engines")) as detector:
            assert detector.runtime.startswith(f"{name} ")
    else:
        with pytest.raises(RuntimeMissing):
            open_model(path, RuntimeOptions(name))


def azure() -> Provider:
    """A provider that every published build of ONNX Runtime lists and that takes none of a YOLO's nodes: a GPU build without a GPU."""
    return Provider("AzureExecutionProvider", lambda options: {}, "nowhere", accelerator=True)


def test_an_accelerator_that_takes_no_node_is_refused_by_onnx_runtime_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ONNX Runtime as it is: the fallback to the processor is off."""
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this build of ONNX Runtime has no provider but the CPU's")
    monkeypatch.setitem(PROVIDERS, "onnxruntime-cuda", azure())
    with pytest.raises(AcceleratorMissing, match="fallback to CPU EP has been explicitly disabled"):
        open_model(write_tiny_yolo(tmp_path / "m.onnx"), RuntimeOptions("onnxruntime-cuda"))


class GpuBuild:
    """ONNX Runtime as onnxruntime-gpu is without CUDA's libraries: it lists the providers and drops them with a warning."""

    __version__ = onnxruntime.__version__
    SessionOptions = onnxruntime.SessionOptions
    ExecutionMode = onnxruntime.ExecutionMode

    def get_available_providers(self) -> list[str]:
        return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]

    def InferenceSession(  # noqa: N802 - the vendor's name
        self, content: bytes, *, sess_options: Any, providers: list[Any], enable_fallback: bool
    ) -> Any:
        assert enable_fallback is False
        # Older versions do not look at the setting when a provider fails to load; this one neither.
        return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_a_provider_that_was_dropped_is_noticed_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(onnx_detector, "import_onnxruntime", GpuBuild)
    with pytest.raises(AcceleratorMissing, match=r"CUDAExecutionProvider.* and would have used CPUExecutionProvider"):
        open_model(write_tiny_yolo(tmp_path / "m.onnx"), RuntimeOptions(name))


def test_a_gpu_build_without_a_gpu_is_not_reported_as_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its list of providers says nothing; the driver is asked."""
    monkeypatch.setattr(onnx_detector, "import_onnxruntime", GpuBuild)
    found = {one.name: one for one in available()}
    if Path("/dev/nvidiactl").exists() or Path("/dev/nvhost-gpu").exists():
        pytest.skip("this machine has an NVIDIA GPU")
    assert not found["onnxruntime-cuda"].usable
    assert "driver" in found["onnxruntime-cuda"].reason


@pytest.mark.parametrize(
    ("options", "threads", "spinning", "no_processor"),
    [
        (RuntimeOptions(threads=3), 3, "0", False),
        (RuntimeOptions(threads=3, spinning=True), 3, "1", False),
        (RuntimeOptions("onnxruntime-xnnpack", threads=3, spinning=True), 1, "0", False),
        (RuntimeOptions("onnxruntime-cuda"), 1, "0", True),
        (RuntimeOptions("onnxruntime-tensorrt"), 1, "0", True),
    ],
)
def test_threads_spinning_and_the_way_back_are_set_for_each_runtime(
    options: RuntimeOptions, threads: int, spinning: str, no_processor: bool
) -> None:
    """XNNPACK brings threads of its own; only an accelerator forbids the processor."""
    told = session_options(options)
    assert told.intra_op_num_threads == threads
    assert told.get_session_config_entry("session.intra_op.allow_spinning") == spinning
    assert told.get_session_config_entry("session.disable_cpu_ep_fallback") == str(int(no_processor))


def test_providers_are_told_precision_threads_and_where_engines_lie(tmp_path: Path) -> None:
    """Names as ONNX Runtime documents them; not run here."""

    def told(**options: Any) -> dict[str, str]:
        asked = RuntimeOptions(**options)
        return dict(PROVIDERS[asked.runtime].options(asked))

    assert told(runtime="onnxruntime-xnnpack", threads=3) == {"intra_op_num_threads": "3"}
    assert told(runtime="onnxruntime-cuda")["use_tf32"] == "0"
    assert told(runtime="onnxruntime-tensorrt", precision="fp16")["trt_fp16_enable"] == "1"
    engines = told(runtime="onnxruntime-tensorrt", engine_dir=tmp_path)
    assert engines["trt_fp16_enable"] == "0"
    assert engines["trt_engine_cache_path"] == engines["trt_timing_cache_path"] == str(tmp_path)
    assert "trt_engine_cache_enable" not in told(runtime="onnxruntime-tensorrt")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("yolo11n.engine", b"anything"),
        ("yolo11n.onnx", b"ptrt\x00\x00\x00\x00"),
        ("yolo11n.onnx", b"ftrt\x00\x00\x00\x00"),
        ("yolo11n.onnx", (20).to_bytes(4, "little") + b'{"stride": 32} ' + b"\x00" * 40),
    ],
)
def test_an_engine_is_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    """Engines are code of somebody else's; the message says that the ONNX file is wanted."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnsupportedModel, match=r"TensorRT engine.*ONNX"):
        open_model(tmp_path / name)


def test_a_file_that_is_no_yolo_is_refused_before_a_runtime_sees_it(tmp_path: Path) -> None:
    """The name of the file is in the message."""
    path = write_tiny_yolo(tmp_path / "m.onnx", metadata={"names": None})
    with pytest.raises(NotAModel, match=r"m\.onnx.*no class names"):
        open_model(path, RuntimeOptions("tensorrt"))


def test_a_session_of_an_unknown_network_is_closed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that turns out to be none leaves no network in memory."""
    closed: list[OnnxSession] = []
    close = OnnxSession.close
    monkeypatch.setattr(OnnxSession, "close", lambda session: (closed.append(session), close(session)))
    with pytest.raises(UnsupportedModel, match="3 classes"):
        open_model(write_tiny_yolo(tmp_path / "m.onnx", metadata={"names": "{0: 'a', 1: 'b', 2: 'c'}"}))
    assert len(closed) == 1


def test_asking_what_is_there_works_without_any_runtime() -> None:
    """On a machine that has nothing installed each reason names what to install."""
    script = (
        "import sys\n"
        "for name in ('onnxruntime', 'openvino', 'tensorrt'): sys.modules[name] = None\n"
        "from bowerbird_models.runtimes import available\n"
        "for one in available(): print(one.usable, 'install' in one.reason)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split("\n")[:-1] == ["False True"] * len(RUNTIMES)
