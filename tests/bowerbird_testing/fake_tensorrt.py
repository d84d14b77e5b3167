"""A stand-in for NVIDIA's `tensorrt` module that computes: what it builds is the ONNX file, what runs it is ONNX Runtime.

In: a version. Out: a module with the part of TensorRT's Python interface that Bowerbird uses, as version 10 or 11 has it: other names
do not exist, arguments have the vendor's names (`tests/integration/test_tensorrt_bindings.py` asks the real bindings). It checks what
TensorRT checks: shapes against profiles, an address for every tensor, engines of another version. Memory on the "GPU" is that of
`fake_libcuda.c`, so a forgotten copy or synchronisation shows.

As a program's `tensorrt` it is found through a folder with a file `tensorrt.py` (`install_as_module`), for children.
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

PLAN = b"ptrt-stand-in\n"
Shape = tuple[int, ...]


def make_tensorrt(version: str, libcuda: ctypes.CDLL | None) -> ModuleType:
    """A module for one version; `libcuda` holds the memory that engines read (None: only builds)."""
    major = int(version.split(".", maxsplit=1)[0])
    module: Any = ModuleType("tensorrt")
    module.__version__ = version

    class Severity(enum.Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    class ILogger:
        def __init__(self) -> None:
            self.initialised = True

        def log(self, severity: Any, msg: str) -> None:
            raise NotImplementedError

    ILogger.Severity = Severity  # type: ignore[attr-defined]

    def complain(logger: Any, text: str) -> None:
        assert logger.initialised, "ILogger.__init__ was not called"
        logger.log(Severity.ERROR, text)

    data_types = enum.Enum("DataType", ["FLOAT", "HALF", "INT8", "INT32", "INT64", "BOOL", "UINT8", "BF16"])  # type: ignore[misc]
    flags = ["TF32", "FP16", "BF16"] if major < 11 else ["TF32"]
    builder_flags = enum.Enum("BuilderFlag", flags)  # type: ignore[misc]
    pools = enum.Enum("MemoryPoolType", ["WORKSPACE"])  # type: ignore[misc]
    modes = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])  # type: ignore[misc]
    layer_types = enum.Enum("LayerType", ["CONVOLUTION", "ELEMENTWISE"])  # type: ignore[misc]
    by_numpy = {"float32": "FLOAT", "float16": "HALF", "uint8": "UINT8", "int32": "INT32", "int64": "INT64", "bool": "BOOL"}

    class ITensor:
        def __init__(self, name: str, shape: Shape, dtype: Any) -> None:
            self.name, self.shape, self.dtype = name, shape, dtype

    class ILayer:
        def __init__(self, type: Any, output: ITensor) -> None:  # noqa: A002 - the vendor's word
            self.type, self._output = type, output

        def get_output(self, index: int) -> ITensor | None:
            return self._output if index == 0 else None

    class INetworkDefinition:
        def __init__(self) -> None:
            self.content, self._inputs, self._layers = b"", [], []  # type: ignore[var-annotated]

        @property
        def num_inputs(self) -> int:
            return len(self._inputs)

        @property
        def num_layers(self) -> int:
            return len(self._layers)

        def get_input(self, index: int) -> ITensor:
            return self._inputs[index]  # type: ignore[no-any-return]

        def get_layer(self, index: int) -> ILayer:
            return self._layers[index]  # type: ignore[no-any-return]

    class ParserError:
        def __init__(self, text: str) -> None:
            self._text = text

        def desc(self) -> str:
            return self._text

    class OnnxParser:
        def __init__(self, network: INetworkDefinition, logger: Any) -> None:
            self._network, self._logger, self._errors = network, logger, []  # type: ignore[var-annotated]

        @property
        def num_errors(self) -> int:
            return len(self._errors)

        def get_error(self, index: int) -> ParserError:
            return self._errors[index]  # type: ignore[no-any-return]

        def parse(self, model: bytes, path: str | None = None) -> bool:
            import onnx

            try:
                session = open_onnx(model)
            except Exception as error:
                self._errors.append(ParserError(str(error)))
                return False
            for value in session.get_inputs():
                self._network._inputs.append(ITensor(value.name, declared(value), typed(value)))
            graph = onnx.load_from_string(model).graph
            for node in graph.node:
                kind = layer_types["CONVOLUTION"] if node.op_type == "Conv" else layer_types["ELEMENTWISE"]
                # Strongly typed: in this stand-in every tensor has the type of the first weight.
                halves = bool(graph.initializer) and graph.initializer[0].data_type == onnx.TensorProto.FLOAT16
                self._network._layers.append(
                    ILayer(kind, ITensor(node.output[0], (), data_types["HALF" if halves else "FLOAT"]))
                )
            self._network.content = bytes(model)
            return True

    class IOptimizationProfile:
        def __init__(self) -> None:
            self.shapes: dict[str, tuple[Shape, Shape, Shape]] = {}

        def set_shape(self, input: str, min: Shape, opt: Shape, max: Shape) -> None:  # noqa: A002 - the vendor's words
            if not all(low <= best <= high for low, best, high in zip(min, opt, max, strict=True)):
                raise ValueError("shapes are inconsistent")
            self.shapes[input] = (tuple(min), tuple(opt), tuple(max))

    class IHostMemory(bytes):
        @property
        def nbytes(self) -> int:
            return len(self)

    class ITimingCache:
        def __init__(self, plain: dict[str, Any]) -> None:
            self.plain = plain

        def serialize(self) -> IHostMemory:
            return IHostMemory(json.dumps(self.plain).encode())

    class IBuilderConfig:
        def __init__(self) -> None:
            self.flags_set, self.pools, self.profiles = {"TF32"}, {}, []  # type: ignore[var-annotated]
            self.cache: ITimingCache | None = None

        def set_flag(self, flag: Any) -> None:
            self.flags_set.add(flag.name)

        def clear_flag(self, flag: Any) -> None:
            self.flags_set.discard(flag.name)

        def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
            self.pools[pool.name] = pool_size

        def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
            self.profiles.append(profile)
            return len(self.profiles) - 1

        def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
            plain = json.loads(bytes(serialized_timing_cache)) if serialized_timing_cache else {"version": version, "seen": []}
            return ITimingCache(plain)

        def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
            if cache.plain["version"] != version and not ignore_mismatch:
                return False
            self.cache = cache
            return True

    class Builder:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def create_network(self, flags: int = 0) -> INetworkDefinition:
            return INetworkDefinition()

        def create_builder_config(self) -> IBuilderConfig:
            return IBuilderConfig()

        def create_optimization_profile(self) -> IOptimizationProfile:
            return IOptimizationProfile()

        def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
            shapes = {name: found for profile in config.profiles for name, found in profile.shapes.items()}
            for value in network._inputs:
                if -1 in value.shape and value.name not in shapes:
                    complain(self._logger, f"Network has dynamic or shape inputs, but no profile for {value.name}")
                    return None
            assert config.cache is not None
            config.cache.plain["seen"].append(hashlib.sha256(network.content).hexdigest())
            facts = {
                "version": version,
                "flags": sorted(config.flags_set),
                "pools": config.pools,
                "profiles": shapes,
                "timings_known": len(config.cache.plain["seen"]) - 1,
            }
            return IHostMemory(PLAN + json.dumps(facts).encode() + b"\n" + network.content)

    class ICudaEngine:
        def __init__(self, facts: dict[str, Any], content: bytes, logger: Any) -> None:
            self.facts, self._session, self._logger = facts, open_onnx(content), logger
            self._inputs = {value.name: value for value in self._session.get_inputs()}
            self._outputs = {value.name: value for value in self._session.get_outputs()}
            self._values = {**self._inputs, **self._outputs}

        @property
        def num_io_tensors(self) -> int:
            return len(self._values)

        def get_tensor_name(self, index: int) -> str:
            return list(self._values)[index]

        def get_tensor_mode(self, name: str) -> Any:
            return modes["INPUT"] if name in self._inputs else modes["OUTPUT"]

        def get_tensor_dtype(self, name: str) -> Any:
            return typed(self._values[name])

        def get_tensor_shape(self, name: str) -> Shape:
            return declared(self._values[name])

        def get_tensor_bytes_per_component(self, name: str) -> int:
            return numpy_type(self._values[name]).itemsize

        def create_execution_context(self) -> IExecutionContext:
            return IExecutionContext(self)

    class IExecutionContext:
        def __init__(self, engine: ICudaEngine) -> None:
            self.engine, self._shapes, self._addresses = engine, {}, {}  # type: ignore[var-annotated]

        def set_input_shape(self, name: str, shape: Shape) -> bool:
            fixed = declared(self.engine._inputs[name])
            low, _, high = self.engine.facts["profiles"].get(name, (fixed, fixed, fixed))
            if len(shape) != len(fixed) or not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
                complain(self.engine._logger, f"{name} {shape} is outside the profile {low} to {high}")
                return False
            self._shapes[name] = tuple(shape)
            return True

        def get_tensor_shape(self, name: str) -> Shape:
            if name in self._shapes:
                return self._shapes[name]  # type: ignore[no-any-return]
            shape = declared(self.engine._values[name])
            if -1 in shape and self._shapes and all(-1 in declared(value) for value in self.engine._inputs.values()):
                feed = {key: np.zeros(self._shapes[key], numpy_type(value)) for key, value in self.engine._inputs.items()}
                return self.engine._session.run([name], feed)[0].shape  # type: ignore[no-any-return]
            return shape

        def set_tensor_address(self, name: str, memory: int) -> bool:
            if name not in self.engine._values or not memory:
                return False
            self._addresses[name] = memory
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            missing = self.engine._values.keys() - self._addresses.keys()
            if missing or not stream_handle:
                complain(self.engine._logger, f"no address for {sorted(missing)} or no stream")
                return False
            assert libcuda is not None
            libcuda.fake_drain()  # the stream's order: what was copied before is there
            names = list(self.engine._outputs)
            feed = {key: self._view(key, self._shapes.get(key, declared(value))) for key, value in self.engine._inputs.items()}
            for name, result in zip(names, self.engine._session.run(names, feed), strict=True):
                self._view(name, result.shape)[...] = result
            return True

        def _view(self, name: str, shape: Sequence[int]) -> Any:
            dtype, address = numpy_type(self.engine._values[name]), self._addresses[name]
            size = int(np.prod(shape)) * dtype.itemsize
            assert libcuda is not None
            assert libcuda.fake_is_device(address, size), f"{name} is not in the memory of the GPU"
            return np.frombuffer((ctypes.c_ubyte * size).from_address(address), dtype).reshape(tuple(shape))

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
            head, _, rest = bytes(serialized_engine).removeprefix(PLAN).partition(b"\n")
            facts = json.loads(head)
            if facts["version"] != version:
                complain(self._logger, f"The engine plan file is of {facts['version']}, expecting {version}")
                return None
            return ICudaEngine(facts, rest, self._logger)

    def typed(value: Any) -> Any:
        return data_types[by_numpy[numpy_type(value).name]]

    for item in (ILogger, ITensor, ILayer, INetworkDefinition, ParserError, OnnxParser, IOptimizationProfile, IHostMemory):
        setattr(module, item.__name__, item)
    for item in (ITimingCache, IBuilderConfig, Builder, ICudaEngine, IExecutionContext, Runtime):
        setattr(module, item.__name__, item)
    module.DataType, module.BuilderFlag, module.MemoryPoolType = data_types, builder_flags, pools
    module.TensorIOMode, module.LayerType = modes, layer_types
    return module  # type: ignore[no-any-return]


def install_as_module(folder: Path, version: str, *, before_build: str = "pass") -> None:
    """Write `tensorrt.py` into a folder for PYTHONPATH; `before_build` is a line that runs as a build begins."""
    (folder / "tensorrt.py").write_text(
        "import ctypes, sys\n"
        "from bowerbird_testing.fake_cuda import load_libcuda\n"
        "from bowerbird_testing.fake_tensorrt import make_tensorrt\n"
        "try:\n"
        "    _cuda = load_libcuda('libcuda.so.1')\n"
        "except OSError:\n"
        "    _cuda = None\n"
        f"_module = make_tensorrt({version!r}, _cuda)\n"
        "_build = _module.Builder.build_serialized_network\n"
        "def _slowly(self, network, config):\n"
        f"    {before_build}\n"
        "    return _build(self, network, config)\n"
        "_module.Builder.build_serialized_network = _slowly\n"
        "sys.modules[__name__] = _module\n",
        "utf-8",
    )


def open_onnx(content: bytes) -> Any:
    """An ONNX Runtime session of its own, one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(content, sess_options=options, providers=["CPUExecutionProvider"])


def declared(value: Any) -> Shape:
    """A tensor's shape in the file, -1 for an open side."""
    return tuple(side if isinstance(side, int) else -1 for side in value.shape)


def numpy_type(value: Any) -> np.dtype[Any]:
    """A tensor's element type."""
    name = value.type.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(name, name))
