"""What choosing frames costs beside inference: CPU time of `Selector.judge` against a bare `session.run`, interleaved in one run.

In: nothing, or `--onnx` with a network of one's own; else a yolo11n with random weights is exported for the run (needs the extra
`train`). Out: a table, and the figure as a last line of JSON: the median over blocks of CPU time in `judge` over CPU time in
`session.run` (0.01 is one per cent; goal 0.004). The scene is 1280x720, the network 640x640, one thread; every frame has `--boxes`
detections with an embedding, the audit and all strategies of the default policy are on, encoding apart. Detections are made up,
since random weights see nothing: what is timed does not depend on their being right.

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
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import onnxruntime
from figure import report

from bowerbird_agent.capture import Frame
from bowerbird_agent.policy import Policy
from bowerbird_agent.select import Candidate, Selector
from bowerbird_models.detections import Detections
from bowerbird_models.scenes import SceneStream

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH, HEIGHT, NETWORK = 1280, 720, 640
EMBEDDING = 448  # length of a yolo11n's pooled features
_EXPORT = "from ultralytics import YOLO; YOLO('yolo11n.yaml').export(format='onnx', imgsz=640)"


GOAL = 0.004


def main() -> int:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="few blocks: about a minute with the export")
    arguments.add_argument("--onnx", type=Path, help="network to compare with, input (1, 3, 640, 640) float32")
    arguments.add_argument("--boxes", type=int, default=12, help="detections in each frame (default 12)")
    options = arguments.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        session = _session(options.onnx or _export(Path(folder)))
        result = _measure(
            session, options.boxes, blocks=5 if options.quick else 15, frames_per_block=8 if options.quick else 20
        )
    print(f"bare session.run  {result['inference_cpu_ms']:8.3f} ms CPU   {result['inference_wall_ms']:8.3f} ms wall")
    print(f"Selector.judge    {result['judge_cpu_ms']:8.3f} ms CPU   {result['judge_wall_ms']:8.3f} ms wall")
    value = result.pop("ratio")
    return report("scoring", value, GOAL, "CPU time of judge over bare session.run", at_least=False, details=result)


def _measure(session: onnxruntime.InferenceSession, boxes: int, *, blocks: int, frames_per_block: int) -> dict[str, Any]:
    street = SceneStream(1, width=WIDTH, height=HEIGHT)
    pictures = [street.render(10 * i + 3)[0] for i in range(frames_per_block)]
    rng = np.random.default_rng(1)
    selector = Selector(Policy(), device="benchmark")
    selector.expect(30)
    network_input = rng.random((1, 3, NETWORK, NETWORK), dtype=np.float32)
    name = session.get_inputs()[0].name

    # A full bank, a grown pool and a known background, as in a device that has been running.
    sequence = 0
    for _ in range(512 // 30 + 1):
        for _ in range(60):
            _judge(selector, pictures, sequence, _detections(rng, boxes))
            sequence += 10
        selector.close_window(frames_left=30, bytes_left=None)
    for _ in range(100):
        _judge(selector, pictures, sequence, _detections(rng, boxes))
        sequence += 1
    session.run(None, {name: network_input})

    inference: list[tuple[float, float]] = []
    judging: list[tuple[float, float]] = []
    for _ in range(blocks):
        run_times, judge_times = [], []
        for _ in range(frames_per_block):
            detections = _detections(rng, boxes)
            run_times.append(_timed(lambda: session.run(None, {name: network_input})))
            judge_times.append(_timed(partial(_judge, selector, pictures, sequence, detections)))
            sequence += 1
        inference.append(_mean(run_times))
        judging.append(_mean(judge_times))
    run_cpu, run_wall = (statistics.median(block[i] for block in inference) for i in (0, 1))
    judge_cpu, judge_wall = (statistics.median(block[i] for block in judging) for i in (0, 1))
    return {
        "ratio": round(statistics.median(j[0] / r[0] for j, r in zip(judging, inference, strict=True)), 5),
        "ratio_wall": round(judge_wall / run_wall, 5),
        "inference_cpu_ms": round(run_cpu, 3),
        "inference_wall_ms": round(run_wall, 3),
        "judge_cpu_ms": round(judge_cpu, 3),
        "judge_wall_ms": round(judge_wall, 3),
        "boxes": boxes,
        "blocks": blocks,
        "threads": 1,
    }


def _judge(selector: Selector, pictures: list[Any], sequence: int, detections: Detections) -> None:
    frame = Frame(pictures[sequence // 3 % len(pictures)], "gate", sequence, sequence * 100, sequence * 10**8)
    judgement = selector.judge(frame, detections)
    if judgement.admit:
        selector.add(Candidate(str(sequence), "gate", frame.captured_at_ms, judgement, 20_000))


def _detections(rng: np.random.Generator, boxes: int) -> Detections:
    corners = rng.uniform(0, 600, (boxes, 2))
    sizes = rng.uniform(20, 120, (boxes, 2))
    scores = np.sort(rng.beta(1, 2, boxes))[::-1]
    return Detections(
        np.hstack([corners, corners + sizes]).astype(np.float32),
        scores.astype(np.float32),
        rng.integers(0, 80, boxes).astype(np.int32),
        embedding=rng.normal(size=EMBEDDING).astype(np.float32),
    )


def _timed(call: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall milliseconds of one call; the session runs in the calling thread."""
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    call()
    return (time.process_time() - cpu_s) * 1000, (time.perf_counter() - wall_s) * 1000


def _mean(times: list[tuple[float, float]]) -> tuple[float, float]:
    return statistics.fmean(t[0] for t in times), statistics.fmean(t[1] for t in times)


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
