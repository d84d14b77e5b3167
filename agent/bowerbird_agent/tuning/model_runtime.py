"""What each model of this device runs with: the operator's word, else what tuning chose here, else the reference.

In: the `[model]` section, the choices remembered in the state folder, models of the store. Out: detectors ready to run, with the reason
why they run so. It measures nothing (`model_tuning.py` does), and never puts another runtime in the place of one that was named.

Order, for a model that starts: a named runtime; the choice for this very model and machine; the float file on the reference runtime
with one thread. A first start therefore measures nothing: its first result comes at once, and `bowerbird-agent tune` is for later.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bowerbird_agent.errors import AgentError
from bowerbird_agent.tuning.autotune import (
    Candidate,
    Limits,
    accuracy_allows,
)
from bowerbird_agent.tuning.autotune_candidates import may_run
from bowerbird_agent.tuning.hardware import Hardware, on_huge_pages, this_machine
from bowerbird_agent.tuning.runtime_choice import FILE_NAME, RuntimeChoice, RuntimeChoices, model_roles
from bowerbird_models.runtime_options import RUNTIMES

if TYPE_CHECKING:
    from bowerbird_agent.tuning.model_config import ModelConfig
    from bowerbird_agent.updates.model_store import ModelSlot
    from bowerbird_models.manifest import ModelManifest
    from bowerbird_models.yolo import YoloDetector

logger = logging.getLogger(__name__)

PINNED, TUNED, DEFAULT, FALLBACK = "pinned", "tuned", "default", "fallback"
TUNING_IS_DUE = "run `bowerbird-agent tune` to measure what is fastest here"


@dataclass(frozen=True)
class RunsWith:
    """What a model runs with; `origin` is "pinned", "tuned", "default" or "fallback" (what was tuned does not load)."""

    candidate: Candidate
    origin: str
    why: str

    def to_plain(self, detector: YoloDetector | None = None) -> dict[str, Any]:
        """For health messages and JSON; of a loaded detector with the version of its runtime, the digest of its file, and whether
        this process is on huge pages by now."""
        c = self.candidate
        plain: dict[str, Any] = {
            "runtime": c.runtime if detector is None else detector.runtime,
            "variant": c.role,
            "precision": c.precision,
            "threads": c.threads,
            "spinning": c.spinning,
            "huge_pages": c.huge_pages if detector is None else on_huge_pages(),
            "origin": self.origin,
            "why": self.why[:300],
        }
        return plain if detector is None else {**plain, "file_digest": detector.file_digest}


class ModelRuntimes:
    """The runtimes of one device's models. Methods may be called from any thread.

    Args:
        config: what the operator fixed.
        state_dir: the agent's state folder: choices and engines are kept in it.
        hardware: the machine; None looks at it when it is first needed.
    """

    def __init__(self, config: ModelConfig, state_dir: Path, hardware: Hardware | None = None) -> None:
        self.config = config
        self._hardware = hardware
        self.choices = RuntimeChoices(state_dir / FILE_NAME)
        self.engine_dir = state_dir / "engines"

    @property
    def hardware(self) -> Hardware:
        """The machine and its software."""
        if self._hardware is None:
            self._hardware = this_machine()
        return self._hardware

    @property
    def limits(self) -> Limits:
        """What tuning must keep."""
        memory_mb = self.config.memory_limit_mb
        return Limits(None if memory_mb is None else float(memory_mb), self.config.accuracy_loss_points)

    # --- what runs -----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Whether a runtime that the operator named is here at all; to be asked before anything starts.

        Raises:
            AgentError: it is not; the message says what to do.
        """
        if not self.config.is_pinned:
            return
        from bowerbird_models.runtimes import find_runtime

        found = find_runtime(self.config.runtime)
        if not found.usable:
            raise AgentError(
                f'model.runtime = "{found.name}" cannot be used here: {found.reason}; or set model.runtime = "auto"'
            )

    def for_model(self, manifest: ModelManifest, digest: str) -> RunsWith:
        """What a model runs with, without loading or measuring anything.

        Raises:
            AgentError: the operator named a file that the package does not have, or that the runtime cannot run.
        """
        if self.config.is_pinned:
            return RunsWith(self.default(manifest), PINNED, "set by the configuration")
        choice = self.choices.exact(self.hardware.key, digest)
        if choice is not None:
            objection = self.objection(choice, manifest)
            if not objection:
                return RunsWith(choice.candidate, TUNED, choice.why)
            return RunsWith(self.default(manifest), DEFAULT, f"what was chosen earlier {objection}; {TUNING_IS_DUE}")
        if self.choices.stale(self.hardware.key, digest) is not None:
            why = f"hardware or runtimes are not what they were when this model was tuned; {TUNING_IS_DUE}"
        else:
            why = f"this model was not tuned here yet; {TUNING_IS_DUE}"
        return RunsWith(self.default(manifest), DEFAULT, why)

    def open(self, slot: ModelSlot) -> tuple[YoloDetector, RunsWith]:
        """Load a model of the store. What tuning chose and does not load any more gives way to the default, with a warning.

        Raises:
            ModelError: it does not load.
            AgentError: as `for_model`.
        """
        from bowerbird_models.errors import ModelError

        runs = self.for_model(slot.manifest, slot.digest)
        try:
            return self._open(slot, runs.candidate), runs
        except (ModelError, ValueError) as error:
            if runs.origin != TUNED:
                raise
            logger.warning("model %s does not load as it was tuned (%s): %s", slot.digest[:12], runs.candidate, error)
            why = f"{runs.candidate} was chosen and does not load ({error}); {TUNING_IS_DUE}"
            runs = RunsWith(self.default(slot.manifest), FALLBACK, why)
            return self._open(slot, runs.candidate), runs

    def _open(self, slot: ModelSlot, candidate: Candidate) -> YoloDetector:
        from bowerbird_models.runtimes import open_model

        return open_model(slot.dir / slot.manifest.files[candidate.role].name, candidate.options(self.engine_dir))

    def default(self, manifest: ModelManifest) -> Candidate:
        """What runs while nothing was chosen: what the operator fixed, else the float file on the reference with one thread.

        Raises:
            AgentError: as `for_model`.
        """
        config = self.config
        role = config.variant or manifest.reference_role
        if role not in manifest.files:
            has = ", ".join(model_roles(manifest))
            raise AgentError(f'model.variant = "{role}", but the package has only {has}; publish one that has it, or unset it')
        runtime = config.runtime if config.is_pinned else next((r for r in RUNTIMES if may_run(role, r)), "")
        if not may_run(role, runtime):
            raise AgentError(
                f'model.variant = "{role}" is not made for {runtime or "any runtime"}; set another variant or runtime'
            )
        return Candidate(
            role=role,
            runtime=runtime,
            precision=config.precision or "fp32",
            threads=config.threads or 1,
            spinning=bool(config.spinning),
            huge_pages=bool(config.huge_pages),
        )

    def objection(self, choice: RuntimeChoice, manifest: ModelManifest) -> str:
        """Why a remembered choice must not be used under today's configuration, "" when it may."""
        candidate, config = choice.candidate, self.config
        fixed = (
            ("variant", config.variant, candidate.role),
            ("threads", config.threads, candidate.threads),
            ("spinning", config.spinning, candidate.spinning),
            ("huge_pages", config.huge_pages, candidate.huge_pages),
        )
        for name, wanted, chosen in fixed:
            if wanted is not None and wanted != chosen:
                return f"has other {name} than model.{name} asks for"
        if candidate.role not in manifest.files:
            return f"needs a {candidate.role} file"
        if config.memory_limit_mb is not None and choice.peak_rss_mb > config.memory_limit_mb:
            return "needs more than model.memory_limit_mb"
        if config.variant is None and not accuracy_allows(candidate, self.limits, manifest.accuracy):
            return "loses more than model.accuracy_loss_points"
        return ""


def wants_huge_pages(config: ModelConfig, state_dir: Path) -> bool:
    """Whether the process should run on huge pages: known before any model is read, and without loading anything heavy."""
    if config.is_pinned or config.huge_pages is not None:
        return bool(config.huge_pages)
    try:
        digest = json.loads((state_dir / "models" / "slots.json").read_bytes())["active"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    choice = RuntimeChoices(state_dir / FILE_NAME).exact(this_machine().key, str(digest))
    return choice is not None and choice.candidate.huge_pages
