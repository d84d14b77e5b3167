"""Build a TensorRT engine from ONNX in a child process: `python -m bowerbird_models.tensorrt_build`, the model on standard input.

In: an ONNX file's bytes and what to build. Out: two files (the engine; what was measured while building) and one line of JSON. A build
takes minutes and much memory and runs the vendor's code over a downloaded graph: the parent kills it when it passes a limit, and
it dies with its parent. It judges nothing: the parent decides what becomes of the files.

TensorRT 10 is told the precision by builder flags. TensorRT 11 has none: networks are strongly typed, so a half-precision engine
needs a half-precision file, and asking for one with another file is an error.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bowerbird_models.errors import AcceleratorMissing, EngineNotBuilt, ModelError, NotAModel, RuntimeMissing, UnsupportedModel
from bowerbird_models.yolo import first_line

if TYPE_CHECKING:
    from types import ModuleType

logger = logging.getLogger(__name__)

TIMEOUT_S = 3600.0  # a small Jetson takes ten minutes and more for a YOLO
MEMORY_BYTES = 4 * 1024**3
WORKSPACE_BYTES = 1024**3
_WATCH_S = 0.2
_MAX_OUTPUT_BYTES = 64 * 1024
_PR_SET_PDEATHSIG = 1
_FLAGS = {"fp16": "FP16", "bf16": "BF16"}
_TYPES = {"fp16": "HALF", "bf16": "BF16"}
_ERRORS: dict[str, type[ModelError]] = {
    error.__name__: error for error in (AcceleratorMissing, EngineNotBuilt, NotAModel, RuntimeMissing, UnsupportedModel)
}


@dataclass(frozen=True)
class BuildOrder:
    """What to build.

    Args:
        precision: "fp32", "fp16" or "bf16".
        image_size_hw: the largest input, for a file that leaves its size open.
        stride: sides of smaller inputs are multiples of it.
        workspace_bytes: scratch memory on the GPU that one layer may use.
    """

    precision: str
    image_size_hw: tuple[int, int]
    stride: int
    workspace_bytes: int = WORKSPACE_BYTES


@dataclass(frozen=True)
class Limits:
    """What a build may take: wall and processor time, and resident memory."""

    timeout_s: float = TIMEOUT_S
    memory_bytes: int = MEMORY_BYTES


_LIMITS = Limits()


def run_build(content: bytes, order: BuildOrder, *, engine: Path, timing_cache: Path, limits: Limits = _LIMITS) -> None:
    """Build in a child and wait for it.

    Args:
        content: the ONNX file.
        order: what to build.
        engine: written by the child.
        timing_cache: read if it is there, written by the child.
        limits: the child is killed past these.

    Raises:
        EngineNotBuilt: it broke a limit or died.
        NotAModel, UnsupportedModel, RuntimeMissing, AcceleratorMissing: what the child found.
    """
    height, width = order.image_size_hw
    cpu_s = max(1, round(limits.timeout_s)) * (os.cpu_count() or 1)  # the builder works on every core
    command = [sys.executable, "-m", "bowerbird_models.tensorrt_build", "--precision", order.precision]
    command += ["--image-size", str(height), str(width), "--stride", str(order.stride)]
    command += ["--workspace-bytes", str(order.workspace_bytes), "--cpu-s", str(cpu_s)]
    command += ["--engine", str(engine), "--timing-cache", str(timing_cache)]
    with tempfile.TemporaryFile() as model, tempfile.TemporaryFile() as said:
        model.write(content)
        model.seek(0)
        child = subprocess.Popen(command, stdin=model, stdout=said, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            _watch(child, limits)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        said.seek(0)
        _raise_what_it_said(said.read(_MAX_OUTPUT_BYTES), child.returncode)


def _watch(child: subprocess.Popen[bytes], limits: Limits) -> None:
    """Wait for the child; its address space cannot be limited, because CUDA reserves far more than it uses."""
    deadline_s = time.monotonic() + limits.timeout_s
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_WATCH_S)
            return
        if time.monotonic() > deadline_s:
            raise EngineNotBuilt(
                f"building the TensorRT engine took more than {limits.timeout_s:.0f} s; choose another runtime"
            )
        used = _resident_bytes(child.pid)
        if used > limits.memory_bytes:
            raise EngineNotBuilt(
                f"building the TensorRT engine took more than {limits.memory_bytes >> 20} MB of memory; free some, export a "
                "smaller model, or choose another runtime"
            )


def _resident_bytes(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return 0  # gone in this moment
    return pages * resource.getpagesize()


def _raise_what_it_said(output: bytes, code: int) -> None:
    try:
        said = json.loads(output)
        error, detail = said["error"], str(said["detail"])
    except (ValueError, KeyError, TypeError):
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise EngineNotBuilt(
            f"building the TensorRT engine died ({how}); it may have run out of memory: free some, or choose another runtime"
        ) from None
    if error:
        raise _ERRORS.get(str(error), EngineNotBuilt)(detail)


def import_tensorrt() -> ModuleType:
    """The module `tensorrt`.

    Raises:
        RuntimeMissing: not installed, does not load, or older than 10.
    """
    try:
        import tensorrt
    except Exception as error:  # the vendor's loader raises what it likes when its libraries are not there
        raise RuntimeMissing(
            f"TensorRT does not load ({first_line(error)}); on a Jetson make the environment with --system-site-packages, "
            "on x86-64 pip install 'bowerbird[tensorrt]'"
        ) from error
    if major(tensorrt) < 10:
        raise RuntimeMissing(f"TensorRT {tensorrt.__version__} is too old; 10.3 (JetPack 6) or later is needed")
    module: ModuleType = tensorrt
    return module


def major(tensorrt: Any) -> int:
    """TensorRT's major version."""
    return int(str(tensorrt.__version__).split(".", maxsplit=1)[0])


