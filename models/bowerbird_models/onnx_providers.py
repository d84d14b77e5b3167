"""ONNX Runtime's execution providers: which one a runtime name means, and what it is told.

In: `RuntimeOptions`. Out: a `Provider` per name, as a table. It loads nothing; `onnx_detector.py` does. CUDA, TensorRT and XNNPACK are
held to the names that ONNX Runtime documents (https://onnxruntime.ai/docs/execution-providers/); no machine of ours could run them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bowerbird_models.runtime_options import (
    ONNXRUNTIME_CPU,
    ONNXRUNTIME_CUDA,
    ONNXRUNTIME_TENSORRT,
    ONNXRUNTIME_XNNPACK,
)

if TYPE_CHECKING:
    from bowerbird_models.runtime_options import RuntimeOptions

ProviderOptions = Mapping[str, str]


@dataclass(frozen=True)
class Provider:
    """One execution provider.

    Args:
        name: as ONNX Runtime spells it.
        options: what it is told, from what was asked.
        beside: providers that may take the nodes it cannot, in this order. The CPU's is always last unless `accelerator`.
        accelerator: every node must run on it or on those beside it; a session that would use the processor is refused.
        own_threads: it has a thread pool of its own, so ONNX Runtime's stays at one thread that never spins.
        install: where a build that has it comes from.
    """

    name: str
    options: Callable[[RuntimeOptions], ProviderOptions]
    install: str
    beside: tuple[str, ...] = ()
    accelerator: bool = False
    own_threads: bool = False


def _nothing(_options: RuntimeOptions) -> ProviderOptions:
    return {}


def _cuda(_options: RuntimeOptions) -> ProviderOptions:
    # TF32 is on by default and rounds float32 factors to 10 bits: that would be another precision than the one asked for.
    return {"device_id": "0", "use_tf32": "0"}


def _tensorrt(options: RuntimeOptions) -> ProviderOptions:
    told = {"device_id": "0", "trt_fp16_enable": "1" if options.precision == "fp16" else "0"}
    if options.engine_dir is not None:
        told |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(options.engine_dir),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(options.engine_dir),
        }
    return told


def _xnnpack(options: RuntimeOptions) -> ProviderOptions:
    return {"intra_op_num_threads": str(options.threads)}


_GPU_WHEEL = (
    "on x86-64 replace onnxruntime by the wheel onnxruntime-gpu (never both), on a Jetson install the wheel "
    "that NVIDIA publishes for its JetPack"
)
PROVIDERS: dict[str, Provider] = {
    ONNXRUNTIME_CPU: Provider("CPUExecutionProvider", _nothing, "pip install 'bowerbird[agent]'"),
    # XNNPACK knows some of a YOLO's operators; the others are the processor's in any case, so this is no fallback.
    ONNXRUNTIME_XNNPACK: Provider(
        "XnnpackExecutionProvider",
        _xnnpack,
        "build ONNX Runtime yourself with `--use_xnnpack`; no published wheel has it",
        own_threads=True,
    ),
    ONNXRUNTIME_CUDA: Provider("CUDAExecutionProvider", _cuda, _GPU_WHEEL, accelerator=True),
    ONNXRUNTIME_TENSORRT: Provider(
        "TensorrtExecutionProvider", _tensorrt, _GPU_WHEEL, beside=("CUDAExecutionProvider",), accelerator=True
    ),
}
