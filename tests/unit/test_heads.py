"""Each task's head on handmade tensors, and nonsense becomes an error."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bowerbird_models.decode import HeadLayout
from bowerbird_models.detections import Detections
from bowerbird_models.errors import ModelError, ModelOutputError, UnsupportedModel
from bowerbird_models.head import NetworkOutputs
from bowerbird_models.heads import choose_head, settle
from bowerbird_models.letterbox import Letterbox, fit
from bowerbird_models.metadata import ModelMetadata
from bowerbird_models.session import TensorSpec

LETTERBOX = fit((120, 200), (160, 160))  # at 0.8, 32 rows of gray above
TASKS = ("detect", "segment", "pose", "obb", "classify")
EXTRA = {"detect": 0, "segment": 2, "pose": 6, "obb": 1}


def metadata(task: str, *, end2end: bool = False, values: int = 3) -> ModelMetadata:
    """Two classes, two keypoints."""
    return ModelMetadata(("owl", "fox"), 32, (160, 160), end2end, task, (2, values) if task == "pose" else None)


def specs(*shapes: tuple[int | None, ...], dtype: str = "float32") -> list[TensorSpec]:
    """Outputs of a network, in Ultralytics' order and under its names."""
    return [TensorSpec(f"output{number}", dtype, shape) for number, shape in enumerate(shapes)]


def read(
    about: ModelMetadata,
    *outputs: NDArray[np.float32],
    confidence: float = 0.05,
    letterbox: Letterbox = LETTERBOX,
    loc_entropy: NDArray[np.float32] | None = None,
) -> Detections:
    """What the head makes of these arrays."""
    head = choose_head(about, specs(*(output.shape for output in outputs)))
    by_name = {f"output{number}": output for number, output in enumerate(outputs)}
    emitted = NetworkOutputs([by_name[name] for name in head.output_names], loc_entropy=loc_entropy)
    return head.read(emitted, letterbox, confidence=confidence, iou=0.7)


def raw(rows: list[list[float]], dtype: type[np.floating] = np.float32) -> NDArray[np.float32]:
    """One anchor a row."""
    return np.array(rows, dtype).T[None]


def prototypes(dtype: type[np.floating] = np.float32) -> NDArray[np.float32]:
    """Two: positive on the left half of the network input, positive everywhere."""
    planes = np.ones((1, 2, 40, 40), dtype)
    planes[0, 0, :, 20:] = -1
    return planes


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_segments_have_masks_in_source_pixels(dtype: type[np.floating]) -> None:
    """And a box whose mask is empty is none; the order of the outputs does not matter."""
    head = raw([[80, 80, 80, 80, 0.5, 0.1, 1, 0], [110, 80, 20, 80, 0.1, 0.6, 1, 0], [80, 80, 80, 80, 0.1, 0.9, 0, 1]], dtype)
    for outputs in ((head, prototypes(dtype)), (prototypes(dtype), head)):
        found = read(metadata("segment"), *outputs)
        assert found.class_ids.tolist() == [1, 0]
        assert found.masks is not None
        whole, left = found.masks.bitmaps()
        assert whole[10:110, 50:150].all()
        assert whole.sum() == 100 * 100
        assert left[10:110, 50:100].all()
        assert left.sum() == 100 * 50


def test_masks_outlive_the_buffers_of_the_network() -> None:
    """The next frame overwrites them."""
    planes = prototypes()
    found = read(metadata("segment"), raw([[80, 80, 80, 80, 0.1, 0.9, 0, 1]]), planes)
    planes[:] = -1
    assert found.masks is not None
    assert found.masks.bitmaps().any()


@pytest.mark.parametrize("values", [2, 3])
def test_poses_have_keypoints_in_source_pixels(values: int) -> None:
    """Moved to the edge when outside; seen when the model does not say how well."""
    points = [80.0, 80.0, 0.25, 200.0, 0.0, 0.75] if values == 3 else [80.0, 80.0, 200.0, 0.0]
    found = read(metadata("pose", values=values), raw([[80, 80, 80, 80, 0.1, 0.9, *points]]))
    assert found.keypoints is not None
    visibility = [0.25, 0.75] if values == 3 else [1, 1]
    np.testing.assert_allclose(found.keypoints, [[[100, 60, visibility[0]], [200, 0, visibility[1]]]], rtol=1e-6)


