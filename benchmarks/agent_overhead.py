"""What the agent adds to detection: gate, scores, choice, encoding of what is kept, hand-over to the spool.

    python benchmarks/agent_overhead.py [--quick] [--video film.avi] [--onnx model.onnx]

In: nothing; a yolo11n at 640 with random weights is exported for the run (extra `train`) unless `--onnx` names a model, and synthetic
scenes of 768x576 are shown unless `--video` names a film. Out: the figure as a last line of JSON: of the wall time that the
inference thread spends on a frame, the share outside `Detector.detect`; the median over blocks (goal: at most 0.03). The real
inference loop runs with the real selector, a spool on disk and its thread; films are decoded before. Beside it, in blocks by turns in
the same process, a bare `session.run`: `details.tail` is p99/p50 of a frame through the agent over p99/p50 of the bare run, at most 1.1
for `ok`. One thread, one core for inference; the spool thread shares it, as on a board of one core.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from figure import report
from street import FRAME_WH, exported_yolo11n

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bowerbird_models.detections import Detections
    from bowerbird_models.detector import Detector

GOAL, TAIL_GOAL = 0.03, 1.1


class Timed:
    """A detector that adds up the wall time spent in it."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self.class_names, self.file_digest = detector.class_names, detector.file_digest
        self.seconds = 0.0

    def detect(self, image_bgr: NDArray[np.uint8], *, confidence: float = 0.05, iou: float = 0.7) -> Detections:
        """As the detector's own."""
        started_s = time.perf_counter()
        try:
            return self._detector.detect(image_bgr, confidence=confidence, iou=iou)
        finally:
            self.seconds += time.perf_counter() - started_s


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute instead of several")
    parser.add_argument("--video", type=Path, help="film to show instead of synthetic scenes")
    parser.add_argument("--onnx", type=Path, help="model of 640 pixels to run instead of random weights")
    options = parser.parse_args()
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[-1]})
    cv2.setNumThreads(1)
    blocks, frames_a_block = (8, 20) if options.quick else (40, 50)
    with tempfile.TemporaryDirectory() as folder:
        model = options.onnx or exported_yolo11n(Path(folder))
        result = measure(model, _pictures(options.video, 60), Path(folder), blocks=blocks, frames_a_block=frames_a_block)
    value = result.pop("share")
    ok = result["tail"] <= TAIL_GOAL
    return report(
        "agent-overhead", value, GOAL, "share of a frame's wall time outside detection", at_least=False, details=result, also=ok
    )


def measure(
    model: Path, pictures: list[NDArray[np.uint8]], folder: Path, *, blocks: int, frames_a_block: int
) -> dict[str, Any]:
    """Blocks of the agent's loop and of the bare run, by turns."""
    import onnxruntime

    from bowerbird_agent.capture.camera_config import CameraConfig
    from bowerbird_agent.capture.capture import Frame
    from bowerbird_agent.capture.exchange import FrameExchange
    from bowerbird_agent.health.counters import Counters, SeenFrames
    from bowerbird_agent.inference.detecting import LoadedModel
    from bowerbird_agent.inference.inference import Inference
    from bowerbird_agent.selection.policy import Policy
    from bowerbird_agent.selection.select import Selector
    from bowerbird_agent.spool.spool import Spool
    from bowerbird_agent.storing.encode import FrameEncoder
    from bowerbird_agent.storing.storing import StoringThread
    from bowerbird_agent.storing.storing_config import ImageConfig
    from bowerbird_models.onnx_detector import OnnxDetector

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    tensor = np.random.default_rng(0).random(session.get_inputs()[0].shape, np.float32)

    counters = Counters()
    encoder = FrameEncoder(ImageConfig(), device="benchmark", boot_id="boot")
    exchange = FrameExchange(lambda _: None)
    spool = Spool(folder / "spool", max_bytes=500_000_000)
    storing = StoringThread(spool, counters, encoder)
    inference = Inference(
        exchange,
        storing,
        Selector(Policy(), device="benchmark"),
        encoder=encoder,
        counters=counters,
        seen={"gate": SeenFrames(CameraConfig("gate", "film.avi", loop=True), counters)},
        decode_confidence=0.05,
        encode_everything=False,
    )
    detector = Timed(OnnxDetector(model))
    threading.Thread(target=lambda: inference.swap_model(LoadedModel(detector, "f" * 64)), daemon=True).start()
    while not inference.model_digest:
        inference.step(timeout_s=0.01)
    thread = threading.Thread(target=storing.run, daemon=True)
    thread.start()

    sequence = 0

    def through_the_agent() -> float:
        nonlocal sequence
        picture = pictures[sequence % len(pictures)]
        exchange.put_newest(Frame(picture, "gate", sequence, sequence * 100, time.monotonic_ns()))
        sequence += 1
        started_s = time.perf_counter()
        inference.step(timeout_s=1.0)
        return time.perf_counter() - started_s

    def bare() -> float:
        started_s = time.perf_counter()
        session.run(None, {name: tensor})
        return time.perf_counter() - started_s

    for _ in range(5):
        through_the_agent()
        bare()
    shares, agent_s, bare_s = [], [], []
    for block in range(blocks):
        for arm in ("agent", "bare") if block % 2 == 0 else ("bare", "agent"):
            if arm == "bare":
                bare_s += [bare() for _ in range(frames_a_block)]
            else:
                detector.seconds = 0.0
                times = [through_the_agent() for _ in range(frames_a_block)]
                agent_s += times
                shares.append(1 - detector.seconds / sum(times))
    storing.stop()
    thread.join(20)
    kept = counters.value("frames_scored"), sum(spool.counts().values())
    spool.close()
    return {
        "share": statistics.median(shares),
        "tail": round(_tail(agent_s) / _tail(bare_s), 3),
        "tail_goal": TAIL_GOAL,
        "agent_ms_p50": round(statistics.median(agent_s) * 1000, 2),
        "bare_ms_p50": round(statistics.median(bare_s) * 1000, 2),
        "tails": {"agent": round(_tail(agent_s), 3), "bare": round(_tail(bare_s), 3)},
        "frames": len(agent_s),
        "frames_scored_and_kept": kept,
        "blocks": blocks,
        "threads": 1,
    }


def _tail(seconds: list[float]) -> float:
    return float(np.percentile(seconds, 99) / np.percentile(seconds, 50))


def _pictures(video: Path | None, count: int) -> list[NDArray[np.uint8]]:
    if video is None:
        from bowerbird_models.scenes import SceneStream

        street = SceneStream(1, width=FRAME_WH[0], height=FRAME_WH[1])
        return [street.render(number)[0] for number in range(count)]
    capture = cv2.VideoCapture(str(video))
    pictures = []
    while len(pictures) < count:
        decoded, image = capture.read()
        if not decoded:
            break
        pictures.append(np.asarray(image, np.uint8))
    if not pictures:
        sys.exit(f"{video} cannot be read; name a film that OpenCV reads")
    return pictures


if __name__ == "__main__":
    sys.exit(main())
