"""Repeat-factor sampling: rare classes are shown more often, and nothing is shown less often."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from bowerbird_server.training.repeat_factor import repeats

PICTURES = st.lists(st.sets(st.integers(0, 5), max_size=4), min_size=1, max_size=60)


def test_a_class_in_a_hundredth_of_the_pictures_is_shown_seven_times_as_often() -> None:
    pictures = [{0}] * 980 + [{0, 1}] * 20
    times = repeats(pictures, below=1.0, seed=0)
    assert times[:980] == [1] * 980
    assert all(n in (7, 8) for n in times[980:])


def test_background_and_common_classes_are_shown_once() -> None:
    assert repeats([set(), {0}, {0}, set(), {0}], below=0.5, seed=0) == [1] * 5


def test_nothing_is_repeated_when_it_is_switched_off() -> None:
    assert repeats([{0}, {1}, {2}, set()], below=0.0, seed=0) == [1] * 4


@given(PICTURES, st.floats(0, 1), st.integers(0, 9))
def test_every_picture_is_shown_and_a_pass_is_never_much_more_than_twice_as_long(
    pictures: list[set[int]], below: float, seed: int
) -> None:
    times = repeats(pictures, below=below, seed=seed)
    assert len(times) == len(pictures)
    assert min(times) >= 1
    assert sum(times) <= 3 * len(pictures)
    assert times == repeats(pictures, below=below, seed=seed)


@given(PICTURES, st.integers(0, 9))
def test_no_class_is_shown_less_often_than_it_was_labelled(pictures: list[set[int]], seed: int) -> None:
    times = repeats(pictures, below=1.0, seed=seed)
    before = Counter(c for one in pictures for c in one)
    after = Counter(c for one, n in zip(pictures, times, strict=True) for c in one for _ in range(n))
    assert all(after[c] >= before[c] for c in before)