def test_oriented_boxes_lie_in_upright_ones() -> None:
    """Centre and size in source pixels, the angle as it comes; the upright box ends at the picture's edge."""
    found = read(metadata("obb"), raw([[80, 80, 40, 8, 0.1, 0.9, math.pi / 2], [0, 80, 16, 8, 0.1, 0.3, 0]]))
    assert found.rotated_xywhr is not None
    np.testing.assert_allclose(found.rotated_xywhr, [[100, 60, 50, 10, math.pi / 2], [0, 60, 20, 10, 0]], rtol=1e-6)
    np.testing.assert_allclose(found.boxes_xyxy, [[95, 35, 105, 85], [0, 55, 10, 65]], atol=1e-4)


def test_oriented_boxes_of_one_class_suppress_each_other_by_angle() -> None:
    """A cross stays; twins do not."""
    cross = read(metadata("obb"), raw([[80, 80, 60, 8, 0.1, 0.9, 0], [80, 80, 60, 8, 0.1, 0.8, math.pi / 2]]))
    twins = read(metadata("obb"), raw([[80, 80, 60, 8, 0.1, 0.9, 0], [80, 80, 60, 8, 0.1, 0.8, math.pi]]))
    assert (len(cross), len(twins)) == (2, 1)


def test_end_to_end_heads_of_every_task_are_read_without_suppression() -> None:
    """The task's numbers follow the class id."""
    pairs = {task: [[60, 60, 100, 100, score, 1, *[1.0] * EXTRA[task]] for score in (0.6, 0.9)] for task in EXTRA}
    for task, rows in pairs.items():
        outputs = [np.array([rows], np.float32)] + [prototypes()] * (task == "segment")
        about = metadata(task, end2end=True)
        found = read(about, *outputs)
        assert found.scores.tolist() == pytest.approx([0.9, 0.6]), task
        assert found.class_scores is None
        assert choose_head(about, specs(*(output.shape for output in outputs))).layout is HeadLayout.END_TO_END
        assert (found.masks is not None, found.keypoints is not None, found.rotated_xywhr is not None) == (
            task == "segment",
            task == "pose",
            task == "obb",
        )


def test_a_classification_is_one_detection_of_the_whole_picture() -> None:
    """With every class's probability, and given however low the best is."""
    for probabilities, best in (([0.3, 0.7], 1), ([0.51, 0.49], 0)):
        found = read(metadata("classify"), np.array([probabilities], np.float32), confidence=0.9)
        assert found.boxes_xyxy.tolist() == [[0, 0, 200, 120]]
        assert found.class_ids.tolist() == [best]
        assert found.scores.tolist() == pytest.approx([max(probabilities)])
        assert found.class_scores is not None
        assert found.class_scores[0].tolist() == pytest.approx(probabilities)


def test_no_boxes_are_no_boxes_for_every_task() -> None:
    """Empty frames are the commonest: every field is there, with no rows."""
    for task, extra in EXTRA.items():
        outputs = [np.zeros((1, 6 + extra, 5), np.float32)] + [prototypes()] * (task == "segment")
        found = read(metadata(task), *outputs)
        assert len(found) == 0
        assert found.masks is None or found.masks.bitmaps().shape == (0, 120, 200)
        assert found.keypoints is None or found.keypoints.shape == (0, 2, 3)
        assert found.rotated_xywhr is None or found.rotated_xywhr.shape == (0, 5)


def test_localisation_entropy_goes_with_the_kept_anchors() -> None:
    """By anchor, after suppression and sorting; between 0 and 1."""
    head = raw([[20, 80, 8, 8, 0.1, 0.2], [80, 80, 8, 8, 0.01, 0.01], [80, 80, 8, 8, 0.1, 0.9]])
    found = read(metadata("detect"), head, loc_entropy=np.array([[0.25, 0.5, 1.5]], np.float32))
    assert found.loc_entropy is not None
    assert found.loc_entropy.tolist() == [1.0, 0.25]


@pytest.mark.parametrize("loc_entropy", [[[0.1, math.nan]], [[0.1]], [0.1, 0.2]])
def test_localisation_entropy_that_does_not_fit_is_refused(loc_entropy: list[list[float]]) -> None:
    """NaN where a box is kept, or another number of anchors."""
    head = raw([[20, 80, 8, 8, 0.1, 0.2], [80, 80, 8, 8, 0.1, 0.9]])
    with pytest.raises(ModelOutputError, match="loc_entropy"):
        read(metadata("detect"), head, loc_entropy=np.array(loc_entropy, np.float32))


