"""What a camera shows is watched against what it showed before: on rendered scenes, and on real footage where it is at hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from bowerbird_agent.capture.camera_health import LASTED, SIGNS, TRANSITIONS, CameraWatch, Phase, Seen, look_at
from bowerbird_models.scenes import SceneStream

Image = NDArray[np.uint8]
FOOTAGE = Path(__file__).parents[3] / "shared" / "data" / "pets09-s2l1" / "vtest.avi"
_RNG = np.random.default_rng(7)


@lru_cache(maxsize=1)
def scenes() -> list[Image]:
    """Sixty pictures of one street with what passes on it; each has noise of its own."""
    stream = SceneStream(3, width=640, height=480, scene_frames=10)
    return [stream.render(n)[0] for n in range(0, 600, 10)]


@lru_cache(maxsize=1)
def footage() -> list[Image]:
    """Every tenth frame of a real fixed camera: 80 pictures."""
    if not FOOTAGE.exists():
        pytest.skip(f"{FOOTAGE} is not on this machine")
    film = cv2.VideoCapture(str(FOOTAGE))
    frames = []
    while film.grab():
        if int(film.get(cv2.CAP_PROP_POS_FRAMES)) % 10 == 1:
            frames.append(np.asarray(film.retrieve()[1], np.uint8))
    return frames


@pytest.fixture(params=[scenes, footage], ids=["scenes", "footage"])
def pictures(request: pytest.FixtureRequest) -> list[Image]:
    found: list[Image] = request.param()
    return found


def forever(pictures: list[Image]) -> Iterator[Image]:
    """There and back again, with a little noise so that no two are the same."""
    while True:
        for picture in (*pictures, *reversed(pictures)):
            noisy = picture.astype(np.int16)
            noisy[::7, ::7] += _RNG.integers(-2, 3, noisy[::7, ::7].shape)
            yield np.clip(noisy, 0, 255).astype(np.uint8)


def states(watch: CameraWatch, pictures: Iterator[Image], seconds: int, start_s: int = 0) -> list[str]:
    """One look a second; the states in order, each once in a row."""
    told: list[str] = []
    for second in range(start_s, start_s + seconds):
        state = watch.observe(look_at(next(pictures)), float(second))
        if not told or told[-1] != state:
            told.append(state)
    return told


def changed(pictures: Iterator[Image], change: Callable[[Image], Image]) -> Iterator[Image]:
    return (change(picture) for picture in pictures)


def shifted(image: Image, right_share: float, down_share: float) -> Image:
    height, width = image.shape[:2]
    matrix = np.array([[1, 0, right_share * width], [0, 1, down_share * height]], np.float32)
    return np.asarray(cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT), np.uint8)


FAULTS: dict[str, Callable[[Image], Image]] = {
    "dark": lambda image: (image * 0.05).astype(np.uint8),
    "blurred": lambda image: np.asarray(cv2.GaussianBlur(image, (0, 0), 3.0), np.uint8),
    "moved": lambda image: shifted(image, 0.15, 0.08),
}


def test_a_camera_that_is_well_is_ok_throughout(pictures: list[Image]) -> None:
    assert states(CameraWatch(), forever(pictures), 5 * len(pictures)) == ["ok"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_while_it_lasts(fault: str, pictures: list[Image]) -> None:
    watch, source = CameraWatch(), forever(pictures)
    assert states(watch, source, 60) == ["ok"]
    assert states(watch, changed(source, FAULTS[fault]), 90, 60) == ["ok", fault]
    assert states(watch, source, 60, 150) == [fault, "ok"]


def test_a_picture_that_stands_still_is_frozen_until_it_goes_on(pictures: list[Image]) -> None:
    watch, source = CameraWatch(), forever(pictures)
    assert states(watch, source, 30) == ["ok"]
    still = next(source)
    assert states(watch, (still for _ in range(60)), 60, 30) == ["ok", "frozen"]
    assert states(watch, source, 30, 90) == ["frozen", "ok"]


def test_dusk_and_a_small_jolt_are_no_fault(pictures: list[Image]) -> None:
    watch, source = CameraWatch(), forever(pictures)
    states(watch, source, 30)
    assert states(watch, changed(source, lambda image: (image * 0.4).astype(np.uint8)), 90, 30) == ["ok"]
    watch, source = CameraWatch(), forever(pictures)
    states(watch, source, 30)
    assert states(watch, changed(source, lambda image: shifted(image, 0.01, 0.0)), 90, 30) == ["ok"]


def test_a_short_fault_is_no_fault() -> None:
    watch, source = CameraWatch(), forever(scenes())
    states(watch, source, 30)
    assert states(watch, changed(source, FAULTS["blurred"]), 15, 30) == ["ok"]
    assert states(watch, source, 60, 45) == ["ok"]


def test_a_new_view_is_home_after_an_hour_and_the_old_one_stays_home() -> None:
    watch = CameraWatch()
    here, elsewhere = ([look_at(change(picture)) for picture in scenes()] for change in (np.array, FAULTS["moved"]))
    views = [here[n % 60] for n in range(30)] + [elsewhere[n % 60] for n in range(3900)] + [here[n % 60] for n in range(120)]
    told = [watch.observe(look, float(second)) for second, look in enumerate(views)]
    assert [state for state, _ in itertools.groupby(told)] == ["ok", "moved", "ok"]


def test_a_wrong_focus_is_told_of_a_camera_that_is_partly_masked() -> None:
    """The mask's own border is as sharp as ever and must not hide that the rest is not."""

    def visible(width: int, height: int) -> NDArray[np.bool_]:
        shown = np.ones((height, width), np.bool_)
        shown[: height // 2 + 4] = False
        return shown

    def masked(image: Image) -> Image:
        image = image.copy()
        image[: image.shape[0] // 2 : 1] = 114
        return image

    watch, source = CameraWatch(), forever(scenes())
    told = []
    for second in range(150):
        picture = next(source)
        picture = masked(FAULTS["blurred"](picture) if second >= 60 else picture)
        told.append(watch.observe(look_at(picture, visible), float(second)))
    assert set(told[:60]) == {"ok"}
    assert told[-1] == "blurred"


def test_an_outage_does_not_make_a_frozen_camera() -> None:
    watch, still = CameraWatch(), look_at(scenes()[0])
    for second in range(20):
        watch.observe(still, float(second))
    watch.interrupted()
    assert [watch.observe(still, 1000.0 + second) for second in range(20)] == ["ok"] * 20


def test_another_resolution_is_learned_anew() -> None:
    watch, source = CameraWatch(), forever(scenes())
    states(watch, source, 60)
    small = changed(source, lambda image: np.asarray(cv2.resize(image, (320, 180)), np.uint8))
    assert states(watch, small, 120, 60) == ["ok"]


def test_a_camera_of_one_picture_a_minute_needs_three_of_them() -> None:
    watch = CameraWatch()
    black = np.zeros((48, 64, 3), np.uint8)
    assert [watch.observe(look_at(black), 60.0 * n) for n in range(4)] == ["ok", "ok", "dark", "dark"]


def test_the_table_is_total_and_every_waiting_phase_ends() -> None:
    assert set(TRANSITIONS) == {(phase, seen) for phase in Phase for seen in Seen}
    assert set(LASTED) == {Phase.SUSPECTED, Phase.GOING}
    assert [sign.name for sign in SIGNS] == ["dark", "frozen", "blurred", "moved"]
