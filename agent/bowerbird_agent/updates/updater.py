"""An update as a table: which state follows which event, where a device wakes after a power cut, when a trial is lost.

One table, one record and one thread serve models and the agent itself, so that two updates are never under way at once. What
differs is what is built, tested and swapped (`model_update.py`, `agent_update.py`), and who counts the starts of a trial: for a
model this table, for the agent the launcher, which is part of no version.

In: events, observations and the time, as arguments. Out: the next `Record`, a refusal or a verdict. No files, clocks, threads or
network: `updates/runner.py` persists each record before it acts on it. The diagram in the documentation is made from
`TRANSITIONS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from statistics import median
from types import MappingProxyType

from bowerbird_models.manifest import Probation
from bowerbird_wire.messages import OF, Job, Report


class Subject(str, Enum):
    """What is updated."""

    MODEL = "model"
    AGENT = "agent"


class State(str, Enum):
    """Where an update stands; the value is what reports carry."""

    IDLE = "idle"  # never had a job
    ACCEPTED = "accepted"  # a job that may be tried; its signature and target are being checked
    FETCHING = "fetching"
    VERIFYING = "verifying"  # the files on the disk, once more and as a package
    BUILDING = "building"  # the agent only: installed beside the running one, by a child process
    SELFTEST = "selftest"  # in a child process
    TRIAL = "trial"  # answers frames, on probation
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    REFUSED = "refused"


class Event(str, Enum):
    """What can happen to an update."""

    JOB = "job"  # a job that was let in at the door
    TRUSTED = "trusted"  # TUF metadata is fresh, the director signed the job, the release is listed
    ALREADY_RUNNING = "already_running"  # trusted, and the active model is the one asked for
    FETCHED = "fetched"
    DAMAGED = "damaged"  # what was fetched is no longer right on the disk: a power cut
    VERIFIED = "verified"
    TO_BUILD = "to_build"  # verified, and something has to be made of it
    BUILT = "built"
    PASSED = "passed"
    HEALTHY = "healthy"
    RETRY = "retry"  # the same step again: link trouble
    FAILED = "failed"
    CANCELLED = "cancelled"  # by a signed cancel, or by a newer signed job


_S, _E = State, Event
TERMINAL = frozenset({_S.IDLE, _S.COMMITTED, _S.ROLLED_BACK, _S.REFUSED})
BEFORE_TRIAL = (_S.ACCEPTED, _S.FETCHING, _S.VERIFYING, _S.BUILDING, _S.SELFTEST)

TRANSITIONS: Mapping[tuple[State, Event], State] = MappingProxyType(
    {
        **{(state, _E.JOB): _S.ACCEPTED for state in TERMINAL},
        (_S.ACCEPTED, _E.TRUSTED): _S.FETCHING,
        (_S.ACCEPTED, _E.ALREADY_RUNNING): _S.COMMITTED,
        (_S.ACCEPTED, _E.RETRY): _S.ACCEPTED,
        (_S.FETCHING, _E.FETCHED): _S.VERIFYING,
        (_S.FETCHING, _E.RETRY): _S.FETCHING,
        (_S.VERIFYING, _E.VERIFIED): _S.SELFTEST,
        (_S.VERIFYING, _E.TO_BUILD): _S.BUILDING,
        (_S.VERIFYING, _E.DAMAGED): _S.FETCHING,
        (_S.BUILDING, _E.BUILT): _S.SELFTEST,
        (_S.BUILDING, _E.RETRY): _S.BUILDING,
        (_S.SELFTEST, _E.PASSED): _S.TRIAL,
        (_S.TRIAL, _E.HEALTHY): _S.COMMITTED,
        **{(state, event): _S.REFUSED for state in BEFORE_TRIAL for event in (_E.FAILED, _E.CANCELLED)},
        (_S.TRIAL, _E.FAILED): _S.ROLLED_BACK,
        (_S.TRIAL, _E.CANCELLED): _S.ROLLED_BACK,
    }
)

# State on the disk when the process died -> state in which the next one begins. Every step can be done again, so most wake where
# they were; a trial wakes in its trial unless its starts are used up (`wake`).
WAKE_IN: Mapping[State, State] = MappingProxyType({state: state for state in State})

MAX_STEPS = 60  # transitions and starts of one job; ends every loop that nobody thought of
MAX_CRASHES = 3  # starts of the trial's model in one boot of the machine, the first included
MAX_POWER_CUTS = 10  # boots of the machine during one trial


@dataclass(frozen=True)
class Record:
    """What is persisted of an update, in one transaction with every change.

    Args:
        subject: model or agent; `job.model_digest` is of that.
        base_digest: what ran when the job was accepted, "" for none (of an agent: the one that was installed by hand): what a roll-back
            returns to.
        steps: transitions and wakes so far.
        starts: processes that began or resumed the trial since `boot_id` was first seen.
        power_cuts: boots of the machine since the trial began.
        trusted: whether the director's signature and the release were verified.
        saw_frames: whether frames were answered when the trial began.
    """

    state: State = State.IDLE
    job: Job | None = None
    subject: Subject = Subject.MODEL
    base_digest: str = ""
    steps: int = 0
    starts: int = 0
    power_cuts: int = 0
    boot_id: str = ""
    trusted: bool = False
    saw_frames: bool = False
    code: str = ""
    detail: str = ""

    @property
    def expected_digest(self) -> str:
        """The model, or the agent's release, that should be active in this state."""
        if self.job is not None and self.state in {State.TRIAL, State.COMMITTED}:
            return self.job.model_digest
        return self.base_digest


