"""The random audit keeps its promised probability, hardly varies in number, and can be repeated."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bowerbird_agent.selection.explore import AuditDraw, keyed_unit


@pytest.mark.parametrize("probability", [0.013, 0.1, 0.37, 0.9])
def test_over_many_keys_each_frame_is_taken_with_the_probability_that_is_logged(probability: float) -> None:
    frames, keys = 30, 3000
    taken, logged = [0] * frames, [0.0] * frames
    for key in range(keys):
        draw = AuditDraw(f"key {key}", "gate")
        for i in range(frames):
            was_taken, logged[i] = draw.take(probability)
            taken[i] += was_taken
    for i in range(frames):
        spread = (logged[i] * (1 - logged[i]) / keys) ** 0.5
        assert abs(taken[i] / keys - logged[i]) <= 5 * spread + 1e-9


@given(st.lists(st.floats(0, 1), max_size=200), st.text(max_size=5))
@settings(deadline=None)
def test_the_number_taken_is_within_one_of_what_was_asked_for_so_far(wanted: list[float], key: str) -> None:
    draw, total, taken = AuditDraw(key, "gate"), 0.0, 0
    for probability in wanted:
        total += probability
        was_taken, exact = draw.take(probability)
        taken += was_taken
        assert exact <= probability + 1e-12
    # One frame can hold the places of two stretches, hence a stretch may share its frame: only ever fewer, and rarely.
    assert taken <= total + 1
    if all(probability < 0.05 for probability in wanted):
        assert taken >= total - 2 - 0.05 * total


def test_the_same_key_draws_the_same_frames_and_another_draws_others() -> None:
    def draws(key: str) -> list[bool]:
        draw = AuditDraw(key, "gate")
        return [draw.take(0.1)[0] for _ in range(300)]

    assert draws("a") == draws("a")
    assert draws("a") != draws("b")


def test_zero_takes_none_and_one_takes_all() -> None:
    none, every = AuditDraw("a", "gate"), AuditDraw("a", "gate")
    assert not any(none.take(0.0)[0] for _ in range(100))
    assert all(every.take(1.0)[0] for _ in range(100))


def test_keyed_numbers_are_spread_evenly() -> None:
    values = [keyed_unit("key", i) for i in range(2000)]
    assert all(0 <= value < 1 for value in values)
    assert abs(sum(values) / 2000 - 0.5) < 0.03
