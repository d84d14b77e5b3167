"""The synthetic cameras: reproducible, random access, exact truth, and as uneven as the demo needs them."""

from __future__ import annotations

import numpy as np
import pytest

from bowerbird_models.scene_shapes import FOX, NOMINAL_SIZE, Thing
from bowerbird_models.scenes import CLASS_NAMES, DAY, NIGHT, SceneStream


def test_a_frame_depends_on_its_numbers_alone() -> None:
    """Rendering frame 57 first or after others, in either of two streams, gives the same bytes and the same truth."""
    walked, jumped = SceneStream(5, 1, night_from=50), SceneStream(5, 1, night_from=50)
    for index in range(55, 57):
        walked.render(index)
    (image_a, truth_a), (image_b, truth_b) = walked.render(57), jumped.render(57)
    assert np.array_equal(image_a, image_b)
    assert np.array_equal(truth_a.boxes_xyxy, truth_b.boxes_xyxy)
    assert np.array_equal(truth_a.class_ids, truth_b.class_ids)


def test_truth_without_rendering_equals_truth_with_it() -> None:
    """The annotator asks for the truth alone; it must be what was drawn."""
    stream = SceneStream(2, night_from=40)
    for index in range(0, 80, 7):
        alone, drawn = stream.truth(index), stream.render(index)[1]
        assert np.array_equal(alone.boxes_xyxy, drawn.boxes_xyxy)
        assert np.array_equal(alone.class_ids, drawn.class_ids)
        assert alone.condition == drawn.condition


def test_seed_and_camera_make_other_worlds() -> None:
    """Another seed or another camera is another street."""
    images = [SceneStream(seed, camera).render(0)[0] for seed, camera in ((1, 0), (2, 0), (1, 1))]
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


def test_a_rendered_frame_can_be_drawn_on_without_changing_the_next() -> None:
    """Callers own the picture they get."""
    stream = SceneStream(1)
    image, _ = stream.render(3)
    before = image.copy()
    image[:] = 0
    assert np.array_equal(stream.render(3)[0], before)


@pytest.mark.parametrize("class_id", range(len(CLASS_NAMES)))
@pytest.mark.parametrize("faces_right", [True, False])
def test_a_box_is_tight_around_what_was_drawn(class_id: int, faces_right: bool) -> None:
    """The pixels that a silhouette covers span its box to within a pixel and its rounding."""
    width, height = NOMINAL_SIZE[class_id]
    for phase in (0.0, 1.1, 2.9, 4.6):
        thing = Thing(class_id, 60.3, 150.7, width, height, (10, 200, 90), faces_right, phase)
        on_white, on_black = np.full((240, 320, 3), 255, np.uint8), np.zeros((240, 320, 3), np.uint8)
        thing.paint(on_white)
        thing.paint(on_black)
        # Where white and black no longer differ by half, the silhouette covers more than half of the pixel.
        ys, xs = np.nonzero((on_white.astype(int) - on_black).max(axis=2) < 128)
        drawn = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert np.abs(np.array(drawn) - np.array(thing.box_xyxy())).max() <= 1.6


def test_boxes_lie_inside_the_picture_and_have_an_area() -> None:
    """No box reaches past the border or vanishes, at any size of picture."""
    stream = SceneStream(9, width=384, height=288, night_from=200)
    boxes = np.concatenate([stream.truth(index).boxes_xyxy for index in range(0, 400, 3)])
    assert boxes.dtype == np.float32
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= 384).all()
    assert (boxes[:, 3] <= 288).all()
    assert (boxes[:, 2:] - boxes[:, :2]).min() >= 4


def test_an_object_hidden_behind_a_nearer_one_is_not_in_the_truth() -> None:
    """Nobody could label what cannot be seen."""
    stream = SceneStream(0)
    hidden = Thing(1, 100, 150, 20, 50, (0, 0, 0), True, 0.0)
    truck = Thing(3, 60, 160, 130, 70, (0, 0, 0), True, 0.0)
    assert stream._truth_of([hidden, truck], DAY).class_ids.tolist() == [3]
    assert stream._truth_of([truck, hidden], DAY).class_ids.tolist() == [3, 1]


def test_consecutive_frames_are_near_duplicates_and_scenes_are_not() -> None:
    """Inside a scene pictures differ by sensor noise and a few moved pixels only."""
    stream = SceneStream(4, scene_frames=10)
    busy = next(i for i in range(0, 500, 10) if len(stream.truth(i)) >= 2)
    first, second = (stream.render(busy + i)[0].astype(int) for i in (0, 1))
    assert np.abs(first - second).mean() < 12
    assert stream.scene(busy) == stream.scene(busy + 9) != stream.scene(busy + 10)


def test_three_scenes_in_ten_are_empty_and_the_classes_have_a_long_tail() -> None:
    """The stream is as uneven as a street: nothing for long, many cars, few trucks."""
    stream = SceneStream(1)
    truths = [stream.truth(index) for index in range(0, 6000, 10)]
    assert 0.22 < np.mean([len(truth) == 0 for truth in truths]) < 0.42
    counts = np.bincount(np.concatenate([truth.class_ids for truth in truths]), minlength=len(CLASS_NAMES))
    assert counts[0] > counts[1] > counts[2] > counts[3] > 0
    assert counts[FOX] == 0


def test_night_is_dark_and_brings_a_class_the_day_never_showed() -> None:
    """The change of condition is a change of light and of content."""
    day, night = SceneStream(6), SceneStream(6, night_from=0)
    assert night.render(5)[0].mean() < 0.5 * day.render(5)[0].mean()
    seen = np.concatenate([night.truth(index).class_ids for index in range(0, 3000, 10)])
    assert FOX in seen


def test_the_condition_follows_the_schedule() -> None:
    """Day until `night_from`, then nights and days of `night_frames` in turn."""
    stream = SceneStream(0, night_from=20, night_frames=10)
    assert [stream.condition(i) for i in (0, 19, 20, 29, 30, 39, 40)] == [DAY, DAY, NIGHT, NIGHT, DAY, DAY, NIGHT]
    assert SceneStream(0, night_from=20).condition(10**9) == NIGHT
    assert SceneStream(0).condition(10**9) == DAY


def test_numbers_out_of_range_are_refused() -> None:
    """A wrong number is told at once, not drawn."""
    with pytest.raises(ValueError, match="negative"):
        SceneStream(-1)
    with pytest.raises(ValueError, match="64x64"):
        SceneStream(1, width=10)
    with pytest.raises(ValueError, match="at least 1"):
        SceneStream(1, scene_frames=0)
    with pytest.raises(ValueError, match="start at 0"):
        SceneStream(1).truth(-1)
