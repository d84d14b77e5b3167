"""Which scenes are held out: by chance, half of them, once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bowerbird_server.batches.evaluation_routing import HELD_OUT, TRAINED_ON, route

SCENES = st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 10**6)), max_size=60, unique=True).map(
    lambda pairs: [(camera, f"{camera}@{n:07d}") for camera, n in pairs]
)


@given(SCENES, st.floats(0, 1), st.text(max_size=5))
def test_of_each_camera_the_share_is_held_out_give_or_take_one(scenes: list[tuple[str, str]], share: float, seed: str) -> None:
    sides = route(scenes, {}, share, seed)
    assert sides.keys() == {scene for _, scene in scenes}
    for camera in ("a", "b"):
        own = [scene for of, scene in scenes if of == camera]
        assert abs(sum(sides[scene] == HELD_OUT for scene in own) - share * len(own)) <= 1


@given(SCENES, st.text(max_size=5))
def test_it_does_not_matter_in_how_many_goes_scenes_come(scenes: list[tuple[str, str]], seed: str) -> None:
    """What is routed later goes on where the first left off, so that the share holds over all."""
    whole = route(scenes, {}, 0.5, seed)
    first, second = sorted(scenes)[: len(scenes) // 2], sorted(scenes)[len(scenes) // 2 :]
    before = {camera: sum(of == camera for of, _ in first) for camera in ("a", "b")}
    assert {**route(first, {}, 0.5, seed), **route(second, before, 0.5, seed)} == whole


def test_every_scene_has_the_same_chance() -> None:
    """Over seeds, the third scene of a camera is held out as often as the share says."""
    scenes = [("a", f"a@{n}") for n in range(5)]
    held = sum(route(scenes, {}, 0.3, str(seed))["a@2"] == HELD_OUT for seed in range(2000))
    assert 520 <= held <= 680  # 600 expected, standard deviation 20


def test_all_or_none_is_held_out_when_told_so() -> None:
    assert set(route([("a", "x"), ("a", "y")], {}, 0.0, "s").values()) == {TRAINED_ON}
    assert set(route([("a", "x"), ("a", "y")], {}, 1.0, "s").values()) == {HELD_OUT}
    with pytest.raises(ValueError, match="share"):
        route([], {}, 1.5, "s")
