"""The byte budget is never exceeded: not in any window, not by odd call orders, clock steps, restarts or damaged state."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bowerbird_agent.budget.budget import DAY_S, BudgetExceeded, ByteLimits, TokenBucket

_limits = st.builds(
    ByteLimits,
    bytes_per_s=st.floats(0.5, 1e5),
    burst_bytes=st.integers(1, 10**6),
    bytes_per_day=st.none() | st.integers(0, 10**7),
)
# Clock steps from a day back to a week forward, and sizes around the caps.
_calls = st.lists(
    st.tuples(st.one_of(st.floats(-DAY_S, 0), st.floats(0, 100), st.floats(0, 7 * DAY_S)), st.integers(0, 10**6)), max_size=60
)


def _spend_all(bucket: TokenBucket, calls: list[tuple[float, int]], now_s: float) -> list[tuple[float, int]]:
    """Spends whenever allowed; returns (true elapsed seconds, bytes), where time never runs backwards."""
    elapsed_s, spent = 0.0, []
    for step_s, size in calls:
        now_s += step_s
        elapsed_s += max(0.0, step_s)
        if bucket.allow(now_s, size):
            bucket.spend(now_s, size)
            spent.append((elapsed_s, size))
    return spent


@given(_limits, _calls)
@settings(max_examples=200, deadline=None)
def test_no_window_ever_holds_more_than_its_cap(limits: ByteLimits, calls: list[tuple[float, int]]) -> None:
    assert limits.bytes_per_s is not None
    assert limits.burst_bytes is not None
    spent = _spend_all(TokenBucket(limits, 1000.0), calls, 1000.0)
    for i, (begin_s, _) in enumerate(spent):
        total = 0
        for end_s, size in spent[i:]:
            total += size
            assert total <= (end_s - begin_s) * limits.bytes_per_s + limits.burst_bytes + 1e-3 + 1e-9 * total
            if limits.bytes_per_day is not None and end_s - begin_s < DAY_S:
                assert total <= limits.bytes_per_day


@given(_limits, _calls, _calls, st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_a_restart_mints_no_tokens_even_when_the_last_spending_was_not_saved(
    limits: ByteLimits, before: list[tuple[float, int]], after: list[tuple[float, int]], ahead: int
) -> None:
    assert limits.burst_bytes is not None
    assert limits.bytes_per_s is not None
    bucket = TokenBucket(limits, 50.0)
    state = bucket.to_state(ahead_bytes=ahead)
    elapsed_s, total, now_s = 0.0, 0, 50.0
    for step_s, size in before:
        now_s += max(0.0, step_s)
        elapsed_s += max(0.0, step_s)
        if bucket.allow(now_s, size):
            bucket.spend(now_s, size)
            if bucket.needs_save:  # what the uploader does before the bytes leave
                state = bucket.to_state(ahead_bytes=ahead)
            total += size
    reborn = TokenBucket.from_state(limits, state, 7.0)  # another boot: another clock, and time off counts for nothing
    for step_s, size in _spend_all(reborn, after, 7.0):
        del step_s
        total += size
    elapsed_s += sum(max(0.0, step_s) for step_s, _ in after)
    assert total <= elapsed_s * limits.bytes_per_s + limits.burst_bytes + 1e-3 + 1e-9 * total
    if limits.bytes_per_day is not None and elapsed_s < DAY_S:
        assert total <= limits.bytes_per_day


@given(_limits, _calls, st.integers(0, 10**6))
@settings(deadline=None)
def test_waiting_as_long_as_told_is_enough(limits: ByteLimits, calls: list[tuple[float, int]], size: int) -> None:
    bucket = TokenBucket(limits, 0.0)
    _spend_all(bucket, calls, 0.0)
    wait_s = bucket.wait_s(0.0, size)
    if math.isinf(wait_s):
        assert size > min(cap for cap in (limits.burst_bytes, limits.bytes_per_day) if cap is not None)
    else:
        assert bucket.wait_s(wait_s, size) <= 1e-6 * wait_s + 1e-6


def test_a_clock_that_jumps_back_and_returns_mints_nothing() -> None:
    bucket = TokenBucket(ByteLimits(bytes_per_s=10, burst_bytes=100), 1000.0)
    bucket.spend(1000.0, 100)
    assert not bucket.allow(0.0, 1)
    assert bucket.left_bytes(5.0) == 50  # five seconds have passed since the jump, not a thousand


def test_the_day_comes_back_after_24_hours_and_not_a_second_before() -> None:
    bucket = TokenBucket(ByteLimits(bytes_per_day=1000), 0.0)
    bucket.spend(0.0, 1000)
    assert not bucket.allow(DAY_S - 1, 1)
    assert bucket.left_today_bytes(DAY_S + 300) == 1000


def test_bytes_that_did_not_ask_become_a_debt_that_frames_wait_for() -> None:
    bucket = TokenBucket(ByteLimits(bytes_per_s=10, burst_bytes=100), 0.0)
    bucket.charge(0.0, 150)
    assert bucket.left_bytes(0.0) == 0
    assert bucket.wait_s(0.0, 50) == pytest.approx(10.0)


def test_spending_what_is_not_allowed_raises_and_records_nothing() -> None:
    bucket = TokenBucket(ByteLimits(bytes_per_s=10, burst_bytes=100), 0.0)
    with pytest.raises(BudgetExceeded, match="wait"):
        bucket.spend(0.0, 101)
    assert bucket.left_bytes(0.0) == 100


def test_a_message_larger_than_the_burst_never_fits() -> None:
    assert TokenBucket(ByteLimits(bytes_per_s=10, burst_bytes=100), 0.0).wait_s(0.0, 101) == math.inf


def test_without_limits_everything_is_allowed() -> None:
    bucket = TokenBucket(ByteLimits(), 0.0)
    bucket.spend(0.0, 10**12)
    assert bucket.left_bytes(0.0) is None


def test_time_off_counts_only_as_far_as_the_caller_vouches_for_it() -> None:
    limits = ByteLimits(bytes_per_s=10, burst_bytes=1000, bytes_per_day=2000)
    bucket = TokenBucket(limits, 0.0)
    bucket.spend(0.0, 1000)
    state = bucket.to_state()
    assert TokenBucket.from_state(limits, state, 0.0).left_bytes(0.0) == 0
    assert TokenBucket.from_state(limits, state, 0.0, elapsed_off_s=30.0).left_bytes(0.0) == 300
    assert TokenBucket.from_state(limits, state, 0.0, elapsed_off_s=-30.0).left_bytes(0.0) == 0


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"age_s": "x", "tokens": 1, "burst_bytes": 1, "bins": []},
        {"age_s": 0, "tokens": math.nan, "burst_bytes": 1, "bins": []},
        {"age_s": 0, "tokens": 1, "burst_bytes": 1, "bins": [[300, -5]]},
        {"age_s": 0, "tokens": 1, "burst_bytes": 1, "bins": [5]},
    ],
)
def test_damaged_state_is_refused_and_the_safe_start_is_empty(state: dict[str, object]) -> None:
    limits = ByteLimits(bytes_per_s=10, burst_bytes=100, bytes_per_day=500)
    with pytest.raises(ValueError, match="damaged"):
        TokenBucket.from_state(limits, state, 0.0)
    assert not TokenBucket.exhausted(limits, 0.0).allow(0.0, 1)


@pytest.mark.parametrize(
    "wrong", [{"bytes_per_s": 5}, {"burst_bytes": 5}, {"bytes_per_s": 0, "burst_bytes": 5}, {"bytes_per_day": -1}]
)
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"bytes_per"):
        ByteLimits(**wrong)


def test_what_never_left_comes_back_but_only_of_the_last_minutes() -> None:
    bucket = TokenBucket(ByteLimits(bytes_per_s=1.0, burst_bytes=10_000, bytes_per_day=20_000), 0.0)
    bucket.spend(0.0, 6000)
    assert bucket.refund(1.0, 2000) == 2000
    assert bucket.left_bytes(1.0) == 6001
    assert bucket.left_today_bytes(1.0) == 16_000
    assert bucket.refund(1.0, 99_000) == 4000, "no more than was spent"
    assert bucket.left_today_bytes(1.0) == 20_000
    bucket.spend(2.0, 5000)
    assert bucket.refund(1000.0, 5000) == 0, "too long ago"
    assert bucket.refund(1000.0, -5) == 0


def test_a_power_failure_long_after_the_bytes_were_spent_delays_the_next_by_half_an_hour_and_not_by_a_day() -> None:
    limits = ByteLimits(bytes_per_day=1_000_000)
    bucket = TokenBucket(limits, 0.0)
    bucket.spend(0.0, 1_000_000)
    state = bucket.to_state(ahead_bytes=0)
    for now_s in range(600, 20 * 3600, 600):
        bucket.left_bytes(float(now_s))
        if bucket.needs_save:
            state = bucket.to_state(ahead_bytes=0)
    reborn = TokenBucket.from_state(limits, state, 0.0)
    hours_left = reborn.wait_s(0.0, 1_000_000) / 3600
    assert 4.0 <= hours_left <= 4.75
