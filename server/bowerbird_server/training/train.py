"""The parent's side of a training: start the child process, relay its progress, stop it when asked.

In: a `TrainingRequest`. Out: weights (`.pt`, which never leave the server) and an ONNX file with its metadata, or an error whose
text says what to do. Ultralytics and torch are imported by the child alone (`train_child.py`), which talks back in lines of
JSON. This module trains nothing, judges nothing and knows nothing of the catalogue.

The child never reaches for the network: its environment says so to Ultralytics (see `child_environment`), weights are named by
path only, and fonts come from a package that is installed anyway. It cannot outlive the parent: its standard input is a pipe
that closes with the parent, and the kernel is asked to end it as well.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bowerbird_server.errors import BadInput, EnvironmentFault, ServerError
from bowerbird_server.training.dataset_check import NoLabels

__all__ = [
    "NoLabels",
    "TrainingCancelled",
    "TrainingFailed",
    "TrainingProgress",
    "TrainingRequest",
    "TrainingResult",
    "run_training",
]

logger = logging.getLogger(__name__)

# How often cancellation is looked at while the child says nothing, and how long it may take to go when asked.
_POLL_S = 0.5
_GRACE_S = 5.0
_LOG_TAIL_LINES = 12


class TrainingFailed(ServerError):
    """The child ended without a model; the text says why and where its log is."""


class TrainingCancelled(ServerError):
    """Somebody asked for the training to stop, and it has stopped."""


@dataclass(frozen=True)
class TrainingRequest:
    """What to train, on what, and for how long.

    Args:
        data_yaml: an Ultralytics data set description with `train` and `names`; `val` may be missing, nothing is validated.
        out_dir: where `weights.pt`, `model.onnx` and `training.log` go; made if missing, older ones are replaced.
        base_weights: a `.pt` that the server trained or a user trusted; its class count may differ. None: `model` decides.
        model: what to start from without base weights: "bowerbird-eighth" (ours, from scratch), an architecture of Ultralytics
            such as "yolo11n" (pretrained where `<model>.pt` lies in `pretrained_dir`, else from scratch), or a path of a `.yaml`.
        image_size: side of the network's input in pixels, a multiple of 32.
        epochs, batch: passes over the data, images a step.
        learning_rate: first rate of AdamW; it falls along a cosine to `final_rate_share` of it.
        mosaic: share in [0, 1] of training pictures put together from four.
        seed: the same seed, data, thread count and versions give the same weights.
        threads: CPU threads of the child.
        warmup_epochs: passes during which the rate rises from 0.
        final_rate_share: in (0, 1].
        scale_jitter: pictures are scaled by up to this share, in [0, 1), up or down.
        frozen_layers: the first layers that keep their base weights.
        repeat_below: pictures of classes that a smaller share of the pictures shows go into a pass more than once
            (`repeat_factor.py`), in [0, 1]; there are fewer passes then, and as many steps. 0: each goes in once.
        pretrained_dir: where `<model>.pt` may lie; None: nowhere. Nothing is ever downloaded.
    """

    data_yaml: Path
    out_dir: Path
    base_weights: Path | None = None
    model: str = "bowerbird-eighth"
    image_size: int = 320
    epochs: int = 40
    batch: int = 8
    learning_rate: float = 0.002
    mosaic: float = 0.0
    seed: int = 0
    threads: int = 1
    warmup_epochs: float = 3.0
    final_rate_share: float = 0.01
    scale_jitter: float = 0.5
    frozen_layers: int = 0
    repeat_below: float = 0.5
    pretrained_dir: Path | None = None


@dataclass(frozen=True)
class TrainingProgress:
    """After each epoch: how far, the mean loss of the epoch (sum of its parts), seconds since the child started."""

    epoch: int
    epochs: int
    loss: float
    elapsed_s: float


@dataclass(frozen=True)
class TrainingResult:
    """What a training left behind.

    Args:
        weights: the checkpoint; it is a pickle, keep it on the server.
        onnx: the same model for devices, with the "embedding" output where the head allows it.
        seconds: wall time of the child, start-up and export included.
        steps: of the optimiser.
        versions: of Python, torch, ultralytics, onnx; and "started_from".
    """

    weights: Path
    onnx: Path
    seconds: float
    steps: int
    versions: dict[str, str]


def run_training(
    request: TrainingRequest,
    on_progress: Callable[[TrainingProgress], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> TrainingResult:
    """Train in a child process and wait for it; blocks for minutes.

    Args:
        request: what to do.
        on_progress: called after each epoch, in the calling thread.
        cancelled: asked at least twice a second, in the calling thread.

    Raises:
        NoLabels: nothing to learn from.
        BadInput: the data set or the base weights cannot be read.
        TrainingCancelled: `cancelled` said so; the child is gone.
        TrainingFailed: the child died or the training diverged.
        EnvironmentFault: the `train` extra is not installed, or the disk is full.
    """
    started = time.monotonic()
    fields = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(request).items()}
    result: dict[str, Any] = {}
    for event in run_child({"do": "train", **fields}, request.out_dir, request.threads, cancelled):
        if event["event"] == "progress":
            on_progress(TrainingProgress(event["epoch"], event["epochs"], event["loss"], time.monotonic() - started))
        elif event["event"] == "result":
            result = event
    return TrainingResult(
        weights=Path(result["weights"]),
        onnx=Path(result["onnx"]),
        seconds=time.monotonic() - started,
        steps=result["steps"],
        versions=result["versions"],
    )


def run_child(
    task: Mapping[str, Any],
    out_dir: Path,
    threads: int,
    cancelled: Callable[[], bool],
    module: str = "bowerbird_server.training.train_child",
    what: str = "training",
) -> Iterator[dict[str, Any]]:
    """Start a child process on a task and yield its events; the last one has `event == "result"`.

    The child is gone when the iteration ends, however it ends.

    Args:
        module: what the child runs: a module that calls `child_task.run_task`.
        what: the work in one word, for messages and the log's name.

    Raises:
        As `run_training`.
    """
    config_dir = out_dir / "ultralytics"
    try:
        config_dir.mkdir(parents=True, exist_ok=True)
        task_file = out_dir / "task.json"
        task_file.write_text(json.dumps(dict(task)))
        log = (out_dir / f"{what}.log").open("w")
    except OSError as error:
        raise EnvironmentFault(f"{out_dir} cannot be written ({error.strerror}); free some space or fix its rights") from error
    with log:
        child = subprocess.Popen(
            [sys.executable, "-m", module, str(task_file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=child_environment(config_dir, threads),
            text=True,
        )
        try:
            yield from _events(child, Path(log.name), cancelled, what)
        finally:
            _end(child)


def child_environment(config_dir: Path, threads: int) -> dict[str, str]:
    """The child's whole environment: what a program needs to run, and what keeps Ultralytics quiet, offline and in its place.

    Nothing of the parent's that could hold a secret is handed on. PATH, the locale and the library paths are.
    """
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH", "CUDA_VISIBLE_DEVICES")
    count = str(threads)
    return {
        **{name: os.environ[name] for name in kept if name in os.environ},
        "YOLO_OFFLINE": "1",
        "YOLO_AUTOINSTALL": "false",
        "YOLO_CONFIG_DIR": str(config_dir.resolve()),
        "MPLCONFIGDIR": str(config_dir.resolve()),
        "MPLBACKEND": "agg",
        "OMP_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        # On a busy machine threads that spin while they wait cost more than they win.
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",
    }


def _events(child: subprocess.Popen[str], log: Path, cancelled: Callable[[], bool], what: str) -> Iterator[dict[str, Any]]:
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read_lines, args=(child, lines), name="training-output", daemon=True).start()
    finished = False
    while True:
        if cancelled():
            raise TrainingCancelled(f"the {what} was cancelled; the model in use stays as it is")
        try:
            line = lines.get(timeout=_POLL_S)
        except queue.Empty:
            continue
        if line is None:
            break
        try:
            event = json.loads(line)
            kind = event["event"]
        except (ValueError, TypeError, KeyError):
            # A library that prints on standard output is no reason to lose a training.
            logger.debug("the training child said something else: %s", line.rstrip())
            continue
        if kind == "error":
            raise _ERRORS.get(event.get("kind"), TrainingFailed)(event["message"])
        finished = finished or kind == "result"
        yield event
    code = child.wait()
    if not finished:
        raise TrainingFailed(_how_it_died(code, log, what))


def _read_lines(child: subprocess.Popen[str], lines: queue.SimpleQueue[str | None]) -> None:
    if child.stdout is not None:
        with contextlib.suppress(ValueError):  # closed under us when the child is ended
            for line in child.stdout:
                lines.put(line)
    lines.put(None)


def _how_it_died(code: int, log: Path, what: str) -> str:
    tail = log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
    last = next((line.strip() for line in reversed(tail) if line.strip()), "it left no message")
    if code == -signal.SIGKILL:
        advice = "lower `batch` or `image_size` and train again" if what == "training" else "free memory and start it again"
        return f"the {what} process was killed, most often because memory ran out; {advice} (log: {log})"
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return f"the {what} process ended {how}: {last} (log: {log})"


def _end(child: subprocess.Popen[str]) -> None:
    """Close the child's input, ask it to go, and make it go; both pipes are closed afterwards."""
    if child.stdin is not None:
        with contextlib.suppress(OSError):
            child.stdin.close()
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


_ERRORS: dict[object, type[ServerError]] = {
    "no_labels": NoLabels,
    "bad_input": BadInput,
    "environment": EnvironmentFault,
    "failed": TrainingFailed,
}
