"""The jobs that wait at a device's door, of models and of the agent, and whether one of them ends the job under way.

In: jobs as they arrive, in any order and any number of times. Out: the next one to look at, or why the current one is over. A cancel
and a newer job count only when the director signed them. It persists nothing: jobs are retained by the broker.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from bowerbird_agent.updates.updater import Record, State, Subject
from bowerbird_models.signing import SigningError
from bowerbird_wire.messages import OF, Job

logger = logging.getLogger(__name__)

_MOST_JOBS, _MOST_CANCELS = 32, 8


class JobQueue:
    """Jobs and cancels that were not looked at yet. Thread-safe.

    Args:
        verify: raises SigningError for a job that the director did not sign.
    """

    def __init__(self, verify: Callable[[Job], None]) -> None:
        self._verify = verify
        self._lock = threading.Lock()
        self._jobs: deque[tuple[Subject, Job]] = deque(maxlen=_MOST_JOBS)
        self._cancels: deque[Job] = deque(maxlen=_MOST_CANCELS)

    def put(self, job: Job, subject: Subject = Subject.MODEL) -> None:
        """A job or a cancel came; of too many the oldest are forgotten, since the newest is what the server wants."""
        with self._lock:
            if job.action == "cancel":
                self._cancels.append(job)
            else:
                self._jobs.append((subject, job))

    def take(self) -> tuple[Subject, Job] | None:
        """The next job, while none is under way; cancels that fit none are forgotten."""
        with self._lock:
            taken = self._jobs.popleft() if self._jobs else None
            waiting = {job.job_id for _, job in (*([taken] if taken else []), *self._jobs)}
            self._cancels = deque((each for each in self._cancels if each.job_id in waiting), maxlen=_MOST_CANCELS)
            return taken

    def over_because(self, record: Record) -> tuple[str, str] | None:
        """Code and detail where the job of `record` ends early: a cancel, or a newer job, signed by the director."""
        current = record.job
        if current is None:
            return None
        with self._lock:
            cancels = [job for job in self._cancels if job.job_id == current.job_id]
            # A trial is short: let it tell what it tells.
            newer = [
                job
                for subject, job in self._jobs
                if subject is record.subject and job.release > current.release and record.state is not State.TRIAL
            ]
        for job, code in [*((job, "cancelled") for job in cancels), *((job, "superseded") for job in newer)]:
            if not is_of(job, record.subject):
                continue
            try:
                self._verify(job)
            except SigningError as error:
                logger.debug("job %s does not count: %s", job.job_id[:40], error)
                continue
            return code, f"by job {job.job_id}"
        return None


def is_of(job: Job, subject: Subject) -> bool:
    """Whether a job says that it is of this subject, under its signature; a job of a model need not say so."""
    return bool(job.extra.get(OF, Subject.MODEL.value) == subject.value)
