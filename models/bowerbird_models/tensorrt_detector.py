"""Native TensorRT: the engine of an ONNX file, built on this device, kept, and run.

In: a checked ONNX file. Out: a `Session`. An engine is built the first time and whenever GPU, TensorRT, precision or file have changed
(`tensorrt_build.py`, in a child process), otherwise it comes from this device's own folder (`engines.py`). Engines of
others are not taken. No machine of ours has a GPU: this ran against a stand-in for TensorRT only (docs/runtimes.md).
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bowerbird_models.cuda import Cuda, CudaError
from bowerbird_models.engines import EngineCache, EngineKey, Stack
from bowerbird_models.errors import AcceleratorMissing, EngineNotBuilt, ModelOutputError, UnsupportedModel
from bowerbird_models.runtime_options import TENSORRT, RuntimeOptions
from bowerbird_models.session import TensorSpec
from bowerbird_models.tensorrt_build import BuildOrder, Limits, import_tensorrt, make_logger, run_build

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from bowerbird_models.cuda import Resource
    from bowerbird_models.model_file import ModelFile
    from bowerbird_models.session import Run

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "UINT8": "uint8"}
_LIMITS = Limits()


@dataclass(frozen=True)
class Platform:
    """TensorRT's module and the GPU that it will use."""

    tensorrt: Any
    cuda: Cuda

    @classmethod
    def load(cls) -> Platform:
        """What this machine has.

        Raises:
            RuntimeMissing: TensorRT is not installed or too old.
            AcceleratorMissing: no GPU, or no driver.
        """
        tensorrt = import_tensorrt()
        try:
            return cls(tensorrt, Cuda())
        except CudaError as error:
            raise AcceleratorMissing(f"TensorRT needs an NVIDIA GPU: {error}; choose another runtime") from error

    @property
    def stack(self) -> Stack:
        """What engines are tied to."""
        gpu = self.cuda.gpu
        return Stack(gpu.name, gpu.compute_capability, f"tensorrt {self.tensorrt.__version__}")


class TensorrtSession:
    """A network as a TensorRT engine; implements `Session`.

    Args:
        file: the ONNX file.
        options: precision, and where engines are kept.
        platform: TensorRT and the GPU; None takes what this machine has.
        limits: of a build.

    Raises:
        NotAModel: TensorRT cannot read the file.
        UnsupportedModel: it cannot build it, or the shape of an output depends on what is in the picture.
        RuntimeMissing: TensorRT is not installed, or a build broke a limit.
        AcceleratorMissing: no GPU, or not this precision.
    """

    def __init__(
        self, file: ModelFile, options: RuntimeOptions, *, platform: Platform | None = None, limits: Limits = _LIMITS
    ) -> None:
        platform = platform or Platform.load()
        self._tensorrt, self._cuda = platform.tensorrt, platform.cuda
        engine = obtain_engine(file, options, platform.stack, limits)
        try:
            self._start(engine)
        except CudaError as error:
            raise AcceleratorMissing(
                f"the GPU refused the model: {error}; free its memory or choose another runtime"
            ) from error
        self.runtime = f"{TENSORRT} {self._tensorrt.__version__}"

    def _start(self, engine: bytes) -> None:
        self._cuda.use()
        self._says = make_logger(self._tensorrt)  # TensorRT keeps only a pointer to it
        self._runtime: Any = self._tensorrt.Runtime(self._says)
        self._engine: Any = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise CudaError(self._says.last_error or "the engine cannot be loaded")
        self._context: Any = self._engine.create_execution_context()
        if self._context is None:
            raise CudaError(self._says.last_error or "there is no memory for the engine")
        self._stream = self._cuda.stream()
        self._active: _Bound | None = None
        inputs: list[TensorSpec] = []
        outputs: list[TensorSpec] = []
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            goes_in = self._engine.get_tensor_mode(name) == self._tensorrt.TensorIOMode.INPUT
            (inputs if goes_in else outputs).append(self._spec(name))
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)

    def _spec(self, name: str) -> TensorSpec:
        kind = str(self._engine.get_tensor_dtype(name).name)
        shape = tuple(None if side == -1 else int(side) for side in self._engine.get_tensor_shape(name))
        return TensorSpec(name, _DTYPES.get(kind, kind), shape)

    def bind(self, tensor: NDArray[Any], outputs: Sequence[str], *, fixed: bool) -> Run:  # noqa: ARG002 - shapes follow the input
        """As `Session.bind`; memory on the GPU for every tensor, page-locked memory for what is wanted back.

        Raises:
            ModelOutputError: no memory for it, an input outside the profile, or an output whose shape the input does not settle.
        """
        self._active = None  # the context is about to have this input's shape, but another's addresses
        try:
            bound = self._allocate(tensor, outputs)
        except CudaError as error:
            raise ModelOutputError(
                f"the GPU has no place for a picture of {tensor.shape} ({error}); free its memory or choose another runtime"
            ) from error
        name = self.inputs[0].name

        def run() -> list[NDArray[Any]]:
            self._cuda.use()
            if self._active is not bound:
                self._activate(bound)
            self._cuda.to_device(bound.device[name], bound.tensor, self._stream)
            self._check(self._context.execute_async_v3(self._stream.value), "the engine did not run")
            for wanted, buffer in bound.host.items():
                self._cuda.to_host(buffer, bound.device[wanted], self._stream)
            self._cuda.synchronise(self._stream)
            return list(bound.host.values())

        return run

    def _allocate(self, tensor: NDArray[Any], outputs: Sequence[str]) -> _Bound:
        self._cuda.use()
        name = self.inputs[0].name
        self._check(self._context.set_input_shape(name, tuple(tensor.shape)), f"the input cannot be {tensor.shape}")
        device = {name: self._cuda.allocate(tensor.nbytes)}
        host: dict[str, NDArray[Any]] = {}
        for spec in self.outputs:  # the engine wants an address for each, wanted or not
            shape = tuple(int(side) for side in self._context.get_tensor_shape(spec.name))
            if -1 in shape:
                raise ModelOutputError(
                    f"the shape of the output {spec.name} depends on what is in the picture, which TensorRT cannot tell "
                    "beforehand; export the model without built-in NMS or choose another runtime"
                )
            if spec.name in outputs:
                host[spec.name] = self._cuda.allocate_host(shape, spec.dtype)
            device[spec.name] = self._cuda.allocate(math.prod(shape) * self._engine.get_tensor_bytes_per_component(spec.name))
        return _Bound(tensor, device, {wanted: host[wanted] for wanted in outputs})

    def close(self) -> None:
        """As `Session.close`; functions that `bind` returned must not be called any more."""
        if self._engine is None:
            return
        self._active = None
        # In this order: each lives inside the next.
        self._context = None
        self._engine = None
        self._runtime = None
        self._stream.free()

    def _activate(self, bound: _Bound) -> None:
        name = self.inputs[0].name
        self._check(self._context.set_input_shape(name, tuple(bound.tensor.shape)), "the input has another shape")
        for tensor, memory in bound.device.items():
            self._check(self._context.set_tensor_address(tensor, memory.value), f"{tensor} cannot be bound")
        self._active = bound

    def _check(self, done: bool, fault: str) -> None:
        if not done:
            raise CudaError(f"{fault}: {self._says.last_error or 'TensorRT gave no reason'}")


