"""What there is to try: from files, runtimes and cores to candidates, in two steps.

In: a `Space`. Out: candidates. Measuring every combination would take minutes: first each file on each runtime with one thread, then
threads, spinning and huge pages of the best ones only. Pure; what a runtime can do on this processor shows when it is tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bowerbird_agent.tuning.autotune import FLOAT_ROLES, REFERENCE_RUNTIME, Candidate
from bowerbird_models.runtime_options import ONNXRUNTIME_CUDA, ONNXRUNTIME_TENSORRT, TENSORRT

if TYPE_CHECKING:
    from collections.abc import Iterable

INT8_ORT, INT8_OPENVINO = "onnx-int8-ort", "onnx-int8-openvino"
MAX_THREADS = 8  # a detector of one picture gains nothing from more
ACCELERATED = (ONNXRUNTIME_CUDA, ONNXRUNTIME_TENSORRT, TENSORRT)
BUILDS_ENGINES = (ONNXRUNTIME_TENSORRT, TENSORRT)
_REFINED = 2  # the best of the first step that threads are tried on


def may_run(role: str, runtime: str) -> bool:
    """Whether a file of this role is made for this runtime: one int8 file does not serve two."""
    if role in FLOAT_ROLES:
        return True
    prefix = {INT8_ORT: "onnxruntime-", INT8_OPENVINO: "openvino-"}.get(role)
    return prefix is not None and runtime.startswith(prefix)


@dataclass(frozen=True)
class Space:
    """What may vary.

    Args:
        roles: model files of the package.
        runtimes: the usable ones that are allowed, each with the precisions that it computes in on this machine.
        cores: this process may use.
        threads, spinning, huge_pages, role: fixed by the operator; None to try.
        can_huge_pages: whether C library and kernel know huge pages on request.
    """

    roles: Sequence[str]
    runtimes: Mapping[str, Sequence[str]]
    cores: int = 1
    role: str | None = None
    threads: int | None = None
    spinning: bool | None = None
    huge_pages: bool | None = None
    can_huge_pages: bool = False

    @property
    def thread_counts(self) -> tuple[int, ...]:
        """1, half the cores and all of them, or the number that the operator gave."""
        if self.threads is not None:
            return (self.threads,)
        most = min(self.cores, MAX_THREADS)
        return tuple(sorted({1, max(1, most // 2), max(1, most)}))

    @property
    def base(self) -> Candidate:
        """What everything is compared with: the float file on the reference runtime."""
        return Candidate(
            role=self._float_role(),
            runtime=REFERENCE_RUNTIME,
            threads=self.thread_counts[0],
            spinning=bool(self.spinning),
            huge_pages=bool(self.huge_pages),
        )

    def _float_role(self) -> str:
        return next((role for role in FLOAT_ROLES if role in self.roles), FLOAT_ROLES[0])


def first_candidates(space: Space) -> tuple[Candidate, ...]:
    """Each file on each runtime in each precision, threads and pages alike; the base is first where it is allowed at all.

    Of two float files one is tried: they hold the same network, and every runtime computes both alike.
    """
    roles = [space.role] if space.role is not None else [space.base.role, *(r for r in space.roles if r not in FLOAT_ROLES)]
    found = [
        replace(space.base, role=role, runtime=runtime, precision=precision)
        for role in roles
        for runtime, precisions in space.runtimes.items()
        if may_run(role, runtime)
        for precision in precisions
    ]
    return tuple(sorted(found, key=lambda candidate: candidate != space.base))


def refinements(space: Space, best_first: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """More threads and spinning for the best of the first step; nothing for what an accelerator computes."""
    found: list[Candidate] = []
    for candidate in best_first[:_REFINED]:
        if candidate.runtime in ACCELERATED:
            continue
        for threads in space.thread_counts:
            found.append(replace(candidate, threads=threads))
            # One thread has nobody to wait for, and only ONNX Runtime can be told.
            if space.spinning is None and threads > 1 and candidate.runtime.startswith("onnxruntime-"):
                found.append(replace(candidate, threads=threads, spinning=True))
    return _without(found, best_first)


def with_huge_pages(space: Space, best: Candidate) -> tuple[Candidate, ...]:
    """The best one on huge pages, where that is open and can be had."""
    if space.huge_pages is not None or not space.can_huge_pages or best.runtime in ACCELERATED:
        return ()
    return (replace(best, huge_pages=True),)


def _without(found: Iterable[Candidate], known: Iterable[Candidate]) -> tuple[Candidate, ...]:
    seen = set(known)
    return tuple(candidate for candidate in dict.fromkeys(found) if candidate not in seen)
