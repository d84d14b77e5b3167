"""ONNX Runtime: a network on its CPU, XNNPACK, CUDA or TensorRT provider; and the detector that is the reference everywhere.

In: the bytes of one ONNX file. Out: a session; for `OnnxDetector` from a path, read once, hashed, checked and loaded from those same
bytes. What was asked for runs it or an error says why not: there is no way from an accelerator back to the processor. Pictures and
boxes are `yolo.py`'s work.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bowerbird_models.errors import AcceleratorMissing, NotAModel, RuntimeMissing
from bowerbird_models.model_file import ModelFile, naming
from bowerbird_models.onnx_providers import PROVIDERS
from bowerbird_models.runtime_options import ONNXRUNTIME_TENSORRT, RuntimeOptions
from bowerbird_models.session import TensorSpec
from bowerbird_models.yolo import YoloDetector, first_line

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from bowerbird_models.session import Run

logger = logging.getLogger(__name__)

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}
_CPU = RuntimeOptions()


class OnnxDetector(YoloDetector):
    """A YOLO on ONNX Runtime's CPU provider.

    Args:
        path: a YOLO of any task exported by Ultralytics, fixed or dynamic size, float32, float16 or uint8 pictures. Outputs named
            "embedding", (1, d), and "loc_entropy", (1, anchors), are passed on with the detections.
        threads: ONNX Runtime's threads; more than one never spins while idle, so that a shared machine stays usable.

    Raises:
        NotAModel: missing, empty, damaged, or not a YOLO.
        UnsupportedModel: another task, an old head, a batch, or weights outside the file.
        RuntimeMissing: onnxruntime or OpenCV is not installed.
        ValueError: threads is below 1.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        options = RuntimeOptions(threads=threads)
        file = ModelFile.read(path)
        with naming(path):
            session = OnnxSession(file.content, options)
            super().__init__(session, file.metadata(), file.digest)


class OnnxSession:
    """A network on ONNX Runtime; implements `Session`.

    Args:
        content: a whole ONNX file.
        options: which execution provider, and how it is used.

    Raises:
        NotAModel: ONNX Runtime cannot load it.
        RuntimeMissing: onnxruntime is not installed.
        AcceleratorMissing: the provider is not in this build, found no device, or would leave nodes to the processor.
    """

    def __init__(self, content: bytes, options: RuntimeOptions = _CPU) -> None:
        self._session: Any = _start_session(content, options)
        self.runtime = f"{options.runtime} {import_onnxruntime().__version__}"
        self.inputs = tuple(map(_spec, self._session.get_inputs()))
        self.outputs = tuple(map(_spec, self._session.get_outputs()))

    def bind(self, tensor: NDArray[Any], outputs: Sequence[str], *, fixed: bool) -> Run:
        """As `Session.bind`; fixed buffers are bound after the first run has shown their shapes."""
        session, names, feed = self._session, list(outputs), {self.inputs[0].name: tensor}
        binding: Any = None
        buffers: list[NDArray[Any]] = []

        def run() -> list[NDArray[Any]]:
            nonlocal binding, buffers
            if binding is not None:
                session.run_with_iobinding(binding)
                return buffers
            found: list[NDArray[Any]] = session.run(names, feed)
            if fixed:
                buffers = [np.empty_like(output, order="C") for output in found]
                bound = session.io_binding()
                bound.bind_cpu_input(self.inputs[0].name, tensor)
                for name, buffer in zip(names, buffers, strict=True):
                    bound.bind_output(name, "cpu", 0, buffer.dtype.type, buffer.shape, buffer.ctypes.data)
                binding = bound
            return found

        return run

    def close(self) -> None:
        """As `Session.close`; functions that `bind` returned must not be called any more."""
        self._session = None


def _spec(value: Any) -> TensorSpec:
    shape = tuple(side if isinstance(side, int) else None for side in value.shape)
    return TensorSpec(value.name, _DTYPES.get(value.type, value.type), shape)


def session_options(options: RuntimeOptions) -> Any:
    """ONNX Runtime's `SessionOptions` for what was asked."""
    onnxruntime, provider = import_onnxruntime(), PROVIDERS[options.runtime]
    told = onnxruntime.SessionOptions()
    told.intra_op_num_threads = 1 if provider.own_threads else options.threads
    told.inter_op_num_threads = 1
    told.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    spinning = options.spinning and not provider.own_threads
    told.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    told.add_session_config_entry("session.inter_op.allow_spinning", "0")
    told.add_session_config_entry("session.disable_cpu_ep_fallback", "1" if provider.accelerator else "0")
    told.log_severity_level = 4  # what goes wrong arrives as an exception, with a message of ours
    return told


def _start_session(content: bytes, options: RuntimeOptions) -> Any:
    onnxruntime, provider = import_onnxruntime(), PROVIDERS[options.runtime]
    # A provider that is not in the build is dropped by ONNX Runtime with a warning: look first, and look again afterwards.
    if provider.name not in onnxruntime.get_available_providers():
        raise AcceleratorMissing(
            f"ONNX Runtime {onnxruntime.__version__} here was built without {provider.name}, which {options.runtime} needs; "
            f"{provider.install}"
        )
    if options.engine_dir is not None and options.runtime == ONNXRUNTIME_TENSORRT:
        options = replace(options, engine_dir=_engine_folder(content, options, options.engine_dir))
    names = [provider.name, *provider.beside]
    providers: list[Any] = [(provider.name, dict(provider.options(options))), *provider.beside]
    try:
        session = onnxruntime.InferenceSession(
            content, sess_options=session_options(options), providers=providers, enable_fallback=False
        )
    except Exception as error:  # onnxruntime's exceptions share no base below Exception
        logger.debug("onnxruntime refused a model: %s", error)
        if provider.accelerator:
            raise AcceleratorMissing(
                f"{options.runtime} cannot run the whole model here ({first_line(error)}); check the GPU and its driver with "
                "`bowerbird-agent doctor`, export the model with a fixed size, or choose another runtime"
            ) from error
        raise NotAModel(
            f"ONNX Runtime {onnxruntime.__version__} cannot load it ({first_line(error)}); export it again, with "
            "an opset that this version knows, or update onnxruntime"
        ) from error
    missing = set(names) - set(session.get_providers())
    if missing:
        raise AcceleratorMissing(
            f"ONNX Runtime {onnxruntime.__version__} left out {', '.join(sorted(missing))} and would have used "
            f"{', '.join(session.get_providers())}; install the libraries it needs (see docs/runtimes.md) or choose another runtime"
        )
    return session


def _engine_folder(content: bytes, options: RuntimeOptions, engine_dir: Path) -> Path:
    """The folder for the engines of this very file on this GPU and this software."""
    from bowerbird_models.cuda import CudaError, find_gpu
    from bowerbird_models.engines import provider_folder

    try:
        gpu = find_gpu()
    except CudaError as error:
        raise AcceleratorMissing(f"{options.runtime} needs an NVIDIA GPU: {error}; choose another runtime") from error
    digest = hashlib.sha256(content).hexdigest()
    version = str(import_onnxruntime().__version__)
    return provider_folder(engine_dir, digest, options.precision, version, gpu.name, gpu.compute_capability, gpu.driver)


def import_onnxruntime() -> Any:
    """The module `onnxruntime`.

    Raises:
        RuntimeMissing: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeMissing("onnxruntime is not installed; pip install 'bowerbird[agent]'") from error
    return onnxruntime
