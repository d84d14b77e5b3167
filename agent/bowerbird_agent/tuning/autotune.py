"""Which runtime, file and settings a model should run with here: the rules, on figures that were measured elsewhere.

In: candidates, what was measured of each, limits, and the accuracy that the package records. Out: a `Decision`: one choice or none, and
a table with a reason in every row. Pure: it runs no model and reads no clock; `autotune_runner.py` measures, `runtime_choice.py`
remembers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from bowerbird_models.runtime_options import ONNXRUNTIME_CPU, RUNTIMES, RuntimeOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

# Spelled out here, because `manifest.py` loads NumPy, and a start that begins anew on huge pages would pay for it twice.
ONNX_FP32, ONNX_FP16 = "onnx-fp32", "onnx-fp16"
FLOAT_ROLES = (ONNX_FP32, ONNX_FP16)
REFERENCE_RUNTIME = ONNXRUNTIME_CPU
TIE = 0.03  # two processes that run the same thing differ by up to 2 %; below this the plainer candidate wins
ACCURACY_LOSS_POINTS = 0.5  # as `models.max_loss_points` at the server

CHOSEN, SLOWER, DISCARDED = "chosen", "slower", "discarded"
NOT_MEASURED = "not measured in the time allowed; give more with --seconds"


@dataclass(frozen=True)
class Candidate:
    """One way to run a model.

    Args:
        role: which file of the package.
        runtime: one of `RUNTIMES`.
        precision: what the runtime computes in; int8 lies in the file.
        threads: of the model, on the processor.
        spinning: ONNX Runtime's threads spin while idle.
        huge_pages: the C library asks the kernel for huge pages (GLIBC_TUNABLES glibc.malloc.hugetlb=1).
    """

    role: str = ONNX_FP32
    runtime: str = REFERENCE_RUNTIME
    precision: str = "fp32"
    threads: int = 1
    spinning: bool = False
    huge_pages: bool = False

    @property
    def is_quantised(self) -> bool:
        """Whether the file itself holds fewer bits than floating point."""
        return self.role not in FLOAT_ROLES

    def options(self, engine_dir: Path | None = None) -> RuntimeOptions:
        """What `open_model` is asked for.

        Raises:
            ValueError: no such runtime, or it does not compute in this precision.
        """
        return RuntimeOptions(
            self.runtime, threads=self.threads, spinning=self.spinning, precision=self.precision, engine_dir=engine_dir
        )

    def __str__(self) -> str:
        """In words: "onnx-int8-ort on onnxruntime-cpu, 2 threads"."""
        parts = [f"{self.role} on {self.runtime}", f"{self.threads} thread{'s' if self.threads > 1 else ''}"]
        if self.precision != "fp32":
            parts.append(self.precision)
        if self.spinning:
            parts.append("spinning")
        if self.huge_pages:
            parts.append("huge pages")
        return ", ".join(parts)


@dataclass(frozen=True)
class Measurement:
    """What one candidate did.

    Args:
        p50_ms, p95_ms: wall time of one frame, from picture to detections, in the quieter half of the turns.
        cpu_ms: processor time of one frame, all threads.
        peak_rss_mb: peak memory of a process that loads and runs it and nothing else.
        golden_cases, differing_cases: golden pictures tried, and those whose detections differ by more than the role's tolerance.
        difference: the first of these differences in words.
        frames: timed; 0 when there was no time for it.
        runtime: name and version of what ran it.
        failure: why it could not be measured, "" when it could.
    """

    p50_ms: float = 0.0
    p95_ms: float = 0.0
    cpu_ms: float = 0.0
    peak_rss_mb: float = 0.0
    golden_cases: int = 0
    differing_cases: int = 0
    difference: str = ""
    frames: int = 0
    runtime: str = ""
    failure: str = ""


@dataclass(frozen=True)
class Limits:
    """What a candidate must keep.

    Args:
        memory_mb: most peak memory, None for no limit.
        accuracy_loss_points: most that its recorded accuracy may lie below the best float file's, in points (hundredths) of mAP50-95.
    """

    memory_mb: float | None = None
    accuracy_loss_points: float = ACCURACY_LOSS_POINTS


@dataclass(frozen=True)
class Row:
    """One line of the table: `verdict` is "chosen", "slower" or "discarded"."""

    candidate: Candidate
    measurement: Measurement
    verdict: str
    reason: str

    def to_plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self.candidate), **asdict(self.measurement), "verdict": self.verdict, "reason": self.reason}


@dataclass(frozen=True)
class Decision:
    """The candidate to use, None when every one was discarded; why; and all of them, the best first."""

    chosen: Candidate | None
    why: str
    rows: tuple[Row, ...]


def quiet_times(turns_ms: Sequence[Sequence[float]]) -> tuple[float, float]:
    """p50 and p95 in milliseconds over the quieter half of the turns, (0, 0) without any.

    Whatever else the machine does can only make a turn slower, so the quiet ones say what the candidate does.

    Args:
        turns_ms: for each turn the times of its frames, at least one.
    """
    quiet = sorted(turns_ms, key=median)[: (len(turns_ms) + 1) // 2]
    times_ms = sorted(value for turn in quiet for value in turn)
    if not times_ms:
        return 0.0, 0.0
    return median(median(turn) for turn in quiet), times_ms[min(len(times_ms) - 1, int(len(times_ms) * 0.95))]


def decide(measured: Mapping[Candidate, Measurement], limits: Limits, accuracy: Mapping[str, float]) -> Decision:
    """Discard what fails, take the fastest of the rest, and of those within `TIE` of it the plainest.

    Args:
        measured: every candidate, the failed ones too; their order does not matter.
        limits: what must be kept.
        accuracy: by role of the package's files, mAP50-95 in [0, 1] as measured at the server; may be empty.
    """
    faults = {candidate: _fault(candidate, m, limits, accuracy) for candidate, m in measured.items()}
    usable = sorted((c for c in measured if not faults[c]), key=lambda c: (measured[c].p50_ms, _plainness(c)))
    discarded = [
        Row(c, measured[c], DISCARDED, f"discarded: {faults[c]}") for c in sorted(measured, key=_plainness) if faults[c]
    ]
    if not usable:
        return Decision(None, f"none of {len(measured)} candidates can be used", tuple(discarded))
    fastest_ms = measured[usable[0]].p50_ms
    tied = [c for c in usable if measured[c].p50_ms <= fastest_ms * (1 + TIE)]
    chosen = min(tied, key=_plainness)
    chosen_ms = measured[chosen].p50_ms
    why = _why(chosen, usable, measured)
    rows = [Row(chosen, measured[chosen], CHOSEN, why)]
    for candidate in usable:
        if candidate != chosen:
            ratio = measured[candidate].p50_ms / max(chosen_ms, 1e-9)
            is_tied = candidate in tied
            reason = (
                f"within {TIE:.0%} of the chosen one, which is plainer" if is_tied else f"slower: {ratio:.2f} times the chosen"
            )
            rows.append(Row(candidate, measured[candidate], SLOWER, reason))
    return Decision(chosen, why, (*rows, *discarded))


def _why(chosen: Candidate, usable: list[Candidate], measured: Mapping[Candidate, Measurement]) -> str:
    chosen_ms = measured[chosen].p50_ms
    text = f"{chosen_ms:.2f} ms a frame, "
    if len(usable) == 1:
        text += "the only usable one" if len(measured) > 1 else "the only one there is"
    elif chosen == usable[0]:
        text += f"the fastest of {len(usable)} usable"
    else:
        text += f"within {TIE:.0%} of the fastest of {len(usable)} usable, and plainer"
    reference = min((c for c in usable if c.runtime == REFERENCE_RUNTIME and not c.is_quantised), key=_plainness, default=None)
    if reference is not None and reference != chosen:
        text += f"; {measured[reference].p50_ms / max(chosen_ms, 1e-9):.2f} times as fast as {reference}"
    return text


def _fault(candidate: Candidate, measurement: Measurement, limits: Limits, accuracy: Mapping[str, float]) -> str:
    """Why a candidate must not be used, "" when it may."""
    if measurement.failure:
        return measurement.failure
    if measurement.differing_cases:
        count = measurement.differing_cases
        what = f" ({measurement.difference})" if measurement.difference else ""
        return f"{count} of {measurement.golden_cases} golden cases differ{'s' if count == 1 else ''}{what}"
    loss = _accuracy_fault(candidate, limits, accuracy)
    if loss:
        return loss
    if limits.memory_mb is not None and measurement.peak_rss_mb > limits.memory_mb:
        return f"{measurement.peak_rss_mb:.0f} MB is over the memory limit of {limits.memory_mb:.0f} MB"
    return "" if measurement.frames else NOT_MEASURED


def _accuracy_fault(candidate: Candidate, limits: Limits, accuracy: Mapping[str, float]) -> str:
    role = candidate.role
    if role not in accuracy:
        if candidate.is_quantised:
            return "the package records no accuracy for it, so its loss is unknown; evaluate it at the server, or set model.variant"
        return ""
    known = {name: accuracy[name] for name in FLOAT_ROLES if name in accuracy}
    if not known:
        return "the package records no accuracy for its float file to compare with; evaluate it at the server"
    best = max(known, key=lambda name: known[name])
    points = 100 * (known[best] - accuracy[role])
    if points > limits.accuracy_loss_points + 1e-9:
        return f"accuracy {accuracy[role]:.3f} is {points:.1f} points below {best}'s"
    return ""


def accuracy_allows(candidate: Candidate, limits: Limits, accuracy: Mapping[str, float]) -> bool:
    """Whether it is worth measuring at all: the accuracy in the package needs no measurement here."""
    return not _accuracy_fault(candidate, limits, accuracy)


def _plainness(candidate: Candidate) -> tuple[Any, ...]:
    """Smaller is plainer: the reference runtime, full precision, one thread, nothing that disturbs the rest of the machine."""
    order = RUNTIMES.index(candidate.runtime) if candidate.runtime in RUNTIMES else len(RUNTIMES)
    role = FLOAT_ROLES.index(candidate.role) if candidate.role in FLOAT_ROLES else len(FLOAT_ROLES)
    return (
        candidate.runtime != REFERENCE_RUNTIME,
        candidate.is_quantised,
        candidate.precision != "fp32",
        candidate.spinning,
        candidate.threads,
        candidate.huge_pages,
        order,
        role,
        candidate.role,
        candidate.precision,
    )
