"""What each model of this device runs with: the operator's word, else what tuning chose here, else the reference.

In: the `[model]` section, the choices remembered in the state folder, models of the store. Out: detectors ready to run, the verdict
on a model that an update brought, and new choices. Measuring is `autotune_runner.py`'s work, the rules are `autotune.py`'s. It
never puts another runtime in the place of one that the operator named.

Order, for a model that starts: a named runtime; the choice for this very model and machine; the float file on the reference runtime
with one thread. A first start therefore measures nothing: its first result comes at once, and `bowerbird-agent tune` is for later.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bowerbird_agent.autotune import (
    CHOSEN,
    Candidate,
    Decision,
    Limits,
    accuracy_allows,
)
from bowerbird_agent.autotune_candidates import Space, first_candidates, may_run, refinements, with_huge_pages
from bowerbird_agent.errors import AgentError
from bowerbird_agent.hardware import Hardware, can_huge_pages, on_huge_pages, this_machine
from bowerbird_agent.runtime_choice import FILE_NAME, ModelShape, RuntimeChoice, RuntimeChoices, inherit, model_roles
from bowerbird_models.runtime_options import RUNTIMES

if TYPE_CHECKING:
    from bowerbird_agent.autotune_runner import Effort
    from bowerbird_agent.model_config import ModelConfig
    from bowerbird_agent.model_store import ModelSlot
    from bowerbird_agent.selftest import SelfTestResult
    from bowerbird_models.manifest import ModelManifest
    from bowerbird_models.package import PackageOnDisk
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
        self._config = config
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
        memory_mb = self._config.memory_limit_mb
        return Limits(None if memory_mb is None else float(memory_mb), self._config.accuracy_loss_points)

    # --- what runs -----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Whether a runtime that the operator named is here at all; to be asked before anything starts.

        Raises:
            AgentError: it is not; the message says what to do.
        """
        if not self._config.is_pinned:
            return
        from bowerbird_models.runtimes import available

        found = next(each for each in available() if each.name == self._config.runtime)
        if not found.usable:
            raise AgentError(
                f'model.runtime = "{found.name}" cannot be used here: {found.reason}; or set model.runtime = "auto"'
            )

    def for_model(self, manifest: ModelManifest, digest: str) -> RunsWith:
        """What a model runs with, without loading or measuring anything.

        Raises:
            AgentError: the operator named a file that the package does not have, or that the runtime cannot run.
        """
        if self._config.is_pinned:
            return RunsWith(self._default(manifest), PINNED, "set by the configuration")
        choice = self.choices.exact(self.hardware.key, digest)
        if choice is not None:
            objection = self._objection(choice, manifest)
            if not objection:
                return RunsWith(choice.candidate, TUNED, choice.why)
            return RunsWith(self._default(manifest), DEFAULT, f"what was chosen earlier {objection}; {TUNING_IS_DUE}")
        if self.choices.stale(self.hardware.key, digest) is not None:
            why = f"hardware or runtimes are not what they were when this model was tuned; {TUNING_IS_DUE}"
        else:
            why = f"this model was not tuned here yet; {TUNING_IS_DUE}"
        return RunsWith(self._default(manifest), DEFAULT, why)

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
            runs = RunsWith(self._default(slot.manifest), FALLBACK, why)
            return self._open(slot, runs.candidate), runs

    def _open(self, slot: ModelSlot, candidate: Candidate) -> YoloDetector:
        from bowerbird_models.runtimes import open_model

        return open_model(slot.dir / slot.manifest.files[candidate.role].name, candidate.options(self.engine_dir))

    def _default(self, manifest: ModelManifest) -> Candidate:
        config = self._config
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

    def _objection(self, choice: RuntimeChoice, manifest: ModelManifest) -> str:
        """Why a remembered choice must not be used under today's configuration, "" when it may."""
        candidate, config = choice.candidate, self._config
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

    # --- an update -----------------------------------------------------------------------------------------------------

    def install_test(
        self,
        folder: Path,
        digest: str,
        *,
        timeout_s: float,
        memory_bytes: int,
        should_stop: Callable[[], bool] = lambda: False,
        effort: Effort | None = None,
    ) -> SelfTestResult:
        """The self-test of a model that an update brought, on what it will run with; chooses that first where it is open.

        1. A named runtime is tested, and its verdict stands.
        2. A remembered choice, or that of an earlier model of the same shape, is tested; what fails is forgotten.
        3. Otherwise the float file on the reference runtime is tested. It passed: candidates are measured, within a time, and the
           best is remembered. Whatever goes wrong with measuring, the model is taken on the reference.
        """
        from bowerbird_agent.selftest import run_selftest
        from bowerbird_models.package import load_package

        def test(candidate: Candidate) -> SelfTestResult:
            return run_selftest(
                folder,
                digest=digest,
                timeout_s=timeout_s,
                memory_bytes=memory_bytes,
                candidate=candidate,
                engine_dir=self.engine_dir,
            )

        package = load_package(folder, digest=digest)
        # 1. The operator's word.
        try:
            runs = self.for_model(package.manifest, digest)
        except AgentError as error:
            return _refused("no_variant", str(error))
        if runs.origin == PINNED:
            return test(runs.candidate)
        # 2. What was chosen before.
        known = self._known_choice(package)
        if known is not None:
            result = test(known.candidate)
            if not result.code:
                self._remember(known)
                return result
            logger.warning("model %s fails its self-test on %s (%s)", digest[:12], known.candidate, result.detail)
            self._forget(digest)
        # 3. The reference, then whatever is faster.
        result = test(self._default(package.manifest))
        if not result.code:
            self._tune_quietly(package, should_stop, effort)
        return result

    def _known_choice(self, package: PackageOnDisk) -> RuntimeChoice | None:
        key, shape = self.hardware.key, ModelShape.of(package.manifest)
        exact = self.choices.exact(key, package.digest)
        choice = exact or self.choices.inherited(key, shape)
        if choice is None or self._objection(choice, package.manifest):
            return None
        return exact or inherit(choice, package.manifest, package.digest, made_at=_now())

    def _tune_quietly(self, package: PackageOnDisk, should_stop: Callable[[], bool], effort: Effort | None) -> None:
        from bowerbird_agent.autotune_runner import Stopped

        if not self.is_worth_tuning(package):
            return
        try:
            decision = self.tune(package, effort=effort, should_stop=should_stop)
            logger.info("model %s: %s; %s", package.digest[:12], decision.chosen or "nothing chosen", decision.why)
        except Stopped:
            logger.info("model %s: tuning was cut short; it runs on the default", package.digest[:12])
        except Exception:  # a model that passed its self-test is never lost over how fast it runs
            logger.exception("model %s: tuning failed; it runs on the default", package.digest[:12])

    def _remember(self, choice: RuntimeChoice) -> None:
        try:
            self.choices.remember(choice)
        except OSError as error:
            logger.warning("the runtime choice for model %s cannot be kept (%s)", choice.model_digest[:12], error.strerror)

    def _forget(self, digest: str) -> None:
        try:
            self.choices.forget(self.hardware.key, digest)
        except OSError as error:
            logger.warning("a runtime choice cannot be dropped (%s)", error.strerror)

    # --- tuning --------------------------------------------------------------------------------------------------------

    def space(self, package: PackageOnDisk, runtimes: tuple[str, ...] = ()) -> Space:
        """What may vary for a package here; `runtimes` keeps some of the usable ones, () all."""
        from bowerbird_models.runtimes import available

        config = self._config
        usable = {found.name: found.precisions for found in available() if found.usable}
        allowed = (config.runtime,) if config.is_pinned else runtimes or tuple(usable)
        if config.precision is not None and config.runtime in usable:
            usable[config.runtime] = (config.precision,)
        return Space(
            roles=model_roles(package.manifest),
            runtimes={name: precisions for name, precisions in usable.items() if name in allowed},
            cores=self.hardware.cores,
            role=config.variant,
            threads=config.threads,
            spinning=config.spinning,
            huge_pages=config.huge_pages,
            can_huge_pages=can_huge_pages(),
        )

    def is_worth_tuning(self, package: PackageOnDisk) -> bool:
        """Whether there is more than one thing to try."""
        space = self.space(package)
        first = first_candidates(space)
        return len(first) > 1 or bool(first and (refinements(space, first) or with_huge_pages(space, first[0])))

    def tune(
        self,
        package: PackageOnDisk,
        *,
        effort: Effort | None = None,
        limits: Limits | None = None,
        runtimes: tuple[str, ...] = (),
        should_stop: Callable[[], bool] = lambda: False,
        progress: Callable[[str], None] = lambda _text: None,
        remember: bool = True,
    ) -> Decision:
        """Measure a package here, and remember the choice.

        Args:
            package: its files were verified.
            effort: how long.
            limits: None for the configuration's.
            runtimes: try only these, () for all that are usable.
            should_stop, progress: as `autotune_runner.tune`.
            remember: keep the choice.

        Raises:
            Stopped: `should_stop` said so.
            OSError: the choice cannot be written.
        """
        from bowerbird_agent.autotune_runner import Effort as _Effort
        from bowerbird_agent.autotune_runner import tune

        decision = tune(
            package,
            self.space(package, runtimes),
            limits or self.limits,
            effort=effort or _Effort(),
            accuracy=package.manifest.accuracy,
            engine_dir=self.engine_dir,
            should_stop=should_stop,
            progress=progress,
        )
        if remember and decision.chosen is not None:
            best = next(row for row in decision.rows if row.verdict == CHOSEN)
            self.choices.remember(
                RuntimeChoice(
                    decision.chosen,
                    decision.why,
                    package.digest,
                    ModelShape.of(package.manifest),
                    self.hardware.key,
                    _now(),
                    best.measurement.peak_rss_mb,
                    tuple(row.to_plain() for row in decision.rows),
                )
            )
        return decision


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


def _refused(code: str, detail: str) -> SelfTestResult:
    from bowerbird_agent.selftest import SelfTestResult

    return SelfTestResult(code, detail)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
