"""Bytes spread over the day, and candidates that wait for a calmer hour."""

from __future__ import annotations

import numpy as np
import pytest

from bowerbird_agent.budget.budget import DAY_S, ByteLimits
from bowerbird_agent.selection.choose import Candidate, Judgement, choose
from bowerbird_agent.selection.novelty import Fingerprint
from bowerbird_agent.selection.pace import Pace, close_window, room_bytes
from bowerbird_agent.selection.policy import Policy
from bowerbird_agent.selection.ring import Ring
from bowerbird_agent.selection.select import Selector
from bowerbird_testing.judged_frames import frame, seeing

PRINT = Fingerprint(np.zeros(32, np.uint8))


def _candidate(name: str, value: float, *, size: int = 100, arm: str = "policy", at_ms: int = 0) -> Candidate:
    judgement = Judgement(True, "explore" if arm == "explore" else "policy", value, value, (), {}, 0.1, PRINT)
    return Candidate(name, "gate", at_ms, judgement, size)


def test_saved_bytes_grow_at_the_even_rate_up_to_a_days_worth() -> None:
    pace = Pace()
    assert pace.saved_bytes(0.0, 1.0, 1000) == 250.0
    assert pace.saved_bytes(50.0, 1.0, 1000) == 300.0
    pace.spend(400)
    assert pace.saved_bytes(60.0, 1.0, 1000) == -90.0, "a frame dearer than what was saved is a debt"
    assert pace.saved_bytes(3 * DAY_S, 1.0, 50_000) == 50_000.0
    assert pace.saved_bytes(3 * DAY_S, 1.0, 10**9) == DAY_S


def test_while_chosen_frames_wait_for_the_link_no_more_than_a_quarter_of_a_day_is_chosen() -> None:
    assert room_bytes(80_000, 0, 1.0) == 80_000
    assert room_bytes(80_000, 1_600, 1.0) == 20_000
    assert room_bytes(80_000, 30_000, 1.0) == 0
    assert room_bytes(1_000, 400, 1.0) == 600
    assert room_bytes(None, 400, None) is None


def test_a_clock_that_falls_saves_nothing() -> None:
    pace = Pace()
    before = pace.saved_bytes(100.0, 1.0, 1000)
    assert pace.saved_bytes(10.0, 1.0, 1000) == before
    assert pace.saved_bytes(100.0, 1.0, 1000) == before


def test_the_frames_of_a_window_follow_from_rate_and_usual_size() -> None:
    pace = Pace()
    assert pace.frames_in(600.0) is None
    pace.saved_bytes(0.0, 10.0, 1000)
    pace.note_size(2000)
    assert pace.frames_in(600.0) == pytest.approx(3.0)


def test_the_tighter_cap_sets_the_rate() -> None:
    assert ByteLimits(bytes_per_day=86_400).even_bytes_per_s == 1.0
    assert ByteLimits(bytes_per_day=86_400, bytes_per_month=31 * 43_200).even_bytes_per_s == 0.5
    assert ByteLimits(1.0, 10).even_bytes_per_s is None


def test_the_ring_keeps_the_random_audit_and_then_the_most_value_per_byte() -> None:
    ring = Ring(10)
    gone = ring.refill(
        [_candidate("dear", 0.9, size=400), _candidate("cheap", 0.5), _candidate("audit", 0.0, arm="explore", size=150)], 300
    )
    assert ring.frame_ids == ("audit", "cheap")
    assert gone == ("dear",)
    assert ring.floor == pytest.approx(0.9 / 400 * 100)
    assert ring.has("gate", 0)


def test_a_ring_with_room_asks_nothing_of_a_newcomer() -> None:
    ring = Ring(10)
    ring.refill([_candidate("a", 0.5)], 300)
    assert ring.floor == 0.0


def test_a_window_chooses_until_its_bytes_are_spent_and_then_once_more() -> None:
    candidates = [_candidate(str(i), 0.5, at_ms=10_000 * i) for i in range(5)]
    policy = Policy(spread=0.0)
    result = choose(candidates, policy, limit=5, bytes_left=10_000, epsilon=0.0, draw_key="k", saved_bytes=150.0)
    assert len(result.chosen) == 2
    assert result.chosen_bytes == 200
    assert set(result.dropped.values()) == {"byte_pace"}
    assert not choose(candidates, policy, limit=5, bytes_left=10_000, epsilon=0.0, draw_key="k", saved_bytes=0.0).chosen


def test_a_frame_that_found_no_bytes_is_sent_from_a_later_window() -> None:
    selector, pace = Selector(Policy(epsilon=0.0, window_frames=10, spread=0.0, near_duplicates=False), device="d"), Pace()
    pace.saved_bytes(0.0, 1e-3, 40_000)
    pace.spend(10_010)  # more than was saved
    best = ""
    for i in range(20):
        judgement = selector.judge(frame(i * 20), seeing(0.5) if i == 3 else seeing(0.97))
        if judgement.admit:
            name = str(i)
            best = name if i == 3 else best
            selector.add(Candidate(name, "gate", frame(i * 20).captured_at_ms, judgement, 10))
        if i == 9:
            first = close_window(selector, pace, frames_left=None, bytes_left=40_000, even_bytes_per_s=1e-3)
            assert not first.chosen
            assert best in selector.candidates
    pace.spend(-20)
    second = close_window(selector, pace, frames_left=None, bytes_left=40_000, even_bytes_per_s=1e-3)
    assert second.chosen[0] == best


def test_without_a_cap_of_a_day_nothing_waits() -> None:
    selector, pace = Selector(Policy(epsilon=0.0, window_frames=10), device="d"), Pace()
    for i in range(10):
        judgement = selector.judge(frame(i * 20), seeing(0.5))
        if judgement.admit:
            selector.add(Candidate(str(i), "gate", frame(i * 20).captured_at_ms, judgement, 10))
    result = close_window(selector, pace, frames_left=2, bytes_left=None, even_bytes_per_s=None)
    assert len(result.chosen) == 2
    assert selector.candidates == ()
