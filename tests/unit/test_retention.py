"""The rule of retention: nothing goes before its time, nothing stays after it, and what has no limit stays for ever."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bowerbird_server.catalogue.frames import STATES
from bowerbird_server.config import RetentionConfig
from bowerbird_server.privacy.retention import Aged, all_due, born_at, due

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
LIMITS = RetentionConfig(unlabelled_days=30, rejected_days=7, labelled_days=365)

moments = st.datetimes(datetime(1970, 1, 1), datetime(2036, 1, 1)).map(lambda moment: moment.replace(tzinfo=UTC))
days = st.none() | st.floats(0.01, 4000)
limits = st.builds(RetentionConfig, unlabelled_days=days, rejected_days=days, labelled_days=days, held_out_days=days)
frames = st.builds(
    Aged,
    st.just("f"),
    st.sampled_from(STATES),
    moments,
    moments,
    st.booleans(),
    st.none() | moments,
    st.booleans(),
)


def aged(state: str, captured_days: float, *, received_days: float | None = None, judged_days: float | None = None) -> Aged:
    """A frame by its ages in days."""
    received = captured_days if received_days is None else received_days
    judged = None if judged_days is None else NOW - timedelta(days=judged_days)
    return Aged("f", state, NOW - timedelta(days=captured_days), NOW - timedelta(days=received), True, judged)


@pytest.mark.parametrize(
    ("frame", "goes"),
    [
        (aged("received", 30), True),
        (aged("received", 29.9), False),
        (aged("queued", 31), True),
        (aged("in_review", 400), False),
        (aged("deleted", 400), False),
        (aged("rejected", 40, judged_days=7), True),
        (aged("rejected", 40, judged_days=6.9), False),
        (aged("labelled", 400, judged_days=364), False),
        (aged("labelled", 400, judged_days=365), True),
        (aged("received", 40, received_days=1), True),
    ],
)
def test_each_state_has_its_own_limit_and_its_own_beginning(frame: Aged, goes: bool) -> None:
    assert (due(frame, LIMITS, NOW) is not None) is goes


def test_the_evaluation_set_has_a_limit_of_its_own() -> None:
    held_out = dataclasses.replace(aged("labelled", 4000, judged_days=4000), held_out=True)
    assert due(held_out, LIMITS, NOW) is None
    assert due(held_out, RetentionConfig(held_out_days=100), NOW) == "retention: held out for 100 days"


@pytest.mark.parametrize("captured_days", [20_000, -300])
def test_a_wrong_clock_neither_deletes_a_frame_at_once_nor_keeps_it_for_ever(captured_days: float) -> None:
    fresh = dataclasses.replace(aged("received", captured_days, received_days=1), clock_ok=captured_days < 0)
    assert due(fresh, LIMITS, NOW) is None
    assert due(fresh, LIMITS, NOW + timedelta(days=30)) is not None


@given(frames, moments)
def test_without_a_limit_nothing_is_ever_due(frame: Aged, now: datetime) -> None:
    assert due(frame, RetentionConfig(), now) is None


@given(frames, limits, moments, st.floats(0, 4000))
def test_what_is_due_stays_due(frame: Aged, limit: RetentionConfig, now: datetime, later_days: float) -> None:
    if due(frame, limit, now) is not None:
        assert due(frame, limit, now + timedelta(days=later_days)) is not None


@given(frames, limits, moments)
def test_a_shorter_limit_never_keeps_what_a_longer_one_deletes(frame: Aged, limit: RetentionConfig, now: datetime) -> None:
    halved = RetentionConfig(**{name: value and value / 2 for name, value in limit.model_dump().items()})
    if due(frame, limit, now) is not None:
        assert due(frame, halved, now) is not None


@given(frames, limits, moments)
def test_nobody_loses_the_frame_that_is_open_before_them(frame: Aged, limit: RetentionConfig, now: datetime) -> None:
    assert due(dataclasses.replace(frame, state="in_review"), limit, now) is None


@given(frames)
def test_no_frame_is_younger_than_its_arrival_says_nor_born_after_it(frame: Aged) -> None:
    assert born_at(frame) <= frame.received_at


@given(st.lists(frames, max_size=20), limits, moments)
def test_a_list_gives_each_due_frame_once_in_its_order(many: list[Aged], limit: RetentionConfig, now: datetime) -> None:
    named = [dataclasses.replace(frame, frame=str(i)) for i, frame in enumerate(many)]
    found = list(all_due(named, limit, now))
    assert [frame for frame, _ in found] == [frame.frame for frame in named if due(frame, limit, now)]
    assert all(why.startswith("retention: ") for _, why in found)
