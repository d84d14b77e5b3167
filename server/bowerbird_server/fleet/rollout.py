"""When which device is offered a new model, and when a rollout stops: a table and pure functions.

In: a rollout's state, its executions with their age in seconds, settings. Out: the next state, devices to offer the job to, devices
that stayed silent. It reads no clock and no table (`catalogue/rollouts.py` does) and sends nothing (`delivery.py` does).

A rollout goes in waves. The next wave opens when enough devices of the one before are done and enough of them succeeded; too many
failures, one sign of an attack, or a wave that ends without enough successes pause it for a person to look.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class State(StrEnum):
    """Of a rollout; the value is what the catalogue holds."""

    DRAFT = "draft"
    APPROVED = "approved"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    ABORTED = "aborted"
    ROLLED_BACK = "rolled_back"


class Event(StrEnum):
    """What moves a rollout."""

    APPROVE = "approve"
    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    COMPLETE = "complete"
    ABORT = "abort"
    ROLL_BACK = "roll back"


TRANSITIONS: Mapping[tuple[State, Event], State] = {
    (State.DRAFT, Event.APPROVE): State.APPROVED,
    (State.DRAFT, Event.ABORT): State.ABORTED,
    (State.APPROVED, Event.START): State.RUNNING,
    (State.APPROVED, Event.ABORT): State.ABORTED,
    (State.RUNNING, Event.PAUSE): State.PAUSED,
    (State.RUNNING, Event.COMPLETE): State.COMPLETED,
    (State.RUNNING, Event.ABORT): State.ABORTED,
    (State.RUNNING, Event.ROLL_BACK): State.ROLLED_BACK,
    (State.PAUSED, Event.RESUME): State.RUNNING,
    (State.PAUSED, Event.ABORT): State.ABORTED,
    (State.PAUSED, Event.ROLL_BACK): State.ROLLED_BACK,
    (State.COMPLETED, Event.ROLL_BACK): State.ROLLED_BACK,
}
OPEN = frozenset({State.DRAFT, State.APPROVED, State.RUNNING, State.PAUSED})

# What became of a device's part.
SUCCEEDED, FAILED, TIMED_OUT, CANCELLED, WAITING, OFFERED = (
    "succeeded",
    "failed",
    "timed_out",
    "cancelled",
    "waiting",
    "offered",
)
FINISHED = frozenset({SUCCEEDED, FAILED, TIMED_OUT, CANCELLED})
# States of a device's updater; any other text from the network counts as no more than having heard of the job.
_LOST_ON_DEVICE = frozenset({"rolled_back", "refused"})
_PROGRESS = frozenset({"accepted", "fetching", "verifying", "building", "selftest", "shadow", "trial"})

# Refusals that an honest server cannot cause: somebody may be tampering with jobs or the repository.
SECURITY_CODES = frozenset({"job_signature", "job_device", "release_mismatch", "wrong_digest", "digest", "signature"})


@dataclass(frozen=True)
class Settings:
    """How careful a rollout is.

    Args:
        wave_shares: share of the devices that each wave has reached when it ends, rising to 1; a wave has at least one device.
        minimum_executed: devices of a wave that must be done before it is judged (all, where it has fewer).
        success_share: share of the done devices that must have succeeded, in (0, 1].
        failure_share: more failures than this share of all done devices pause the rollout.
        silent_s: a device that reports nothing for so long has timed out.
        max_parallel: devices that may be busy with the job at a time.
    """

    wave_shares: tuple[float, ...] = (0.25, 1.0)
    minimum_executed: int = 1
    success_share: float = 0.9
    failure_share: float = 0.2
    silent_s: float = 6 * 3600.0
    max_parallel: int = 50

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.wave_shares, self.wave_shares[1:], strict=False))
        if not self.wave_shares or self.wave_shares[0] <= 0 or self.wave_shares[-1] != 1 or not rising:
            raise ValueError("wave_shares must rise from above 0 to exactly 1, for example (0.25, 1.0)")
        if not 0 < self.success_share <= 1 or not 0 <= self.failure_share < 1:
            raise ValueError("success_share must lie in (0, 1] and failure_share in [0, 1)")
        if self.minimum_executed < 1 or self.max_parallel < 1 or self.silent_s <= 0:
            raise ValueError("minimum_executed and max_parallel must be at least 1, silent_s more than 0")

    def to_json(self) -> str:
        """As a row of the catalogue holds it."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """What `to_json` has written."""
        plain = json.loads(text)
        return cls(**{**plain, "wave_shares": tuple(plain["wave_shares"])})


@dataclass(frozen=True)
class Execution:
    """One device's part; `age_s` is the time since anything was heard of it."""

    device: str
    wave: int
    state: str
    age_s: float = 0.0
    code: str = ""


