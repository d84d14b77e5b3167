"""A model on a runtime chosen by name, and which runtimes this machine has.

In: the path of an ONNX file and `RuntimeOptions`. Out: a detector on exactly that runtime, or an error that says what to install or
change; there is no fallback to another one. What to choose is decided elsewhere, by measuring.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from bowerbird_models.errors import RuntimeMissing
from bowerbird_models.model_file import ModelFile, naming
from bowerbird_models.onnx_providers import PROVIDERS
from bowerbird_models.runtime_options import OPENVINO_CPU, PRECISIONS, RUNTIMES, TENSORRT, RuntimeOptions
from bowerbird_models.yolo import YoloDetector

if TYPE_CHECKING:
    from pathlib import Path

    from bowerbird_models.session import Session

__all__ = [
    "PRECISIONS",
    "RUNTIMES",
    "RuntimeFound",
    "RuntimeOptions",
    "available",
    "available_elsewhere",
    "find_runtime",
    "open_model",
]

_DEFAULT = RuntimeOptions()
_LOOK_S = 60.0


@dataclass(frozen=True)
class RuntimeFound:
    """What this machine has of one runtime.

    Args:
        name: one of `RUNTIMES`.
        version: of the software that runs networks; "" where it is not installed.
        usable: whether it can be opened here.
        reason: why not and what to do; "" when usable.
        precisions: what it computes in here; empty when not usable.
    """

    name: str
    version: str
    usable: bool
    reason: str = ""
    precisions: tuple[str, ...] = ()


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
        EngineNotBuilt: building the model's engine broke a limit.
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
    if options.runtime == OPENVINO_CPU:
        from bowerbird_models.openvino_detector import OpenvinoSession

        return OpenvinoSession(file, options)
    if options.runtime == TENSORRT:
        from bowerbird_models.tensorrt_detector import TensorrtSession

        return TensorrtSession(file, options)
    from bowerbird_models.onnx_detector import OnnxSession

    return OnnxSession(file.content, options)


def available() -> tuple[RuntimeFound, ...]:
    """What this machine has of every runtime, in the order of `RUNTIMES`. Each that is installed is loaded, and stays."""
    return tuple(map(find_runtime, RUNTIMES))


def available_elsewhere() -> tuple[RuntimeFound, ...]:
    """As `available`, found out by a child process: a runtime that is only looked at costs this one tens of megabytes for ever.

    Raises:
        RuntimeMissing: the child did not answer.
    """
    command = [sys.executable, "-m", __name__]
    try:
        child = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=_LOOK_S, check=True)
        plain = json.loads(child.stdout.splitlines()[-1])
        return tuple(RuntimeFound(**{**each, "precisions": tuple(each["precisions"])}) for each in plain)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError, KeyError, TypeError) as error:
        raise RuntimeMissing(f"what runs models here could not be found out ({error}); try `bowerbird-agent doctor`") from error


def find_runtime(name: str) -> RuntimeFound:
    """What this machine has of one runtime; loads it and no other.

    Args:
        name: one of `RUNTIMES`.
    """
    find = {OPENVINO_CPU: _find_openvino, TENSORRT: _find_tensorrt}.get(name, _find_onnxruntime)
    try:
        return find(name)
    except RuntimeMissing as error:
        return RuntimeFound(name, "", False, str(error))


def _find_onnxruntime(name: str) -> RuntimeFound:
    from bowerbird_models.onnx_detector import import_onnxruntime

    onnxruntime, provider = import_onnxruntime(), PROVIDERS[name]
    version = str(onnxruntime.__version__)
    if provider.name not in onnxruntime.get_available_providers():
        return RuntimeFound(name, version, False, f"this build has no {provider.name}; {provider.install}")
    if provider.accelerator:  # the GPU build lists its providers on machines without a GPU
        from bowerbird_models.cuda import CudaError, find_gpu

        try:
            find_gpu()
        except CudaError as error:
            return RuntimeFound(name, version, False, f"{error}; install the NVIDIA driver, or choose another runtime")
    return RuntimeFound(name, version, True, precisions=PRECISIONS[name])


def _find_openvino(name: str) -> RuntimeFound:
    from bowerbird_models.openvino_detector import import_openvino, precisions, release

    openvino = import_openvino()
    return RuntimeFound(name, release(openvino), True, precisions=precisions(openvino))


def _find_tensorrt(name: str) -> RuntimeFound:
    from bowerbird_models.tensorrt_build import import_tensorrt, precisions
    from bowerbird_models.tensorrt_detector import Platform

    tensorrt = import_tensorrt()
    version = str(tensorrt.__version__)
    try:
        Platform.load()
    except RuntimeMissing as error:
        return RuntimeFound(name, version, False, str(error))
    return RuntimeFound(name, version, True, precisions=precisions(tensorrt))


if __name__ == "__main__":
    sys.stdout.write(json.dumps([asdict(found) for found in available()]) + "\n")
