"""A `.pt` file -> ONNX for devices, in the training process only.

In: a checkpoint that the server trained or that a user explicitly trusts (`bowerbird models import best.pt --trust`). Out: an
ONNX file with metadata and the embedding output. A `.pt` is a pickle: loading one runs whatever it contains, so this process
never opens it, and the child gets no secret in its environment. It checks no accuracy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from bowerbird_server.errors import BadInput
from bowerbird_server.training.train import TrainingResult, run_child


def export_weights(
    weights: Path,
    out_dir: Path,
    *,
    image_size: int = 640,
    threads: int = 1,
    cancelled: Callable[[], bool] = lambda: False,
) -> TrainingResult:
    """Export in a child process and wait for it; takes seconds.

    Args:
        weights: the `.pt`. It will be *executed* by the child: trusted files only.
        out_dir: where `model.onnx` and `training.log` go.
        image_size: side of the network's input in pixels, a multiple of 32.
        threads: CPU threads of the child.
        cancelled: asked at least twice a second.

    Raises:
        BadInput: no such file, or no checkpoint of a detection model.
        TrainingCancelled, TrainingFailed, EnvironmentFault: as `train.run_training`.
    """
    if not weights.is_file():
        raise BadInput(f"there is no file {weights}; give the path of a .pt or .onnx")
    started = time.monotonic()
    task = {
        "do": "export",
        "weights": str(weights),
        "onnx": str(out_dir / "model.onnx"),
        "image_size": image_size,
        "threads": threads,
    }
    result = {}
    for event in run_child(task, out_dir, threads, cancelled):
        if event["event"] == "result":
            result = event
    return TrainingResult(weights, Path(result["onnx"]), time.monotonic() - started, 0, result["versions"])
