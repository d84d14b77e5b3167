"""Where an update stands, on the disk and towards the server: each transition is persisted, remembered and reported here.

In: events. Out: the record in force, rows in `update.db`, reports. A record is on the disk before anybody acts on it. Which
transition there is stands in `updater.py`; what follows from one is done by the runner and what it updates.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from bowerbird_agent.updates import updater
from bowerbird_agent.updates.state import UpdateState
from bowerbird_agent.updates.updated import Updated
from bowerbird_agent.updates.updater import Event, Record, State, Subject
from bowerbird_wire.messages import Job, Report

logger = logging.getLogger(__name__)


class UpdateLedger:
    """The record of one device's update; used by the runner's thread, or before it starts.

    Args:
        boot_id: of this boot of the machine.
        what: the model or the agent, by its subject.
        send: hands a report to the link.
        on_state: called after each state was persisted.
        wall_ms: UTC milliseconds since the epoch.
    """

    def __init__(
        self,
        state: UpdateState,
        *,
        boot_id: str,
        what: Callable[[Subject], Updated],
        send: Callable[[Report], None],
        on_state: Callable[[State], None],
        wall_ms: Callable[[], int],
    ) -> None:
        self._state, self._boot_id, self._what, self._send = state, boot_id, what, send
        self._on_state, self._wall_ms = on_state, wall_ms
        self.record = state.record()

    @property
    def job(self) -> Job:
        """The job under way."""
        if self.record.job is None:
            raise updater.IllegalTransition(f"state {self.record.state.value} without a job")
        return self.record.job

    @property
    def subject(self) -> Updated:
        """What the record is about."""
        return self._what(self.record.subject)

    def wake(self) -> None:
        """The record with which this process goes on; persisted before any model is loaded."""
        before = self.record
        record = updater.wake(before, boot_id=self._boot_id)
        if record.state is State.TRIAL:
            lost = self._what(record.subject).lost(record)
            if lost is not None:
                record = updater.advance(record, Event.FAILED, code=lost.code, detail=lost.detail[:500])
        if record != before:
            self.record = record
            has_moved = record.state is not before.state and record.job is not None
            if has_moved:
                self._remember(record)
            self._state.save(record, bad=_bad(before, record) if has_moved else None)

    def accept(self, job: Job, subject: Subject, *, running_digest: str) -> None:
        """A job was let in at the door."""
        self._save(updater.accept(self.record, job, running_digest=running_digest, subject=subject))

    def go(self, event: Event, detail: str = "", *, saw_frames: bool = False) -> bool:
        """A transition that is not an end; False where the step cap makes it one, which `end` then writes down."""
        if event is Event.PASSED:
            record = updater.start_trial(self.record, boot_id=self._boot_id, saw_frames=saw_frames)
        else:
            record = updater.advance(self.record, event, detail=detail[:500])
        if record.state in updater.TERMINAL:
            return False
        self._save(record)
        return True

    def end(self, event: Event, code: str = "", detail: str = "") -> None:
        """A terminal transition."""
        before, job = self.record, self.job
        record = updater.advance(before, event, code=code, detail=detail[:500])
        floor = job.release if record.state is State.COMMITTED else None
        self._state.save(record, release_floor=floor, bad=_bad(before, record))
        self._remember(record)
        self.record = record
        self._on_state(record.state)
        name = f"{record.subject.value} {job.model_digest[:12]}"
        if code:
            logger.warning("%s: %s (%s): %s", name, record.state.value, code, detail)
        else:
            logger.info("%s: %s", name, record.state.value)

    def report(self) -> None:
        """Tell the server how things stand."""
        self._send(self._report_of(self.record))

    def answer(self, subject: Subject, job: Job, state: State, code: str, detail: str) -> None:
        """Tell the server about a job that is not the one under way."""
        self._send(self._report_of(Record(state=state, job=job, subject=subject, code=code, detail=detail)))

    def _save(self, record: Record) -> None:
        self._state.save(record)
        self.record = record
        self._on_state(record.state)
        self.report()

    def _remember(self, record: Record) -> None:
        if record.job is not None:
            self._state.remember_answer(
                record.job.job_id, {"state": record.state.value, "code": record.code, "detail": record.detail}
            )

    def _report_of(self, record: Record) -> Report:
        what = self._what(record.subject)
        return updater.report_of(
            record,
            running_digest=what.running_digest,
            running_file_digest=what.running_file_digest,
            at_ms=self._wall_ms(),
        )


def _bad(before: Record, after: Record) -> tuple[str, str] | None:
    failed = after.state in {State.REFUSED, State.ROLLED_BACK} and after.code not in updater.NOT_ITS_FAULT
    return (before.job.model_digest, after.code) if failed and updater.is_bad(before) and before.job else None
