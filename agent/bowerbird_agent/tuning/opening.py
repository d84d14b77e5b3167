"""Opens a model file or package for the commands that need no updates: `score`, `bench`, `tune`, `snapshot` and `doctor`.

In: a path that a user typed. Out: a detector, or a package. The running agent's models come from `model_store.py` instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bowerbird_agent.errors import NoModelError

if TYPE_CHECKING:
    from pathlib import Path

    from bowerbird_agent.config import AgentConfig
    from bowerbird_agent.tuning.autotune import Candidate
    from bowerbird_models.package import PackageOnDisk
    from bowerbird_models.runtime_options import RuntimeOptions
    from bowerbird_models.yolo import YoloDetector


def open_detector(path: Path, *, threads: int = 1, candidate: Candidate | None = None) -> YoloDetector:
    """The detector of an ONNX file, or of a package's folder, which is verified first.

    Args:
        path: the file or folder.
        threads: of the reference runtime, where no candidate is given.
        candidate: file and runtime; of a bare file only the runtime counts. None for the float file on the reference runtime.

    Raises:
        ModelError: no model, or one that cannot run; the message says what to do.
    """
    from bowerbird_models.runtimes import RuntimeOptions, open_model

    options: RuntimeOptions = RuntimeOptions(threads=threads) if candidate is None else candidate.options()
    if path.is_dir():
        from bowerbird_models.package import load_package

        package = load_package(path)
        path = model_path(package, package.manifest.reference_role if candidate is None else candidate.role)
    return open_model(path, options)


def model_path(package: PackageOnDisk, role: str) -> Path:
    """The file of a role.

    Raises:
        PackageError: the package has none.
    """
    from bowerbird_models.manifest import PackageError

    file = package.manifest.files.get(role)
    if file is None:
        known = ", ".join(sorted(name for name, each in package.manifest.files.items() if each.name.endswith(".onnx")))
        raise PackageError("missing", f"the package {package.digest[:12]} has no {role} file; it has {known}")
    return package.dir / file.name


def open_package(path: Path, scratch: Path) -> PackageOnDisk:
    """The package in a folder, verified; of a bare ONNX file, the package that a device would make of it, in `scratch`.

    Raises:
        ModelError: no model, or one that cannot run.
    """
    from bowerbird_agent.updates.model_store import FACTORY_CREATED_AT
    from bowerbird_models.package import build_package, load_package

    if path.is_dir():
        return load_package(path)
    return build_package(scratch / "package", path, created_at=FACTORY_CREATED_AT)


def model_on_device(config: AgentConfig) -> Path:
    """The model that a running agent with this configuration answers with, else its factory model; the store is only read.

    Raises:
        NoModelError: there is neither.
    """
    from bowerbird_agent.updates.model_store import ModelStore

    folder = config.device.state_dir / "models"
    active = ModelStore(folder).active() if folder.is_dir() else None
    if active is not None:
        return active.onnx
    if config.model.factory is None:
        raise NoModelError("there is no model on this device yet; name one with --model FILE")
    return config.model.factory
