"""Runs the update machine, for models and the agent: one thread that fetches, verifies, tests, swaps, watches the trial and reports.

In: jobs, blocks, link events and what the inference thread observes, from any thread. Out: requests and reports through `send`,
changes through `model_update.py` and `agent_update.py`. Every record is on the disk before it is acted on, so the process may
be killed anywhere: the next one wakes by the table and does the step again. There is one record and one thread, so two updates
are never under way at once: a second job, of whichever kind, waits until the first has come to its end. Rules are in
`updater.py`, trust in `updates/source.py`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tuf.api.exceptions import DownloadError, LengthOrHashMismatchError, RepositoryError

from bowerbird_agent.errors import UpdateError, UpdateRefused, UpdateStopped
from bowerbird_agent.updates import updater
from bowerbird_agent.updates.agent_update import no_agent_update
from bowerbird_agent.updates.fetcher import BlockFetcher, FetchStopped
from bowerbird_agent.updates.jobs import JobQueue
from bowerbird_agent.updates.ledger import UpdateLedger
from bowerbird_agent.updates.model_store import ModelSlot, ModelStore
from bowerbird_agent.updates.model_update import ModelUpdate
from bowerbird_agent.updates.selftest import InstallTest, reference_test
from bowerbird_agent.updates.settings import RunnerSettings, machine_boot_id
from bowerbird_agent.updates.source import Trust, UpdateSource
from bowerbird_agent.updates.state import FLOOR_OF, UpdateState
from bowerbird_agent.updates.updated import TrialTerms, Updated
from bowerbird_agent.updates.updater import Event, Refusal, State, Subject, Trial
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
        agent: the update of the agent itself; None: this agent cannot update itself and refuses every job for it.
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
        agent: Updated | None = None,
        settings: RunnerSettings | None = None,
        boot_id: str | None = None,
        on_state: Callable[[State], None] = lambda _: None,
        beat: Callable[[], None] = lambda: None,
        wall_ms: Callable[[], int] = lambda: int(time.time() * 1000),
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._send = send
        self._settings = settings or RunnerSettings()
        self._beat = beat
        self._wall_ms = wall_ms
        self._monotonic_s = monotonic_s
        self._wakeup = threading.Event()
        self._stopping = threading.Event()
        self._resend = False
        self._thread: threading.Thread | None = None
        self._trial: Trial | None = None
        self._mismatches = 0
        self._retries = 0
        self._trust: Trust | None = None
        self._model = ModelUpdate(
            store,
            swap=swap,
            install_test=install_test,
            file_digest=file_digest,
            settings=self._settings,
            is_stopping=self._stopping.is_set,
        )
        self._agent = agent or no_agent_update(state_dir)
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
        self._source = UpdateSource(trusted_root, folder, self._fetcher, self._state, device=device, wall_ms=wall_ms)
        self._jobs = JobQueue(self._source.verify_director)
        self._ledger = UpdateLedger(
            self._state,
            boot_id=machine_boot_id() if boot_id is None else boot_id,
            what=self._subject,
            send=send,
            on_state=on_state,
            wall_ms=wall_ms,
        )
        self._ledger.wake()
        self._align()
        if self._state_now in updater.TERMINAL:
            # The process may have died between the end of an update and what the end entails.
            self._ledger.subject.ended(self._ledger.record, is_live=False)
            self._tidy()
        self._model.running = store.active()

    # -- for other threads --------------------------------------------------------------------------------------------------

    @property
    def running(self) -> ModelSlot | None:
        """Before `start`: the model to load. After it: the model that answers frames. None: there is none yet."""
        return self._model.running

    @property
    def state(self) -> State:
        """Where the update stands."""
        return self._state_now

    def load_failed(self, why: str) -> ModelSlot | None:
        """Before `start`: the model in `running` cannot be loaded; returns the one to try instead, or None."""
        slot = self._model.running
        if slot is None:
            return None
        logger.warning("model %s cannot be loaded (%s)", slot.digest[:12], why)
        if self._state_now is State.TRIAL:
            # On trial is either this model or the agent: under a new agent the model has done nothing wrong, and stays what it is.
            self._end(Event.FAILED, "load_failed", why)
            if self._ledger.record.subject is Subject.AGENT:
                self._model.running = None
                return None
        else:
            self._store.fall_back(slot.digest)
        self._model.running = self._store.active()
        if self._model.running is not None and self._model.running.digest == slot.digest:
            self._store.fall_back(slot.digest)
            self._model.running = self._store.active()
        return self._model.running

    def start(self) -> None:
        """Begin; the model in `running` is loaded."""
        self._thread = threading.Thread(target=self._run, name="update", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the thread; an orderly end during a trial does not count against what is on trial."""
        self._stopping.set()
        self._wakeup.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        if self._state_now is State.TRIAL:
            record = self._ledger.record
            self._state.save(replace(record, starts=record.starts - 1))
            self._ledger.subject.pause_trial()
        self._state.close()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def job(self, job: Job, subject: Subject = Subject.MODEL) -> None:
        """A job came, perhaps not for the first time."""
        self._jobs.put(job, subject)
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
            self._model.latencies_ms.append(inference_ms)

    # -- waking -------------------------------------------------------------------------------------------------------------

    def _align(self) -> None:
        for each in self._all():
            each.align(self._ledger.record)

    def _tidy(self) -> None:
        """Nothing is under way: keep what is in use and nothing else."""
        for each in self._all():
            each.tidy()
        self._source.clean()

    def _all(self) -> tuple[Updated, Updated]:
        return self._model, self._agent

    def _subject(self, subject: Subject) -> Updated:
        return self._model if subject is Subject.MODEL else self._agent

    @property
    def _state_now(self) -> State:
        return self._ledger.record.state

    # -- the thread ---------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        if self._ledger.record.job is not None:
            self._ledger.report()
        while not self._stopping.is_set():
            self._beat()
            try:
                if self._state_now in updater.TERMINAL:
                    self._idle()
                else:
                    self._step()
            except FetchStopped:
                self._end_if_over()
            except UpdateStopped as error:
                logger.debug("%s", error)
                self._stopping.wait()
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
        taken = self._jobs.take()
        if taken is None:
            self._wakeup.wait(0.5)
            self._wakeup.clear()
            return
        self._take(*taken)

    def _take(self, subject: Subject, job: Job) -> None:
        """A job at the door."""
        current = self._ledger.record.job
        if current is not None and current.job_id == job.job_id:
            self._ledger.report()
            return
        known = self._state.answer(job.job_id)
        if known is not None:
            self._ledger.answer(subject, job, State(known["state"]), known["code"], known["detail"])
            return
        refusal = updater.at_the_door(
            job,
            release_floor=self._state.floor(FLOOR_OF[subject]),
            known_bad=self._state.known_bad(),
            now_ms=self._wall_ms(),
            time_floor_ms=self._source.time_floor_ms,
        )
        if refusal is not None:
            logger.warning("job %s refused: %s", job.job_id[:40], refusal.detail)
            self._ledger.answer(subject, job, State.REFUSED, refusal.code, refusal.detail)
            return
        self._mismatches = self._retries = 0
        running = self._model.active_digest if subject is Subject.MODEL else self._subject(subject).running_digest
        self._ledger.accept(job, subject, running_digest=running)

    def _step(self) -> None:
        self._resend_if_asked()
        if self._end_if_over():
            return
        job, what = self._ledger.job, self._ledger.subject
        if self._state_now is State.ACCEPTED:
            self._trust = self._source.trust(job, what)
            if self._ledger.record.base_digest == job.model_digest and what.has(job.model_digest):
                self._end(Event.ALREADY_RUNNING)
            else:
                self._go(Event.TRUSTED)
        elif self._state_now is State.FETCHING:
            if not what.has(job.model_digest):
                self._source.fetch(self._trust or self._source.trust(job, what), job.model_digest, what)
            self._trust = None
            self._go(Event.FETCHED)
        elif self._state_now is State.VERIFYING:
            self._verify()
        elif self._state_now is State.BUILDING:
            self._end_or_go(what.build(job.model_digest, self._is_over), Event.BUILT)
        elif self._state_now is State.SELFTEST:
            self._end_or_go(what.test(job.model_digest, self._is_over), Event.PASSED)
        elif self._state_now is State.TRIAL:
            self._run_trial()

    def _verify(self) -> None:
        job = self._ledger.job
        try:
            event = self._ledger.subject.put(self._source.incoming(job.model_digest), job.model_digest)
        except PackageError as error:
            if error.code in {"wrong_digest", "missing"}:  # TUF has seen it right, so the disk lost it
                self._go(Event.DAMAGED, str(error))
            else:
                self._end(Event.FAILED, error.code, str(error))
            return
        self._go(event)

    def _end_or_go(self, refusal: Refusal | None, event: Event) -> None:
        """After a step in a child process, which a cancel or the end of this process may have cut short."""
        if self._end_if_over() or self._stopping.is_set():
            return
        if refusal is not None:
            self._end(Event.FAILED, refusal.code, refusal.detail)
        else:
            self._go(event)

    def _run_trial(self) -> None:
        terms = self._ledger.subject.enter_trial(self._ledger.record)
        if terms is None:
            self._stopping.wait()  # the process that was asked for goes on with the trial
            return
        if isinstance(terms, Refusal):
            self._end(Event.FAILED, terms.code, terms.detail)
            return
        verdict = self._watch(terms)
        if isinstance(verdict, Refusal):
            self._end(Event.FAILED, verdict.code, verdict.detail)
        elif verdict:
            self._end(Event.HEALTHY)
        else:
            self._end_if_over()

    def _watch(self, terms: TrialTerms) -> Refusal | bool:
        """The verdict on a trial, False when it was cut short."""
        trial = Trial(terms.probation, self._settings.limits, started_s=self._monotonic_s(), baseline_ms=terms.baseline_ms)
        self._trial = trial
        self._ledger.report()
        reached = False
        verdict: Refusal | bool = False
        try:
            while verdict is False and not self._stopping.is_set() and self._jobs.over_because(self._ledger.record) is None:
                self._beat()
                reached = reached or self._reach_server(trial)
                if reached:
                    trial.server_reached()
                self._resend_if_asked()
                self._stopping.wait(0.05)
                verdict = trial.verdict(self._monotonic_s())
        finally:
            self._trial = None
        return verdict

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
        self._ledger.end(event, code, detail)
        self._trust = None
        self._align()
        self._ledger.subject.ended(self._ledger.record, is_live=self._thread is not None)
        self._tidy()
        self._ledger.report()

    def _go(self, event: Event, detail: str = "") -> None:
        """A transition that is not an end, unless the step cap makes it one."""
        if self._ledger.go(event, detail, saw_frames=bool(self._model.latencies_ms)):
            self._retries = 0
        else:
            self._end(Event.FAILED, "step_cap", f"gave up after {updater.MAX_STEPS} steps")

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
        return self._stopping.is_set() or self._jobs.over_because(self._ledger.record) is not None

    def _end_if_over(self) -> bool:
        why = None if self._stopping.is_set() else self._jobs.over_because(self._ledger.record)
        if why is None:
            return False
        self._end(Event.CANCELLED, *why)
        return True

    def _resend_if_asked(self) -> None:
        if self._resend:
            self._resend = False
            if self._ledger.record.job is not None:
                self._ledger.report()
