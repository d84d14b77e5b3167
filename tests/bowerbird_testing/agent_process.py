"""A `bowerbird-agent run` as a process of its own, with a configuration, a tiny model and a log that a test can read.

In: a folder, the broker's address and overrides of single sections. Out: a process to stop, kill -9 and start again on the same state.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from bowerbird_testing.tiny_yolo import TinyBox, write_tiny_yolo

# What the tiny model sees depends on the light in two places: synthetic scenes make it sure, unsure and blind in turn.
UNSURE_BOXES = (TinyBox((4, 28, 28, 36), 0, 0.9, "bright"), TinyBox((20, 30, 50, 56), 1, 0.45))


def write_config(folder: Path, *, port: int, cameras: str, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> Path:
    """agent.toml in `folder`, with a tiny factory model beside it.

    Args:
        cameras: TOML of the [[cameras]] sections.
        overrides: section -> key -> value, replacing the defaults; a value None leaves the key out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model.onnx").exists():
        write_tiny_yolo(folder / "model.onnx", boxes=UNSURE_BOXES)
    sections: dict[str, dict[str, Any]] = {
        "device": {"id": "cam-01", "site": "demo"},
        "broker": {"host": "127.0.0.1", "port": port, "tls": False},
        "model": {"factory": "model.onnx", "runtime": "onnxruntime-cpu"},  # named: an update measures nothing
        "selection": {"window_frames": 60, "frames_per_window": 5, "min_gap_s": 0.5},
        "budget": {"bytes_per_s": 1e9, "burst_bytes": 100_000_000},
        "spool": {"min_free_bytes": 0},
        "accounting": {"encode_everything": True},
        "health": {"interval_s": 0.3, "idle_interval_s": 1.0},
        "guard": {"cpu_pressure": 100},  # tests crowd the machine that they share
    }
    for section, values in (overrides or {}).items():
        sections.setdefault(section, {}).update(values)
    lines = []
    for section, values in sections.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {_toml(value)}" for key, value in values.items() if value is not None]
    path = folder / "agent.toml"
    path.write_text("\n".join([*lines, cameras]) + "\n")
    return path


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str | Path) else str(value)


class AgentProcess:
    """The process; a context manager that ends it.

    Args:
        config: agent.toml; the log goes beside it.
        arguments: behind `run --config FILE`.
        environment: variables beside this process's own.
        prefix: what stands before the command, e.g. that of a network namespace.
    """

    def __init__(
        self, config: Path, *arguments: str, environment: Mapping[str, str] | None = None, prefix: Sequence[str] = ()
    ) -> None:
        self._prefix = list(prefix)
        self._environment = dict(environment or {})
        self.config = config
        self.log_path = config.parent / "agent.log"
        self._arguments = arguments
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> AgentProcess:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def start(self) -> AgentProcess:
        """Start it; returns at once."""
        argv = [*self._prefix, sys.executable, "-m", "bowerbird_agent", "run", "--config", str(self.config), *self._arguments]
        with self.log_path.open("ab") as log:
            env = {**os.environ, "OMP_NUM_THREADS": "1", **self._environment}
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
        return self

    def terminate(self, *, timeout_s: float = 20.0) -> tuple[int, float]:
        """SIGTERM; the exit code and the seconds until it was gone."""
        assert self.process is not None
        started_s = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s), time.monotonic() - started_s

    def hang_up(self) -> None:
        """SIGHUP: read the configuration again."""
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def wait(self, *, timeout_s: float = 60.0) -> int:
        """The exit code of a process that ends by itself."""
        assert self.process is not None
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """kill -9: nothing that it holds in memory survives."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    @property
    def log(self) -> str:
        """What it has written, over all its starts."""
        return self.log_path.read_text(errors="replace")
