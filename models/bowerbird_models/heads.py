"""Which head a model has, by what its metadata and its outputs say.

In: `ModelMetadata` and the specifications of a network's outputs. Out: the `Head` that reads them, or an error that says what the model
looks like. Shapes that the file leaves open are settled by the first real output (`settle`). It reads no numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bowerbird_models.decode import HeadLayout, head_layout
from bowerbird_models.errors import UnsupportedModel
from bowerbird_models.head_classify import ClassifyHead
from bowerbird_models.head_detect import DetectHead
from bowerbird_models.head_obb import ObbHead
from bowerbird_models.head_pose import PoseHead
from bowerbird_models.head_segment import SegmentHead
from bowerbird_models.session import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from bowerbird_models.head import Head
    from bowerbird_models.metadata import ModelMetadata

EMBEDDING_OUTPUT = "embedding"
LOC_ENTROPY_OUTPUT = "loc_entropy"
FLOATS = ("float32", "float16")


def choose_head(metadata: ModelMetadata, outputs: Sequence[TensorSpec]) -> Head:
    """The head for these outputs.

    Args:
        metadata: what the file says.
        outputs: everything that the network emits; those for curation are passed over.

    Raises:
        UnsupportedModel: other outputs than the task's, or shapes that do not fit the class names.
    """
    heads = [output for output in outputs if output.name not in {EMBEDDING_OUTPUT, LOC_ENTROPY_OUTPUT}]
    expected = 2 if metadata.task == "segment" else 1
    if len(heads) != expected or any(output.dtype not in FLOATS for output in heads):
        seen = ", ".join(map(str, outputs))
        raise UnsupportedModel(
            f"the model emits {seen}; expected {expected} output{'s' * (expected > 1)} of a {metadata.task} model, and beside it at "
            f"most {EMBEDDING_OUTPUT!r} and {LOC_ENTROPY_OUTPUT!r}. Export a {metadata.task} model with Ultralytics"
        )
    names = tuple(output.name for output in heads)
    known = all(side is not None for output in heads for side in output.shape[1:])
    class_count = len(metadata.class_names)
    if metadata.task == "classify":
        shape = heads[0].shape
        if len(shape) != 2 or shape[0] not in {None, 1} or shape[1] not in {None, class_count}:
            raise UnsupportedModel(
                f"the output {heads[0]} does not fit {class_count} classes: expected (1, {class_count}); export the model again"
            )
        return ClassifyHead(names, True, class_count)
    if metadata.keypoint_shape is not None:
        count, values = metadata.keypoint_shape
        layout = head_layout(heads[0].shape, class_count, end2end=metadata.end2end, extra_count=count * values)
        return PoseHead(layout, names, known, class_count, metadata.keypoint_shape)
    if metadata.task == "obb":
        layout = head_layout(heads[0].shape, class_count, end2end=metadata.end2end, extra_count=1)
        return ObbHead(layout, names, known, class_count)
    if metadata.task == "segment":
        heads.sort(key=lambda output: len(output.shape))
        boxes, prototypes = heads
        if len(prototypes.shape) != 4:
            raise UnsupportedModel(
                f"the model emits {boxes} and {prototypes}, neither of which is a (1, masks, height, width) of prototypes; export a "
                "segment model with Ultralytics"
            )
        mask_count = prototypes.shape[1]
        layout = head_layout(boxes.shape, class_count, end2end=metadata.end2end, extra_count=mask_count)
        return SegmentHead(layout, (boxes.name, prototypes.name), known, class_count, mask_count or 0)
    layout = head_layout(heads[0].shape, class_count, end2end=metadata.end2end)
    return DetectHead(layout, names, known, class_count)


def settle(head: Head, metadata: ModelMetadata, outputs: Sequence[NDArray[Any]]) -> Head:
    """The head for the shapes that a first run has shown.

    Args:
        head: the one chosen from declared shapes.
        metadata: what the file says.
        outputs: the arrays, in the order of `head.output_names`.

    Raises:
        UnsupportedModel: they do not fit.
    """
    shapes = zip(head.output_names, outputs, strict=True)
    return choose_head(metadata, [TensorSpec(name, "float32", output.shape) for name, output in shapes])


__all__ = ["EMBEDDING_OUTPUT", "FLOATS", "LOC_ENTROPY_OUTPUT", "HeadLayout", "choose_head", "settle"]
