"""Motion is what moves: not noise, not light, not where something stood before."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from bowerbird_agent.selection.cells import rectangle
from bowerbird_agent.selection.gate import (
    HEIGHT,
    WARM_UP_FRAMES,
    WIDTH,
    Background,
    SlidingMedian,
    changed_cells,
    dhash,
    glance,
    thumbnail,
    uncovered_blobs,
)
from bowerbird_testing.judged_frames import textured


def _noisy(picture: NDArray[np.uint8], seed: int, sigma: float) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(0, sigma, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def _with_thing(picture: NDArray[np.uint8], x: int) -> NDArray[np.uint8]:
    painted = picture.copy()
    painted[60:160, x : x + 40] = 255 - painted[60:160, x : x + 40]
    return painted


STREET = np.clip(textured(1, width=320, height=240), 30, 100)


@pytest.mark.parametrize("size", [(720, 1280), (240, 320), (48, 64), (30, 500), (2000, 20)])
def test_a_thumbnail_has_one_size_whatever_the_frame(size: tuple[int, int]) -> None:
    thumb = thumbnail(np.full((*size, 3), 77, np.uint8))
    assert thumb.shape == (HEIGHT, WIDTH)
    assert abs(int(thumb.mean()) - 77) <= 1


def test_noise_of_a_dark_camera_is_neither_motion_nor_a_change() -> None:
    dark = (STREET // 5).astype(np.uint8)
    background = Background()
    thumbs = [thumbnail(_noisy(dark, seed, sigma=12.0)) for seed in range(WARM_UP_FRAMES + 30)]
    assert sum(int(background.observe(thumb).moving.sum()) for thumb in thumbs) == 0
    assert not changed_cells(thumbs[0], thumbs[1]).any()


def test_a_thing_that_enters_moves_and_leaves_no_ghost() -> None:
    background = Background()
    for seed in range(WARM_UP_FRAMES + 1):
        background.observe(thumbnail(_noisy(STREET, seed, sigma=3.0)))
    for step in range(20):
        motion = background.observe(thumbnail(_noisy(_with_thing(STREET, 10 + 10 * step), 100 + step, sigma=3.0)))
        assert motion.known
        assert motion.moving[12:32].any()
    assert not background.observe(thumbnail(_noisy(STREET, 999, sigma=3.0))).moving.any()


def test_nothing_is_called_motion_before_the_background_is_known() -> None:
    background = Background()
    for step in range(WARM_UP_FRAMES - 1):
        motion = background.observe(thumbnail(_with_thing(STREET, 3 * step)))
        assert not motion.known
        assert not motion.moving.any()


def test_a_change_of_light_is_told_as_such_and_the_background_is_learned_again() -> None:
    background = Background()
    for seed in range(WARM_UP_FRAMES + 1):
        background.observe(thumbnail(_noisy(STREET, seed, sigma=3.0)))
    other = textured(2, width=320, height=240)
    first = background.observe(thumbnail(other))
    assert first.light_changed
    assert not first.moving.any()
    assert not background.observe(thumbnail(other)).known


def test_a_sliding_median_is_the_median_of_the_newest_thumbnails() -> None:
    rng = np.random.default_rng(3)
    # Few gray levels, so that many values are equal.
    thumbs = [rng.integers(0, 5, (HEIGHT, WIDTH)).astype(np.uint8) for _ in range(40)]
    sliding = SlidingMedian(7)
    medians = [sliding.add(thumb) for thumb in thumbs]
    for i in range(6, 40):
        assert (medians[i] == np.median(thumbs[i - 6 : i + 1], axis=0)).all()
    assert len(sliding) == 7


def test_a_glance_at_what_is_no_picture_gives_nothing_and_at_a_picture_its_thumbnail() -> None:
    assert glance(np.zeros((0, 0, 3), np.uint8)) is None
    assert glance(np.zeros((48, 64), np.uint8)) is None
    picture = textured(1)
    seen = glance(picture)
    assert seen is not None
    assert (seen == thumbnail(picture)).all()


@pytest.mark.parametrize(("height", "width"), [(720, 1280), (1080, 1920), (480, 640)])
@pytest.mark.parametrize("place", range(8))
def test_a_small_thing_is_seen_wherever_it_stands(height: int, width: int, place: int) -> None:
    street = cv2.resize(STREET, (width, height), interpolation=cv2.INTER_LINEAR)
    rng = np.random.default_rng(place)
    tall, wide = height // 18, width // 32  # two cells across, not quite three down
    y, x = int(rng.integers(0, height - tall)), int(rng.integers(0, width - wide))
    changed = street.copy()
    changed[y : y + tall, x : x + wide] = 255 - street[y : y + tall, x : x + wide]
    seen = changed_cells(thumbnail(changed), thumbnail(street))
    rows, columns = np.nonzero(seen)
    assert len(rows)
    assert (abs((rows + 0.5) * height / HEIGHT - y - tall / 2) < tall).all()
    assert (abs((columns + 0.5) * width / WIDTH - x - wide / 2) < wide).all()


def test_unrelated_pictures_are_no_duplicates() -> None:
    assert changed_cells(thumbnail(textured(1)), thumbnail(textured(2))).mean() > 0.2


def test_overall_brightness_is_no_change() -> None:
    assert not changed_cells(thumbnail(STREET), thumbnail(np.clip(STREET.astype(int) + 25, 0, 255).astype(np.uint8))).any()


def test_boxes_explain_the_motion_that_they_cover() -> None:
    moving = rectangle(10, 10, 20, 20)
    covering = [[100.0, 100.0, 200.0, 200.0]]
    aside = [[400.0, 400.0, 500.0, 500.0]]
    assert uncovered_blobs(moving, [], image_width=640, image_height=480) == (100,)
    assert uncovered_blobs(moving, covering, image_width=640, image_height=480) == ()
    assert uncovered_blobs(moving, aside, image_width=640, image_height=480) == (100,)


def test_motion_is_counted_blob_by_blob() -> None:
    moving = rectangle(10, 10, 20, 20) | rectangle(30, 40, 32, 44)
    covering = [[100.0, 100.0, 200.0, 200.0]]
    blobs = uncovered_blobs(moving, [], image_width=640, image_height=480)
    assert sorted(blobs) == [8, 100]
    assert uncovered_blobs(moving, covering, image_width=640, image_height=480) == (8,)


def test_equal_pictures_hash_alike_and_unrelated_ones_differ_in_many_bits() -> None:
    a, b = thumbnail(textured(1)), thumbnail(textured(2))
    assert (dhash(a) == dhash(a.copy())).all()
    assert np.unpackbits(dhash(a) ^ dhash(b)).sum() > 64
