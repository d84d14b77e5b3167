"""The process that rewrites ONNX files: to the transport form, to int8. It needs the `train` extra (onnx), never Ultralytics or torch.

In: the path of a task in JSON, written by `quantise.py`; a standard input that stays open as long as the parent lives. Out: one JSON
object a line on standard output, ONNX files in the task's folder. A model may come from anywhere: it is parsed here, within limits
of memory and time, and what goes wrong becomes one line for the parent. Run as
`python -m bowerbird_server.quantisation.quantise_child TASK.json`; people use `bowerbird models quantise`.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from bowerbird_models.errors import ModelError
from bowerbird_models.golden import Tolerance, differences, golden_picture
from bowerbird_models.manifest import ONNX_FP16, ONNX_FP32
from bowerbird_models.model_file import ModelFile
from bowerbird_models.onnx_detector import OnnxDetector
from bowerbird_server.child_task import emit, run_task
from bowerbird_server.errors import BadInput, EnvironmentFault, ServerError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MEMORY_BYTES = 16 * 1024**3  # of address space, of which a calibration at 640 px uses an eighth
CPU_S = 4 * 3600
_CONFIDENCE = 0.05
_PROBES = 4


def _transport(task: dict[str, Any], events: TextIO) -> dict[str, Any]:
    """Write the model in transport form, if its detections stay within the tolerance; else leave it and say why."""
    del events
    onnx = _onnx()
    from bowerbird_server.quantisation.half_weights import has_half_weights, store_half

    source, target = Path(task["onnx"]), Path(task["out"])
    model = _load(source)
    half = store_half(model)
    if half is model:
        role = ONNX_FP16 if has_half_weights(model) else ONNX_FP32
        return {"onnx": str(source), "role": role, "reason": "it has no weights that could be stored as halves"}
    onnx.save(half, str(target))
    with OnnxDetector(source, threads=task["threads"]) as before, OnnxDetector(target, threads=task["threads"]) as after:
        for picture in task["pictures"][:_PROBES] or [None]:
            image = golden_picture(before, None if picture is None else Path(picture))
            wrong = differences(
                before.detect(image, confidence=_CONFIDENCE), after.detect(image, confidence=_CONFIDENCE), Tolerance()
            )
            if wrong:
                target.unlink()
                reason = f"weights in half precision would change its detections ({wrong[0]})"
                return {"onnx": str(source), "role": ONNX_FP32, "reason": reason}
    return {"onnx": str(target), "role": ONNX_FP16, "reason": ""}


def _int8(task: dict[str, Any], events: TextIO) -> dict[str, Any]:
    """Calibrate once and write a file for each role; a role that cannot be made is left out with the reason."""
    onnx = _onnx()
    from bowerbird_server.quantisation.calibration import activation_ranges
    from bowerbird_server.quantisation.int8_files import INT8, prepare

    out_dir, pictures = Path(task["out_dir"]), task["pictures"]
    model = _load(Path(task["onnx"]))
    prepared = prepare(model)
    ranges = activation_ranges(
        prepared,
        _network_inputs(Path(task["onnx"]), [Path(each) for each in pictures]),
        threads=task["threads"],
        on_progress=lambda done: emit(events, event="progress", done=done, total=len(pictures)),
    )
    files: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for role in task["roles"]:
        target = out_dir / f"{role}.onnx"
        try:
            onnx.save(INT8[role](prepared, ranges, model), str(target))
        except ServerError as fault:
            left_out[role] = str(fault)
        else:
            files[role] = str(target)
    return {"files": files, "left_out": left_out}


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise EnvironmentFault(
            f"rewriting ONNX files needs the `train` extra ({error}); install it: pip install 'bowerbird[train]'"
        ) from error
    return onnx


def _load(path: Path) -> Any:
    """A model whose bytes were checked: no weights in other files, which onnx would open wherever they lie."""
    try:
        content = ModelFile.read(path).content
    except (ModelError, OSError) as fault:
        raise BadInput(f"{path.name} cannot be used: {fault}") from fault
    return _onnx().load_from_string(content)


def _network_inputs(model: Path, pictures: Sequence[Path]) -> Iterator[NDArray[np.float32]]:
    """The pictures as the network gets them, each in the same buffer."""
    import cv2
    import numpy as np

    from bowerbird_models.classifier_input import ClassifierInput
    from bowerbird_models.network_input import NetworkInput

    with OnnxDetector(model) as detector:
        size_hw, is_classifier = detector.image_size_hw, detector.task == "classify"
    buffer = ClassifierInput(size_hw, np.dtype(np.float32)) if is_classifier else NetworkInput(size_hw, np.dtype(np.float32))
    for path in pictures:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise BadInput(f"cannot read the calibration picture {path}; restore it or take the frame out of the data set")
        buffer.fill(np.asarray(image, np.uint8))
        yield buffer.tensor


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    sys.exit(run_task(sys.argv[1:], {"transport": _transport, "int8": _int8}, "quantisation"))