@dataclass
class _Bound:
    """The memory of one input size; freed with it."""

    tensor: NDArray[Any]
    device: dict[str, Resource]
    host: dict[str, NDArray[Any]]


def obtain_engine(file: ModelFile, options: RuntimeOptions, stack: Stack, limits: Limits = _LIMITS) -> bytes:
    """The engine for a file on this stack: from the folder, or built now and kept.

    Raises:
        NotAModel, UnsupportedModel, RuntimeMissing, AcceleratorMissing: as `TensorrtSession`.
    """
    if options.engine_dir is None:
        with tempfile.TemporaryDirectory(prefix="bowerbird-engine-") as folder:
            return _obtain_engine(file, options.precision, stack, EngineCache(Path(folder)), limits)
    return _obtain_engine(file, options.precision, stack, EngineCache(options.engine_dir), limits)


def _obtain_engine(file: ModelFile, precision: str, stack: Stack, cache: EngineCache, limits: Limits) -> bytes:
    metadata = file.metadata()
    size_hw = metadata.image_size_hw
    if size_hw is None:
        raise UnsupportedModel("its metadata names no picture size (imgsz); export it again with Ultralytics")
    key = EngineKey(file.digest, stack, precision, f"{size_hw[0]} x {size_hw[1]} by {metadata.stride}")
    engine = cache.load(key)
    if engine is not None:
        return engine
    with cache.building():
        engine = cache.load(key)  # another process may have built it while we waited
        if engine is not None:
            return engine
        cache.sweep(stack)
        built, measured = cache.part("engine"), cache.part("timing")
        try:
            measured.write_bytes(cache.timing_cache(stack))
            order = BuildOrder(precision, size_hw, metadata.stride)
            run_build(file.content, order, engine=built, timing_cache=measured, limits=limits)
            engine = built.read_bytes()
            if not engine:
                raise EngineNotBuilt("TensorRT built an empty engine; choose another runtime")
            cache.admit_timing_cache(stack, measured.read_bytes())
            cache.admit(key, engine)
        finally:
            built.unlink(missing_ok=True)
            measured.unlink(missing_ok=True)
        cache.sweep(stack)
    return engine
