"""What an update of the model does in each of its steps: slots, self-test, the swap between two frames, the way back.

In: the runner's calls. Out: changes of the model store, and the model that answers frames. It decides nothing about the order
of things (`updater.py`) and trusts nothing by itself (`updates/source.py`).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import median

from bowerbird_agent.errors import UpdateStopped
from bowerbird_agent.updates.model_store import ACTIVE, ModelSlot, ModelStore
from bowerbird_agent.updates.selftest import InstallTest
from bowerbird_agent.updates.settings import RunnerSettings
from bowerbird_agent.updates.updated import Contents, TrialTerms
from bowerbird_agent.updates.updater import Event, Record, Refusal, State, Subject
from bowerbird_models.manifest import MANIFEST, ModelManifest, PackageError, class_list_fault
from bowerbird_models.release_roles import MODELS_ROLE

logger = logging.getLogger(__name__)


class ModelUpdate:
    """An `Updated`: the model.

    Args:
        store: the models; the factory model is installed already.
        swap: loads a model and returns when it answers frames, or raises; None takes the model away.
        install_test: the self-test of a new model's folder, on what it will run with.
        file_digest: SHA-256 of the file that was loaded for a model.
        is_stopping: whether the process is on its way out, so that a swap that failed says nothing.
    """

    subject = Subject.MODEL
    role = MODELS_ROLE

    def __init__(
        self,
        store: ModelStore,
        *,
        swap: Callable[[ModelSlot | None], None],
        install_test: InstallTest,
        file_digest: Callable[[ModelSlot], str],
        settings: RunnerSettings,
        is_stopping: Callable[[], bool],
    ) -> None:
        self._store, self._swap, self._install_test = store, swap, install_test
        self._file_digest, self._settings, self._is_stopping = file_digest, settings, is_stopping
        self.latencies_ms: deque[float] = deque(maxlen=200)  # of the model that runs, outside a trial
        self.running: ModelSlot | None = None

    @property
    def running_digest(self) -> str:
        """The model that answers frames."""
        return self.running.digest if self.running else ""

    @property
    def running_file_digest(self) -> str:
        """The file of it that was loaded."""
        return self._file_digest(self.running) if self.running else ""

    @property
    def active_digest(self) -> str:
        """The model that the store calls active."""
        return self._store.digest(ACTIVE)

    def contents(self, manifest: bytes) -> Contents:
        """All files; twice: the file under way and its copy."""
        read = ModelManifest.from_bytes(manifest)
        return Contents(tuple(read.files.values()), 2 * read.total_bytes)

    def has(self, digest: str) -> bool:
        """Whether the store has it whole."""
        return self._store.is_intact(digest)

    def twin(self, name: str) -> Path | None:
        """The active model's file."""
        active = self._store.active()
        return active.dir / name if active is not None and self._store.digest(ACTIVE) else None

    def put(self, incoming: Path, digest: str) -> Event:
        """Into the store, as the candidate."""
        self._store.put(incoming, digest)
        return Event.VERIFIED

    def build(self, digest: str, should_stop: Callable[[], bool]) -> Refusal | None:
        """Nothing: engines are built where a model is loaded."""
        del digest, should_stop
        return None

    def test(self, digest: str, should_stop: Callable[[], bool]) -> Refusal | None:
        """Whether its classes can follow those of the model that is active, then the self-test."""
        fault = self._class_fault(digest)
        if fault:
            return Refusal("wrong_classes", fault)
        result = self._install_test(
            self._store.folder(digest),
            digest,
            timeout_s=self._settings.selftest_s,
            memory_bytes=self._settings.selftest_memory_bytes,
            should_stop=should_stop,
        )
        return Refusal(result.code, result.detail) if result.code else None

    def _class_fault(self, digest: str) -> str:
        before = self._store.active()
        if before is None:
            return ""
        try:
            after = ModelManifest.from_bytes((self._store.folder(digest) / MANIFEST).read_bytes())
        except (OSError, PackageError):
            return ""  # the self-test reads it as well, and says what is wrong with it
        return class_list_fault(before.manifest, after)

    def lost(self, record: Record) -> Refusal | None:
        """Never: the table counts the starts of a model's trial."""
        del record
        return None

    def enter_trial(self, record: Record) -> TrialTerms | Refusal | None:
        """Make it active, then load it between two frames."""
        slot = self._store.activate(record.expected_digest)
        if slot is None:
            return Refusal("swap_failed", "the package cannot be read")
        self._store.set_previous(record.base_digest)
        baseline_ms = 0.0  # a process that began in the trial has never run the previous model
        if self.running is None or self.running.digest != slot.digest:
            baseline_ms = median(self.latencies_ms) if self.latencies_ms else 0.0
            try:
                self._swap(slot)
            except Exception as error:  # whatever loading a model raises is a reason to roll back
                if self._is_stopping():
                    raise UpdateStopped("the inference thread has gone; the next process goes on with the trial") from error
                logger.debug("swap failed", exc_info=True)
                return Refusal("swap_failed", f"{type(error).__name__}: {error}")
            self.running = slot
        self.latencies_ms.clear()
        return TrialTerms(self._settings.probation or slot.manifest.probation, baseline_ms)

    def pause_trial(self) -> None:
        """Nothing beside the record."""

    def align(self, record: Record) -> None:
        """The slots; of a record that is not of a model only what was active when it was begun holds, and nothing was touched."""
        job, wanted = record.job, record.expected_digest
        if job is not None and record.subject is Subject.MODEL:
            if wanted != self._store.digest(ACTIVE) and (not wanted or self._store.is_intact(wanted)):
                self._store.activate(wanted)
            if record.state in {State.ROLLED_BACK, State.REFUSED}:
                self._store.drop_candidate(bad=job.model_digest if record.state is State.ROLLED_BACK else "")
        self._store.boot()

    def ended(self, record: Record, *, is_live: bool) -> None:
        """After a roll-back the model before answers frames again."""
        if record.state is not State.ROLLED_BACK:
            return
        self.running = self._store.active()
        if is_live:
            try:
                self._swap(self.running)
            except Exception:  # the store found it intact; a restart tries again and falls back further
                logger.exception("the model that was rolled back to cannot be loaded; restart the agent")

    def tidy(self) -> None:
        """Keep what the slots name."""
        self._store.drop_candidate()
        self._store.collect_garbage()