@dataclass(frozen=True)
class Decision:
    """What to do now: offer the job to `offer`, call `timed_out` timed out, apply `event` with its reason."""

    offer: tuple[str, ...] = ()
    timed_out: tuple[str, ...] = ()
    event: Event | None = None
    why: Mapping[str, object] = field(default_factory=dict)


class IllegalTransition(Exception):
    """The table has no such pair; the text names what is possible instead."""


def advance(state: State, event: Event) -> State:
    """The state after an event.

    Raises:
        IllegalTransition: the table has no such pair.
    """
    to = TRANSITIONS.get((state, event))
    if to is None:
        possible = sorted(e.value for s, e in TRANSITIONS if s is state)
        raise IllegalTransition(
            f"a rollout that is {state.value} cannot {event.value}; it can {', '.join(possible) or 'do nothing'}"
        )
    return to


def assign_waves(rollout: str, devices: Sequence[str], shares: Sequence[float]) -> dict[str, int]:
    """Wave number (from 0) of each device, by a hash of rollout and device: stable, and another order in each rollout."""
    order = sorted(set(devices), key=lambda device: hashlib.sha256(f"{rollout}\0{device}".encode()).digest())
    waves: dict[str, int] = {}
    done = 0
    for wave, share in enumerate(shares):
        end = max(done + 1, round(share * len(order)))
        waves.update(dict.fromkeys(order[done:end], wave))
        done = max(done, min(end, len(order)))
    return waves


def outcome(reported_state: str, *, running_digest: str, model_digest: str, code: str) -> tuple[str, str]:
    """(execution state, code) that a device's report amounts to; success is running the right model after probation."""
    if reported_state == "committed":
        return (SUCCEEDED, code) if running_digest == model_digest else (FAILED, "wrong_digest")
    if reported_state in _LOST_ON_DEVICE:
        return FAILED, code or reported_state
    return (reported_state if reported_state in _PROGRESS else OFFERED), code


def accepts(state: str, to: str) -> bool:
    """Whether an execution in `state` may become `to` by a report: late successes count, repeats change nothing."""
    if state == TIMED_OUT:
        return True
    if state == SUCCEEDED:
        return to == FAILED
    return state not in (FAILED, CANCELLED)


def decide(executions: Sequence[Execution], settings: Settings) -> Decision:
    """What a running rollout should do now; doing it and asking again leads to the next step."""
    timed_out = tuple(e.device for e in executions if e.state not in (WAITING, *FINISHED) and e.age_s > settings.silent_s)
    counted = [e for e in executions if e.state != CANCELLED]
    states = {e.device: TIMED_OUT if e.device in timed_out else e.state for e in counted}
    tampered = sorted(e.device for e in counted if e.state == FAILED and e.code in SECURITY_CODES)
    if tampered:
        return Decision(
            (), timed_out, Event.PAUSE, {"reason": "a device refused the job as forged or altered", "devices": tampered}
        )
    succeeded = sum(state == SUCCEEDED for state in states.values())
    failed = sum(state == FAILED for state in states.values())
    executed = succeeded + failed
    if executed >= min(settings.minimum_executed, len(states)) and failed > settings.failure_share * executed:
        return Decision((), timed_out, Event.PAUSE, {"reason": "too many failures", "failed": failed, "executed": executed})
    free = settings.max_parallel - sum(state not in (WAITING, *FINISHED) for state in states.values())
    offer: list[str] = []
    for wave in sorted({e.wave for e in counted}):
        members = [e.device for e in counted if e.wave == wave]
        offer += [device for device in members if states[device] == WAITING][: max(0, free - len(offer))]
        if _passed([states[device] for device in members], settings):
            continue
        if all(states[device] in FINISHED for device in members):
            why = {"reason": "a wave ended without enough successes", "wave": wave}
            return Decision((), timed_out, Event.PAUSE, why)
        return Decision(tuple(offer), timed_out)
    if all(state in FINISHED for state in states.values()):
        return Decision((), timed_out, Event.COMPLETE, {"succeeded": succeeded, "devices": len(states)})
    return Decision(tuple(offer), timed_out)


def _passed(states: Sequence[str], settings: Settings) -> bool:
    succeeded = sum(state == SUCCEEDED for state in states)
    executed = succeeded + sum(state == FAILED for state in states)
    return executed >= min(settings.minimum_executed, len(states)) and succeeded >= settings.success_share * executed
