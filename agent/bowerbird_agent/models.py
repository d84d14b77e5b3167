"""Opens a model file or package for the commands that need no updates: `score`, `bench` and `doctor`.

In: a path that a user typed. Out: a detector. The running agent's models come from `model_store.py` instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from bowerbird_models.onnx_detector import OnnxDetector


def open_detector(path: Path, *, threads: int = 1) -> OnnxDetector:
    """The detector of an ONNX file, or of a package's folder, which is verified first.

    Raises:
        ModelError: no model, or one that cannot run; the message says what to do.
    """
    from bowerbird_models.onnx_detector import OnnxDetector

    if path.is_dir():
        from bowerbird_models.package import load_package

        path = load_package(path).onnx
    return OnnxDetector(path, threads=threads)
