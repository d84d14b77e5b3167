"""A YOLO in ONNX form on ONNX Runtime: the reference runtime of device and gate.

In: the path of one ONNX file. Out: a detector. The file is read once, hashed, checked and loaded from those same bytes. It builds no
engine; pictures and boxes are `yolo.py`'s work.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from bowerbird_models.errors import NotAModel, RuntimeMissing
from bowerbird_models.model_file import ModelFile, naming
from bowerbird_models.session import TensorSpec
from bowerbird_models.yolo import YoloDetector, first_line

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from bowerbird_models.session import Run

logger = logging.getLogger(__name__)

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}


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
        file = ModelFile.read(path)
        with naming(path):
            session = OnnxSession(file.content, threads=threads)
            super().__init__(session, file.metadata(), file.digest)


class OnnxSession:
    """A network on ONNX Runtime; implements `Session`.

    Args:
        content: a whole ONNX file.
        threads: as `OnnxDetector`.

    Raises:
        NotAModel: ONNX Runtime cannot load it.
        RuntimeMissing: onnxruntime is not installed.
        ValueError: threads is below 1.
    """

    def __init__(self, content: bytes, *, threads: int = 1) -> None:
        if threads < 1:
            raise ValueError(f"threads is {threads}, must be 1 or more")
        self._session: Any = _start_session(content, threads)
        self.runtime = f"onnxruntime-cpu {_onnxruntime().__version__}"
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


def _start_session(content: bytes, threads: int) -> Any:
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 4  # what goes wrong arrives as an exception, with a message of ours
    try:
        return onnxruntime.InferenceSession(content, sess_options=options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base below Exception
        logger.debug("onnxruntime refused a model: %s", error)
        raise NotAModel(
            f"ONNX Runtime {onnxruntime.__version__} cannot load it ({first_line(error)}); export it again, with "
            "an opset that this version knows, or update onnxruntime"
        ) from error


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeMissing("onnxruntime is not installed; pip install 'bowerbird[agent]'") from error
    return onnxruntime
