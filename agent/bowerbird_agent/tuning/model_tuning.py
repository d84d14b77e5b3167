"""Chooses what a model runs with: the verdict on a model that an update brought, and tuning on demand.

In: packages, the runtimes of a device. Out: a self-test's verdict on what will run, and choices in the device's memory. Measuring is
`autotune_runner.py`'s work, the rules are `autotune.py`'s. It loads no model into this process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bowerbird_agent.errors import AgentError
from bowerbird_agent.tuning.autotune import CHOSEN, Candidate, Decision, Limits
from bowerbird_agent.tuning.autotune_candidates import Space, first_candidates, refinements, with_huge_pages
from bowerbird_agent.tuning.hardware import can_huge_pages
from bowerbird_agent.tuning.model_runtime import PINNED, ModelRuntimes
from bowerbird_agent.tuning.runtime_choice import ModelShape, RuntimeChoice, inherit, model_roles

if TYPE_CHECKING:
    from bowerbird_agent.tuning.autotune_runner import Effort
    from bowerbird_agent.updates.selftest import SelfTestResult
    from bowerbird_models.package import PackageOnDisk

logger = logging.getLogger(__name__)


class ModelTuning:
    """Tuning for one device; methods block for as long as they measure.

    Args:
        runtimes: what the device's models run with; choices go into its memory.
    """

    def __init__(self, runtimes: ModelRuntimes) -> None:
        self._runtimes = runtimes

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
        from bowerbird_agent.updates.selftest import run_selftest
        from bowerbird_models.package import PackageError, load_package

        def test(candidate: Candidate) -> SelfTestResult:
            return run_selftest(
                folder,
                digest=digest,
                timeout_s=timeout_s,
                memory_bytes=memory_bytes,
                candidate=candidate,
                engine_dir=self._runtimes.engine_dir,
            )

        try:
            package = load_package(folder, digest=digest)
        except PackageError as error:  # the disk lost it since it was verified
            return _refused(error.code, str(error))
        # 1. The operator's word.
        try:
            runs = self._runtimes.for_model(package.manifest, digest)
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
        result = test(self._runtimes.default(package.manifest))
        if not result.code:
            self._tune_quietly(package, should_stop, effort)
        return result

    def _known_choice(self, package: PackageOnDisk) -> RuntimeChoice | None:
        key, shape = self._runtimes.hardware.key, ModelShape.of(package.manifest)
        exact = self._runtimes.choices.exact(key, package.digest)
        choice = exact or self._runtimes.choices.inherited(key, shape)
        if choice is None or self._runtimes.objection(choice, package.manifest):
            return None
        return exact or inherit(choice, package.manifest, package.digest, made_at=_now())

    def _tune_quietly(self, package: PackageOnDisk, should_stop: Callable[[], bool], effort: Effort | None) -> None:
        from bowerbird_agent.tuning.autotune_runner import Stopped

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
            self._runtimes.choices.remember(choice)
        except OSError as error:
            logger.warning("the runtime choice for model %s cannot be kept (%s)", choice.model_digest[:12], error.strerror)

    def _forget(self, digest: str) -> None:
        try:
            self._runtimes.choices.forget(self._runtimes.hardware.key, digest)
        except OSError as error:
            logger.warning("a runtime choice cannot be dropped (%s)", error.strerror)

    # --- tuning --------------------------------------------------------------------------------------------------------

    def space(self, package: PackageOnDisk, runtimes: tuple[str, ...] = ()) -> Space:
        """What may vary for a package here; `runtimes` keeps some of the usable ones, () all."""
        from bowerbird_models.runtimes import available_elsewhere

        config = self._runtimes.config
        usable = {found.name: found.precisions for found in available_elsewhere() if found.usable}
        allowed = (config.runtime,) if config.is_pinned else runtimes or tuple(usable)
        if config.precision is not None and config.runtime in usable:
            usable[config.runtime] = (config.precision,)
        return Space(
            roles=model_roles(package.manifest),
            runtimes={name: precisions for name, precisions in usable.items() if name in allowed},
            cores=self._runtimes.hardware.cores,
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
        from bowerbird_agent.tuning.autotune_runner import Effort as _Effort
        from bowerbird_agent.tuning.autotune_runner import tune

        decision = tune(
            package,
            self.space(package, runtimes),
            limits or self._runtimes.limits,
            effort=effort or _Effort(),
            accuracy=package.manifest.accuracy,
            engine_dir=self._runtimes.engine_dir,
            should_stop=should_stop,
            progress=progress,
        )
        if remember and decision.chosen is not None:
            best = next(row for row in decision.rows if row.verdict == CHOSEN)
            self._runtimes.choices.remember(
                RuntimeChoice(
                    decision.chosen,
                    decision.why,
                    package.digest,
                    ModelShape.of(package.manifest),
                    self._runtimes.hardware.key,
                    _now(),
                    best.measurement.peak_rss_mb,
                    tuple(row.to_plain() for row in decision.rows),
                )
            )
        return decision


def _refused(code: str, detail: str) -> SelfTestResult:
    from bowerbird_agent.updates.selftest import SelfTestResult

    return SelfTestResult(code, detail)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
