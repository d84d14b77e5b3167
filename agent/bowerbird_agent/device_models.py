"""The models of a running device: the first one at start, and those that updates bring.

In: the store, the runtimes, the inference thread. Out: a model that answers frames, and an updater that may swap it. Which file runs on
what is decided by `model_runtime.py`, whether an update is taken by `updates/runner.py`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from bowerbird_agent.errors import AgentError, NoModelError
from bowerbird_agent.identity.identity import FOLDER
from bowerbird_agent.identity.report_signing import ReportSigner
from bowerbird_agent.inference.detecting import LoadedModel
from bowerbird_agent.inference.inference import Inference
from bowerbird_agent.inference.memory import give_back
from bowerbird_agent.tuning.model_tuning import ModelTuning
from bowerbird_models.errors import ModelError
from bowerbird_wire.messages import Report

if TYPE_CHECKING:
    from bowerbird_agent.config import AgentConfig
    from bowerbird_agent.control import Control
    from bowerbird_agent.health.heartbeat import Pulse
    from bowerbird_agent.tuning.model_runtime import ModelRuntimes
    from bowerbird_agent.updates.agent_update import AgentUpdate
    from bowerbird_agent.updates.model_store import ModelSlot, ModelStore
    from bowerbird_agent.updates.runner import UpdateRunner
    from bowerbird_wire.messages import BlockRequest

logger = logging.getLogger(__name__)


class DeviceModels:
    """Loads models, one after the other; its methods belong to the thread that loads the first and then to the updater's.

    Args:
        config: of the whole device.
        store, runtimes: where models lie, and what they run with.
        root: the trusted TUF root, None where no update is trusted.
        inference, control: who answers with a model, and who speaks for the updater.
        pulse: the heartbeat of the updater's thread.
        agent: how the agent itself is updated; None where it cannot be.
    """

    def __init__(
        self,
        config: AgentConfig,
        store: ModelStore,
        runtimes: ModelRuntimes,
        root: bytes | None,
        *,
        inference: Inference,
        control: Control,
        pulse: Pulse,
        agent: AgentUpdate | None = None,
    ) -> None:
        self._agent = agent
        self._config, self._store, self._runtimes, self._root = config, store, runtimes, root
        self._inference, self._control, self._pulse = inference, control, pulse
        self._file_digests: dict[str, str] = {}  # model -> the file of it that was loaded
        self._signer = ReportSigner(config.device.state_dir / FOLDER, config.device.id)
        self.updates: UpdateRunner | None = None

    def load_first(self) -> None:
        """Load what the updater or the store names; a model that does not load gives way to the next one.

        Belongs in a thread of its own, since a model's file decides how long this takes: even making a package of a bare file runs it
        once.

        Raises:
            ModelError, AgentError: there is nothing to run and no update may come; a setting cannot be met.
        """
        if self._config.model.factory is not None:
            self._store.install_factory(self._config.model.factory)
        self.updates = self._make_updates()
        slot = self.updates.running if self.updates is not None else self._store.boot()
        while slot is not None:
            self._runtimes.for_model(slot.manifest, slot.digest)  # a setting that cannot be met is not the model's fault
            try:
                self._load(slot)
                return
            except (ModelError, AgentError) as error:
                if self.updates is None:
                    raise
                slot = self.updates.load_failed(str(error))
        if self.updates is None:
            raise NoModelError(
                "there is no model on this device and no update repository that it trusts; set model.factory or update.trusted_root"
            )
        logger.warning("there is no model on this device yet; waiting for the server to send one")

    def _make_updates(self) -> UpdateRunner | None:
        """The updater, woken; None where no update repository is trusted."""
        if self._root is None:
            return None
        from bowerbird_agent.updates.runner import UpdateRunner  # with what verifies signatures 13 MB: for who trusts updates

        device = self._config.device
        updates = UpdateRunner(
            self._store,
            self._root,
            device.state_dir,
            device=device.id,
            send=self._send,
            swap=self._swap,
            install_test=ModelTuning(self._runtimes).install_test,
            file_digest=lambda slot: self._file_digests.get(slot.digest, slot.file_digest),
            agent=self._agent,
            beat=self._pulse.beat,
        )
        self._control.updates = updates
        self._inference.detecting.observer = updates
        return updates

    def _send(self, message: BlockRequest | Report) -> None:
        """For the updater, in its thread."""
        self._control.send(self._signer.signed(message) if isinstance(message, Report) else message)

    def _load(self, slot: ModelSlot) -> None:
        detector, runs = self._runtimes.open(slot)
        logger.info("model %s: %s (%s: %s)", slot.digest[:12], runs.candidate, runs.origin, runs.why)
        self._file_digests[slot.digest] = detector.file_digest
        self._inference.swap_model(LoadedModel(detector, slot.digest, runs.to_plain(detector)))
        give_back(code=True)

    def _swap(self, slot: ModelSlot | None) -> None:
        """For the updater, in its thread: returns when the model answers frames."""
        if slot is None:
            self._inference.swap_model(None)
        else:
            self._load(slot)
        self._control.model_changed()
