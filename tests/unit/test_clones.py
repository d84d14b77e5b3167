"""When two machines are one device: the rules, case by case."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bowerbird_server.identity.clones import Remembered, Sighting, judge, judge_renewal
from bowerbird_server.identity.states import TRANSITIONS, Happening, State, after

HOUR_S = 3600.0


def first_reason(sightings: Sequence[Sighting], *, current: int = 1, since_s: float = 0.0) -> tuple[int, str]:
    """How many sightings were fine, and what was wrong with the next."""
    known = Remembered()
    for number, seen in enumerate(sightings):
        known, why = judge(Remembered.from_plain(known.to_plain()), seen, current=current, current_since_s=since_s)
        if why:
            return number, why
    return len(sightings), ""


def boots(text: str) -> list[Sighting]:
    return [Sighting(float(number), boot) for number, boot in enumerate(text)]


@pytest.mark.parametrize("text", ["aaaa", "abcdefghijklmnop", "aaabbbccc", "a"])
def test_restarts_and_reboots_are_no_clone(text: str) -> None:
    assert first_reason(boots(text)) == (len(text), "")


@pytest.mark.parametrize(("text", "fine"), [("aba", 2), ("aabba", 4), ("abcb", 3)])
def test_a_boot_that_comes_back_after_another_is_a_clone(text: str, fine: int) -> None:
    number, why = first_reason(boots(text))
    assert number == fine
    assert "alternate" in why


def test_three_take_overs_within_ten_minutes_are_a_clone() -> None:
    counts = [Sighting(0, "a", 1, 0), Sighting(100, "a", 1, 1), Sighting(300, "a", 1, 2), Sighting(599, "a", 1, 3)]
    number, why = first_reason(counts)
    assert number == 3
    assert "taken over" in why


def test_three_take_overs_in_a_longer_time_are_none() -> None:
    counts = [Sighting(0, "a", 1, 0), Sighting(1, "a", 1, 1), Sighting(300, "a", 1, 2), Sighting(601, "a", 1, 3)]
    assert first_reason(counts) == (4, "")


def connection(at_s: float, number: int, link: str, start: str = "a") -> Sighting:
    return Sighting(at_s, start, 1, 0, number, link)


def test_two_that_count_their_connections_for_themselves_are_a_clone_by_the_third_that_does_not_fit() -> None:
    """A machine that was copied while it ran, at a broker that does not tell whose connection ended for whom."""
    turns = [(1, "a1"), (1, "b1"), (2, "a2"), (2, "b2"), (3, "a3"), (3, "b3")]
    number, why = first_reason([connection(10 * i, *turn) for i, turn in enumerate(turns)])
    assert number == 5
    assert "taken over" in why


def test_a_number_that_falls_back_within_one_start_is_anothers_too() -> None:
    turns = [(7, "a7"), (1, "b1"), (8, "a8"), (2, "b2"), (9, "a9"), (3, "b3")]
    assert first_reason([connection(i, *turn) for i, turn in enumerate(turns)])[0] == 5


def test_the_same_word_of_one_connection_again_and_growing_numbers_are_no_clone() -> None:
    """A model was changed, or the server was started again and reads what is retained; and a link that breaks every minute."""
    again = [connection(i, 4, "a4") for i in range(5)]
    broken = [connection(60 * i, i, f"a{i}") for i in range(1, 9)]
    restarted = [connection(i, 1, f"{i}", start=f"start-{i}") for i in range(5)]
    for sightings in (again, broken, restarted):
        assert first_reason(sightings) == (len(sightings), "")


def test_what_was_told_before_anything_was_remembered_counts_for_nothing() -> None:
    assert first_reason([Sighting(0, "a", 1, 7), Sighting(1, "a", 1, 7), Sighting(2, "a", 1, 8)]) == (3, "")


def test_an_agent_that_starts_again_counts_from_nought() -> None:
    counts = [Sighting(0, "a", 1, 2), Sighting(1, "a", 1, 0), Sighting(2, "a", 1, 0), Sighting(3, "a", 1, 1)]
    assert first_reason(counts) == (4, "")


def test_the_old_certificate_is_fine_for_48_hours_beside_the_new_one_and_not_longer() -> None:
    assert first_reason([Sighting(48 * HOUR_S, "a", 1)], current=2) == (1, "")
    number, why = first_reason([Sighting(48 * HOUR_S + 1, "a", 1)], current=2)
    assert number == 0
    assert "generation 1" in why


def test_a_device_without_a_certificate_is_judged_by_the_rest() -> None:
    assert first_reason([Sighting(100 * HOUR_S, "a", 0)], current=2) == (1, "")


@pytest.mark.parametrize(
    ("generation", "key", "seen", "clone"),
    [
        (3, "new", True, False),  # the present one renews
        (4, "new", True, False),  # newer than the catalogue, which was restored
        (2, "current", True, False),  # the answer was lost
        (2, "new", False, False),  # with the new key
        (2, "new", True, True),
        (1, "new", False, True),
        (1, "current", True, True),
    ],
)
def test_a_renewal_by_an_old_generation_is_a_retry_or_a_clone(generation: int, key: str, seen: bool, clone: bool) -> None:
    why = judge_renewal(generation=generation, key=key, current=3, current_key="current", current_seen=seen)
    assert bool(why) is clone


def test_the_life_of_a_device_ends_once_and_only_an_active_one_is_suspended_by_hand() -> None:
    assert not [pair for pair in TRANSITIONS if pair[0] is State.RETIRED]
    assert after("pending", Happening.SUSPENDED) is None
    assert after("active", Happening.SUSPECTED) is after("active", Happening.SUSPENDED) is State.SUSPENDED
    assert after("suspended", Happening.RESUMED) is State.ACTIVE
    assert after("suspended", Happening.APPROVED) is None
    assert all(after(state.value, Happening.RETIRED) is State.RETIRED for state in State if state is not State.RETIRED)
