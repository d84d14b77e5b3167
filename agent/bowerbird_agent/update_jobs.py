"""The jobs that wait at a device's door, and whether one of them ends the job under way.

In: jobs as they arrive, in any order and any number of times. Out: the next one to look at, or why the current one is over. A cancel
and a newer job count only when the director signed them. It persists nothing: jobs are retained by the broker.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from bowerbird_agent.updater import Record, State
from bowerbird_models.signing import SigningError
from bowerbird_wire.messages import Job

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
        self._jobs: deque[Job] = deque(maxlen=_MOST_JOBS)
        self._cancels: deque[Job] = deque(maxlen=_MOST_CANCELS)

    def put(self, job: Job) -> None:
        """A job or a cancel came; of too many the oldest are forgotten, since the newest is what the server wants."""
        with self._lock:
            (self._cancels if job.action == "cancel" else self._jobs).append(job)

    def take(self) -> Job | None:
        """The next job, while none is under way; cancels that fit none are forgotten."""
        with self._lock:
            job = self._jobs.popleft() if self._jobs else None
            waiting = {each.job_id for each in (job, *self._jobs) if each is not None}
            self._cancels = deque((each for each in self._cancels if each.job_id in waiting), maxlen=_MOST_CANCELS)
            return job

    def over_because(self, record: Record) -> tuple[str, str] | None:
        """Code and detail where the job of `record` ends early: a cancel, or a newer job, signed by the director."""
        current = record.job
        if current is None:
            return None
        with self._lock:
            cancels = [job for job in self._cancels if job.job_id == current.job_id]
            # A trial is short: let it tell what it tells.
            newer = [job for job in self._jobs if job.release > current.release and record.state is not State.TRIAL]
        for job, code in [*((job, "cancelled") for job in cancels), *((job, "superseded") for job in newer)]:
            try:
                self._verify(job)
            except SigningError as error:
                logger.debug("job %s does not count: %s", job.job_id[:40], error)
                continue
            return code, f"by job {job.job_id}"
        return None
