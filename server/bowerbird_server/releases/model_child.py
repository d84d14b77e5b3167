"""The process that first opens a model which somebody brought: its classes, and its package with the golden outputs. No `train` extra.

In: the path of a task in JSON, written by `registry.py`; a standard input that stays open as long as the parent lives. Out: one JSON
object a line on standard output, a package folder. A runtime that reads a hostile file may crash, hang or eat memory: it does so here,
within limits, and the parent gets one line. Run as `python -m bowerbird_server.releases.model_child TASK.json`; people use
`bowerbird models import`.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any, TextIO

from bowerbird_models.errors import ModelError
from bowerbird_models.golden import golden_picture
from bowerbird_models.onnx_detector import OnnxDetector
from bowerbird_models.package import build_package
from bowerbird_server.child_task import run_task
from bowerbird_server.errors import BadInput

MEMORY_BYTES = 16 * 1024**3  # of address space, as for the quantisation; a runtime reserves more than it uses
CPU_S = 900


def _classes(task: dict[str, Any], events: TextIO) -> dict[str, Any]:
    """The class names of a model that the device's own code can open, and run on a test card."""
    del events
    onnx = Path(task["onnx"])
    try:
        with OnnxDetector(onnx) as detector:
            detector.detect(golden_picture(detector, None))
            return {"class_names": list(detector.class_names)}
    except (ModelError, OSError) as error:
        raise BadInput(f"{onnx.name} cannot be used: {error}") from error


def _package(task: dict[str, Any], events: TextIO) -> dict[str, Any]:
    """A package folder; the outputs on its golden pictures are made by running the model."""
    del events
    onnx = Path(task["onnx"])
    try:
        package = build_package(
            Path(task["out_dir"]),
            onnx,
            class_names=task["class_names"],
            golden_images=[Path(each) for each in task["golden_images"]],
            parent=task["parent"],
            created_at=task["created_at"],
            role=task["role"],
            variants={role: Path(path) for role, path in task["variants"].items()},
            accuracy=task["accuracy"],
            notes=task["notes"],
            class_list=task["class_list"],
        )
    except ModelError as error:
        raise BadInput(f"{onnx.name} cannot be packaged: {error}") from error
    return {"digest": package.digest}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    sys.exit(run_task(sys.argv[1:], {"classes": _classes, "package": _package}, "model"))
