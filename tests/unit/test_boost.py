"""More exploration for a while: inside the caps, for the time that was said, and never for ever."""

from __future__ import annotations

import pytest

from bowerbird_agent.boost import MAX_FACTOR, MAX_S, BoostWatch, boosted
from bowerbird_agent.policy import TEMPLATES, Policy
from bowerbird_wire.messages import Boost

WALL_MS = 1_790_000_000_000
DAY_MS = 86_400_000


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_every_template_can_be_boosted_and_what_is_off_stays_off(template: str) -> None:
    policy = Policy.template(template)
    more = boosted(policy, 2.0)
    assert more.epsilon == min(1.0, 2 * policy.epsilon)
    assert more.frames_per_window == (None if policy.frames_per_window is None else 2 * policy.frames_per_window)
    assert boosted(policy, 1.0) == policy


def watch(boost: Boost | None, *, allowed: bool = True, clock_ok: bool = True) -> BoostWatch:
    made = BoostWatch()
    made.take(boost)
    made.step(0.0, WALL_MS, clock_ok=clock_ok, allowed=allowed)
    return made


def test_it_holds_until_the_end_that_was_said_and_says_when_it_changes() -> None:
    made = BoostWatch()
    made.take(Boost(WALL_MS + DAY_MS))
    assert made.step(10.0, WALL_MS, clock_ok=True, allowed=True)
    assert made.over(Policy()).epsilon == 0.4
    assert made.facts() == {"factor": 2.0, "until_ms": WALL_MS + DAY_MS}
    made.take(Boost(WALL_MS + DAY_MS))
    assert not made.step(20.0, WALL_MS + DAY_MS - 1, clock_ok=True, allowed=True), "the same again changes nothing"
    assert made.step(30.0, WALL_MS + DAY_MS, clock_ok=True, allowed=True)
    assert made.over(Policy()) == Policy()
    assert made.facts() == {}


def test_a_clock_that_stands_still_does_not_make_it_last() -> None:
    made = watch(Boost(WALL_MS + DAY_MS))
    assert made.over(Policy()) != Policy()
    assert made.step(DAY_MS / 1000, WALL_MS, clock_ok=True, allowed=True)
    assert made.over(Policy()) == Policy()


@pytest.mark.parametrize(
    "made",
    [
        watch(None),
        watch(Boost(WALL_MS + DAY_MS), allowed=False),
        watch(Boost(WALL_MS + DAY_MS), clock_ok=False),
        watch(Boost(WALL_MS - 1)),
        watch(Boost(WALL_MS + DAY_MS, 0.1)),
    ],
)
def test_nothing_is_boosted_that_was_not_wished_is_not_allowed_or_is_over(made: BoostWatch) -> None:
    assert made.over(Policy()) == Policy()


def test_a_server_cannot_boost_without_measure_or_end() -> None:
    made = watch(Boost(WALL_MS + 1000 * DAY_MS, 100.0))
    assert made.over(Policy(epsilon=0.01)).epsilon == pytest.approx(0.01 * MAX_FACTOR)
    assert made.step(MAX_S, WALL_MS + int(MAX_S * 1000), clock_ok=True, allowed=True)
    assert made.over(Policy()) == Policy()


def test_the_server_may_take_it_back() -> None:
    made = watch(Boost(WALL_MS + DAY_MS))
    made.take(None)
    assert made.step(1.0, WALL_MS, clock_ok=True, allowed=True)
    assert made.over(Policy()) == Policy()
