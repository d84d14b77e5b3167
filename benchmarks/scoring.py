"""What choosing frames costs beside inference: CPU time added to a device's frame against a bare `session.run`, in one run.

In: nothing, or `--onnx` with a network of one's own; else a yolo11n with random weights is exported for the run (needs the extra
`train`). Out: a table, and the figure as a last line of JSON: the median over blocks of the CPU time that choosing adds over that
of `session.run` (0.01 is one per cent; goal 0.004, without embeddings 0.015). The scene is 1280x720, the network 640x640, one
thread; every frame has `--boxes` detections, the audit and all strategies of the default policy are on, scores are calibrated,
encoding apart.

Each frame goes the device's way: pixels into the network's input, the network, its head decoded, the frame judged. Frames with
and without choosing take turns. What is added is a glance at the picture beforehand, `judge`, and what the glance changes in filling
the input: less than nothing, since it leaves pixels in the processor's cache. The sum counts. Detections are made up, since random
weights see nothing: what is timed does not depend on their being right. Every picture has been pushed out of the cache by the
network's last run before it is looked at.

    python benchmarks/scoring.py --quick
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np
import onnxruntime
from figure import report

from bowerbird_agent.capture.capture import Frame
from bowerbird_agent.selection.gate import glance
from bowerbird_agent.selection.policy import Policy
from bowerbird_agent.selection.select import Candidate, Selector
from bowerbird_models.decode import HeadLayout
from bowerbird_models.detections import Detections
from bowerbird_models.head import kept_boxes
from bowerbird_models.network_input import NetworkInput
from bowerbird_models.scenes import SceneStream
from bowerbird_models.score_calibration import ScoreCalibration
from bowerbird_wire.calibration_table import MODEL_BYTES, CalibrationTable, ClassCalibration, middles

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

WIDTH, HEIGHT, NETWORK = 1280, 720, 640
EMBEDDING = 448  # length of a yolo11n's pooled features
_EXPORT = "from ultralytics import YOLO; YOLO('yolo11n.yaml').export(format='onnx', imgsz=640)"


GOAL, GOAL_WITHOUT_EMBEDDINGS = 0.004, 0.015
_PARTS = ("session.run", "fill without a glance", "glance", "fill after a glance", "judge", "added")
_T = TypeVar("_T")


def main() -> int:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="few blocks: about a minute with the export")
    arguments.add_argument("--onnx", type=Path, help="network to compare with, input (1, 3, 640, 640) float32")
    arguments.add_argument("--boxes", type=int, default=12, help="detections in each frame (default 12)")
    arguments.add_argument("--without-embeddings", action="store_true", help="as a model exported without them")
    options = arguments.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        device = _Device(
            _session(options.onnx or _export(Path(folder))), options.boxes, embedding=not options.without_embeddings
        )
        result = device.measure(blocks=5 if options.quick else 25, frames_per_block=8 if options.quick else 20)
    for part in _PARTS:
        print(f"{part:24s} {result[part + '_ms']:8.4f} ms CPU")
    value = result.pop("ratio")
    goal = GOAL_WITHOUT_EMBEDDINGS if options.without_embeddings else GOAL
    return report("scoring", value, goal, "CPU time of choosing over bare session.run", at_least=False, details=result)


class _Device:
    """A selector that has been running for a while, and what a frame goes through around it."""

    def __init__(self, session: onnxruntime.InferenceSession, boxes: int, *, embedding: bool) -> None:
        self._session, self._boxes, self._embedding = session, boxes, embedding
        self._name = session.get_inputs()[0].name
        self._classes = session.get_outputs()[0].shape[1] - 4
        self._network = NetworkInput((NETWORK, NETWORK), np.dtype(np.float32))
        street = SceneStream(1, width=WIDTH, height=HEIGHT)
        self._pictures = [street.render(10 * i + 3)[0] for i in range(20)]
        self._rng = np.random.default_rng(1)
        self._selector = Selector(Policy(), device="benchmark")
        self._selector.expect(30)
        # As after an evaluation that knew every class: a table that moves every score.
        one = ClassCalibration(tuple(0.9 * p for p in middles()), 1.1)
        self._selector.use(ScoreCalibration(CalibrationTable(bytes(MODEL_BYTES), dict.fromkeys(range(80), one))))
        self._sequence = 0
        # A full bank, a grown pool and a known background, as in a device that has been running.
        for _ in range(512 // 30 + 1):
            for _ in range(60):
                self._judge(self._frame(step=10), self._detections(), None)
            self._selector.close_window(frames_left=30, bytes_left=None)
        for _ in range(100):
            self._judge(self._frame(), self._detections(), None)
        self._infer(self._frame(), {})

    def measure(self, *, blocks: int, frames_per_block: int) -> dict[str, Any]:
        """CPU milliseconds of each part, medians over blocks of the means in a block; and their ratio."""
        rows: list[dict[str, float]] = []
        for _ in range(blocks):
            sums = dict.fromkeys(_PARTS, 0.0)
            for turn in range(frames_per_block):
                frame, detections = self._frame(), self._detections()
                bare: dict[str, float] = {}
                chosen: dict[str, float] = {}
                # The second of the two may find some of the picture where the first has left it.
                if turn % 2:
                    self._infer(frame, bare)
                thumb = _timed(chosen, "glance", partial(glance, frame.image_bgr))
                self._infer(frame, chosen)
                _timed(chosen, "judge", partial(self._judge, frame, detections, thumb))
                if turn % 2 == 0:
                    self._infer(frame, bare)
                sums["session.run"] += (bare["session.run"] + chosen["session.run"]) / 2
                sums["fill without a glance"] += bare["fill"]
                sums["fill after a glance"] += chosen["fill"]
                sums["glance"] += chosen["glance"]
                sums["judge"] += chosen["judge"]
            sums["added"] = sums["glance"] + sums["judge"] + sums["fill after a glance"] - sums["fill without a glance"]
            rows.append({part: sums[part] / frames_per_block for part in _PARTS})
        return {
            "ratio": round(statistics.median(row["added"] / row["session.run"] for row in rows), 5),
            "ratio_without_credit": round(
                statistics.median((row["glance"] + row["judge"]) / row["session.run"] for row in rows), 5
            ),
            **{part + "_ms": round(statistics.median(row[part] for row in rows), 4) for part in _PARTS},
            "boxes": self._boxes,
            "embedding": self._embedding,
            "blocks": blocks,
            "frames": blocks * frames_per_block,
            "threads": 1,
        }

    def _infer(self, frame: Frame, times_ms: dict[str, float]) -> None:
        letterbox = _timed(times_ms, "fill", partial(self._network.fill, frame.image_bgr))
        feed = {self._name: self._network.tensor}
        outputs = _timed(times_ms, "session.run", lambda: self._session.run(None, feed))
        kept = kept_boxes(outputs[0], HeadLayout.RAW, self._classes, extra_count=0, confidence=0.05, iou=0.7)
        letterbox.to_source(kept.boxes)

    def _judge(self, frame: Frame, detections: Detections, thumb: NDArray[np.uint8] | None) -> None:
        judgement = self._selector.judge(frame, detections, thumb)
        if judgement.admit:
            self._selector.add(Candidate(str(frame.sequence), "gate", frame.captured_at_ms, judgement, 20_000))

    def _frame(self, step: int = 1) -> Frame:
        self._sequence += step
        number = self._sequence
        return Frame(self._pictures[number // 3 % len(self._pictures)], "gate", number, number * 100, number * 10**8)

    def _detections(self) -> Detections:
        rng, boxes = self._rng, self._boxes
        corners = rng.uniform(0, 600, (boxes, 2))
        sizes = rng.uniform(20, 120, (boxes, 2))
        scores = np.sort(rng.beta(1, 2, boxes))[::-1]
        return Detections(
            np.hstack([corners, corners + sizes]).astype(np.float32),
            scores.astype(np.float32),
            rng.integers(0, 80, boxes).astype(np.int32),
            embedding=rng.normal(size=EMBEDDING).astype(np.float32) if self._embedding else None,
        )


def _timed(times_ms: dict[str, float], part: str, call: Callable[[], _T]) -> _T:
    """What a call gives; its CPU milliseconds are noted. The session runs in the calling thread."""
    start_s = time.process_time()
    result = call()
    times_ms[part] = (time.process_time() - start_s) * 1000
    return result


def _session(onnx: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])


def _export(folder: Path) -> Path:
    offline = {"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "0", "OMP_NUM_THREADS": "1", "YOLO_CONFIG_DIR": str(folder)}
    child = subprocess.run(
        [sys.executable, "-c", _EXPORT], cwd=folder, env={**os.environ, **offline}, capture_output=True, text=True, check=False
    )
    if child.returncode != 0:
        sys.exit(f"could not export yolo11n; install the extra 'train' or pass --onnx FILE\n{child.stderr[-500:]}")
    return folder / "yolo11n.onnx"


if __name__ == "__main__":
    sys.exit(main())
