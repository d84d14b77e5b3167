"""A YOLO in ONNX form on ONNX Runtime's CPU provider: the reference runtime of device and gate.

In: the path of one ONNX file, then BGR frames. Out: `Detections`. The file is read once, hashed, checked and loaded from those
same bytes. Input and output buffers are bound once per network size and reused; beside `session.run` there is only a resize,
a normalisation, one pass over the scores and the suppression of overlaps. It builds no engine, needs no torch, and does
not track objects between frames. Other runtimes get a file each.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bowerbird_models.decode import HeadLayout, decode_end_to_end, decode_raw, head_layout
from bowerbird_models.detections import Detections
from bowerbird_models.errors import (
    ModelOutputError,
    NotAModel,
    RuntimeMissing,
    UnsupportedModel,
)
from bowerbird_models.letterbox import smallest_rectangle
from bowerbird_models.metadata import MAX_SIDE_PX, ModelMetadata, parse_metadata
from bowerbird_models.onnx_file import MAX_FILE_BYTES, check_self_contained

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

    from bowerbird_models.network_input import NetworkInput

logger = logging.getLogger(__name__)

EMBEDDING_OUTPUT = "embedding"
MAX_NETWORK_SIZES = 4  # a camera has one; a folder of pictures has many, and each costs its buffers
_DTYPES: dict[str, np.dtype[Any]] = {"tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16)}


@dataclass
class _Bound:
    """One network size: the input that the session reads and, after the first run, the buffers that it writes."""

    network_input: NetworkInput
    binding: Any = None
    outputs: list[NDArray[Any]] | None = None


class OnnxDetector:
    """A loaded ONNX model; implements `Detector`. Not thread-safe: one thread owns it.

    Args:
        path: a YOLO detection model exported by Ultralytics, fixed or dynamic size, float32 or float16. An output named
            "embedding" of shape (1, d) is passed on as `Detections.embedding`.
        threads: ONNX Runtime's threads; more than one never spins while idle, so that a shared machine stays usable.

    Raises:
        NotAModel: missing, empty, damaged, or not a YOLO.
        UnsupportedModel: another task, an old head, a batch, or weights outside the file.
        RuntimeMissing: onnxruntime or OpenCV is not installed.
        ValueError: threads is below 1.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        if threads < 1:
            raise ValueError(f"threads is {threads}, must be 1 or more")
        content = _read(path)
        self._file_digest = hashlib.sha256(content).hexdigest()
        self._session: Any = None
        try:
            check_self_contained(content)
            self._session = _start_session(content, threads)
            self._inspect(parse_metadata(self._session.get_modelmeta().custom_metadata_map))
        except (NotAModel, UnsupportedModel) as error:
            raise type(error)(f"{path}: {error}") from error
        self._bound: OrderedDict[tuple[int, int], _Bound] = OrderedDict()

    def _inspect(self, metadata: ModelMetadata) -> None:
        """Check the graph's inputs and outputs against the metadata and remember what `detect` needs."""
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or inputs[0].type not in _DTYPES or len(inputs[0].shape) != 4:
            seen = ", ".join(f"{each.name} {each.type}{each.shape}" for each in inputs)
            raise UnsupportedModel(f"the model takes {seen}; expected one float32 or float16 picture (1, 3, H, W)")
        batch, channels, height, width = (size if isinstance(size, int) else None for size in inputs[0].shape)
        if batch not in {None, 1} or channels not in {None, 3}:
            raise UnsupportedModel(
                f"the model takes {inputs[0].shape}; expected batch 1 and 3 colour channels, export it again with batch=1"
            )
        declared = metadata.image_size_hw
        if height is not None and width is not None:
            size_hw, dynamic = (height, width), False
        elif declared is not None:
            size_hw, dynamic = declared, True
        else:
            raise UnsupportedModel(
                "the model takes pictures of any size and its metadata names none (imgsz); export it again with Ultralytics"
            )
        if not 1 <= min(size_hw) <= max(size_hw) <= MAX_SIDE_PX:
            raise UnsupportedModel(f"the model takes pictures of {size_hw}; sides up to {MAX_SIDE_PX} pixels run here")
        heads = [output for output in outputs if output.name != EMBEDDING_OUTPUT]
        if len(heads) != 1 or heads[0].type not in _DTYPES:
            seen = ", ".join(f"{each.name} {each.type}{each.shape}" for each in outputs)
            raise UnsupportedModel(
                f"the model emits {seen}; expected one detection head and at most one {EMBEDDING_OUTPUT!r}. Export a "
                "detection model"
            )
        self._metadata = metadata
        self._image_size_hw = size_hw
        self._dynamic = dynamic
        self._dtype = _DTYPES[inputs[0].type]
        self._input_name: str = inputs[0].name
        self._output_names = [heads[0].name] + [output.name for output in outputs if output.name == EMBEDDING_OUTPUT]
        # A declared shape that cannot be a head is refused now; one with unknown sizes is settled by the first real output.
        self._layout = head_layout(heads[0].shape, len(metadata.class_names), end2end=metadata.end2end)
        self._layout_is_known = all(isinstance(size, int) for size in heads[0].shape[1:])

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class id."""
        return self._metadata.class_names

    @property
    def file_digest(self) -> str:
        """SHA-256 of the loaded bytes, 64 hex digits."""
        return self._file_digest

    @property
    def image_size_hw(self) -> tuple[int, int]:
        """Height and width of the network input; for a model of free size the largest that is used."""
        return self._image_size_hw

    @property
    def layout(self) -> HeadLayout:
        """Raw head or end to end."""
        return self._layout

    @property
    def runtime(self) -> str:
        """Name and version of what runs the model, for reports."""
        return f"onnxruntime-cpu {_onnxruntime().__version__}"

    def detect(self, image_bgr: NDArray[np.uint8], *, confidence: float = 0.05, iou: float = 0.7) -> Detections:
        """Detections in one frame, most confident first, at most 300.

        Args:
            image_bgr: (H, W, 3) uint8.
            confidence: lowest score kept, in [0, 1].
            iou: overlap in [0, 1] above which the weaker box of one class is dropped (raw heads only).

        Raises:
            ModelOutputError: the model failed, emitted NaN or infinity, or a shape that its metadata does not explain.
            ValueError: the frame is not (H, W, 3) uint8, or the detector is closed.
        """
        if image_bgr.ndim != 3 or image_bgr.shape[2] != 3 or image_bgr.dtype != np.uint8 or 0 in image_bgr.shape:
            raise ValueError(f"a frame of {image_bgr.shape} {image_bgr.dtype} cannot be detected on; expected (H, W, 3) uint8")
        if self._session is None:
            raise ValueError("the detector is closed; load the model again")
        bound = self._bound_for((image_bgr.shape[0], image_bgr.shape[1]))
        letterbox = bound.network_input.fill(image_bgr)
        outputs = self._run(bound)
        if not self._layout_is_known:
            self._settle_layout(outputs[0].shape)

        from bowerbird_models.nms import MAX_DETECTIONS, suppress

        class_count = len(self._metadata.class_names)
        if self._layout is HeadLayout.RAW:
            candidates = decode_raw(outputs[0], class_count, confidence)
            rows = suppress(candidates, iou)
        else:
            candidates = decode_end_to_end(outputs[0], class_count, confidence)
            rows = np.arange(min(len(candidates.scores), MAX_DETECTIONS))
        kept = candidates.take(rows)
        return Detections(
            letterbox.to_source(kept.boxes_xyxy),
            kept.scores,
            kept.class_ids,
            class_scores=kept.class_scores,
            embedding=_embedding(outputs[1]) if len(outputs) > 1 else None,
        )

    def close(self) -> None:
        """Free the session and its memory; calling it again does nothing."""
        self._bound.clear()
        self._session = None

    def __enter__(self) -> OnnxDetector:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _bound_for(self, source_hw: tuple[int, int]) -> _Bound:
        network_hw = self._image_size_hw
        if self._dynamic:
            network_hw = smallest_rectangle(source_hw, self._image_size_hw, self._metadata.stride)
        bound = self._bound.get(network_hw)
        if bound is None:
            from bowerbird_models.network_input import NetworkInput

            bound = _Bound(NetworkInput(network_hw, self._dtype))
            self._bound[network_hw] = bound
            if len(self._bound) > MAX_NETWORK_SIZES:
                self._bound.popitem(last=False)
        elif self._dynamic:
            self._bound.move_to_end(network_hw)
        return bound

    def _run(self, bound: _Bound) -> list[NDArray[Any]]:
        tensor = bound.network_input.tensor
        try:
            if bound.outputs is not None:
                self._session.run_with_iobinding(bound.binding)
                return bound.outputs
            outputs: list[NDArray[Any]] = self._session.run(self._output_names, {self._input_name: tensor})
        except Exception as error:  # onnxruntime's exceptions share no base below Exception
            raise ModelOutputError(
                f"the model {self._file_digest[:12]} failed while running ({_first_line(error)}); do not use this file, "
                "export it again"
            ) from error
        if self._layout is HeadLayout.RAW and self._layout_is_known:
            self._bind(bound, outputs)
        return outputs

    def _bind(self, bound: _Bound, outputs: list[NDArray[Any]]) -> None:
        """Let later runs of this size read and write fixed buffers: a raw head's size depends on nothing else."""
        bound.binding = self._session.io_binding()
        bound.binding.bind_cpu_input(self._input_name, bound.network_input.tensor)
        bound.outputs = [np.empty_like(output, order="C") for output in outputs]
        for name, buffer in zip(self._output_names, bound.outputs, strict=True):
            bound.binding.bind_output(name, "cpu", 0, buffer.dtype.type, buffer.shape, buffer.ctypes.data)

    def _settle_layout(self, shape: tuple[int, ...]) -> None:
        try:
            self._layout = head_layout(shape, len(self._metadata.class_names), end2end=self._metadata.end2end)
        except UnsupportedModel as error:
            raise ModelOutputError(f"the model {self._file_digest[:12]} ran, but {error}") from error
        self._layout_is_known = True


def _embedding(output: NDArray[Any]) -> NDArray[np.float32]:
    embedding = output.astype(np.float32).reshape(-1)
    if not np.isfinite(embedding).all():
        raise ModelOutputError("the model's embedding holds NaN or infinity; do not use this file, export it again")
    return embedding


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise NotAModel(f"cannot read the model {path} ({error.strerror or error}); check the path") from error


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
            f"ONNX Runtime {onnxruntime.__version__} cannot load it ({_first_line(error)}); export it again, with "
            "an opset that this version knows, or update onnxruntime"
        ) from error


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeMissing("onnxruntime is not installed; pip install 'bowerbird[agent]'") from error
    return onnxruntime


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
