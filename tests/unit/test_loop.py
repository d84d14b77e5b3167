"""The rules of the loop, each as one sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bowerbird_server.loop import LoopFacts, Step, next_step

AUTOMATIC = LoopFacts(collect=True, train=True, roll_out=True, rounds_limit=2, devices=2)


def test_a_round_opens_when_devices_exist_and_no_rollout_is_under_way_with_a_champion_or_without_any_model() -> None:
    assert next_step(AUTOMATIC) is Step.OPEN_ROUND
    assert next_step(replace(AUTOMATIC, champion_rolled_out=False)) is Step.WAIT
    assert next_step(replace(AUTOMATIC, devices=0)) is Step.WAIT


def test_no_round_opens_unless_the_operator_wants_rounds() -> None:
    assert next_step(replace(AUTOMATIC, collect=False)) is Step.WAIT


def test_the_loop_ends_after_its_last_round() -> None:
    assert next_step(replace(AUTOMATIC, rounds_finished=2)) is Step.DONE
    assert next_step(replace(AUTOMATIC, rounds_finished=1)) is Step.OPEN_ROUND
    assert next_step(replace(AUTOMATIC, rounds_finished=99, rounds_limit=None)) is Step.OPEN_ROUND


@pytest.mark.parametrize(
    ("received", "over", "step"),
    [(0, True, Step.WAIT), (9, False, Step.WAIT), (9, True, Step.BUILD_BATCH), (10, False, Step.BUILD_BATCH)],
)
def test_a_batch_is_built_when_all_frames_came_or_nothing_more_will_come(received: int, over: bool, step: Step) -> None:
    collecting = replace(AUTOMATIC, round_state="collecting", frames_wanted=10)
    assert next_step(replace(collecting, frames_received=received, collection_over=over)) is step


def test_training_waits_for_the_last_label_of_the_batch() -> None:
    labelling = replace(AUTOMATIC, round_state="labelling")
    assert next_step(labelling) is Step.WAIT
    assert next_step(replace(labelling, batch_done=True)) is Step.QUEUE_TRAINING
    assert next_step(replace(labelling, batch_done=True, train=False)) is Step.WAIT


def test_an_interrupted_training_comes_before_everything_else() -> None:
    for state in (None, "collecting", "labelling", "training", "rolling_out"):
        assert next_step(replace(AUTOMATIC, round_state=state, open_run=True)) is Step.TRAIN


@pytest.mark.parametrize(
    ("run_state", "step"),
    [
        ("promoted", Step.ROLL_OUT),
        ("rejected", Step.FINISH_ROUND),
        ("failed", Step.FINISH_ROUND),
        ("cancelled", Step.FINISH_ROUND),
    ],
)
def test_only_a_promoted_model_is_rolled_out(run_state: str, step: Step) -> None:
    assert next_step(replace(AUTOMATIC, round_state="training", round_run_state=run_state)) is step


@pytest.mark.parametrize(
    ("state", "step"),
    [("running", Step.WAIT), ("paused", Step.WAIT), ("completed", Step.FINISH_ROUND), ("rolled_back", Step.FINISH_ROUND)],
)
def test_a_round_ends_with_its_rollout(state: str, step: Step) -> None:
    assert next_step(replace(AUTOMATIC, round_state="rolling_out", round_rollout_state=state)) is step


@given(
    st.sampled_from([None, "collecting", "labelling", "training", "rolling_out"]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 5),
    st.sampled_from([None, "promoted", "rejected"]),
    st.sampled_from([None, "running", "completed"]),
)
def test_with_nothing_automatic_only_a_person_moves_the_loop(
    state: str | None, over: bool, done: bool, received: int, run: str | None, rollout: str | None
) -> None:
    facts = LoopFacts(
        round_state=state,
        frames_wanted=3,
        frames_received=received,
        devices=1,
        collection_over=over,
        batch_done=done,
        round_run_state=run,
        round_rollout_state=rollout,
    )
    assert next_step(facts) not in (Step.OPEN_ROUND, Step.QUEUE_TRAINING, Step.ROLL_OUT)
