"""How long each stage of a frame takes on this machine: read, letterbox, inference, scoring, encoding.

In: a model and a source of frames. Out: `BenchResult` with percentiles per stage and the memory of the process. It compares nothing
with other software (the repository's `benchmarks/` do that) and needs neither broker nor configuration. `compare` puts runtimes side
by side, each in a child of its own, taking turns.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bowerbird_agent.capture.capture import Source, open_camera
from bowerbird_agent.errors import SourceError
from bowerbird_agent.selection.gate import glance
from bowerbird_agent.selection.policy import Policy
from bowerbird_agent.selection.select import Selector
from bowerbird_agent.storing.encode import encode_image
from bowerbird_agent.tuning.autotune_child import peak_rss_mb
from bowerbird_agent.tuning.autotune_process import CandidateProcess, ChildFailed

if TYPE_CHECKING:
    from pathlib import Path

    from bowerbird_agent.tuning.autotune import Candidate
    from bowerbird_models.package import PackageOnDisk
    from bowerbird_models.yolo import YoloDetector

_WARM_UP_FRAMES = 3
STAGES = ("read", "letterbox", "infer", "score", "encode")
_PER_FRAME = ("letterbox", "infer", "score")
_TURNS = 5
_LOAD_S, _ENGINE_S, _TURN_S = 60.0, 900.0, 600.0


@dataclass(frozen=True)
class StageTimes:
    """Milliseconds per frame."""

    p50_ms: float
    p95_ms: float
    p99_ms: float

    @classmethod
    def of(cls, values_ms: Sequence[float]) -> StageTimes:
        """Percentiles of at least one value."""
        return cls(*(float(np.percentile(values_ms, q)) for q in (50, 95, 99)))


@dataclass(frozen=True)
class BenchResult:
    """What was measured.

    Args:
        stages: per stage; "infer" is the network and its head, without the letterbox.
        frames: measured, warm-up apart.
        fps: frames per second through letterbox, infer and score.
        source_wh, network_hw: pixels.
        peak_rss_mb: peak memory of the whole process.
        runtime: name and version.
    """

    stages: dict[str, StageTimes]
    frames: int
    fps: float
    source_wh: tuple[int, int]
    network_hw: tuple[int, int]
    peak_rss_mb: float
    runtime: str


class StageBench:
    """A model and an open source; takes frames through the stages of the device as often as it is asked.

    Args:
        detector: runs the model.
        source: where frames come from.

    Raises:
        CameraError: the source cannot be opened.
    """

    def __init__(self, detector: YoloDetector, source: Source) -> None:
        self._detector, self._source = detector, source
        self._policy = Policy()
        self._selector = Selector(self._policy, device="bench")
        self._network = detector.new_input()
        self._camera = open_camera(source)
        self._is_warm = False
        self.source_wh = (0, 0)

    def run(self, frames: int) -> dict[str, list[float]]:
        """Milliseconds of each stage for so many frames, fewer where the source ends.

        Raises:
            CameraError: the source gives nothing.
            ModelOutputError: the model fails.
        """
        times: dict[str, list[float]] = {stage: [] for stage in STAGES}
        warm_up = 0 if self._is_warm else _WARM_UP_FRAMES
        self._is_warm = True
        for number in range(frames + warm_up):
            marks = [time.perf_counter()]
            frame = self._camera.read()
            if frame is None:
                break
            marks.append(time.perf_counter())
            thumb = glance(frame.image_bgr)
            marks.append(time.perf_counter())
            self._network.fill(frame.image_bgr)
            marks.append(time.perf_counter())
            detections = self._detector.detect(frame.image_bgr, confidence=self._policy.decode_confidence)
            marks.append(time.perf_counter())
            self._selector.judge(frame, detections, thumb)
            marks.append(time.perf_counter())
            encode_image(frame.image_bgr, long_side=640, quality=90)
            marks.append(time.perf_counter())
            if number < warm_up:
                continue
            self.source_wh = (frame.image_bgr.shape[1], frame.image_bgr.shape[0])
            read_s, glance_s, letterbox_s, detect_s, judge_s, encode_s = np.diff(marks)
            # `detect` fills its own input once more: what is left is the network and its head.
            values = (read_s, letterbox_s, max(0.0, detect_s - letterbox_s), glance_s + judge_s, encode_s)
            for stage, value in zip(STAGES, values, strict=True):
                times[stage].append(float(value) * 1000)
        if not times["read"]:
            raise SourceError(f"{self._source.text} gave no more than {_WARM_UP_FRAMES} frames; name a longer source")
        return times

    def close(self) -> None:
        """Let the source go."""
        self._camera.close()


def bench(detector: YoloDetector, source: Source, *, frames: int = 100) -> BenchResult:
    """Run frames through every stage and measure.

    Raises:
        CameraError: the source gives nothing.
        ModelOutputError: the model fails.
    """
    with contextlib.closing(StageBench(detector, source)) as stages:
        times = stages.run(frames)
        return _result(times, stages.source_wh, detector.image_size_hw, peak_rss_mb(), detector.runtime)


@dataclass(frozen=True)
class Compared:
    """One line of a comparison; `result` is None where `failure` says why."""

    candidate: Candidate
    result: BenchResult | None
    golden_cases: int = 0
    differing_cases: int = 0
    failure: str = ""


def compare(
    package: PackageOnDisk,
    candidates: Sequence[Candidate],
    source: str,
    *,
    frames: int = 100,
    engine_dir: Path | None = None,
    progress: Callable[[str], None] = lambda _text: None,
) -> list[Compared]:
    """The same frames through every candidate, each in a child of its own, in turns; in the order given.

    A candidate that fails is a line of the table. All children live at the same time: `autotune_runner.py` is for small machines.
    """
    with contextlib.ExitStack() as alive:
        processes: list[CandidateProcess | None] = []
        lines: list[Compared] = []
        runtimes: list[str] = []
        for candidate in candidates:
            progress(f"loading {candidate}")
            process, line, runtime = _start(package, candidate, engine_dir, alive)
            processes.append(process)
            lines.append(line)
            runtimes.append(runtime)
        answers: list[list[dict[str, Any]]] = [[] for _ in candidates]
        for turn in range(_TURNS):
            progress(f"turn {turn + 1} of {_TURNS}")
            for k, process in enumerate(processes):
                if process is None:
                    continue
                command = {"do": "stages", "source": source, "frames": max(1, -(-frames // _TURNS))}
                try:
                    answers[k].append(process.ask(command, timeout_s=_TURN_S))
                except ChildFailed as error:
                    lines[k] = Compared(candidates[k], None, failure=str(error))
                    processes[k] = None
    return [
        line
        if line.failure
        else Compared(line.candidate, _joined(said, package, name), line.golden_cases, line.differing_cases)
        for line, said, name in zip(lines, answers, runtimes, strict=True)
    ]


def _start(
    package: PackageOnDisk, candidate: Candidate, engine_dir: Path | None, alive: contextlib.ExitStack
) -> tuple[CandidateProcess | None, Compared, str]:
    from bowerbird_agent.tuning.autotune_candidates import BUILDS_ENGINES

    try:
        process = alive.enter_context(CandidateProcess(package.dir, package.digest, candidate, engine_dir=engine_dir))
        parity = process.answer(timeout_s=_ENGINE_S if candidate.runtime in BUILDS_ENGINES else _LOAD_S)
    except ChildFailed as error:
        return None, Compared(candidate, None, failure=str(error)), ""
    line = Compared(candidate, None, int(parity["golden_cases"]), int(parity["differing_cases"]))
    return process, line, str(parity["runtime"])


def _joined(answers: Sequence[dict[str, Any]], package: PackageOnDisk, runtime: str) -> BenchResult:
    times = {stage: [float(value) for answer in answers for value in answer["stages"][stage]] for stage in STAGES}
    width, height = answers[-1]["source_wh"]
    rss_mb = max(float(answer["rss_mb"]) for answer in answers)
    return _result(times, (int(width), int(height)), package.manifest.input_size_hw, rss_mb, runtime)


def _result(
    times: dict[str, list[float]], source_wh: tuple[int, int], network_hw: tuple[int, int], rss_mb: float, runtime: str
) -> BenchResult:
    per_frame_ms = sum(float(np.median(times[stage])) for stage in _PER_FRAME)
    return BenchResult(
        {stage: StageTimes.of(values) for stage, values in times.items()},
        len(times["read"]),
        1000 / max(per_frame_ms, 1e-6),
        source_wh,
        network_hw,
        rss_mb,
        runtime,
    )
