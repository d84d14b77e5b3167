"""Tracks that break speak for a frame; objects that leave, pause or stand still do not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bowerbird_agent.selection.policy import STRATEGIES, TEMPLATES, Policy
from bowerbird_agent.selection.select import Selector
from bowerbird_agent.selection.temporal import MAX_STEP_S, Tracks, periodic
from bowerbird_models.detections import Detections
from bowerbird_testing.judged_frames import PaperSpool, frame

SIZE = (640, 480)


def boxes(*found: tuple[float, float], class_id: int = 0) -> Detections:
    """Boxes of 60 by 90 pixels at (x, score), at one height."""
    order = sorted(found, key=lambda pair: -pair[1])
    return Detections(
        np.array([(x, 200.0, x + 60, 290.0) for x, _ in order], np.float32).reshape(-1, 4),
        np.array([score for _, score in order], np.float32),
        np.full(len(order), class_id, np.int32),
    )


def flickers(*frames: Detections, step_ms: int = 200) -> list[float]:
    tracks = Tracks()
    return [tracks.flicker(seen, at_ms=number * step_ms, size_wh=SIZE) for number, seen in enumerate(frames)]


def test_an_object_that_is_lost_speaks_and_so_does_the_frame_after_the_gap() -> None:
    seen, gone = boxes((300, 0.9)), boxes()
    assert flickers(seen, seen, gone) == [0.0, 0.0, pytest.approx(0.9)]
    assert flickers(seen, gone, seen) == [0.0, 0.0, pytest.approx(0.9)]
    assert flickers(seen, seen, gone, gone)[3] == 0.0, "it has left; that is told once"


def test_an_object_that_is_only_just_not_shown_speaks_less() -> None:
    seen = boxes((300, 0.8))
    nearly = flickers(seen, seen, boxes((305, 0.2)))[2]
    assert nearly == pytest.approx(0.8 * 0.05 / 0.25)
    assert flickers(seen, seen, boxes((305, 0.25)))[2] == 0.0


def test_what_moves_is_followed_and_what_leaves_by_the_edge_is_not_missed() -> None:
    assert flickers(*[boxes((100 + 40 * n, 0.9)) for n in range(6)]) == [0.0] * 6
    assert flickers(boxes((570, 0.9)), boxes((575, 0.9)), boxes())[2] == 0.0


def test_a_flash_another_class_and_nothing_at_all_say_nothing_of_a_track() -> None:
    assert flickers(boxes(), boxes((300, 0.9)), boxes()) == [0.0] * 3, "seen once"
    assert flickers(boxes(), boxes(), boxes()) == [0.0] * 3
    seen = boxes((300, 0.9))
    assert flickers(seen, seen, boxes((300, 0.9), class_id=1))[2] == pytest.approx(0.9)


def test_frames_too_far_apart_are_not_held_against_each_other() -> None:
    seen, gone = boxes((300, 0.9)), boxes()
    assert flickers(seen, seen, gone, step_ms=int(MAX_STEP_S * 1000)) == [0.0, 0.0, pytest.approx(0.9)]
    assert flickers(seen, seen, gone, step_ms=int(MAX_STEP_S * 1000) + 1) == [0.0] * 3
    assert flickers(seen, seen, gone, step_ms=0) == [0.0] * 3


@given(st.lists(st.lists(st.tuples(st.floats(0, 600), st.floats(0.01, 1.0)), max_size=5), max_size=8))
def test_whatever_is_seen_the_score_is_one(frames: list[list[tuple[float, float]]]) -> None:
    assert all(0.0 <= score <= 1.0 for score in flickers(*[boxes(*found) for found in frames]))


def test_the_middle_of_each_stretch_is_where_a_periodic_choice_falls() -> None:
    assert [round(periodic(place, 4.0), 3) for place in range(8)] == [0.25, 0.75, 0.75, 0.25] * 2
    assert periodic(7, 1.0) == 1.0


def test_a_policy_with_flicker_prefers_frames_in_which_a_track_broke() -> None:
    policy = Policy(window_frames=100, frames_per_window=1, strategies={"flicker": 1.0}, epsilon=0.0, novelty_share=0.0)
    spool = PaperSpool(Selector(policy, device="d"))
    small = Detections(np.array([[40, 30, 60, 60]], np.float32), np.array([0.9], np.float32), np.array([0], np.int32))
    spool.show((frame(number), Detections.empty() if number == 50 else small) for number in range(100))
    assert spool.judged["gate/50"].strategy_scores["flicker"] == pytest.approx(0.9)
    assert set(spool.close().chosen) <= {"gate/50", "gate/51"}
    assert spool.judged["gate/50"].reasons == ("flicker",)


def test_another_model_has_tracks_of_its_own() -> None:
    selector = Selector(Policy(strategies={"flicker": 1.0}), device="d")
    small = Detections(np.array([[40, 30, 60, 60]], np.float32), np.array([0.9], np.float32), np.array([0], np.int32))
    for number in range(2):
        selector.judge(frame(number), small)
    selector.restart("new model", new_model=True)
    assert selector.judge(frame(2), Detections.empty()).strategy_scores["flicker"] == 0.0


def test_a_periodic_policy_takes_frames_at_equal_distances() -> None:
    policy = Policy(
        window_frames=100, frames_per_window=4, strategies={"periodic": 1.0}, epsilon=0.0, novelty_share=0.0, quiet_discount=0.0,
        spread=0.0, shortlist=1, near_duplicates=False,
    )  # fmt: skip
    spool = PaperSpool(Selector(policy, device="d"))
    spool.show((frame(number), Detections.empty()) for number in range(100))
    chosen = sorted(int(name.split("/")[1]) for name in spool.close().chosen)
    assert [abs(place - middle) <= 1 for place, middle in zip(chosen, (12, 37, 62, 87), strict=True)] == [True] * 4


def test_what_breaks_over_time_is_part_of_the_hunt_for_misses() -> None:
    assert {"flicker", "periodic"} <= set(STRATEGIES)
    assert TEMPLATES["missed_objects"]["strategies"]["flicker"] == 0.5
