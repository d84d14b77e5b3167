"""The `[model]` section of agent.toml: the model to begin with, and how much of how it runs is left to tuning.

In: values. Out: `ModelConfig`, or ValueError with what to write instead. It looks at no file and no runtime.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bowerbird_agent.structuring import require
from bowerbird_models.runtime_options import PRECISIONS, RUNTIMES

AUTO = "auto"


@dataclass(frozen=True)
class ModelConfig:
    """The model to begin with and how it runs.

    Args:
        factory: a package folder or a single ONNX file; used while no installed model works. None waits for the first update.
        runtime: "auto" uses what tuning chose here; a name such as "openvino-cpu" means exactly that one, and no start without it.
        variant: role of the package's file to run, like "onnx-int8-ort"; None leaves it to tuning, else the float file.
        precision: what a named runtime computes in, like "bf16"; None means "fp32".
        threads: of the model for one frame; None leaves it to tuning, 1 until then.
        spinning: ONNX Runtime's threads spin while idle; None leaves it to tuning, else they do not.
        huge_pages: start the process on huge pages (GLIBC_TUNABLES); None leaves it to tuning, else not.
        memory_limit_mb: tuning discards what needs more to load and run the model; None for no limit.
        accuracy_loss_points: tuning discards what the package says is worse than its float file by more points of mAP50-95.
    """

    factory: Path | None = None
    runtime: str = AUTO
    variant: str | None = None
    precision: str | None = None
    threads: int | None = None
    spinning: bool | None = None
    huge_pages: bool | None = None
    memory_limit_mb: int | None = None
    accuracy_loss_points: float = 0.5

    def __post_init__(self) -> None:
        known = (AUTO, *RUNTIMES)
        require(self.runtime in known, f"runtime is {self.runtime!r}; it must be one of {', '.join(map(repr, known))}")
        if self.precision is not None:
            require(self.is_pinned, 'precision is for a runtime that is named; set model.runtime, or leave it out with "auto"')
            can = PRECISIONS.get(self.runtime, ())
            require(
                self.precision in can or not self.is_pinned,
                f"precision is {self.precision!r}; {self.runtime} computes in {', '.join(map(repr, can))}",
            )
        require(self.threads is None or 1 <= self.threads <= 64, f"threads is {self.threads}; it must be 1 to 64")
        require(
            self.memory_limit_mb is None or self.memory_limit_mb >= 16,
            f"memory_limit_mb is {self.memory_limit_mb}; it must be at least 16",
        )
        require(
            0 <= self.accuracy_loss_points <= 100,
            f"accuracy_loss_points is {self.accuracy_loss_points}; it must be 0 to 100",
        )

    @property
    def is_pinned(self) -> bool:
        """Whether the operator named the runtime."""
        return self.runtime != AUTO
