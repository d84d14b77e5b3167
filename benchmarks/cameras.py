"""Four cameras, one model: how old frames are when inference starts, and what four cost against one.

    python benchmarks/cameras.py [--quick] [--video film.avi] [--onnx model.onnx] [--fps 15]

In: nothing; a yolo11n at 640 with random weights is exported for the run (extra `train`) unless `--onnx` names a model, and a film of
synthetic scenes of 768x576 is written unless `--video` names one. Out: the figure as a last line of JSON: frames per second judged with
four cameras over frames per second with one, the median over pairs of runs by turns (goal: at least 0.95). Each run is a process of its
own with the real capture threads (films at `pace = realtime`, so the newest frame wins), the real exchange and the real inference loop;
one camera alone is already faster than the model. For `ok`, at least 99.9 % of the frames judged must be at most two frame intervals
old when inference starts, with four cameras as with one; frames that a newer one replaced are counted (`dropped`), and
taken = judged + dropped + waiting must hold. One thread for the model; capture threads may use the other cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from figure import report
from street import exported_yolo11n, street_film

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bowerbird_models.detections import Detections

GOAL, FRESH_GOAL = 0.95, 0.999


def main() -> int:
    """Parent: one process a run, by turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute instead of several")
    parser.add_argument("--video", type=Path, help="film to show instead of synthetic scenes")
    parser.add_argument("--onnx", type=Path, help="model to run instead of random weights")
    parser.add_argument("--fps", type=float, default=15.0, help="pace of each camera (default 15)")
    parser.add_argument("--run", nargs=4, metavar=("CAMERAS", "FILM", "ONNX", "SECONDS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run is not None:
        cameras, film, model, seconds = options.run
        print(json.dumps(run(int(cameras), film, Path(model), options.fps, float(seconds))))
        return 0
    seconds, pairs = (8.0, 2) if options.quick else (40.0, 5)
    runs: dict[int, list[dict[str, Any]]] = {1: [], 4: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        film = options.video or street_film(folder / "street.avi")
        model = options.onnx or exported_yolo11n(folder)
        for pair in range(pairs):
            for cameras in (1, 4) if pair % 2 == 0 else (4, 1):
                command = [sys.executable, __file__, "--fps", str(options.fps), "--run", str(cameras), str(film)]
                child = subprocess.run(
                    [*command, str(model), str(seconds)], stdout=subprocess.PIPE, text=True, timeout=600, check=True
                )
                found = json.loads(child.stdout.splitlines()[-1])
                runs[cameras].append(found)
                print(f"{cameras} camera(s): {found}", flush=True)
    value = statistics.median(four["judged_per_s"] / one["judged_per_s"] for one, four in zip(runs[1], runs[4], strict=True))
    judged = sum(each["judged"] for each in runs[4])
    fresh = {count: sum(r["fresh"] for r in some) / sum(r["judged"] for r in some) for count, some in runs.items()}
    balanced = all(each["taken"] == each["judged"] + each["dropped"] + each["waiting"] for each in runs[1] + runs[4])
    details = {
        "fresh_share": {str(count): round(share, 5) for count, share in fresh.items()},
        "fresh_goal": FRESH_GOAL,
        "taken_is_judged_dropped_and_waiting": balanced,
        "judged_with_four": judged,
        "oldest_in_intervals": max(each["oldest_intervals"] for each in runs[4]),
        "judged_per_s": {str(count): [round(r["judged_per_s"], 2) for r in some] for count, some in runs.items()},
        "dropped": {str(count): [r["dropped"] for r in some] for count, some in runs.items()},
        "by_camera": runs[4][-1]["by_camera"],
        "fps": options.fps,
        "threads": 1,
    }
    also = balanced and min(fresh.values()) >= FRESH_GOAL
    return report("cameras", value, GOAL, "throughput of four cameras over one's", at_least=True, details=details, also=also)


class Watched:
    """A detector beside which somebody notes when it was called."""

    def __init__(self, detector: Any) -> None:
        self._detector = detector
        self.class_names, self.file_digest = detector.class_names, detector.file_digest
        self.started_ns = 0

    def detect(self, image_bgr: NDArray[np.uint8], *, confidence: float = 0.05, iou: float = 0.7) -> Detections:
        """As the detector's own."""
        self.started_ns = time.monotonic_ns()
        found: Detections = self._detector.detect(image_bgr, confidence=confidence, iou=iou)
        return found


def run(cameras: int, film: str, model: Path, fps: float, seconds: float) -> dict[str, Any]:
    """Child: capture threads, exchange and inference loop, for a while."""
    from bowerbird_agent.capture.camera_config import CameraConfig
    from bowerbird_agent.capture.capture import Frame
    from bowerbird_agent.capture.exchange import FrameExchange
    from bowerbird_agent.capture.worker import CaptureWorker
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

    cv2.setNumThreads(1)
    configs = [CameraConfig(f"cam-{number}", film, fps=fps, loop=True) for number in range(cameras)]
    dropped: dict[str, int] = {config.name: 0 for config in configs}
    judged: dict[str, int] = {config.name: 0 for config in configs}
    taken: dict[str, int] = {config.name: 0 for config in configs}
    measuring = threading.Event()

    class Exchange(FrameExchange):
        """The real one; notes what goes in and what comes out."""

        newest: Frame | None = None

        def put_newest(self, frame: Frame) -> None:
            if measuring.is_set():
                taken[frame.camera] += 1
            super().put_newest(frame)

        def take(self, timeout_s: float) -> Frame | None:
            self.newest = super().take(timeout_s)
            return self.newest

    def drop(camera: str) -> None:
        if measuring.is_set():
            dropped[camera] += 1

    counters = Counters()
    encoder = FrameEncoder(ImageConfig(), device="benchmark", boot_id="boot")
    exchange = Exchange(drop)
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder) / "spool", max_bytes=500_000_000)
        storing = StoringThread(spool, counters, encoder)
        inference = Inference(
            exchange,
            storing,
            Selector(Policy(), device="benchmark", cameras=cameras),
            encoder=encoder,
            counters=counters,
            seen={config.name: SeenFrames(config, counters) for config in configs},
            decode_confidence=0.05,
            encode_everything=False,
        )
        watched = Watched(OnnxDetector(model))
        threading.Thread(target=lambda: inference.swap_model(LoadedModel(watched, "f" * 64)), daemon=True).start()
        while not inference.model_digest:
            inference.step(timeout_s=0.01)
        workers = [CaptureWorker(config, exchange) for config in configs]
        threads = [threading.Thread(target=worker.run, daemon=True) for worker in workers]
        threads.append(threading.Thread(target=storing.run, daemon=True))
        for thread in threads:
            thread.start()
        started_s = time.monotonic()
        while time.monotonic() - started_s < 2:
            inference.step(timeout_s=0.5)
        while not exchange.is_empty:  # nothing from before is counted
            exchange.take(0.0)
        measuring.set()
        ages: list[float] = []
        started_s = time.monotonic()
        while time.monotonic() - started_s < seconds:
            if inference.step(timeout_s=0.5) and exchange.newest is not None:
                judged[exchange.newest.camera] += 1
                ages.append((watched.started_ns - exchange.newest.monotonic_ns) / 1e9 * fps)
        took_s = time.monotonic() - started_s
        for worker in workers:
            worker.stop()
        for thread in threads[:-1]:
            thread.join(10)
        waiting = 0
        while not exchange.is_empty:
            exchange.take(0.0)
            waiting += 1
        storing.stop()
        threads[-1].join(20)
        spool.close()
    return {
        "judged": len(ages),
        "judged_per_s": len(ages) / took_s,
        "fresh": sum(age <= 2 for age in ages),
        "oldest_intervals": round(max(ages), 2),
        "taken": sum(taken.values()),
        "dropped": sum(dropped.values()),
        "waiting": waiting,
        "by_camera": judged,
    }


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
