"""Measures candidates in child processes that take turns, and hands the figures to the rules of `autotune.py`.

In: a verified package, what may vary, limits, a time. Out: a `Decision`. Children of one heat are loaded together and run short blocks
round robin, so that whatever else the machine does meets all of them; where memory does not hold them all there are several heats,
brought to one scale by a candidate that runs in each. A candidate that fails, hangs or eats memory becomes a row of the table. It
remembers nothing and loads no model into this process.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from bowerbird_agent.tuning.autotune import (
    DISCARDED,
    Candidate,
    Decision,
    Limits,
    Measurement,
    accuracy_allows,
    decide,
    quiet_times,
)
from bowerbird_agent.tuning.autotune_candidates import BUILDS_ENGINES, Space, first_candidates, refinements, with_huge_pages
from bowerbird_agent.tuning.autotune_process import MEMORY_BYTES, CandidateProcess, ChildFailed, Stopped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bowerbird_models.package import PackageOnDisk

__all__ = ["Effort", "Stopped", "tune"]

SECONDS = 60.0
_CHILD_MB = 400  # what one child is expected to hold at most, to decide how many may live at once
_MAX_ALIVE = 6
# Shares of the time: files and runtimes, then threads, then huge pages.
_FIRST_UNTIL, _SECOND_UNTIL = 0.55, 0.85


@dataclass(frozen=True)
class Effort:
    """How long and how hard to measure.

    Args:
        seconds: for everything but the building of engines.
        blocks: turns of each candidate; fewer when the time is over.
        block_s: length of one turn.
        load_s: loading and the golden pictures may take this long.
        engine_s: the same for runtimes that build an engine at first.
        frame_s: one frame may take this long.
        memory_bytes: hard limit of a child.
    """

    seconds: float = SECONDS
    blocks: int = 7
    block_s: float = 0.25
    load_s: float = 30.0
    engine_s: float = 900.0
    frame_s: float = 10.0
    memory_bytes: int = MEMORY_BYTES


@dataclass
class _Turns:
    """What a candidate has answered so far."""

    process: CandidateProcess
    parity: Mapping[str, Any]
    blocks_ms: list[list[float]] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    peak_rss_mb: float = 0.0
    failure: str = ""

    def measurement(self) -> Measurement:
        p50_ms, p95_ms = quiet_times(self.blocks_ms)
        return Measurement(
            p50_ms=p50_ms,
            p95_ms=p95_ms,
            cpu_ms=median(self.cpu_ms) if self.cpu_ms else 0.0,
            peak_rss_mb=self.peak_rss_mb,
            golden_cases=int(self.parity.get("golden_cases", 0)),
            differing_cases=int(self.parity.get("differing_cases", 0)),
            difference=str(self.parity.get("difference", ""))[:200],
            frames=sum(map(len, self.blocks_ms)),
            runtime=str(self.parity.get("runtime", "")),
            failure=self.failure,
        )


class _Measuring:
    """One tuning: a deadline that engine builds push back, and everything measured so far."""

    def __init__(
        self,
        package: PackageOnDisk,
        effort: Effort,
        engine_dir: Path | None,
        should_stop: Callable[[], bool],
        progress: Callable[[str], None],
    ) -> None:
        self._package, self._effort, self._engine_dir = package, effort, engine_dir
        self._should_stop, self._progress = should_stop, progress
        self._started_s = time.monotonic()
        self.measured: dict[Candidate, Measurement] = {}

    def until(self, share: float) -> float:
        """The moment at which this share of the time is over."""
        return self._started_s + share * self._effort.seconds

    def measure(self, candidates: Sequence[Candidate], anchor: Candidate | None, until_s: float) -> None:
        """Measure candidates, in heats; figures are brought to the scale of what `anchor` did before."""
        todo = [candidate for candidate in candidates if candidate != anchor]
        size = max(1, _room() - (anchor is not None))
        heats = [todo[start : start + size] for start in range(0, len(todo), size)]
        for number, heat in enumerate(heats):
            pushed_s = self._started_s
            now_s = time.monotonic()
            share_s = max(0.0, until_s - now_s) / (len(heats) - number)
            runners = [anchor, *heat] if anchor is not None else heat
            found = self._heat(runners, now_s + share_s)
            until_s += self._started_s - pushed_s
            anchor = self._take(found, anchor)

    def _take(self, found: dict[Candidate, Measurement], anchor: Candidate | None) -> Candidate | None:
        """Book a heat; returns the candidate that the next one is compared by."""
        scale = 1.0
        if anchor is not None and anchor in self.measured and found[anchor].frames:
            scale = self.measured[anchor].p50_ms / found[anchor].p50_ms
        for candidate, m in found.items():
            if candidate not in self.measured:
                self.measured[candidate] = replace(m, p50_ms=m.p50_ms * scale, p95_ms=m.p95_ms * scale)
        if anchor is not None and anchor in self.measured:
            return anchor
        return next((candidate for candidate, m in found.items() if m.frames and not m.failure), None)

    def _heat(self, candidates: Sequence[Candidate], until_s: float) -> dict[Candidate, Measurement]:
        found: dict[Candidate, Measurement] = {}
        with contextlib.ExitStack() as alive:
            running: list[_Turns] = []
            for candidate in candidates:
                started_s = time.monotonic()
                if started_s >= until_s and running:
                    found[candidate] = Measurement()
                    continue
                self._progress(f"loading {candidate}")
                outcome = self._load(candidate, alive)
                if candidate.runtime in BUILDS_ENGINES:
                    pause_s = time.monotonic() - started_s
                    self._started_s += pause_s
                    until_s += pause_s
                if isinstance(outcome, _Turns):
                    running.append(outcome)
                else:
                    found[candidate] = outcome
            for turn in range(self._effort.blocks):
                if turn and time.monotonic() >= until_s:
                    break
                self._progress(f"measuring {len(running)} candidates, turn {turn + 1} of {self._effort.blocks}")
                # Every other turn runs backwards, so that nobody always follows the same neighbour.
                for runner in running if turn % 2 == 0 else reversed(running):
                    self._turn(runner)
            found |= {runner.process.candidate: runner.measurement() for runner in running}
        return found

    def _load(self, candidate: Candidate, alive: contextlib.ExitStack) -> _Turns | Measurement:
        """A child that is ready to take turns, or why there is none."""
        timeout_s = self._effort.engine_s if candidate.runtime in BUILDS_ENGINES else self._effort.load_s
        try:
            process = alive.enter_context(
                CandidateProcess(
                    self._package.dir,
                    self._package.digest,
                    candidate,
                    engine_dir=self._engine_dir,
                    memory_bytes=self._effort.memory_bytes,
                    should_stop=self._should_stop,
                )
            )
            parity = process.answer(timeout_s=timeout_s)
        except ChildFailed as error:
            return Measurement(failure=str(error))
        turns = _Turns(process, parity)
        if turns.measurement().differing_cases:
            process.close()  # its speed is of no interest
            return turns.measurement()
        return turns

    def _turn(self, runner: _Turns) -> None:
        if runner.failure:
            return
        effort = self._effort
        try:
            answer = runner.process.ask(
                {"do": "block", "seconds": effort.block_s}, timeout_s=effort.block_s + 3 * effort.frame_s
            )
            runner.blocks_ms.append([float(value) for value in answer["ms"]])
            runner.cpu_ms.append(float(answer["cpu_ms"]))
            runner.peak_rss_mb = max(runner.peak_rss_mb, float(answer["rss_mb"]))
        except ChildFailed as error:
            runner.failure = str(error)
        except (KeyError, TypeError, ValueError):
            runner.failure = "it answered nonsense"
            runner.process.close()


def tune(
    package: PackageOnDisk,
    space: Space,
    limits: Limits,
    *,
    effort: Effort = Effort(),
    accuracy: Mapping[str, float],
    engine_dir: Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Callable[[str], None] = lambda _text: None,
) -> Decision:
    """Measure what there is and decide.

    Args:
        package: its files were verified.
        space: what may vary.
        limits: what a candidate must keep.
        effort: how long.
        accuracy: by role, as the package records it.
        engine_dir: where engines are kept.
        should_stop: asked every tenth of a second.
        progress: told in words what happens now.

    Raises:
        Stopped: `should_stop` said so; every child is gone.
    """
    measuring = _Measuring(package, effort, engine_dir, should_stop, progress)
    first = first_candidates(space)
    # What the package's own accuracy rules out is not run at all; the rules name the reason.
    ruled_out = {candidate: Measurement() for candidate in first if not accuracy_allows(candidate, limits, accuracy)}

    def best_first() -> list[Candidate]:
        decision = decide(measuring.measured, limits, accuracy)
        return [row.candidate for row in decision.rows if row.verdict != DISCARDED]

    candidates = [candidate for candidate in first if candidate not in ruled_out]
    measuring.measure(candidates, None, measuring.until(_FIRST_UNTIL))
    best = best_first()
    more = refinements(space, best)
    if more:
        measuring.measure(more, best[0], measuring.until(_SECOND_UNTIL))
    best = best_first()
    more = with_huge_pages(space, best[0]) if best else ()
    if more:
        measuring.measure(more, best[0], measuring.until(1.0))
    return decide({**ruled_out, **measuring.measured}, limits, accuracy)


def _room() -> int:
    """How many children may live at once."""
    try:
        text = Path("/proc/meminfo").read_text("utf-8")
        available_mb = next(int(line.split()[1]) // 1024 for line in text.splitlines() if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return 2
    return max(1, min(_MAX_ALIVE, available_mb // (2 * _CHILD_MB)))