def precisions(tensorrt: Any) -> tuple[str, ...]:
    """What this TensorRT can be told to compute in; a strongly typed one (11) computes in what the file says."""
    return ("fp32", *(name for name, flag in _FLAGS.items() if hasattr(tensorrt.BuilderFlag, flag)))


def make_logger(tensorrt: Any) -> Any:
    """A logger for TensorRT that writes to ours and remembers the last error in `last_error`."""

    class _Logger(tensorrt.ILogger):  # type: ignore[misc] # the vendor's module carries no types
        def __init__(self) -> None:
            tensorrt.ILogger.__init__(self)
            self.last_error = ""

        def log(self, severity: Any, msg: str) -> None:
            if severity in {tensorrt.ILogger.Severity.ERROR, tensorrt.ILogger.Severity.INTERNAL_ERROR}:
                self.last_error = msg.strip()
                logger.warning("TensorRT: %s", msg)
            else:
                logger.debug("TensorRT: %s", msg)

    return _Logger()


def build(tensorrt: Any, content: bytes, order: BuildOrder, timing_cache: bytes) -> tuple[bytes, bytes]:
    """The engine of an ONNX file, and the timing cache after building it.

    Args:
        tensorrt: the module, 10 or 11.
        content: a whole ONNX file.
        order: what to build.
        timing_cache: of earlier builds on this stack; may be empty.

    Raises:
        NotAModel: TensorRT cannot read the file.
        UnsupportedModel: it cannot build it.
        AcceleratorMissing: it cannot build it in this precision.
    """
    says = make_logger(tensorrt)
    builder = tensorrt.Builder(says)
    network = builder.create_network(0)  # explicit batch is the only kind since 10; strongly typed since 11
    parser = tensorrt.OnnxParser(network, says)
    if not parser.parse(content):
        faults = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors)) or says.last_error
        raise NotAModel(
            f"TensorRT {tensorrt.__version__} cannot read it ({faults[:200]}); export it again or choose another runtime"
        )
    config = builder.create_builder_config()
    config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, order.workspace_bytes)
    _set_precision(tensorrt, network, config, order.precision)
    for index in range(network.num_inputs):
        entry = network.get_input(index)
        if -1 in tuple(entry.shape):
            profile = builder.create_optimization_profile()
            profile.set_shape(entry.name, *profile_shapes(tuple(entry.shape), order.image_size_hw, order.stride))
            config.add_optimization_profile(profile)
    measured = config.create_timing_cache(timing_cache)
    if not config.set_timing_cache(measured, False):
        logger.info("the timing cache is of another device; starting a new one")
        measured = config.create_timing_cache(b"")
        config.set_timing_cache(measured, False)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise UnsupportedModel(
            f"TensorRT {tensorrt.__version__} cannot build it ({says.last_error[:200]}); choose another runtime for this model"
        )
    return bytes(engine), bytes(measured.serialize())


