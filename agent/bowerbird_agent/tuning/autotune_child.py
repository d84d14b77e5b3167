"""One candidate in a child process: `python -m bowerbird_agent.tuning.autotune_child FOLDER --digest D --candidate JSON`.

In: a package, what to run it with, and commands, one JSON line each, on standard input. Out: one JSON line on standard output when the
model is loaded and has answered the golden pictures, and one for each command. The child stays alive between commands, so that the
parent can let several take turns. It ends with its input, or with its parent. It decides nothing.

    {"do": "block", "seconds": 0.3}                      -> {"ms": [...], "cpu_ms": 4.1, "rss_mb": 92.0}
    {"do": "stages", "source": "film.mp4", "frames": 20} -> {"stages": {"read": [...], ...}, "source_wh": [...], ...}
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bowerbird_agent.tuning.autotune import Candidate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bowerbird_models.package import PackageOnDisk
    from bowerbird_models.yolo import YoloDetector

_PR_SET_PDEATHSIG = 1
_SOURCE_WH = (1280, 720)  # what cameras give; the resize to the network's size is part of every frame
_MIN_FRAMES, _MAX_FRAMES = 2, 500
_CONFIDENCE = 0.05


def peak_rss_mb() -> float:
    """Peak memory of this process since its exec, in MB; `ru_maxrss` would count what the parent held when it forked."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Runner:
    """A loaded candidate that answers commands.

    Args:
        package: verified.
        candidate: what to run.
        engine_dir: where engines are kept.

    Raises:
        ModelError, ValueError: it does not load, or not with these options.
    """

    def __init__(self, package: PackageOnDisk, candidate: Candidate, engine_dir: Path | None) -> None:
        from bowerbird_models.manifest import PackageError
        from bowerbird_models.runtimes import open_model

        file = package.manifest.files.get(candidate.role)
        if file is None:
            raise PackageError("missing", f"the package has no {candidate.role} file")
        self._package = package
        self._role = candidate.role
        self._detector: YoloDetector = open_model(package.dir / file.name, candidate.options(engine_dir))
        self._picture: NDArray[np.uint8] | None = None
        self._bench: Any = None

    def parity(self) -> dict[str, Any]:
        """Golden pictures tried and those that differ by more than the role's tolerance, with the first difference in words."""
        import cv2
        import numpy as np

        from bowerbird_models.errors import ModelOutputError
        from bowerbird_models.golden import CONFIDENCE, Tolerance, decode_golden, differences
        from bowerbird_models.manifest import GOLDEN

        manifest = self._package.manifest
        tolerance = manifest.tolerance.get(self._role, Tolerance())
        if self._detector.class_names != manifest.class_names or self._detector.image_size_hw != manifest.input_size_hw:
            raise ModelOutputError("its class names or input size are not the manifest's")
        golden = (self._package.dir / manifest.files[GOLDEN].name).read_bytes()
        cases = differing = 0
        first = ""
        for case in decode_golden(golden, self._role):
            if self._picture is None:
                self._picture = np.asarray(cv2.resize(case.image_bgr, _SOURCE_WH), np.uint8)
            wrong = differences(case.expected, self._detector.detect(case.image_bgr, confidence=CONFIDENCE), tolerance)
            cases, differing = cases + 1, differing + bool(wrong)
            first = first or (wrong[0] if wrong else "")
        return {"golden_cases": cases, "differing_cases": differing, "difference": first, "runtime": self._detector.runtime}

    def block(self, seconds: float) -> dict[str, Any]:
        """Detect on one picture over and over for so long."""
        if self._picture is None:
            raise ValueError("parity comes first")
        self._detector.detect(self._picture, confidence=_CONFIDENCE)  # caches are cold after another candidate's turn
        times_ms: list[float] = []
        cpu_s, end_s = time.process_time(), time.perf_counter() + seconds
        while len(times_ms) < _MAX_FRAMES and (len(times_ms) < _MIN_FRAMES or time.perf_counter() < end_s):
            started_s = time.perf_counter()
            self._detector.detect(self._picture, confidence=_CONFIDENCE)
            times_ms.append((time.perf_counter() - started_s) * 1000)
        cpu_ms = (time.process_time() - cpu_s) * 1000 / len(times_ms)
        return {"ms": times_ms, "cpu_ms": cpu_ms, "rss_mb": peak_rss_mb()}

    def stages(self, source: str, frames: int) -> dict[str, Any]:
        """Take frames of a source through every stage of the device."""
        from bowerbird_agent.capture.capture import Source
        from bowerbird_agent.tuning.bench import StageBench

        if self._bench is None:
            self._bench = StageBench(self._detector, Source("bench", source, loop=True))
        times = self._bench.run(frames)
        return {"stages": times, "source_wh": list(self._bench.source_wh), "rss_mb": peak_rss_mb()}


def _serve(arguments: argparse.Namespace, out: Any) -> None:
    """Load, prove parity, then answer commands until the input ends."""

    def say(answer: dict[str, Any]) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    # Imported late: the limits of `main` are in force before anything of weight is loaded.
    from bowerbird_agent.errors import AgentError
    from bowerbird_models.errors import ModelError
    from bowerbird_models.package import load_package

    try:
        candidate = Candidate(**json.loads(arguments.candidate))
        runner = Runner(load_package(arguments.folder, digest=arguments.digest), candidate, arguments.engine_dir)
        say(runner.parity())
        for line in sys.stdin:
            command = json.loads(line)
            if command["do"] == "block":
                say(runner.block(float(command["seconds"])))
            else:
                say(runner.stages(str(command["source"]), int(command["frames"])))
    except MemoryError:
        say({"failure": "it ran out of the memory that a child may take"})
    except (ModelError, AgentError, ValueError) as error:
        say({"failure": str(error)})


def main(argv: list[str] | None = None) -> int:
    """The child's entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m bowerbird_agent.tuning.autotune_child",
        description="Measure one way to run a model package on this device.",
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--digest", required=True)
    parser.add_argument("--candidate", required=True, metavar="JSON")
    parser.add_argument("--engine-dir", type=Path, metavar="DIR")
    parser.add_argument("--cpu-s", type=int, required=True)
    parser.add_argument("--memory-bytes", type=int, default=0, help="address space; 0 for no limit")
    arguments = parser.parse_args(argv)
    # Die with the agent, so that a killed agent leaves nothing that still eats the processor.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (arguments.cpu_s, arguments.cpu_s))
    # On a board without memory to spare it is this process that has to go, not the agent.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")
    if arguments.memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (arguments.memory_bytes, arguments.memory_bytes))
    # Some runtimes write to standard output; the protocol keeps a handle of its own.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    _serve(arguments, out)
    # Leave at once: runtimes have been seen to hang in their own tear-down.
    os._exit(0)


if __name__ == "__main__":
    raise SystemExit(main())
