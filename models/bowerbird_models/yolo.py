"""A YOLO on any runtime: from a BGR frame to `Detections`. Everything that is the same whatever runs the network.

In: a `Session` and what the file says of itself. Out: `Detections`. Input buffers are laid out once per network size and reused;
beside the network there is only a resize, a normalisation, one pass over the scores and the suppression of overlaps. It opens no
file, knows no runtime, needs no torch, and does not track objects between frames.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bowerbird_models.decode import HeadLayout, decode_end_to_end, decode_raw, head_layout
from bowerbird_models.detections import Detections
from bowerbird_models.errors import ModelOutputError, UnsupportedModel
from bowerbird_models.letterbox import smallest_rectangle
from bowerbird_models.metadata import MAX_SIDE_PX, ModelMetadata

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray
    from typing_extensions import Self

    from bowerbird_models.network_input import NetworkInput
    from bowerbird_models.session import Run, Session

EMBEDDING_OUTPUT = "embedding"
MAX_NETWORK_SIZES = 4  # a camera has one; a folder of pictures has many, and each costs its buffers
_DTYPES = ("float32", "float16")


@dataclass
class _Bound:
    """One network size: the input that the session reads, and how to run it."""

    network_input: NetworkInput
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
        inputs, outputs = session.inputs, session.outputs
        if len(inputs) != 1 or inputs[0].dtype not in _DTYPES or len(inputs[0].shape) != 4:
            seen = ", ".join(map(str, inputs))
            raise UnsupportedModel(f"the model takes {seen}; expected one float32 or float16 picture (1, 3, H, W)")
        batch, channels, height, width = inputs[0].shape
        if batch not in {None, 1} or channels not in {None, 3}:
            raise UnsupportedModel(
                f"the model takes {inputs[0]}; expected batch 1 and 3 colour channels, export it again with batch=1"
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
        if len(heads) != 1 or heads[0].dtype not in _DTYPES:
            seen = ", ".join(map(str, outputs))
            raise UnsupportedModel(
                f"the model emits {seen}; expected one detection head and at most one {EMBEDDING_OUTPUT!r}. Export a "
                "detection model"
            )
        self._metadata = metadata
        self._image_size_hw = size_hw
        self._dynamic = dynamic
        self._dtype = np.dtype(inputs[0].dtype)
        self._output_names = [heads[0].name] + [output.name for output in outputs if output.name == EMBEDDING_OUTPUT]
        # A declared shape that cannot be a head is refused now; one with unknown sizes is settled by the first real output.
        self._layout = head_layout(heads[0].shape, len(metadata.class_names), end2end=metadata.end2end)
        self._layout_is_known = all(side is not None for side in heads[0].shape[1:])

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
        return self._runtime

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
        bound = self._bound_for((image_bgr.shape[0], image_bgr.shape[1]))
        letterbox = bound.network_input.fill(image_bgr)
        try:
            outputs = bound.run()
        except Exception as error:  # the runtimes' exceptions share no base below Exception
            raise ModelOutputError(
                f"the model {self._file_digest[:12]} failed while running ({first_line(error)}); do not use this file, "
                "export it again"
            ) from error
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
            from bowerbird_models.network_input import NetworkInput

            network_input = NetworkInput(network_hw, self._dtype)
            # A raw head's size depends on nothing but the input's: its buffers can stay.
            fixed = self._layout is HeadLayout.RAW and self._layout_is_known
            bound = _Bound(network_input, self._session.bind(network_input.tensor, self._output_names, fixed=fixed))
            self._bound[network_hw] = bound
            if len(self._bound) > MAX_NETWORK_SIZES:
                self._bound.popitem(last=False)
        elif self._dynamic:
            self._bound.move_to_end(network_hw)
        return bound

    def _settle_layout(self, shape: tuple[int, ...]) -> None:
        try:
            self._layout = head_layout(shape, len(self._metadata.class_names), end2end=self._metadata.end2end)
        except UnsupportedModel as error:
            raise ModelOutputError(f"the model {self._file_digest[:12]} ran, but {error}") from error
        self._layout_is_known = True
        self._bound.clear()  # bound before the layout was known; from now on buffers may be kept


def first_line(error: Exception) -> str:
    """What a runtime's exception says, short enough for a message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _embedding(output: NDArray[Any]) -> NDArray[np.float32]:
    embedding = output.astype(np.float32).reshape(-1)
    if not np.isfinite(embedding).all():
        raise ModelOutputError("the model's embedding holds NaN or infinity; do not use this file, export it again")
    return embedding
