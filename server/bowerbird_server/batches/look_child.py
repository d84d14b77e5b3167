"""The process that looks at received frames with a model: foreign pictures and a heavy network, within limits.

In: the path of a task in JSON, written by `looking.py`; a standard input that stays open as long as the parent lives. Out:
`looks.npz` in the task's folder, one row a frame, and JSON lines of progress. A picture that cannot be read gives an empty row, so
that it is not tried again. Run as `python -m bowerbird_server.batches.look_child TASK.json`.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np
from numpy.typing import NDArray

from bowerbird_models.detections import Detections
from bowerbird_models.detector import Detector
from bowerbird_models.errors import ModelError
from bowerbird_models.runtimes import RuntimeOptions, open_model
from bowerbird_models.score_calibration import ScoreCalibration
from bowerbird_server.batches.rescoring import Seen, disagreement, doubt
from bowerbird_server.child_task import emit, run_task
from bowerbird_server.errors import BadInput
from bowerbird_wire.calibration_table import decode
from bowerbird_wire.thumbnail import SIDE_PX, THUMBNAIL_BYTES

MEMORY_BYTES = 8 * 1024**3  # of address space
CPU_S = 2 * 3600
DECODE_CONFIDENCE = 0.05  # as devices do: the band up to 0.25 holds the misses
SHOWN_CONFIDENCE = 0.25


def look(task: dict[str, Any], events: TextIO) -> dict[str, Any]:
    """Look at every frame of the task; with `model` empty at the pixels alone."""
    frames = task["frames"]
    rows: list[dict[str, Any]] = []
    table = bytes.fromhex(task["calibration"])
    calibration = ScoreCalibration(decode(table)) if table else None
    with contextlib.ExitStack() as stack:
        detector: Detector | None = None
        if task["model"]:
            try:
                detector = stack.enter_context(
                    open_model(Path(task["model"]), RuntimeOptions("onnxruntime-cpu", threads=task["threads"]))
                )
            except ModelError as fault:
                raise BadInput(f"the model that shall look at frames cannot be used: {fault}") from fault
        for done, frame in enumerate(frames, start=1):
            rows.append(_row(frame, detector, calibration, is_teacher=task["is_teacher"]))
            if done % 16 == 0 or done == len(frames):
                emit(events, event="progress", done=done, total=len(frames))
    path = Path(task["out_dir"]) / "looks.npz"
    sizes = {len(row["embedding"]) for row in rows if row["embedding"] is not None}
    size = sizes.pop() if len(sizes) == 1 else 0
    np.savez(
        path,
        luma=np.stack([row["luma"] for row in rows]),
        readable=np.array([row["readable"] for row in rows], np.bool_),
        embedding=np.stack([np.zeros(size) if row["embedding"] is None or not size else row["embedding"] for row in rows]),
        doubt=np.array([np.nan if row["doubt"] is None else row["doubt"] for row in rows], np.float64),
        boxes=np.array([row["boxes"] for row in rows], np.float64),
        class_names=np.array([json.dumps(row["class_names"]) for row in rows]),
    )
    return {"looks": str(path)}


def _row(
    frame: dict[str, Any], detector: Detector | None, calibration: ScoreCalibration | None, *, is_teacher: bool
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "luma": np.zeros(THUMBNAIL_BYTES, np.uint8),
        "readable": False,
        "embedding": None,
        "doubt": None,
        "boxes": float(sum(score >= SHOWN_CONFIDENCE for _, score, _ in frame["seen"])),
        "class_names": sorted({name for _, score, name in frame["seen"] if score >= SHOWN_CONFIDENCE}),
    }
    image = cv2.imread(frame["path"], cv2.IMREAD_COLOR)
    if image is None:
        return row
    gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    row["readable"] = True
    row["luma"] = cv2.resize(gray, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA).reshape(-1)
    if detector is None:
        return row
    found = detector.detect(image.astype(np.uint8, copy=False), confidence=DECODE_CONFIDENCE)
    names = [detector.class_names[i] for i in found.class_ids.tolist()]
    row["embedding"] = _unit(found)
    row["doubt"] = doubt(found, calibration)
    shown = found.scores >= SHOWN_CONFIDENCE
    row["boxes"] = float(shown.sum())
    row["class_names"] = sorted({name for name, is_shown in zip(names, shown.tolist(), strict=True) if is_shown})
    if is_teacher:
        teacher = [
            Seen(tuple(box), float(score), name)
            for box, score, name in zip(found.boxes_xyxy.tolist(), found.scores.tolist(), names, strict=True)
        ]
        device = [Seen(tuple(box), float(score), str(name)) for box, score, name in frame["seen"]]
        row["doubt"] = disagreement(teacher, device)
    return row


def _unit(found: Detections) -> NDArray[np.float32] | None:
    """The embedding at length 1; None for none, or for one that says nothing."""
    if found.embedding is None:
        return None
    length = float(np.linalg.norm(found.embedding))
    return None if not np.isfinite(length) or length < 1e-12 else (found.embedding / length).astype(np.float32)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    sys.exit(run_task(sys.argv[1:], {"look": look}, "look at frames"))
