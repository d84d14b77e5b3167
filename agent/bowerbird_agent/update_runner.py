"""Runs the update machine: one thread that fetches, verifies, tests, swaps, watches the trial and reports.

In: jobs, blocks, link events and what the inference thread observes, from any thread. Out: requests and reports through `send`,
models through `swap`. Every record is on the disk before it is acted on, so the process may be killed anywhere: the next one
wakes by the table and does the step again. Rules are in `updater.py`, trust in `update_source.py`, slots in `model_store.py`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

from tuf.api.exceptions import DownloadError, LengthOrHashMismatchError, RepositoryError

from bowerbird_agent import updater
from bowerbird_agent.errors import UpdateError
from bowerbird_agent.model_store import ACTIVE, ModelSlot, ModelStore
from bowerbird_agent.selftest import InstallTest, reference_test
from bowerbird_agent.update_fetcher import BlockFetcher, FetchStopped
from bowerbird_agent.update_jobs import JobQueue
from bowerbird_agent.update_settings import RunnerSettings, machine_boot_id
from bowerbird_agent.update_source import Trust, UpdateRefused, UpdateSource
from bowerbird_agent.update_state import RELEASE_FLOOR, UpdateState
from bowerbird_agent.updater import Event, Record, Refusal, State, Trial
from bowerbird_models.manifest import PackageError
from bowerbird_wire.messages import Block, BlockRequest, Job, Report

__all__ = ["RunnerSettings", "UpdateRunner", "machine_boot_id"]

logger = logging.getLogger(__name__)

_MISMATCHES = 2  # files in a row that are not what was signed, before the job is refused


class UpdateRunner:
    """The updater of one device. Making it wakes the machine: do that before any model is loaded.

    Args:
        store: the models; the factory model is installed already.
        trusted_root: TUF root metadata that the device was made with.
        state_dir: the agent's state folder; `update.db`, TUF's cache and files under way go there.
        device: name that jobs must be bound to.
        send: hands a message to the link; must not block; what it drops is asked for or reported again.
        swap: loads a model and returns when it answers frames, or raises; None takes the model away. Called in the runner's thread.
        install_test: the self-test of a new model's folder, on what it will run with.
        file_digest: SHA-256 of the file that was loaded for a model.
        on_state: called after each state was persisted and before it is acted on.
        beat: called at each sign of progress, for the watchdog.

    Raises:
        UpdateError: the state cannot be opened or written.
    """

    def __init__(
        self,
        store: ModelStore,
        trusted_root: bytes,
        state_dir: Path,
        *,
        device: str,
        send: Callable[[BlockRequest | Report], None],
        swap: Callable[[ModelSlot | None], None],
        install_test: InstallTest = reference_test,
        file_digest: Callable[[ModelSlot], str] = lambda slot: slot.file_digest,
        settings: RunnerSettings | None = None,
        boot_id: str | None = None,
        on_state: Callable[[State], None] = lambda _: None,
        beat: Callable[[], None] = lambda: None,
        wall_ms: Callable[[], int] = lambda: int(time.time() * 1000),
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._send = send
        self._swap = swap
        self._install_test, self._file_digest = install_test, file_digest
        self._settings = settings or RunnerSettings()
        self._boot_id = machine_boot_id() if boot_id is None else boot_id
        self._on_state = on_state
        self._beat = beat
        self._wall_ms = wall_ms
        self._monotonic_s = monotonic_s
        self._wakeup = threading.Event()
        self._stopping = threading.Event()
        self._resend = False
        self._thread: threading.Thread | None = None
        self._trial: Trial | None = None
        self._latencies_ms: deque[float] = deque(maxlen=200)
        self._mismatches = 0
        self._retries = 0
        self._trust: Trust | None = None
        folder = state_dir / "update"
        self._fetcher = BlockFetcher(
            send,
            folder / "blocks",
            patience_s=self._settings.patience_s,
            quiet_s=self._settings.quiet_s,
            should_stop=self._is_over,
            monotonic_s=monotonic_s,
        )
        self._state = UpdateState(folder)
        self._source = UpdateSource(trusted_root, folder, self._fetcher, self._state, store, device=device, wall_ms=wall_ms)
        self._jobs = JobQueue(self._source.verify_director)
        self._record = self._state.record()
        self._wake()
        self._running = store.active()

    # -- for other threads --------------------------------------------------------------------------------------------------

    @property
    def running(self) -> ModelSlot | None:
        """Before `start`: the model to load. After it: the model that answers frames. None: there is none yet."""
        return self._running

    @property
    def state(self) -> State:
        """Where the update stands."""
        return self._record.state

    def load_failed(self, why: str) -> ModelSlot | None:
        """Before `start`: the model in `running` cannot be loaded; returns the one to try instead, or None."""
        slot = self._running
        if slot is not None:
            logger.warning("model %s cannot be loaded (%s)", slot.digest[:12], why)
            if self._record.state is State.TRIAL:
                self._end(Event.FAILED, "load_failed", why)
                self._align()
            else:
                self._store.fall_back(slot.digest)
            self._running = self._store.active()
            if self._running is not None and self._running.digest == slot.digest:
                self._store.fall_back(slot.digest)
                self._running = self._store.active()
        return self._running

    def start(self) -> None:
        """Begin; the model in `running` is loaded."""
        self._thread = threading.Thread(target=self._run, name="update", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the thread; an orderly end during a trial does not count against the model."""
        self._stopping.set()
        self._wakeup.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        if self._record.state is State.TRIAL:
            self._state.save(replace(self._record, starts=self._record.starts - 1))
        self._state.close()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def job(self, job: Job) -> None:
        """A job came, perhaps not for the first time."""
        self._jobs.put(job)
        self._wakeup.set()

    def block(self, block: Block) -> None:
        """A block came."""
        self._fetcher.deliver(block)

    def link_up(self) -> None:
        """The link is up: go on, and tell the server again how things stand."""
        self._fetcher.link(True)
        self._resend = True
        self._wakeup.set()

    def link_down(self) -> None:
        """The link is gone: wait."""
        self._fetcher.link(False)

    def observe(self, ok: bool, inference_ms: float, detections: int) -> None:
        """The model that answers frames has answered one, or failed on it. Must be called for every frame; it is cheap."""
        del detections  # what a normal count is needs a longer look than a trial (a shadow run)
        trial = self._trial
        if trial is not None:
            trial.observe(ok=ok, inference_ms=inference_ms)
        elif ok:
            self._latencies_ms.append(inference_ms)

    # -- waking -------------------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        before = self._record
        self._record = updater.wake(before, boot_id=self._boot_id)
        if self._record != before:
            bad = None
            if self._record.state is not before.state and self._record.job is not None:
                bad = self._bad(before, self._record)
                self._remember(self._record)
            self._state.save(self._record, bad=bad)
        self._align()
        if self._record.state in updater.TERMINAL:
            self._tidy()

    def _align(self) -> None:
        """Make the slots agree with the record: the process may have died between the two."""
        wanted = self._record.expected_digest
        if (
            self._record.job is not None
            and wanted != self._store.digest(ACTIVE)
            and (not wanted or self._store.is_intact(wanted))
        ):
            self._store.activate(wanted)
        if self._record.state in {State.ROLLED_BACK, State.REFUSED} and self._record.job is not None:
            self._store.drop_candidate(bad=self._record.job.model_digest if self._record.state is State.ROLLED_BACK else "")
        self._store.boot()

    # -- the thread ---------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        if self._record.job is not None:
            self._report()
        while not self._stopping.is_set():
            self._beat()
            try:
                if self._record.state in updater.TERMINAL:
                    self._idle()
                else:
                    self._step()
            except FetchStopped:
                self._end_if_over()
            except UpdateRefused as error:
                self._end(Event.FAILED, error.code, str(error))
            except LengthOrHashMismatchError as error:
                self._mismatches += 1
                self._fetcher.clear()
                if self._mismatches >= _MISMATCHES:
                    self._end(Event.FAILED, "wrong_digest", f"a file is not what was signed ({error})")
                else:
                    self._again(str(error))
            except RepositoryError as error:
                self._end(Event.FAILED, "metadata", str(error))
            except DownloadError as error:
                self._again(str(error))
            except (UpdateError, OSError) as error:
                logger.warning("the update waits: %s", error)
                self._pause()

    def _idle(self) -> None:
        self._resend_if_asked()
        job = self._jobs.take()
        if job is None:
            self._wakeup.wait(0.5)
            self._wakeup.clear()
            return
        self._take(job)

    def _take(self, job: Job) -> None:
        """A job at the door."""
        if self._record.job is not None and self._record.job.job_id == job.job_id:
            self._report()
            return
        known = self._state.answer(job.job_id)
        if known is not None:
            self._send(self._answer(job, State(known["state"]), known["code"], known["detail"]))
            return
        refusal = updater.at_the_door(
            job,
            release_floor=self._state.floor(RELEASE_FLOOR),
            known_bad=self._state.known_bad(),
            now_ms=self._wall_ms(),
            time_floor_ms=self._source.time_floor_ms,
        )
        if refusal is not None:
            logger.warning("job %s refused: %s", job.job_id[:40], refusal.detail)
            self._send(self._answer(job, State.REFUSED, refusal.code, refusal.detail))
            return
        self._mismatches = self._retries = 0
        self._save(updater.accept(self._record, job, running_digest=self._store.digest(ACTIVE)))

    def _step(self) -> None:
        self._resend_if_asked()
        if self._end_if_over():
            return
        job = self._job
        if self._record.state is State.ACCEPTED:
            self._trust = self._source.trust(job)
            if self._store.digest(ACTIVE) == job.model_digest and self._store.is_intact(job.model_digest):
                self._end(Event.ALREADY_RUNNING)
            else:
                self._go(Event.TRUSTED)
        elif self._record.state is State.FETCHING:
            if not self._store.is_intact(job.model_digest):
                self._source.fetch(self._trust or self._source.trust(job), job.model_digest)
            self._trust = None
            self._go(Event.FETCHED)
        elif self._record.state is State.VERIFYING:
            self._verify()
        elif self._record.state is State.SELFTEST:
            result = self._install_test(
                self._store.folder(job.model_digest),
                job.model_digest,
                timeout_s=self._settings.selftest_s,
                memory_bytes=self._settings.selftest_memory_bytes,
                should_stop=self._is_over,
            )
            if result.code:
                self._end(Event.FAILED, result.code, result.detail)
            elif not self._end_if_over():
                self._go(Event.PASSED)
        elif self._record.state is State.TRIAL:
            self._run_trial()

    def _verify(self) -> None:
        job = self._job
        try:
            self._store.put(self._source.incoming(job.model_digest), job.model_digest)
        except PackageError as error:
            if error.code in {"wrong_digest", "missing"}:  # TUF has seen it right, so the disk lost it
                self._go(Event.DAMAGED, str(error))
            else:
                self._end(Event.FAILED, error.code, str(error))
            return
        self._go(Event.VERIFIED)

    def _run_trial(self) -> None:
        job = self._job
        slot = self._store.activate(job.model_digest)
        if slot is None:
            self._end(Event.FAILED, "swap_failed", "the package cannot be read")
            return
        self._store.set_previous(self._record.base_digest)
        if self._running is None or self._running.digest != slot.digest:
            baseline_ms = median(self._latencies_ms) if self._latencies_ms else 0.0
            try:
                self._swap(slot)
            except Exception as error:  # whatever loading a model raises is a reason to roll back
                if self._stopping.is_set():
                    return  # the inference thread has gone; the next process goes on with the trial
                logger.debug("swap failed", exc_info=True)
                self._end(Event.FAILED, "swap_failed", f"{type(error).__name__}: {error}")
                return
            self._running = slot
        else:
            baseline_ms = 0.0  # a process that began in the trial has never run the previous model
        self._latencies_ms.clear()
        trial = Trial(
            self._settings.probation or slot.manifest.probation,
            self._settings.limits,
            started_s=self._monotonic_s(),
            baseline_ms=baseline_ms,
        )
        self._trial = trial
        self._report()
        try:
            verdict: Refusal | bool = False
            reached = False
            while verdict is False:
                if self._stopping.is_set():
                    return
                self._beat()
                if self._jobs.over_because(self._record) is not None:
                    break
                reached = reached or self._reach_server(trial)
                if reached:
                    trial.server_reached()
                self._resend_if_asked()
                self._stopping.wait(0.05)
                verdict = trial.verdict(self._monotonic_s())
        finally:
            self._trial = None
        if isinstance(verdict, Refusal):
            self._end(Event.FAILED, verdict.code, verdict.detail)
        elif verdict:
            self._end(Event.HEALTHY)
        else:
            self._end_if_over()

    def _reach_server(self, trial: Trial) -> bool:
        """Ask for a small file over the very path that the next update would take: an answer proves more than a PUBACK."""
        if not self._fetcher.is_link_up or trial.verdict(self._monotonic_s()) is not False:
            return False
        try:
            with self._fetcher.download_file("metadata/timestamp.json", 16_384):
                return True
        except DownloadError as error:
            logger.debug("the server was not reached: %s", error)
            return False

    # -- ends ---------------------------------------------------------------------------------------------------------------

    def _end(self, event: Event, code: str = "", detail: str = "") -> None:
        """A terminal transition and what it entails, in an order that `_align` can finish after a crash."""
        before, job = self._record, self._job
        record = updater.advance(before, event, code=code, detail=detail[:500])
        floor = job.release if record.state is State.COMMITTED else None
        self._state.save(record, release_floor=floor, bad=self._bad(before, record))
        self._remember(record)
        self._record = record
        self._trust = None
        self._on_state(record.state)
        if code:
            logger.warning("model %s: %s (%s): %s", job.model_digest[:12], record.state.value, code, detail)
        else:
            logger.info("model %s: %s", job.model_digest[:12], record.state.value)
        self._align()
        active = self._store.active()
        if record.state is State.ROLLED_BACK:
            self._running = active
            if self._thread is not None:
                self._swap_back(active)
        self._tidy()
        self._report()

    def _tidy(self) -> None:
        """Nothing is under way: keep what the slots name and nothing else."""
        self._store.drop_candidate()
        self._store.collect_garbage()
        self._source.clean()

    def _swap_back(self, slot: ModelSlot | None) -> None:
        try:
            self._swap(slot)
        except Exception:  # the store found it intact; a restart tries again and falls back further
            logger.exception("the model that was rolled back to cannot be loaded; restart the agent")

    @staticmethod
    def _bad(before: Record, after: Record) -> tuple[str, str] | None:
        failed = after.state in {State.REFUSED, State.ROLLED_BACK} and after.code not in updater.NOT_THE_MODELS_FAULT
        return (before.job.model_digest, after.code) if failed and updater.is_bad(before) and before.job else None

    def _remember(self, record: Record) -> None:
        if record.job is not None:
            self._state.remember_answer(
                record.job.job_id, {"state": record.state.value, "code": record.code, "detail": record.detail}
            )

    def _again(self, why: str) -> None:
        """The same step again, later; the step cap of the table ends it."""
        logger.log(logging.WARNING if self._retries == 0 else logging.DEBUG, "the update is tried again: %s", why)
        self._trust = None
        retries = self._retries
        self._go(Event.RETRY, why)
        self._retries = retries
        self._pause()

    def _pause(self) -> None:
        self._stopping.wait(self._settings.retry_s * min(16, 2**self._retries))
        self._retries += 1

    def _is_over(self) -> bool:
        self._beat()  # the fetcher asks while it waits for blocks
        return self._stopping.is_set() or self._jobs.over_because(self._record) is not None

    def _end_if_over(self) -> bool:
        why = None if self._stopping.is_set() else self._jobs.over_because(self._record)
        if why is None:
            return False
        self._end(Event.CANCELLED, *why)
        return True

    # -- records and reports ------------------------------------------------------------------------------------------------

    @property
    def _job(self) -> Job:
        if self._record.job is None:
            raise updater.IllegalTransition(f"state {self._record.state.value} without a job")
        return self._record.job

    def _go(self, event: Event, detail: str = "") -> None:
        """A transition that is not an end, unless the step cap makes it one."""
        if event is Event.PASSED:
            record = updater.start_trial(self._record, boot_id=self._boot_id)
        else:
            record = updater.advance(self._record, event, detail=detail[:500])
        if record.state in updater.TERMINAL:
            self._end(Event.FAILED, record.code, record.detail)
        else:
            self._save(record)

    def _save(self, record: Record) -> None:
        """Persist, then act: the caller's next look at `_record` does the state's work."""
        self._state.save(record)
        self._record = record
        self._retries = 0
        self._on_state(record.state)
        self._report()

    def _resend_if_asked(self) -> None:
        if self._resend:
            self._resend = False
            if self._record.job is not None:
                self._report()

    def _report(self) -> None:
        running = self._running
        self._send(
            updater.report_of(
                self._record,
                running_digest=running.digest if running else "",
                running_file_digest=self._file_digest(running) if running else "",
                at_ms=self._wall_ms(),
            )
        )

    def _answer(self, job: Job, state: State, code: str, detail: str) -> Report:
        running = self._running
        return updater.report_of(
            Record(state=state, job=job, code=code, detail=detail),
            running_digest=running.digest if running else "",
            running_file_digest=self._file_digest(running) if running else "",
            at_ms=self._wall_ms(),
        )
