"""The rollout's table and rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bowerbird_server.fleet.rollout import (
    FINISHED,
    OPEN,
    TRANSITIONS,
    Event,
    Execution,
    IllegalTransition,
    Settings,
    State,
    accepts,
    advance,
    assign_waves,
    decide,
    outcome,
)

FLEET = Settings(wave_shares=(0.2, 1.0), minimum_executed=2)


def executions(*states: str, wave: int = 0) -> list[Execution]:
    return [Execution(f"d{wave}{n}", wave, state) for n, state in enumerate(states)]


def test_every_open_state_can_end_and_no_other_state_goes_on() -> None:
    """Draft, approved, running and paused lead somewhere; aborted and rolled back nowhere."""
    leads = {state for state, _ in TRANSITIONS}
    assert leads == OPEN | {State.COMPLETED}
    for state in OPEN:
        assert advance(state, Event.ABORT) is State.ABORTED


def test_an_impossible_step_names_what_is_possible() -> None:
    """The operator learns what can be done instead."""
    with pytest.raises(IllegalTransition, match="paused cannot start; it can abort, resume, roll back"):
        advance(State.PAUSED, Event.START)


@given(st.lists(st.from_regex(r"[a-z]{1,8}", fullmatch=True), min_size=1, unique=True), st.text(max_size=5))
def test_waves_cover_all_devices_in_rising_shares(devices: list[str], rollout: str) -> None:
    """Each device has one wave, the first is not empty, and order of the input does not matter."""
    waves = assign_waves(rollout, devices, (0.1, 0.5, 1.0))
    assert set(waves) == set(devices)
    assert 0 in waves.values()
    assert waves == assign_waves(rollout, sorted(devices, reverse=True), (0.1, 0.5, 1.0))
    assert sum(w == 0 for w in waves.values()) == max(1, round(0.1 * len(devices)))


def test_only_the_first_wave_is_offered_at_first() -> None:
    """The second waits for the first's successes."""
    decision = decide([*executions("waiting", "waiting"), *executions("waiting", wave=1)], FLEET)
    assert decision.offer == ("d00", "d01")
    assert decision.event is None


@pytest.mark.parametrize(
    ("first_wave", "opens"),
    [
        (("succeeded", "succeeded"), True),
        (("succeeded", "trial"), False),  # fewer than the minimum are done
        (("succeeded", "succeeded", "fetching"), True),
        (("offered", "offered"), False),
    ],
)
def test_the_next_wave_opens_when_enough_have_succeeded(first_wave: tuple[str, ...], opens: bool) -> None:
    """`minimum_executed` done and `success_share` of them well."""
    decision = decide([*executions(*first_wave), *executions("waiting", wave=1)], FLEET)
    assert decision.offer == (("d10",) if opens else ())


def test_too_many_failures_pause() -> None:
    """More than the failure share of those done."""
    decision = decide(executions("succeeded", "succeeded", "failed", "offered"), FLEET)
    assert decision.event is Event.PAUSE
    assert decide(executions(*["succeeded"] * 4, "failed", "offered"), Settings(success_share=0.8)).event is None


def test_one_sign_of_tampering_pauses_at_once() -> None:
    """Whatever the shares say."""
    forged = Execution("d9", 0, "failed", code="job_signature")
    decision = decide([*executions(*["succeeded"] * 99), forged], FLEET)
    assert decision.event is Event.PAUSE
    assert decision.why["devices"] == ["d9"]


def test_a_wave_of_silent_devices_pauses() -> None:
    """All timed out: done, but not well."""
    silent = [Execution("d0", 0, "offered", age_s=1e6), Execution("d1", 0, "timed_out")]
    decision = decide([*silent, *executions("waiting", wave=1)], FLEET)
    assert decision.timed_out == ("d0",)
    assert decision.event is Event.PAUSE
    assert decision.offer == ()


def test_waiting_devices_do_not_time_out() -> None:
    """Nothing was asked of them yet."""
    assert decide([Execution("d0", 0, "waiting", age_s=1e9)], FLEET).timed_out == ()


def test_all_done_well_completes() -> None:
    """Also with one that went silent after the wave had passed."""
    assert decide(executions("succeeded", "succeeded", "timed_out"), FLEET).event is Event.COMPLETE


def test_no_more_than_max_parallel_are_busy() -> None:
    """A thin site link is not flooded."""
    decision = decide(executions("fetching", *["waiting"] * 9), Settings(max_parallel=4))
    assert len(decision.offer) == 3


@given(
    st.lists(
        st.tuples(st.sampled_from(["waiting", "offered", "fetching", *sorted(FINISHED)]), st.integers(0, 2)),
        min_size=1,
        max_size=20,
    )
)
def test_a_running_rollout_never_hangs(drawn: list[tuple[str, int]]) -> None:
    """With nobody busy there is always something to do: offer, pause or complete."""
    parts = [Execution(f"d{n}", wave, state) for n, (state, wave) in enumerate(drawn)]
    decision = decide(parts, Settings())
    busy = any(e.state in ("offered", "fetching") for e in parts)
    assert busy or decision.offer or decision.event is not None


def test_committed_counts_only_with_the_right_model_running() -> None:
    """A device that says committed and runs another model has failed."""
    assert outcome("committed", running_digest="a", model_digest="a", code="") == ("succeeded", "")
    assert outcome("committed", running_digest="b", model_digest="a", code="") == ("failed", "wrong_digest")
    assert outcome("rolled_back", running_digest="b", model_digest="a", code="too_slow") == ("failed", "too_slow")


def test_a_device_cannot_name_its_own_outcome() -> None:
    """`succeeded` is the server's word; from a device it is no more than a sign of life."""
    assert outcome("succeeded", running_digest="b", model_digest="a", code="")[0] == "offered"


def test_late_and_repeated_reports_do_not_undo_what_is_known() -> None:
    """A late success counts, a repeat of progress after success does not, a failure after success does."""
    assert accepts("timed_out", "succeeded")
    assert not accepts("succeeded", "fetching")
    assert accepts("succeeded", "failed")
    assert not accepts("failed", "succeeded")
    assert not accepts("cancelled", "succeeded")


@pytest.mark.parametrize("shares", [(), (0.5,), (0.5, 0.4, 1.0), (0.0, 1.0)])
def test_waves_that_do_not_reach_everybody_are_refused(shares: tuple[float, ...]) -> None:
    """The last share is 1."""
    with pytest.raises(ValueError, match="wave_shares"):
        Settings(wave_shares=shares)
