"""Months of outages, clock steps, crashes and restarts: no day, month or run of days ever holds more than its cap."""

from __future__ import annotations

import math
import random
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bowerbird_agent.budget.budget import DAY_S, MONTH_S, ByteLimits, TokenBucket

_CONTROL_BYTES = 2_000


def _limits(day: int, month: int | None, carry: int) -> ByteLimits:
    return ByteLimits(
        bytes_per_s=200.0,
        burst_bytes=60_000,
        bytes_per_day=day,
        bytes_per_month=month,
        carry_over_bytes=carry,
        control_bytes=_CONTROL_BYTES,
    )


def _month(limits: ByteLimits, seed: int, *, days: float, ahead_bytes: int) -> list[tuple[float, int]]:
    """Spends all it may for `days`, as the uploader does; returns (true seconds, bytes that passed the wire)."""
    rng = random.Random(seed)
    bucket = TokenBucket(limits, 500.0)
    saved = bucket.to_state(ahead_bytes=ahead_bytes)
    true_s, clock_s, spent = 0.0, 500.0, []
    control_left = [_CONTROL_BYTES // 2, 0.0]  # bytes of control in this half day, and since when
    while true_s < days * DAY_S:
        step_s = rng.choice((1.0, 30.0, 600.0, 3600.0, 20_000.0)) * rng.random()
        true_s += step_s
        clock_s += step_s
        event = rng.random()
        if event < 0.03:  # killed: what was not saved is lost, and the next boot's clock begins anywhere
            true_s += rng.random() * 7200.0
            clock_s = rng.random() * 1e5
            bucket = TokenBucket.from_state(limits, saved, clock_s)
            saved = bucket.to_state(ahead_bytes=ahead_bytes)
        elif event < 0.05:  # the clock falls
            clock_s -= rng.random() * 3 * DAY_S
        if true_s - control_left[1] > DAY_S + 400:
            control_left = [_CONTROL_BYTES // 80, true_s]
        for _ in range(rng.randrange(1, 6)):
            size = rng.randrange(1, 40_000)
            if not bucket.allow(clock_s, size):
                continue
            if bucket.needs_save:
                saved = bucket.to_state(ahead_bytes=ahead_bytes)
            bucket.spend(clock_s, size)
            if bucket.needs_save:
                saved = bucket.to_state(ahead_bytes=ahead_bytes)
            spent.append((true_s, size))
        unasked = int(min(control_left[0], rng.randrange(40)))
        if unasked:
            control_left[0] -= unasked
            bucket.charge(clock_s, unasked)
            if bucket.needs_save:
                saved = bucket.to_state(ahead_bytes=ahead_bytes)
            spent.append((true_s, unasked))
    return spent


def _most_within(spent: list[tuple[float, int]], window_s: float) -> int:
    """The largest sum in any window of that length."""
    sums = [0, *accumulate(size for _, size in spent)]
    most, begin = 0, 0
    for end, (at_s, _) in enumerate(spent):
        while at_s - spent[begin][0] >= window_s:
            begin += 1
        most = max(most, sums[end + 1] - sums[begin])
    return most


@given(
    st.integers(0, 10**9),
    st.integers(100_000, 1_000_000),
    st.none() | st.integers(500_000, 8_000_000),
    st.sampled_from((0, 300_000, 5_000_000)),
    st.sampled_from((1, 5_000, 50_000)),
)
@settings(max_examples=12, deadline=None)
def test_a_month_of_faults_overshoots_no_window(seed: int, day: int, month: int | None, carry: int, ahead: int) -> None:
    limits = _limits(day, month, carry)
    spent = _month(limits, seed, days=40, ahead_bytes=ahead)
    for days in (1, 2, 3, 7, 30, 31):
        assert _most_within(spent, days * DAY_S) <= days * day + carry
    if month is not None:
        assert _most_within(spent, 30 * DAY_S) <= month
        assert _most_within(spent, MONTH_S) <= month
    for window_s in (1.0, 60.0, 3600.0, 6 * 3600.0):
        assert _most_within(spent, window_s) <= 200.0 * window_s + 60_000 + _CONTROL_BYTES + 1


def test_what_a_day_leaves_is_spent_later_and_no_more_than_that() -> None:
    bucket = TokenBucket(ByteLimits(bytes_per_day=1000, carry_over_bytes=500), 0.0)
    bucket.spend(0.0, 1500)
    assert not bucket.allow(DAY_S + 301, 1001), "the carried bytes are used up"
    assert bucket.allow(DAY_S + 301, 1000)
    bucket.spend(DAY_S + 301, 800)
    assert bucket.left_today_bytes(2.4 * DAY_S) == 1200, "200 were left and come on top"


def test_carrying_over_nothing_is_the_plain_day() -> None:
    bucket = TokenBucket(ByteLimits(bytes_per_day=1000), 0.0)
    assert not bucket.allow(0.0, 1001)


def test_a_month_comes_back_after_31_days_and_not_before() -> None:
    bucket = TokenBucket(ByteLimits(bytes_per_month=1000), 0.0)
    bucket.spend(0.0, 1000)
    assert not bucket.allow(MONTH_S - 1, 1)
    assert bucket.left_today_bytes(MONTH_S + 6 * 3600) == 1000
    wait_s = TokenBucket(ByteLimits(bytes_per_month=10), 0.0).wait_s(0.0, 11)
    assert wait_s == math.inf


def test_control_has_a_part_that_frames_leave_alone() -> None:
    bucket = TokenBucket(ByteLimits(bytes_per_day=1000, control_bytes=100), 0.0)
    assert bucket.wait_s(0.0, 901) == math.inf
    bucket.spend(0.0, 900)
    assert bucket.left_today_bytes(0.0) == 0
    assert bucket.cap_wait_s(0.0, 100, is_control=True) == 0.0
    assert bucket.cap_wait_s(0.0, 1) > 0.0


def test_what_has_come_in_counts_for_day_and_month_and_not_for_the_rate_of_the_uplink() -> None:
    bucket = TokenBucket(ByteLimits(bytes_per_s=1, burst_bytes=100, bytes_per_day=1000, bytes_per_month=1500), 0.0)
    bucket.charge(0.0, 950, is_download=True)
    assert bucket.left_bytes(0.0) == 50
    assert bucket.wait_s(0.0, 50) == 0.0
    assert (bucket.spent_today_bytes(0.0), bucket.spent_month_bytes(0.0)) == (950, 950)


def test_frames_leave_room_for_what_was_asked_for_and_wait_for_it_without_giving_up() -> None:
    bucket = TokenBucket(ByteLimits(bytes_per_day=1000), 0.0)
    bucket.promised_bytes = 800
    assert bucket.left_today_bytes(0.0) == 200
    assert 0.0 < bucket.wait_s(0.0, 300) < math.inf
    bucket.promised_bytes = 0
    assert bucket.allow(0.0, 300)


def test_state_from_before_there_were_months_is_taken_up() -> None:
    old = {"version": 1, "age_s": 100.0, "tokens": 5.0, "burst_bytes": 10, "bins": [[300.0, 40]]}
    bucket = TokenBucket.from_state(ByteLimits(bytes_per_month=100), old, 0.0)
    assert bucket.left_today_bytes(0.0) == 60


@pytest.mark.parametrize("wrong", [{"bytes_per_month": -1}, {"carry_over_bytes": 5}, {"bytes_per_day": 5, "control_bytes": -1}])
def test_caps_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"bytes"):
        ByteLimits(**wrong)
