"""The rules of the loop: what to do next, given what there is. No I/O, no clock.

In: `LoopFacts`, read from the catalogue. Out: one `Step`. `scheduler.py` carries it out and asks again. Every step starts from
facts that are on disk, so a scheduler killed anywhere goes on where it was.

    collecting --frames are there--> labelling --all labelled--> training --gate--> rolling_out --all run it--> finished
                                                                     '--------- rejected ---------------------------^
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Step(StrEnum):
    """What the scheduler should do now."""

    OPEN_ROUND = "open_round"
    BUILD_BATCH = "build_batch"
    QUEUE_TRAINING = "queue_training"
    TRAIN = "train"
    ROLL_OUT = "roll_out"
    FINISH_ROUND = "finish_round"
    WAIT = "wait"
    DONE = "done"


@dataclass(frozen=True)
class LoopFacts:
    """What the catalogue says.

    Args:
        collect: rounds open by themselves.
        train: training starts by itself.
        roll_out: rollouts start by themselves.
        rounds_limit: rounds to run, None for no end.
        rounds_finished: rounds that are finished.
        round_state: state of the open round, None when none is open.
        frames_wanted: of the open round.
        frames_received: committed and not yet in a batch.
        devices: active devices.
        collection_over: every device has closed its selection window and sent what it chose, or the wait is over.
        batch_done: the round's frames are all labelled or rejected.
        open_run: a training run waits or was interrupted, of whatever origin.
        round_run_state: state of the round's own run, None before there is one.
        round_rollout_state: state of the round's own rollout, None before there is one.
        champion_rolled_out: no rollout is under way.
    """

    collect: bool = False
    train: bool = False
    roll_out: bool = False
    rounds_limit: int | None = None
    rounds_finished: int = 0
    round_state: str | None = None
    frames_wanted: int = 0
    frames_received: int = 0
    devices: int = 0
    collection_over: bool = False
    batch_done: bool = False
    open_run: bool = False
    round_run_state: str | None = None
    round_rollout_state: str | None = None
    champion_rolled_out: bool = True


def next_step(facts: LoopFacts) -> Step:
    """The one thing to do now."""
    if facts.open_run:
        return Step.TRAIN
    if facts.round_state is None:
        return _between_rounds(facts)
    if facts.round_state == "collecting":
        enough = facts.frames_received >= facts.frames_wanted
        return Step.BUILD_BATCH if facts.frames_received and (enough or facts.collection_over) else Step.WAIT
    if facts.round_state == "labelling":
        return Step.QUEUE_TRAINING if facts.batch_done and facts.train else Step.WAIT
    if facts.round_state == "training":
        return _after_training(facts)
    # rolling_out
    if facts.round_rollout_state is None:
        return Step.ROLL_OUT if facts.roll_out else Step.WAIT
    over = facts.round_rollout_state in ("completed", "aborted", "rolled_back")
    return Step.FINISH_ROUND if over else Step.WAIT


def _between_rounds(facts: LoopFacts) -> Step:
    if facts.rounds_limit is not None and facts.rounds_finished >= facts.rounds_limit:
        return Step.DONE
    # Devices without a model choose by novelty, typicality and chance: that is where a new site's first labels come from.
    ready = facts.devices and facts.champion_rolled_out
    return Step.OPEN_ROUND if facts.collect and ready else Step.WAIT


def _after_training(facts: LoopFacts) -> Step:
    if facts.round_run_state == "promoted":
        return Step.ROLL_OUT if facts.roll_out else Step.WAIT
    # Rejected, failed or cancelled: the champion stays, and the labels count for the next round.
    return Step.FINISH_ROUND
