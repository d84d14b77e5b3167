"""The update machine's table: total, without dead ends, and every wake ends somewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bowerbird_agent.updates.updater import (
    BEFORE_TRIAL,
    MAX_CRASHES,
    MAX_POWER_CUTS,
    MAX_STEPS,
    TERMINAL,
    TRANSITIONS,
    WAKE_IN,
    Event,
    IllegalTransition,
    Record,
    Refusal,
    State,
    Trial,
    TrialLimits,
    accept,
    advance,
    at_the_door,
    is_bad,
    report_of,
    start_trial,
    wake,
)
from bowerbird_models.manifest import Probation
from bowerbird_wire.messages import Job

JOB = Job("job-1", "a" * 64, 5)
EXPECTED = {
    "idle": {"job": "accepted"},
    "committed": {"job": "accepted"},
    "rolled_back": {"job": "accepted"},
    "refused": {"job": "accepted"},
    "accepted": {
        "trusted": "fetching", "already_running": "committed", "retry": "accepted", "failed": "refused", "cancelled": "refused",
    },
    "fetching": {"fetched": "verifying", "retry": "fetching", "failed": "refused", "cancelled": "refused"},
    "verifying": {"verified": "selftest", "to_build": "building", "damaged": "fetching", "failed": "refused", "cancelled": "refused"},
    "building": {"built": "selftest", "retry": "building", "failed": "refused", "cancelled": "refused"},
    "selftest": {"passed": "trial", "failed": "refused", "cancelled": "refused"},
    "trial": {"healthy": "committed", "failed": "rolled_back", "cancelled": "rolled_back"},
}  # fmt: skip


def record(state: State) -> Record:
    return Record(state=state, job=JOB, base_digest="b" * 64, steps=3, starts=1, boot_id="boot-1")


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", State)
def test_every_pair_of_state_and_event_goes_where_it_should_or_is_refused(state: State, event: Event) -> None:
    to = EXPECTED[state.value].get(event.value)
    if to is None:
        with pytest.raises(IllegalTransition):
            advance(record(state), event)
    else:
        assert advance(record(state), event).state.value == to


def test_every_state_that_is_not_an_end_can_fail_and_be_cancelled() -> None:
    for state in set(State) - TERMINAL:
        assert {(state, Event.FAILED), (state, Event.CANCELLED)} <= set(TRANSITIONS)


def test_wake_in_is_total() -> None:
    assert set(WAKE_IN) == set(State)
    for state in State:
        assert wake(record(state), boot_id="boot-2").state in State


def test_before_the_trial_the_old_model_is_the_one_expected_and_from_it_on_the_new_one() -> None:
    for state in (*BEFORE_TRIAL, State.REFUSED, State.ROLLED_BACK):
        assert record(state).expected_digest == "b" * 64
    for state in (State.TRIAL, State.COMMITTED):
        assert record(state).expected_digest == JOB.model_digest


def test_a_trial_that_dies_in_every_start_of_one_boot_is_rolled_back() -> None:
    current = start_trial(record(State.SELFTEST), boot_id="boot-1")
    for _ in range(MAX_CRASHES - 1):
        current = wake(current, boot_id="boot-1")
        assert current.state is State.TRIAL
    current = wake(current, boot_id="boot-1")
    assert (current.state, current.code) == (State.ROLLED_BACK, "crash_loop")


def test_power_cuts_are_counted_apart_from_crashes_and_more_patiently() -> None:
    current = start_trial(record(State.SELFTEST), boot_id="boot-0")
    for number in range(1, MAX_POWER_CUTS + 1):
        current = wake(current, boot_id=f"boot-{number}")
        assert current.state is State.TRIAL
    assert wake(current, boot_id="boot-x").code == "power_cuts"


@pytest.mark.parametrize(("state", "event"), [(State.ACCEPTED, Event.RETRY), (State.FETCHING, Event.RETRY)])
def test_no_job_goes_round_for_ever(state: State, event: Event) -> None:
    current = record(state)
    for _ in range(MAX_STEPS + 1):
        if current.state in TERMINAL:
            break
        current = advance(current, event)
    assert (current.state, current.code) == (State.REFUSED, "step_cap")


def test_damage_and_refetching_do_not_go_round_for_ever() -> None:
    current = record(State.FETCHING)
    for _ in range(MAX_STEPS):
        current = advance(current, Event.FETCHED)
        if current.state in TERMINAL:
            break
        current = advance(current, Event.DAMAGED)
        if current.state in TERMINAL:
            break
    assert current.code == "step_cap"


def test_waking_again_and_again_before_the_trial_ends_in_a_refusal() -> None:
    current = record(State.SELFTEST)
    for _ in range(MAX_STEPS):
        current = wake(current, boot_id="boot-1")
    assert (current.state, current.code) == (State.REFUSED, "step_cap")


def test_accepting_a_job_begins_a_fresh_record_and_is_refused_while_one_is_under_way() -> None:
    fresh = accept(replace(record(State.COMMITTED), steps=50, starts=3), JOB, running_digest="c" * 64)
    assert (fresh.state, fresh.steps, fresh.starts, fresh.base_digest) == (State.ACCEPTED, 1, 0, "c" * 64)
    with pytest.raises(IllegalTransition):
        accept(record(State.TRIAL), JOB, running_digest="")


@pytest.mark.parametrize(
    ("job", "changes", "code"),
    [
        (JOB, {}, None),
        (replace(JOB, model_digest="../x"), {}, "bad_job"),
        (replace(JOB, job_id=""), {}, "bad_job"),
        (JOB, {"now_ms": 10}, "clock"),
        (JOB, {"known_bad": {"a" * 64: "golden"}}, "known_bad"),
        (JOB, {"release_floor": 6}, "release_floor"),
        (JOB, {"release_floor": 5}, None),
    ],
)
def test_the_door_lets_in_what_may_be_tried(job: Job, changes: dict[str, object], code: str | None) -> None:
    facts = {"release_floor": 0, "known_bad": {}, "now_ms": 2000, "time_floor_ms": 1000, **changes}
    refusal = at_the_door(job, **facts)  # type: ignore[arg-type]  # one table for arguments of several types
    assert (refusal.code if refusal else None) == code


def test_a_model_is_to_blame_only_for_what_it_did_itself() -> None:
    assert not is_bad(record(State.FETCHING))
    assert is_bad(record(State.SELFTEST))
    assert is_bad(record(State.TRIAL))


def test_a_report_carries_what_runs_and_what_was_asked_for() -> None:
    report = report_of(record(State.TRIAL), running_digest="r", running_file_digest="f", at_ms=7)
    assert (report.state, report.running_digest, report.model_digest, report.at_ms) == ("trial", "r", JOB.model_digest, 7)


def trial(**changes: float) -> Trial:
    return Trial(
        Probation(3, 10.0, 20.0), TrialLimits(bad_frames=1), started_s=100.0, baseline_ms=changes.get("baseline_ms", 0)
    )


def test_a_trial_is_won_by_good_frames_and_an_answer_of_the_server() -> None:
    watched = trial()
    for _ in range(3):
        assert watched.verdict(101.0) is False
        watched.observe(ok=True, inference_ms=5)
    assert watched.verdict(101.0) is False
    watched.server_reached()
    assert watched.verdict(101.0) is True


@pytest.mark.parametrize(
    ("frames", "reached", "now_s", "code"),
    [
        ([True, False, False], True, 101.0, "bad_frames"),
        ([True, True], True, 110.1, "no_frames"),
        ([True, True, True], False, 120.1, "unreachable"),
    ],
)
def test_a_trial_is_lost(frames: list[bool], reached: bool, now_s: float, code: str) -> None:
    watched = trial()
    for ok in frames:
        watched.observe(ok=ok, inference_ms=5)
    if reached:
        watched.server_reached()
    verdict = watched.verdict(now_s)
    assert isinstance(verdict, Refusal)
    assert verdict.code == code


def test_latency_is_judged_against_the_previous_model_and_never_within_the_slack() -> None:
    for inference_ms, lost in ((10 * 100 + 499, False), (10 * 100 + 501, True)):
        watched = trial(baseline_ms=100.0)
        watched.server_reached()
        for _ in range(3):
            watched.observe(ok=True, inference_ms=inference_ms)
        assert isinstance(watched.verdict(101.0), Refusal) is lost