def profile_shapes(
    shape: Sequence[int], image_size_hw: tuple[int, int], stride: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Smallest, best and largest input for a shape with -1 where a side is open, (n, c, h, w) or (n, h, w, c).

    Args:
        shape: as in the file, -1 for an open side.
        image_size_hw: largest height and width.
        stride: smallest side.

    Raises:
        UnsupportedModel: not a picture of four dimensions.
    """
    if len(shape) != 4:
        raise UnsupportedModel(f"the model takes {tuple(shape)}, a picture has four dimensions; export a detection model")
    channels_last = shape[3] == 3
    largest = (1, *image_size_hw, 3) if channels_last else (1, 3, *image_size_hw)
    smallest = (1, stride, stride, 3) if channels_last else (1, 3, stride, stride)

    def closed(sides: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(side if given == -1 else given for given, side in zip(shape, sides, strict=True))

    return closed(smallest), closed(largest), closed(largest)


def _set_precision(tensorrt: Any, network: Any, config: Any, precision: str) -> None:
    if precision == "fp32":
        # On by default: it rounds float32 factors to 10 bits, which is another precision than the one asked for.
        config.clear_flag(tensorrt.BuilderFlag.TF32)
        return
    flag = getattr(tensorrt.BuilderFlag, _FLAGS[precision], None)
    if flag is not None:
        config.set_flag(flag)
        return
    wanted = getattr(tensorrt.DataType, _TYPES[precision])
    layers = (network.get_layer(index) for index in range(network.num_layers))
    if not any(
        layer.type == tensorrt.LayerType.CONVOLUTION and layer.get_output(0).dtype == wanted
        for layer in layers
        if layer is not None
    ):
        raise AcceleratorMissing(
            f"TensorRT {tensorrt.__version__} computes in what the file says, and no convolution of this file is {precision}; "
            "export the model in that precision or ask for fp32"
        )


def main(argv: list[str] | None = None) -> int:
    """The child's entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m bowerbird_models.tensorrt_build",
        description="Build a TensorRT engine; the ONNX file on standard input.",
    )
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16"), required=True)
    parser.add_argument("--image-size", type=int, nargs=2, required=True, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--stride", type=int, required=True)
    parser.add_argument("--workspace-bytes", type=int, default=WORKSPACE_BYTES)
    parser.add_argument("--cpu-s", type=int, default=round(TIMEOUT_S))
    parser.add_argument("--engine", type=Path, required=True)
    parser.add_argument("--timing-cache", type=Path, required=True)
    options = parser.parse_args(argv)
    # Die with the parent, and let the rest of the device go first.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (options.cpu_s, options.cpu_s))
    os.nice(10)
    os.umask(0o077)
    height, width = options.image_size
    order = BuildOrder(options.precision, (height, width), options.stride, options.workspace_bytes)
    error, detail = "", ""
    try:
        before = options.timing_cache.read_bytes() if options.timing_cache.exists() else b""
        engine, measured = build(import_tensorrt(), sys.stdin.buffer.read(), order, before)
        options.timing_cache.write_bytes(measured)
        options.engine.write_bytes(engine)
    except ModelError as fault:
        error, detail = type(fault).__name__, str(fault)
    except MemoryError:
        error, detail = "EngineNotBuilt", "building the TensorRT engine ran out of memory; free some, or choose another runtime"
    except Exception as fault:  # the vendor's exceptions share no base
        error, detail = "EngineNotBuilt", f"building the TensorRT engine failed ({first_line(fault)}); choose another runtime"
    sys.stdout.write(json.dumps({"error": error, "detail": detail}) + "\n")
    sys.stdout.flush()
    # Leave at once: runtimes have been seen to hang in their own tear-down.
    os._exit(1 if error else 0)


if __name__ == "__main__":
    raise SystemExit(main())
