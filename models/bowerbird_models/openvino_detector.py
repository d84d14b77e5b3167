"""OpenVINO on the processor: a network at a precision that was asked for, never one that OpenVINO picked.

In: one ONNX file, and perhaps the folder where compiled networks are kept (`engines.py`). Out: a `Session`. The input tensor is the
caller's own memory and the outputs are views of OpenVINO's: nothing is copied. It uses no other device of OpenVINO's, and not
OpenVINO's own cache, which takes whatever file lies in its folder.

A network that comes out of the folder starts in a third of the time and takes less memory: neither the ONNX file nor the graph that
is compiled from it was ever in this process. So the first start, which compiles, goes on with what it has just put there.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

from bowerbird_models.engines import EngineCache, EngineKey, Stack, private_folder
from bowerbird_models.errors import AcceleratorMissing, NotAModel, RuntimeMissing
from bowerbird_models.onnx_file import output_names
from bowerbird_models.processor import this_processor
from bowerbird_models.runtime_options import OPENVINO_CPU, RuntimeOptions
from bowerbird_models.session import TensorSpec
from bowerbird_models.yolo import first_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from bowerbird_models.model_file import ModelFile
    from bowerbird_models.session import Run

logger = logging.getLogger(__name__)

_HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
_DTYPES = {"f32": "float32", "f16": "float16", "u8": "uint8"}
_TELEMETRY = "openvino_telemetry"


class OpenvinoSession:
    """A network on OpenVINO's CPU device; implements `Session`.

    Args:
        file: a whole ONNX file, checked.
        options: threads, precision, and where compiled networks are kept.

    Raises:
        NotAModel: OpenVINO cannot load it.
        RuntimeMissing: openvino is not installed.
        AcceleratorMissing: this processor does not compute in the precision asked for.
    """

    def __init__(self, file: ModelFile, options: RuntimeOptions) -> None:
        self._openvino = import_openvino()
        self._compiled: Any = _obtain(self._openvino, file, options)
        _check_precision(self._compiled, options.precision)
        self.runtime = f"{OPENVINO_CPU} {release(self._openvino)}"
        self.inputs = tuple(_spec(port.get_any_name(), port) for port in self._compiled.inputs)
        # A tensor may carry several names inside OpenVINO; the file's own is the one that everybody means.
        self.outputs = tuple(_spec(name, self._compiled.output(name)) for name in output_names(file.content))

    def bind(self, tensor: NDArray[Any], outputs: Sequence[str], *, fixed: bool) -> Run:  # noqa: ARG002 - views need no buffers
        """As `Session.bind`; one infer request that reads `tensor` in place."""
        request = self._compiled.create_infer_request()
        shared = self._openvino.Tensor(tensor, shared_memory=True)
        request.set_tensor(self._compiled.inputs[0], shared)
        ports = [self._compiled.output(name) for name in outputs]

        def run() -> list[NDArray[Any]]:
            request.infer()
            return [request.get_tensor(port).data for port in ports]

        return run

    def close(self) -> None:
        """As `Session.close`; functions that `bind` returned must not be called any more."""
        self._compiled = None


def import_openvino() -> Any:
    """The module `openvino`, without the part of it that reports its users.

    OpenVINO's package sends an event to its maker when it is imported, if `openvino_telemetry` can be imported; it is written to do
    without. A camera tells nobody but its own server, so that import is made to fail.

    Raises:
        RuntimeMissing: openvino is not installed, or its libraries do not load here.
    """
    if "openvino" not in sys.modules and _TELEMETRY not in sys.modules:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment] # what makes `import` raise ImportError, says Python's reference
        try:
            return _import()
        finally:
            del sys.modules[_TELEMETRY]
    return _import()


def release(openvino: Any) -> str:
    """The short version ("2026.4.1") of a long one ("2026.4.1-22982-e213a147257-releases/2026/4")."""
    return str(openvino.__version__).split("-", maxsplit=1)[0]


def precisions(openvino: Any) -> tuple[str, ...]:
    """The precisions that this processor computes in."""
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(name for name in _HINTS if name.upper() in capabilities)


def _import() -> Any:
    try:
        import openvino
    except ImportError as error:
        if error.name == "openvino":
            raise RuntimeMissing("openvino is not installed; pip install 'bowerbird[openvino]'") from error
        raise RuntimeMissing(
            f"openvino is installed but does not load ({first_line(error)}); install it again: "
            "pip install --force-reinstall 'bowerbird[openvino]'"
        ) from error
    return openvino


def _obtain(openvino: Any, file: ModelFile, options: RuntimeOptions) -> Any:
    """The compiled network: out of the folder, or compiled now and, if it can be, put there and taken out again.

    Raises:
        NotAModel: OpenVINO cannot load it.
    """
    core, properties = openvino.Core(), _properties(options)
    key = engine_key(openvino, file, options)
    cache = _cache(options)
    engine = None if cache is None else cache.load(key)
    if engine is not None:
        try:
            return core.import_model(engine, "CPU", properties)
        except Exception as error:  # built by this very version on this processor, yet refused: compile it again
            logger.warning("OpenVINO does not take what it compiled for %s earlier: %s", file.digest[:12], _reason(error))
    try:
        compiled = core.compile_model(core.read_model(file.content), "CPU", properties)
    except Exception as error:  # openvino's exceptions share no base below Exception
        logger.debug("openvino refused a model: %s", error)
        raise NotAModel(
            f"OpenVINO {release(openvino)} cannot load it ({_reason(error)}); export it again, with an opset that this version "
            "knows, or update openvino"
        ) from error
    if cache is None:
        return compiled
    try:
        engine = compiled.export_model().getvalue()
        with cache.building():
            cache.sweep(key.stack)
            cache.admit(key, engine)
            cache.sweep(key.stack)
        return core.import_model(engine, "CPU", properties)
    except Exception as error:  # a full disk, or a network that cannot be exported: slower next time, and no less right
        logger.warning("what OpenVINO compiled is not kept: %s", _reason(error))
        return compiled


def _cache(options: RuntimeOptions) -> EngineCache | None:
    if options.engine_dir is None:
        return None
    try:
        return EngineCache(private_folder(options.engine_dir) / "openvino")
    except RuntimeMissing as error:
        logger.warning("what OpenVINO compiles is not kept: %s", error)
        return None


def engine_key(openvino: Any, file: ModelFile, options: RuntimeOptions) -> EngineKey:
    """What a compiled network is tied to."""
    stack = Stack(*this_processor(), f"openvino {openvino.__version__}")
    return EngineKey(file.digest, stack, options.precision, f"{options.threads} threads")


def _properties(options: RuntimeOptions) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": options.threads,
        # Left alone, OpenVINO computes in bf16 where the processor can: other boxes on other machines.
        "INFERENCE_PRECISION_HINT": _HINTS[options.precision],
        # Pinned threads wait for their core while another one idles: good alone on a machine, bad beside other processes.
        "ENABLE_CPU_PINNING": False,
        "CACHE_DIR": "",
    }


def _check_precision(compiled: Any, precision: str) -> None:
    """A hint that the processor cannot follow is replaced in silence: read back what became of it."""
    asked, got = _HINTS[precision], str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
    if got != asked:
        raise AcceleratorMissing(
            f"this processor does not compute in {precision}, OpenVINO would have used {got}; choose another precision"
        )


def _spec(name: str, port: Any) -> TensorSpec:
    shape = tuple(side.get_length() if side.is_static else None for side in port.get_partial_shape())
    element = str(port.get_element_type().get_type_name())
    return TensorSpec(name, _DTYPES.get(element, element), shape)


def _reason(error: Exception) -> str:
    """The line that says what is wrong: OpenVINO puts places in its source first and links last."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from ", "Check '", "FrontEnd API"))]
    points = [line for line in said if line.startswith("-- ")]
    return ([*points, *said] or [first_line(error)])[0][:200]