def test_end_to_end_heads_have_no_localisation_entropy() -> None:
    """Their rows are no anchors any more."""
    found = read(
        metadata("detect", end2end=True),
        np.array([[[60, 60, 100, 100, 0.9, 1]]], np.float32),
        loc_entropy=np.ones((1, 9), np.float32),
    )
    assert found.loc_entropy is None


@pytest.mark.parametrize(
    ("task", "shapes", "says"),
    [
        ("detect", [(1, 6, 84), (1, 2, 40, 40)], "expected 1 output of a detect"),
        ("segment", [(1, 8, 84)], "expected 2 outputs of a segment"),
        ("segment", [(1, 8, 84), (1, 8, 84)], "prototypes"),
        ("segment", [(1, 6, 84), (1, 2, 40, 40)], "does not fit 2 classes"),
        ("pose", [(1, 6, 84)], "does not fit 2 classes"),
        ("obb", [(1, 6, 84)], "does not fit 2 classes"),
        ("classify", [(1, 1000)], "does not fit 2 classes"),
        ("classify", [(4, 2)], "does not fit 2 classes"),
        ("segment", [(1, 9, 84), (1, 2, 40, 40)], "does not fit 2 classes"),
        ("segment", [(1, 84, 9), (1, 2, 40, 40)], "objectness"),
    ],
)
def test_outputs_of_another_task_are_refused(task: str, shapes: list[tuple[int, ...]], says: str) -> None:
    """When the model is opened, not on the first frame; the message says what was expected."""
    with pytest.raises(UnsupportedModel, match=says):
        choose_head(metadata(task), specs(*shapes))


def test_whole_numbers_are_no_head() -> None:
    """A quantised output that nobody turned back."""
    with pytest.raises(UnsupportedModel, match="int8"):
        choose_head(metadata("detect"), specs((1, 6, 84), dtype="int8"))


def test_open_shapes_are_settled_by_the_first_output() -> None:
    """Also the number of mask coefficients."""
    about = metadata("segment")
    head = choose_head(about, specs((None, None, None), (None, None, None, None)))
    assert not head.is_settled
    settled = settle(head, about, [np.zeros((1, 8, 84), np.float32), prototypes()])
    assert settled.is_settled
    assert settled.layout is HeadLayout.RAW
    with pytest.raises(UnsupportedModel, match="does not fit"):
        settle(head, about, [np.zeros((1, 9, 84), np.float32), prototypes()])


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(TASKS),
    st.booleans(),
    st.integers(0, 2**32 - 1),
    st.sampled_from([np.nan, np.inf, -np.inf, 1e38, -1e38, 0.5]),
)
def test_a_hostile_output_is_an_error_or_finite_detections(task: str, end2end: bool, seed: int, poison: float) -> None:
    """Poisoned numbers and odd shapes: nothing but our own error, and never a NaN that gets through."""
    rng = np.random.default_rng(seed)
    extra = EXTRA.get(task, 0)
    shape = [1, 7, 6 + extra] if end2end else [1, 6 + extra, 7]
    if task == "classify":
        shape = [1, 2]
    outputs = [rng.uniform(0, 1, shape).astype(np.float32)]
    if end2end and task != "classify":
        outputs[0][..., 5] = rng.integers(0, 2, 7)
    if task == "segment":
        outputs.append(rng.uniform(-1, 1, (1, 2, 40, 40)).astype(np.float32))
    head = choose_head(metadata(task, end2end=end2end), specs(*(output.shape for output in outputs)))
    victim = outputs[rng.integers(0, len(outputs))]
    victim.reshape(-1)[rng.integers(0, victim.size)] = poison
    if rng.random() < 0.2:
        outputs[0] = np.concatenate([outputs[0], outputs[0]], axis=int(rng.integers(0, outputs[0].ndim)))
    with contextlib.suppress(ModelOutputError), np.errstate(all="ignore"):
        found = head.read(NetworkOutputs(outputs), LETTERBOX, confidence=0.05, iou=0.7)
        for values in (found.boxes_xyxy, found.scores, found.keypoints, found.rotated_xywhr):
            assert values is None or np.isfinite(values).all()
        assert found.masks is None or found.masks.bitmaps().shape == (len(found), 120, 200)


@given(st.sampled_from(TASKS), st.lists(st.lists(st.one_of(st.none(), st.integers(0, 100)), max_size=5), max_size=3))
def test_any_shapes_end_in_a_head_or_an_error_of_ours(task: str, shapes: list[list[int | None]]) -> None:
    """Nothing else escapes, whatever a file declares."""
    with contextlib.suppress(ModelError):
        choose_head(metadata(task), specs(*(tuple(shape) for shape in shapes)))