class IllegalTransition(Exception):
    """The table has no such transition: a bug of ours."""


def advance(record: Record, event: Event, *, code: str = "", detail: str = "") -> Record:
    """The record after an event. The step cap turns any event but the good ends into a failure.

    Raises:
        IllegalTransition: the table has no such pair.
    """
    to = TRANSITIONS.get((record.state, event))
    if to is None:
        raise IllegalTransition(f"{event.value} in state {record.state.value}")
    steps = record.steps + 1
    if steps > MAX_STEPS and to not in TERMINAL:
        to = TRANSITIONS[(record.state, Event.FAILED)]
        code, detail = "step_cap", f"gave up after {MAX_STEPS} steps"
    return replace(record, state=to, steps=steps, trusted=record.trusted or event is Event.TRUSTED, code=code, detail=detail)


def accept(record: Record, job: Job, *, running_digest: str, subject: Subject = Subject.MODEL) -> Record:
    """A fresh record for a job that was let in; `running_digest` is that of the subject.

    Raises:
        IllegalTransition: another job is under way.
    """
    accepted = advance(replace(record, steps=0), Event.JOB)
    return Record(state=accepted.state, job=job, subject=subject, base_digest=running_digest, steps=1)


def start_trial(record: Record, *, boot_id: str, saw_frames: bool = False) -> Record:
    """The record of a trial that is about to begin."""
    return replace(advance(record, Event.PASSED), starts=1, power_cuts=0, boot_id=boot_id, saw_frames=saw_frames)


def wake(record: Record, *, boot_id: str) -> Record:
    """The record with which a new process goes on; persist it before any model is loaded.

    The starts of a new agent are not counted here: it may not live long enough for that.

    Args:
        boot_id: changes with every boot of the machine: a power cut is not the model's fault, a crash may be.
    """
    woken = replace(record, state=WAKE_IN[record.state], steps=record.steps + (record.state not in TERMINAL))
    if woken.state is State.TRIAL and woken.subject is Subject.MODEL:
        if boot_id == record.boot_id:
            woken = replace(woken, starts=record.starts + 1)
        else:
            woken = replace(woken, starts=1, power_cuts=record.power_cuts + 1, boot_id=boot_id)
        if woken.starts > MAX_CRASHES:
            return advance(woken, Event.FAILED, code="crash_loop", detail=f"the process died {MAX_CRASHES} times in the trial")
        if woken.power_cuts > MAX_POWER_CUTS:
            return advance(woken, Event.FAILED, code="power_cuts", detail=f"{MAX_POWER_CUTS} power cuts in one trial")
    if woken.steps > MAX_STEPS and woken.state not in TERMINAL:
        return advance(woken, Event.FAILED, code="step_cap", detail=f"gave up after {MAX_STEPS} steps")
    return woken


def report_of(record: Record, *, running_digest: str, running_file_digest: str, at_ms: int) -> Report:
    """What the server is told about a record."""
    job = record.job
    extra = {} if record.subject is Subject.MODEL else {OF: record.subject.value}
    return Report(
        extra=extra,
        job_id=job.job_id if job else "",
        state=record.state.value,
        running_digest=running_digest,
        running_file_digest=running_file_digest,
        model_digest=job.model_digest if job else "",
        code=record.code,
        detail=record.detail[:500],
        at_ms=at_ms,
    )


