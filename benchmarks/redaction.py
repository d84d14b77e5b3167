"""What redaction costs for a frame that is kept: CPU time of encoding with it over encoding without, interleaved in one run.

In: nothing. Out: a table of the three methods, and the figure as a last line of JSON: the median over blocks of CPU time with solid
fill over CPU time without redaction (1.0 is free; goal 1.25). The scene is 1280x720, sent at 640, with `--people` of 60 x 140 pixels.
Detection is not in it: redaction uses what the model has found anyway, and only frames that are kept are redacted.

    python benchmarks/redaction.py --quick
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING

import cv2
import numpy as np
from figure import report

from bowerbird_agent.capture.camera_config import REDACTION_METHODS, RedactConfig
from bowerbird_agent.storing.encode import encode_image
from bowerbird_agent.storing.redaction import Redactor
from bowerbird_models.detections import Detections
from bowerbird_models.scenes import SceneStream

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDTH, HEIGHT, LONG_SIDE, QUALITY = 1280, 720, 640, 90
GOAL = 1.25


def main() -> int:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="few blocks")
    arguments.add_argument("--people", type=int, default=4, help="objects redacted in each frame (default 4)")
    options = arguments.parse_args()
    cv2.setNumThreads(1)
    street = SceneStream(1, width=WIDTH, height=HEIGHT)
    pictures = [street.render(10 * i + 3)[0] for i in range(10)]
    seen = _people(options.people)
    redactors = {method: Redactor("gate", RedactConfig(("person",), method)) for method in REDACTION_METHODS}
    ratios: dict[str, list[float]] = {method: [] for method in redactors}
    bare_ms = []
    for _ in range(5 if options.quick else 25):
        bare_s = _cpu_s(pictures, None, seen)
        bare_ms.append(bare_s / len(pictures) * 1000)
        for method, redactor in redactors.items():
            ratios[method].append(_cpu_s(pictures, redactor, seen) / bare_s)
    found = {method: statistics.median(values) for method, values in ratios.items()}
    print(f"without redaction  {statistics.median(bare_ms):7.3f} ms CPU a frame")
    for method, ratio in found.items():
        print(f"{method:10}         {ratio:7.3f} times as much")
    details = {"people": options.people, **{f"ratio_{method}": ratio for method, ratio in found.items()}}
    return report(
        "redaction", found["fill"], GOAL, "CPU time of encoding with fill over without", at_least=False, details=details
    )


def _people(count: int) -> Detections:
    rng = np.random.default_rng(1)
    corners = np.stack([rng.uniform(0, WIDTH - 60, count), rng.uniform(0, HEIGHT - 140, count)], axis=1).astype(np.float32)
    boxes = np.concatenate([corners, corners + np.array([60, 140], np.float32)], axis=1)
    return Detections(boxes, np.full(count, 0.5, np.float32), np.zeros(count, np.int32))


def _cpu_s(pictures: list[NDArray[np.uint8]], redactor: Redactor | None, seen: Detections) -> float:
    started_s = time.process_time()
    for picture in pictures:
        image = picture if redactor is None else redactor.apply(picture, seen, ("person",))[0]
        encode_image(image, long_side=LONG_SIDE, quality=QUALITY)
    return time.process_time() - started_s


if __name__ == "__main__":
    raise SystemExit(main())
