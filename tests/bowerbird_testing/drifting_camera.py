"""A camera whose hours are drawn at random: a day's rhythm, correlated frames, and on demand a drift, a change of light or a fault.

In: a seed and an hour. Out: `CameraHour`s as a device would count them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from bowerbird_agent.health.hour_counts import HourCounts
from bowerbird_models.detections import Detections
from bowerbird_wire.histograms import HOUR_MS, CameraHour

BEGIN_MS = 500_000 * HOUR_MS
MODEL = bytes(range(8))


@dataclass(frozen=True)
class DriftingCamera:
    """Draws hours, each once.

    Args:
        frames: in an hour; objects stay for twenty of them, as they do in front of a camera.
    """

    seed: int = 0
    name: str = "gate"
    frames: int = 600

    @lru_cache(maxsize=2000)  # noqa: B019 - a handful of cameras in a test run
    def hour(
        self,
        number: int,
        *,
        score_shift: float = 0.0,
        rate: float = 1.0,
        light: float = 0.0,
        fault: str = "",
        model: bytes = MODEL,
        class_id: int | None = None,
    ) -> CameraHour:
        """The hour of this number since the begin.

        Args:
            score_shift: added to every score; rate: factor on how many objects there are; light: gray levels added.
            fault: what is wrong with the camera all the time.
        """
        rng = np.random.default_rng([self.seed, number])
        at_ms = BEGIN_MS + number * HOUR_MS
        hour = HourCounts(self.name, model, 5, at_ms, clock_ok=True)
        day = 0.5 + 0.5 * np.sin(2 * np.pi * (number % 24) / 24)
        busy = float(rng.gamma(8, 1 / 8))  # some hours are busier than others
        for block in range(self.frames // 20):
            objects = int(rng.poisson(rate * busy * (0.5 + 2 * day)))
            scores = rng.beta(6, 2, objects)
            sides = rng.uniform(20, 120, objects)
            classes = rng.choice([0, 1, 2], objects, p=[0.7, 0.25, 0.05]) if class_id is None else np.full(objects, class_id)
            for frame in range(20):
                shown_ms = at_ms + (block * 20 + frame) * 1000
                if fault:
                    hour.add_unwell(fault, shown_ms)
                    continue
                now = np.clip(scores + score_shift + rng.normal(0, 0.03, objects), 0.05, 0.99)
                order = np.argsort(-now)
                boxes = np.stack([np.zeros(objects), np.zeros(objects), sides, sides], axis=1)[order]
                found = Detections(boxes.astype(np.float32), now[order].astype(np.float32), classes[order].astype(np.int32))
                level = float(np.clip(60 + 90 * day + light + rng.normal(0, 4), 0, 255))
                hour.add(found, level=level, size_wh=(640, 480), at_ms=shown_ms)
        return hour.message()