@dataclass(frozen=True)
class Refusal:
    """Why a job or a package is not taken. `code` goes into the report."""

    code: str
    detail: str


def at_the_door(
    job: Job, *, release_floor: int, known_bad: Mapping[str, str], now_ms: int, time_floor_ms: int
) -> Refusal | None:
    """What can be said of a job before anything is fetched; None lets it in. Signatures are checked in ACCEPTED.

    Args:
        release_floor: release counter of the newest of its kind that was ever committed here.
        known_bad: digests that failed here before, with the reason.
        now_ms, time_floor_ms: UTC milliseconds; a clock below the floor was set back or lost, and old metadata would pass for new.
    """
    if len(job.model_digest) != 64 or set(job.model_digest) - set("0123456789abcdef") or not 1 <= len(job.job_id) <= 100:
        return Refusal("bad_job", "the job names no digest of 64 hex digits, or no job id")
    if now_ms < time_floor_ms:
        return Refusal("clock", "this device's clock is behind the newest metadata that it has trusted; set the clock")
    if job.model_digest in known_bad:
        return Refusal("known_bad", f"it failed here before: {known_bad[job.model_digest]}")
    if job.release < release_floor:
        return Refusal("release_floor", f"release {job.release} is older than release {release_floor}, which ran here")
    return None


# Failures that say nothing about the model or the release itself: it may be offered again.
NOT_ITS_FAULT = frozenset(
    {
        "cancelled",
        "superseded",
        "unreachable",
        "power_cuts",
        "step_cap",
        "selftest_start",
        "incompatible",
        "put_aside",
        "no_launcher",
        "space",
        "platform",
        "python",
        "install_timeout",
    }
)


def is_bad(record: Record) -> bool:
    """Whether the thing itself has failed, so that it is not tried here again. `record` is the one before the end."""
    return record.state in {State.VERIFYING, State.BUILDING, State.SELFTEST, State.TRIAL}


@dataclass(frozen=True)
class TrialLimits:
    """Health limits of a trial, relative to the previous model where it answered on the same cameras.

    Args:
        bad_frames: frames that may fail before the trial is lost.
        slower_than: how many times the previous model's median latency the trial's may be.
        slack_ms: latency that is always allowed on top.
    """

    bad_frames: int = 3
    slower_than: float = 10.0
    slack_ms: float = 500.0


class Trial:
    """Watches a model on probation.

    Args:
        started_s: monotonic seconds.
        baseline_ms: median latency of the previous model, 0 where none is known.
    """

    def __init__(self, probation: Probation, limits: TrialLimits, *, started_s: float, baseline_ms: float = 0.0) -> None:
        self._probation = probation
        self._limits = limits
        self._started_s = started_s
        self._baseline_ms = baseline_ms
        self._latencies_ms: list[float] = []
        self._bad = 0
        self._server_reached = False

    def observe(self, *, ok: bool, inference_ms: float) -> None:
        """One frame was answered, or was not."""
        if not ok:
            self._bad += 1
        elif len(self._latencies_ms) < 10_000:
            self._latencies_ms.append(inference_ms)

    def server_reached(self) -> None:
        """The server answered while this model ran."""
        self._server_reached = True

    def verdict(self, now_s: float) -> Refusal | bool:
        """A refusal when the trial is lost, True when it is won, False while it goes on."""
        probation, elapsed_s = self._probation, now_s - self._started_s
        if self._bad > self._limits.bad_frames:
            return Refusal("bad_frames", f"the model failed on {self._bad} frames")
        enough = len(self._latencies_ms) >= probation.good_frames
        if not enough and elapsed_s > probation.deadline_s:
            return Refusal(
                "no_frames",
                f"{len(self._latencies_ms)} of {probation.good_frames} frames were answered in {probation.deadline_s:.0f} s",
            )
        if not self._server_reached and elapsed_s > probation.server_deadline_s:
            return Refusal("unreachable", f"the server was not reached within {probation.server_deadline_s:.0f} s of the swap")
        if enough and self._baseline_ms > 0:
            limit_ms = self._baseline_ms * self._limits.slower_than + self._limits.slack_ms
            if median(self._latencies_ms) > limit_ms:
                return Refusal(
                    "too_slow", f"median latency {median(self._latencies_ms):.0f} ms; {limit_ms:.0f} ms is the limit"
                )
        return enough and self._server_reached
