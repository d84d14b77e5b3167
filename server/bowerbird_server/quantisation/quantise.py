"""The parent's side of rewriting a model: to its transport form, to int8 files.

In: an ONNX file and pictures. Out: files in a folder, and what could not be made and why. The `onnx` package is imported by the child
alone (`quantise_child.py`). It measures no accuracy and knows nothing of the catalogue (`variants.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bowerbird_models.errors import ModelError
from bowerbird_models.manifest import ONNX_FP16
from bowerbird_models.model_file import ModelFile
from bowerbird_models.onnx_file import metadata_entries
from bowerbird_server.errors import BadInput
from bowerbird_server.training.train import run_child

_MODULE = "bowerbird_server.quantisation.quantise_child"
FORM, HALF = "weights_stored_as", "float16"
"""What `half_weights.py` writes into the metadata of a file in transport form."""


@dataclass(frozen=True)
class FloatFile:
    """The float file of a package.

    Args:
        path: where it is.
        role: `onnx-fp16` in transport form or computing in halves, `onnx-fp32` otherwise.
        reason: why it is not in transport form; "" when it is.
    """

    path: Path
    role: str
    reason: str = ""


@dataclass(frozen=True)
class QuantisedFiles:
    """Int8 files by role, and the reason for each role that could not be made."""

    files: Mapping[str, Path]
    left_out: Mapping[str, str]


def to_transport_form(
    onnx: Path,
    out_dir: Path,
    *,
    pictures: Sequence[Path] = (),
    threads: int = 1,
    cancelled: Callable[[], bool] = lambda: False,
) -> FloatFile:
    """The model with its weights stored in half precision, if that leaves its detections within the tolerance.

    A file that our own export wrote is recognised without a child process.

    Args:
        onnx: the model.
        out_dir: where a new file goes; made if missing.
        pictures: on which the detections are compared; without any, a drawn test card.
        threads: of the child.
        cancelled: asked at least twice a second.

    Raises:
        BadInput: the file is no model.
        TrainingCancelled, TrainingFailed, EnvironmentFault: as `train.run_training`.
    """
    try:
        if metadata_entries(ModelFile.read(onnx).content).get(FORM) == HALF:
            return FloatFile(onnx, ONNX_FP16)
    except (ModelError, OSError) as fault:
        raise BadInput(f"{onnx.name} cannot be used: {fault}") from fault
    task = {"do": "transport", "onnx": str(onnx), "out": str(out_dir / "transport.onnx"), "pictures": list(map(str, pictures))}
    result = _run(task, out_dir, threads, cancelled, lambda _: None)
    return FloatFile(Path(result["onnx"]), result["role"], result["reason"])


def quantise(
    onnx: Path,
    out_dir: Path,
    roles: Sequence[str],
    pictures: Sequence[Path],
    *,
    threads: int = 1,
    on_progress: Callable[[int, int], None] = lambda *_: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> QuantisedFiles:
    """Int8 files of a model, calibrated on pictures of the site; a second a picture at 640 pixels.

    Args:
        onnx: the float model, in transport form or not.
        out_dir: where the files go; made if missing.
        roles: `onnx-int8-ort`, `onnx-int8-openvino`.
        pictures: 64 to 128 of what the model will see, none of the evaluation set.
        threads: of the child.
        on_progress: called with pictures done and in all.
        cancelled: asked at least twice a second.

    Raises:
        As `to_transport_form`; `BadInput` also for a model that cannot be quantised.
    """
    task = {
        "do": "int8",
        "onnx": str(onnx),
        "out_dir": str(out_dir),
        "roles": list(roles),
        "pictures": list(map(str, pictures)),
    }
    result = _run(task, out_dir, threads, cancelled, lambda event: on_progress(event["done"], event["total"]))
    return QuantisedFiles({role: Path(path) for role, path in result["files"].items()}, result["left_out"])


def _run(
    task: dict[str, Any],
    out_dir: Path,
    threads: int,
    cancelled: Callable[[], bool],
    on_progress: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for event in run_child({**task, "threads": threads}, out_dir, threads, cancelled, _MODULE, "quantisation"):
        if event["event"] == "progress":
            on_progress(event)
        elif event["event"] == "result":
            result = event
    return result
