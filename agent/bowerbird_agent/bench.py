"""How long each stage of a frame takes on this machine: read, letterbox, inference, scoring, encoding.

In: a model and a source of frames. Out: `BenchResult` with percentiles per stage and the memory of the process. It compares nothing
with other software (the repository's `benchmarks/` do that) and needs neither broker nor configuration.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bowerbird_agent.capture import Source, open_camera
from bowerbird_agent.encode import encode_image
from bowerbird_agent.errors import SourceError
from bowerbird_agent.policy import Policy
from bowerbird_agent.select import Selector
from bowerbird_models.network_input import NetworkInput

if TYPE_CHECKING:
    from bowerbird_models.onnx_detector import OnnxDetector

_WARM_UP_FRAMES = 3
STAGES = ("read", "letterbox", "infer", "score", "encode")


@dataclass(frozen=True)
class StageTimes:
    """Milliseconds per frame."""

    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True)
class BenchResult:
    """What was measured.

    Args:
        stages: per stage; "infer" is the network and its head, without the letterbox.
        frames: measured, warm-up apart.
        fps: frames per second through letterbox, infer and score.
        source_wh, network_hw: pixels.
        peak_rss_mb: peak memory of the whole process.
        runtime: name and version.
    """

    stages: dict[str, StageTimes]
    frames: int
    fps: float
    source_wh: tuple[int, int]
    network_hw: tuple[int, int]
    peak_rss_mb: float
    runtime: str


def bench(detector: OnnxDetector, source: Source, *, frames: int = 100) -> BenchResult:
    """Run frames through every stage and measure.

    Raises:
        CameraError: the source gives nothing.
        ModelOutputError: the model fails.
    """
    policy = Policy()
    selector = Selector(policy, device="bench")
    camera = open_camera(source)
    times: dict[str, list[float]] = {stage: [] for stage in STAGES}
    network = NetworkInput(detector.image_size_hw, np.dtype(np.float32))
    size = (0, 0)
    try:
        for number in range(frames + _WARM_UP_FRAMES):
            marks = [time.perf_counter()]
            frame = camera.read()
            if frame is None:
                break
            marks.append(time.perf_counter())
            network.fill(frame.image_bgr)
            marks.append(time.perf_counter())
            detections = detector.detect(frame.image_bgr, confidence=policy.decode_confidence)
            marks.append(time.perf_counter())
            selector.judge(frame, detections)
            marks.append(time.perf_counter())
            encode_image(frame.image_bgr, long_side=640, quality=90)
            marks.append(time.perf_counter())
            if number < _WARM_UP_FRAMES:
                continue
            size = (frame.image_bgr.shape[1], frame.image_bgr.shape[0])
            read_s, letterbox_s, detect_s, score_s, encode_s = np.diff(marks)
            # `detect` fills its own input once more: what is left is the network and its head.
            values = (read_s, letterbox_s, max(0.0, detect_s - letterbox_s), score_s, encode_s)
            for stage, value in zip(STAGES, values, strict=True):
                times[stage].append(float(value) * 1000)
    finally:
        camera.close()
    if not times["read"]:
        raise SourceError(f"{source.text} gave no more than {_WARM_UP_FRAMES} frames; name a longer source")
    per_frame_ms = sum(float(np.median(times[stage])) for stage in ("letterbox", "infer", "score"))
    return BenchResult(
        {stage: StageTimes(*(float(np.percentile(values, q)) for q in (50, 95, 99))) for stage, values in times.items()},
        len(times["read"]),
        1000 / max(per_frame_ms, 1e-6),
        size,
        detector.image_size_hw,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        detector.runtime,
    )
