"""A YOLO on any runtime: from a BGR frame to `Detections`. Everything that is the same whatever runs the network.

In: a `Session` and what the file says of itself. Out: `Detections`. Input buffers are laid out once per network size and reused;
beside the network there is only a resize, a normalisation and what the task's head does (`heads.py`). It opens no file, knows no
runtime and no task, needs no torch, and does not track objects between frames.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bowerbird_models.decode import HeadLayout
from bowerbird_models.errors import ModelOutputError, UnsupportedModel
from bowerbird_models.head import NetworkOutputs
from bowerbird_models.heads import EMBEDDING_OUTPUT, FLOATS, LOC_ENTROPY_OUTPUT, choose_head, settle
from bowerbird_models.letterbox import smallest_rectangle
from bowerbird_models.metadata import MAX_SIDE_PX, ModelMetadata

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray
    from typing_extensions import Self

    from bowerbird_models.detections import Detections
    from bowerbird_models.head import Head
    from bowerbird_models.network_input import InputBuffer
    from bowerbird_models.session import Run, Session, TensorSpec

MAX_NETWORK_SIZES = 4  # a camera has one; a folder of pictures has many, and each costs its buffers


@dataclass
class _Bound:
    """One network size: the input that the session reads, and how to run it."""

    network_input: InputBuffer
    run: Run


class YoloDetector:
    """A loaded model; implements `Detector`. Not thread-safe: one thread owns it.

    Args:
        session: the network; closed with the detector.
        metadata: what the file says about itself.
        file_digest: SHA-256 of the file, 64 hex digits.

    Raises:
        UnsupportedModel: inputs or outputs are not those of a detector that runs here.
    """

    def __init__(self, session: Session, metadata: ModelMetadata, file_digest: str) -> None:
        self._file_digest = file_digest
        self._session: Session | None = session
        self._runtime = session.runtime
        self._inspect(session, metadata)
        self._bound: OrderedDict[tuple[int, int], _Bound] = OrderedDict()

    def _inspect(self, session: Session, metadata: ModelMetadata) -> None:
        """Check the graph's inputs and outputs against the metadata and remember what `detect` needs."""
        size_hw = _input_size(session.inputs, metadata)
        declared = metadata.image_size_hw
        if size_hw is None and declared is None:
            raise UnsupportedModel(
                "the model takes pictures of any size and its metadata names none (imgsz); export it again with Ultralytics"
            )
        self._image_size_hw = size_hw or declared or (0, 0)
        if not 1 <= min(self._image_size_hw) <= max(self._image_size_hw) <= MAX_SIDE_PX:
            raise UnsupportedModel(
                f"the model takes pictures of {self._image_size_hw}; sides up to {MAX_SIDE_PX} pixels run here"
            )
        self._metadata = metadata
        # A classifier of free size is run at the size of its training: it cuts out the middle and pads nothing.
        self._dynamic = size_hw is None and metadata.task != "classify"
        self._dtype = np.dtype(session.inputs[0].dtype)
        # Declared shapes that cannot be a head are refused now; unknown sizes are settled by the first real output.
        self._head: Head = choose_head(metadata, session.outputs)
        present = {output.name for output in session.outputs}
        self._curation = tuple(name for name in (EMBEDDING_OUTPUT, LOC_ENTROPY_OUTPUT) if name in present)

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
        """How the head lays out what it found."""
        return self._head.layout

    @property
    def task(self) -> str:
        """What the model was trained for: detect, segment, pose, obb or classify."""
        return self._metadata.task

    @property
    def runtime(self) -> str:
        """Name and version of what runs the model, for reports."""
        return self._runtime

    def detect(self, image_bgr: NDArray[np.uint8], *, confidence: float = 0.05, iou: float = 0.7) -> Detections:
        """Detections in one frame, most confident first, at most 300; of a classifier one, whatever its score.

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
        bound = self._bound_for((image_bgr.shape[0], image_bgr.shape[1]))
        letterbox = bound.network_input.fill(image_bgr)
        try:
            outputs = bound.run()
        except Exception as error:  # the runtimes' exceptions share no base below Exception
            raise ModelOutputError(
                f"the model {self._file_digest[:12]} failed while running ({first_line(error)}); do not use this file, "
                "export it again"
            ) from error
        head_outputs = outputs[: len(self._head.output_names)]
        if not self._head.is_settled:
            self._settle_head(head_outputs)
        curation = zip(self._curation, outputs[len(head_outputs) :], strict=True) if self._curation else ()
        emitted = NetworkOutputs(head_outputs, **dict(curation))
        return self._head.read(emitted, letterbox, confidence=confidence, iou=iou)

    def new_input(self) -> InputBuffer:
        """A second input like the one that `detect` fills, to measure what filling it takes."""
        return self._new_input(self._image_size_hw)

    def close(self) -> None:
        """Free the session and its memory; calling it again does nothing."""
        self._bound.clear()
        if self._session is not None:
            self._session.close()
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _bound_for(self, source_hw: tuple[int, int]) -> _Bound:
        if self._session is None:
            raise ValueError("the detector is closed; load the model again")
        network_hw = self._image_size_hw
        if self._dynamic:
            network_hw = smallest_rectangle(source_hw, self._image_size_hw, self._metadata.stride)
        bound = self._bound.get(network_hw)
        if bound is None:
            network_input = self._new_input(network_hw)
            # End-to-end heads may leave their number of rows open; all others' sizes depend on nothing but the input's: buffers stay.
            fixed = self._head.layout is not HeadLayout.END_TO_END and self._head.is_settled
            names = [*self._head.output_names, *self._curation]
            bound = _Bound(network_input, self._session.bind(network_input.tensor, names, fixed=fixed))
            self._bound[network_hw] = bound
            if len(self._bound) > MAX_NETWORK_SIZES:
                self._bound.popitem(last=False)
        elif self._dynamic:
            self._bound.move_to_end(network_hw)
        return bound

    def _new_input(self, network_hw: tuple[int, int]) -> InputBuffer:
        if self._metadata.task == "classify":
            from bowerbird_models.classifier_input import ClassifierInput

            return ClassifierInput(network_hw, self._dtype)
        from bowerbird_models.network_input import NetworkInput, PictureInput

        return PictureInput(network_hw) if self._dtype == np.uint8 else NetworkInput(network_hw, self._dtype)

    def _settle_head(self, outputs: list[NDArray[Any]]) -> None:
        try:
            self._head = settle(self._head, self._metadata, outputs)
        except UnsupportedModel as error:
            raise ModelOutputError(f"the model {self._file_digest[:12]} ran, but {error}") from error
        self._bound.clear()  # bound before the layout was known; from now on buffers may be kept


def _input_size(inputs: tuple[TensorSpec, ...], metadata: ModelMetadata) -> tuple[int, int] | None:
    """Height and width that the graph takes; None where it leaves them open.

    Raises:
        UnsupportedModel: not one picture of three colours.
    """
    seen = ", ".join(map(str, inputs))
    takes_pictures = metadata.task != "classify"  # they are cut out in floats, never letterboxed in bytes
    dtypes = (*FLOATS, "uint8") if takes_pictures else FLOATS
    if len(inputs) != 1 or inputs[0].dtype not in dtypes or len(inputs[0].shape) != 4:
        raise UnsupportedModel(
            f"the model takes {seen}; expected one float32 or float16 picture (1, 3, H, W)"
            + (" or one uint8 picture (1, H, W, 3)" if takes_pictures else "")
        )
    if inputs[0].dtype == "uint8":
        batch, height, width, channels = inputs[0].shape
    else:
        batch, channels, height, width = inputs[0].shape
    if batch not in {None, 1} or channels not in {None, 3}:
        raise UnsupportedModel(f"the model takes {seen}; expected batch 1 and 3 colour channels, export it again with batch=1")
    return None if height is None or width is None else (height, width)


def first_line(error: Exception) -> str:
    """What a runtime's exception says, short enough for a message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
