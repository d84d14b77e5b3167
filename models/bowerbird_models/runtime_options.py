"""What may run a network, by name, and how it is asked to: the words of configuration and reports.

In: nothing. Out: names, the precisions each can compute in, and `RuntimeOptions`. Pure data, so that a configuration can be checked
without loading a runtime; `runtimes.py` turns it into detectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ONNXRUNTIME_CPU = "onnxruntime-cpu"
ONNXRUNTIME_XNNPACK = "onnxruntime-xnnpack"
ONNXRUNTIME_CUDA = "onnxruntime-cuda"
ONNXRUNTIME_TENSORRT = "onnxruntime-tensorrt"
OPENVINO_CPU = "openvino-cpu"
TENSORRT = "tensorrt"
RUNTIMES = (ONNXRUNTIME_CPU, ONNXRUNTIME_XNNPACK, ONNXRUNTIME_CUDA, ONNXRUNTIME_TENSORRT, OPENVINO_CPU, TENSORRT)
"""Stable names: configuration, reports and the choice that a device keeps are written in them."""

# What a runtime may be asked to compute in. ONNX Runtime's own providers compute in what the file says; "fp32" means that for them.
PRECISIONS: dict[str, tuple[str, ...]] = {
    ONNXRUNTIME_CPU: ("fp32",),
    ONNXRUNTIME_XNNPACK: ("fp32",),
    ONNXRUNTIME_CUDA: ("fp32",),
    ONNXRUNTIME_TENSORRT: ("fp32", "fp16"),
    OPENVINO_CPU: ("fp32", "fp16", "bf16"),
    TENSORRT: ("fp32", "fp16", "bf16"),
}


@dataclass(frozen=True)
class RuntimeOptions:
    """What is asked of a runtime.

    Args:
        runtime: one of `RUNTIMES`.
        threads: threads it computes with on the processor, 1 or more.
        spinning: ONNX Runtime's intra-op threads spin while idle: faster on a machine of its own, slower on a shared one.
        precision: what it computes in ("fp32", "fp16", "bf16"; `PRECISIONS` has what each can); int8 lies in the file.
        engine_dir: where what TensorRT and OpenVINO compile for this machine is kept; without it they compile at every start.

    Raises:
        ValueError: an unknown runtime, a precision it does not compute in, or threads below 1.
    """

    runtime: str = ONNXRUNTIME_CPU
    threads: int = 1
    spinning: bool = False
    precision: str = "fp32"
    engine_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.runtime not in PRECISIONS:
            raise ValueError(f"runtime is {self.runtime!r}, must be one of {', '.join(RUNTIMES)}")
        if self.precision not in PRECISIONS[self.runtime]:
            known = ", ".join(PRECISIONS[self.runtime])
            raise ValueError(f"precision is {self.precision!r}, {self.runtime} computes in {known}")
        if self.threads < 1:
            raise ValueError(f"threads is {self.threads}, must be 1 or more")
