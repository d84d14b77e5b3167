"""The self-test of a model package, as a child process: `python -m bowerbird_agent.updates.selftest FOLDER`.

In: a folder with a package, what it will run with, limits as options. Out: one line of JSON on standard output and the exit code 0
(passed) or 1 (failed).
A child that hangs is killed by `run_selftest`, one that eats memory or processor time by the kernel; the agent goes on in every
case. It does not decide what happens next.

1. the package verifies again, as the files that will be loaded;
2. the runtime here is recent enough, and loads the file that will run;
3. the class names and the input size are the manifest's;
4. every golden picture gives finite detections, equal to the golden ones within the tolerance of that file.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from bowerbird_agent.tuning.autotune import Candidate
from bowerbird_agent.tuning.autotune_candidates import ACCELERATED

TIMEOUT_S = 120.0
MEMORY_BYTES = 3 * 1024**3
_MAX_OUTPUT_BYTES = 64 * 1024
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class SelfTestResult:
    """What the child found. `code` is "" when it passed; `latency_ms` is the mean over the golden pictures."""

    code: str = ""
    detail: str = ""
    latency_ms: float = 0.0


def run_selftest(
    folder: Path,
    *,
    digest: str,
    timeout_s: float = TIMEOUT_S,
    memory_bytes: int = MEMORY_BYTES,
    candidate: Candidate | None = None,
    engine_dir: Path | None = None,
) -> SelfTestResult:
    """Run the self-test in a child and wait for it; never raises for what the model does.

    Args:
        folder: the package.
        digest: model digest that it must have.
        timeout_s: wall and processor time that it may take.
        memory_bytes: address space that it may take; accelerators map more than that and are only held to the time.
        candidate: file and runtime that will run; None for the float file on the reference runtime.
        engine_dir: where engines are kept.
    """
    command = [sys.executable, "-m", "bowerbird_agent.updates.selftest", str(folder), "--digest", digest]
    threads = 1 if candidate is None else candidate.threads
    command += ["--cpu-s", str(max(1, round(timeout_s * threads)))]
    if candidate is not None:
        command += ["--candidate", json.dumps(asdict(candidate))]
    if candidate is None or candidate.runtime not in ACCELERATED:
        command += ["--memory-bytes", str(memory_bytes)]
    if engine_dir is not None:
        command += ["--engine-dir", str(engine_dir)]
    try:
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        ) as child:
            try:
                output, _ = child.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.communicate()
                return SelfTestResult("selftest_timeout", f"the self-test did not end within {timeout_s:.0f} s")
    except OSError as error:
        return SelfTestResult("selftest_start", f"the self-test could not be started ({error.strerror})")
    return verdict_of(output, child.returncode)


def verdict_of(output: bytes, exit_code: int) -> SelfTestResult:
    """What the child's last words mean; a hostile model may have had a say in them."""
    try:
        plain = json.loads(output[-_MAX_OUTPUT_BYTES:])
        return SelfTestResult(str(plain["code"]), str(plain["detail"])[:500], float(plain["latency_ms"]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        if exit_code == -signal.SIGXCPU:
            return SelfTestResult("selftest_timeout", "the self-test used up the processor time that it may take")
        how = f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
        return SelfTestResult("selftest_crash", f"the self-test died ({how})")


class InstallTest(Protocol):
    """How a model that an update brought is tested before its trial."""

    def __call__(
        self, folder: Path, digest: str, *, timeout_s: float, memory_bytes: int, should_stop: Callable[[], bool]
    ) -> SelfTestResult:
        """The verdict on a package's folder; `should_stop` cuts short whatever can be left out."""
        ...


def reference_test(
    folder: Path, digest: str, *, timeout_s: float, memory_bytes: int, should_stop: Callable[[], bool]
) -> SelfTestResult:
    """The self-test on the reference runtime; an `InstallTest`."""
    del should_stop  # the test is short, and its verdict is wanted
    return run_selftest(folder, digest=digest, timeout_s=timeout_s, memory_bytes=memory_bytes)


def check(folder: Path, digest: str, candidate: Candidate | None = None, engine_dir: Path | None = None) -> SelfTestResult:
    """The numbered checks, in this process."""
    # Imported late: the limits of `main` are in force before anything of weight is loaded.
    from bowerbird_models.errors import ModelError
    from bowerbird_models.golden import CONFIDENCE, decode_golden, differences
    from bowerbird_models.package import GOLDEN, PackageError, Tolerance, load_package
    from bowerbird_models.runtimes import open_model

    try:
        # 1. The files that will be loaded.
        package = load_package(folder, digest=digest)
        # 2. The runtime.
        wanted = candidate or Candidate(role=package.manifest.reference_role)
        if wanted.role not in package.manifest.files:
            return SelfTestResult(
                "missing", f"the package has no {wanted.role} file; unset model.variant or publish one that has"
            )
        if wanted.runtime.startswith("onnxruntime-"):
            import onnxruntime

            if _version(onnxruntime.__version__) < _version(package.manifest.min_onnxruntime):
                detail = f"needs onnxruntime {package.manifest.min_onnxruntime}, this is {onnxruntime.__version__}"
                return SelfTestResult("incompatible", f"{detail}; update the device")
        with open_model(folder / package.manifest.files[wanted.role].name, wanted.options(engine_dir)) as detector:
            # 3. What the manifest promises.
            if detector.class_names != package.manifest.class_names:
                return SelfTestResult("wrong_classes", "the model's class names are not the manifest's")
            if detector.image_size_hw != package.manifest.input_size_hw:
                detail = f"the model takes {detector.image_size_hw}, the manifest says {package.manifest.input_size_hw}"
                return SelfTestResult("wrong_shape", detail)
            # 4. The golden pictures.
            tolerance = package.manifest.tolerance.get(wanted.role, Tolerance())
            golden = (folder / package.manifest.files[GOLDEN].name).read_bytes()
            took_s, count = 0.0, 0
            for case in decode_golden(golden, wanted.role):
                started_s = time.perf_counter()
                seen = detector.detect(case.image_bgr, confidence=CONFIDENCE)
                took_s, count = took_s + time.perf_counter() - started_s, count + 1
                wrong = differences(case.expected, seen, tolerance)
                if wrong:
                    return SelfTestResult("golden", f"golden picture {count}: {wrong[0]} (and {len(wrong) - 1} more)")
            return SelfTestResult(latency_ms=1000 * took_s / count)
    except PackageError as error:
        return SelfTestResult(error.code, str(error))
    except ModelError as error:
        return SelfTestResult("bad_model", str(error))
    except MemoryError:
        return SelfTestResult("selftest_memory", "the self-test ran out of the memory that it may take")
    except ValueError as error:
        return SelfTestResult("golden", str(error))


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+", maxsplit=1)[0].split(".")[:3] if part.isdigit())


def main(argv: list[str] | None = None) -> int:
    """The child's entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m bowerbird_agent.updates.selftest", description="Test a model package on this device."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--digest", required=True)
    parser.add_argument("--cpu-s", type=int, default=round(TIMEOUT_S))
    parser.add_argument("--memory-bytes", type=int, default=0, help="address space; 0 for no limit")
    parser.add_argument(
        "--candidate", metavar="JSON", help="file and runtime; without it the float file on the reference runtime"
    )
    parser.add_argument("--engine-dir", type=Path, metavar="DIR")
    options = parser.parse_args(argv)
    # Die with the agent, so that a killed agent leaves nothing that still eats the processor.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The first limit says why the child died, the second kills one that will not hear it.
    resource.setrlimit(resource.RLIMIT_CPU, (options.cpu_s, options.cpu_s + 1))
    if options.memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (options.memory_bytes, options.memory_bytes))
    candidate = None if options.candidate is None else Candidate(**json.loads(options.candidate))
    result = check(options.folder, options.digest, candidate, options.engine_dir)
    sys.stdout.write(json.dumps({"code": result.code, "detail": result.detail, "latency_ms": result.latency_ms}) + "\n")
    sys.stdout.flush()
    # Leave at once: runtimes have been seen to hang in their own tear-down.
    os._exit(0 if not result.code else 1)


if __name__ == "__main__":
    raise SystemExit(main())
