"""Opens a model file or package for the commands that need no updates: `score`, `bench`, `snapshot` and `doctor`.

In: a path that a user typed. Out: a detector. The running agent's models come from `model_store.py` instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bowerbird_agent.errors import NoModelError

if TYPE_CHECKING:
    from pathlib import Path

    from bowerbird_agent.config import AgentConfig
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


def model_on_device(config: AgentConfig) -> Path:
    """The model that a running agent with this configuration answers with, else its factory model; the store is only read.

    Raises:
        NoModelError: there is neither.
    """
    from bowerbird_agent.model_store import ModelStore

    folder = config.device.state_dir / "models"
    active = ModelStore(folder).active() if folder.is_dir() else None
    if active is not None:
        return active.onnx
    if config.model.factory is None:
        raise NoModelError("there is no model on this device yet; name one with --model FILE")
    return config.model.factory
