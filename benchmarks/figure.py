"""What every script of this folder ends with: one line of JSON that a program can read.

In: the figure and its parts. Out: the line, and an exit code. `goal` is the bound, `at_least` says on which side of it a good value
lies. Arms that shall be compared run in processes of their own, one block at a time, by turns (`Arm`): the machine's speed drifts, and
what one arm imports must not slow the other.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("numpy", "onnxruntime", "openvino", "opencv-python-headless", "ultralytics-opencv-headless", "torch", "paho-mqtt")


def report(
    figure: str,
    value: float | None,
    goal: float,
    unit: str,
    *,
    at_least: bool,
    details: Mapping[str, Any],
    also: bool = True,
) -> int:
    """Print the last line; returns the exit code, 0 when the goal is met.

    Args:
        value: None when it could not be measured; `details` says why.
        also: what else must hold for `ok`, described in `details`.
    """
    met = value is not None and (value >= goal if at_least else value <= goal) and also
    line = {
        "figure": figure,
        "value": None if value is None else round(value, 5),
        "goal": goal,
        "unit": unit,
        "ok": bool(met),
        "details": {
            "goal_is": "at least" if at_least else "at most",
            **details,
            "versions": versions(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        },
    }
    print(json.dumps(line))
    return 0 if met else 1


def versions() -> dict[str, str]:
    """Of Python and of the packages that matter, those that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


class Arm:
    """One side of a comparison: a child process that runs a block of frames whenever it is told to.

    The child calls `serve_blocks`. All arms are pinned to one core and given one thread, so that they share the machine evenly.

    Args:
        name: for messages.
        argv: what runs it.
        env: its environment.
        core: the core it is pinned to.
    """

    def __init__(self, name: str, argv: Sequence[str], *, env: Mapping[str, str], core: int | None = None) -> None:
        self.name = name
        self.cpu_s: list[float] = []
        self.wall_s: list[float] = []
        self.facts: dict[str, Any] = {}
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(env),
            preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core}),  # noqa: PLW1509 - no threads yet
        )
        self.facts = self._read()

    def block(self, frames: int) -> None:
        """Run a block and keep its seconds per frame."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{frames}\n")
        self._process.stdin.flush()
        answer = self._read()
        self.cpu_s.append(answer["cpu_s"] / frames)
        self.wall_s.append(answer["wall_s"] / frames)
        self.facts.update(answer.get("facts", {}))

    def close(self) -> None:
        """End the child."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # libraries print what they like
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise SystemExit(f"the arm {self.name!r} ended with code {self._process.wait()}; what it said stands above")


def serve_blocks(run: Callable[[], object], facts: Callable[[], Mapping[str, Any]] = dict) -> None:
    """In the child: say that it is ready, then run blocks until the parent goes. `facts` is asked after each block."""
    print(json.dumps({"ready": True, **facts()}), flush=True)
    for line in sys.stdin:
        frames = int(line)
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        for _ in range(frames):
            run()
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
        print(json.dumps({"cpu_s": cpu_s, "wall_s": wall_s, "facts": dict(facts())}), flush=True)


def memory_mb(pid: int | str = "self") -> float:
    """Resident memory of a process, MB of 10^6 bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit(f"/proc/{pid}/status tells no VmRSS")
