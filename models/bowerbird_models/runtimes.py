"""A model on a runtime chosen by name, and which runtimes this machine has.

In: the path of an ONNX file and `RuntimeOptions`. Out: a detector on exactly that runtime, or an error that says what to install or
change; there is no fallback to another one. What to choose is decided elsewhere, by measuring.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bowerbird_models.errors import RuntimeMissing
from bowerbird_models.model_file import ModelFile, naming
from bowerbird_models.onnx_providers import PROVIDERS
from bowerbird_models.runtime_options import PRECISIONS, RUNTIMES, RuntimeOptions
from bowerbird_models.yolo import YoloDetector

if TYPE_CHECKING:
    from pathlib import Path

    from bowerbird_models.session import Session

__all__ = ["PRECISIONS", "RUNTIMES", "RuntimeFound", "RuntimeOptions", "available", "open_model"]

_DEFAULT = RuntimeOptions()


@dataclass(frozen=True)
class RuntimeFound:
    """What this machine has of one runtime.

    Args:
        name: one of `RUNTIMES`.
        version: of the software that runs networks; "" where it is not installed.
        usable: whether it can be opened here.
        reason: why not and what to do; "" when usable.
    """

    name: str
    version: str
    usable: bool
    reason: str = ""


def open_model(path: Path, options: RuntimeOptions = _DEFAULT) -> YoloDetector:
    """The model on the runtime asked for.

    Args:
        path: a YOLO detection model in ONNX form.
        options: runtime, threads, precision.

    Raises:
        NotAModel: missing, empty, damaged, or not a YOLO.
        UnsupportedModel: a task, head or form that does not run here.
        RuntimeMissing: the runtime's software is not installed.
        AcceleratorMissing: its accelerator, or the precision, cannot be had here.
    """
    file = ModelFile.read(path)
    with naming(path):
        metadata = file.metadata()
        session = open_session(file, options)
        try:
            return YoloDetector(session, metadata, file.digest)
        except BaseException:
            session.close()
            raise


def open_session(file: ModelFile, options: RuntimeOptions) -> Session:
    """The network of a checked file on the runtime asked for; errors as `open_model`."""
    if options.runtime in PROVIDERS:
        from bowerbird_models.onnx_detector import OnnxSession

        return OnnxSession(file.content, options)
    raise RuntimeMissing(f"{options.runtime} is not part of this version")


def available() -> tuple[RuntimeFound, ...]:
    """What this machine has of every runtime, in the order of `RUNTIMES`."""
    return tuple(map(_find, RUNTIMES))


def _find(name: str) -> RuntimeFound:
    if name not in PROVIDERS:
        return RuntimeFound(name, "", False, "not part of this version")
    try:
        import onnxruntime
    except ImportError:
        return RuntimeFound(name, "", False, "onnxruntime is not installed; pip install 'bowerbird[agent]'")
    provider = PROVIDERS[name]
    if provider.name not in onnxruntime.get_available_providers():
        return RuntimeFound(name, onnxruntime.__version__, False, f"this build has no {provider.name}; {provider.install}")
    return RuntimeFound(name, onnxruntime.__version__, True)
