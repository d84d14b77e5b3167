"""One camera's hour in numbers: every frame that the model looked at, counted into the histograms of `bowerbird_wire.histograms`.

In: detections, a frame's mean level, what is wrong with the camera. Out: a `CameraHour`; and back, for a restart. It costs some tens of
microseconds a frame. It knows neither clock nor file (`histogram_book.py` does).
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

import numpy as np

from bowerbird_wire.histograms import (
    BINS,
    BRIGHTNESS_BINS,
    COUNT_ENDS,
    MAX_CLASS_ID,
    SCORE_BINS,
    SIZE_ENDS,
    VISIBLE,
    CameraHour,
    pack,
    pack_classes,
    unpack,
    unpack_classes,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bowerbird_models.detections import Detections

# What a camera can have wrong so that its picture says nothing about the model.
UNWELL = frozenset({"dark", "blurred", "moved", "frozen"})
_GRID = 32  # every so many pixels, in both directions, make up a frame's mean level


def mean_level(image_bgr: NDArray[np.uint8]) -> float:
    """How bright a frame is, 0 to 255: the mean over a grid of its pixels and the three channels.

    Args:
        image_bgr: (H, W, 3) uint8.
    """
    sampled = image_bgr[_GRID // 4 :: _GRID, _GRID // 4 :: _GRID]
    return float(sampled.mean() if sampled.size else image_bgr.mean())


class HourCounts:
    """The counts of one camera and model since `from_ms`.

    Args:
        camera: its name.
        model: the first eight bytes of the model's digest.
        floor: lowest score that is decoded, in hundredths.
        from_ms: capture time of the first frame.
        clock_ok: whether that time may be trusted.
    """

    def __init__(self, camera: str, model: bytes, floor: int, from_ms: int, *, clock_ok: bool) -> None:
        self.camera, self.model, self.floor, self.from_ms, self.clock_ok = camera, model, floor, from_ms, clock_ok
        self.until_ms = from_ms
        self.frames = 0
        self.unwell: dict[str, int] = {}
        self._counts = {name: np.zeros(bins, np.int64) for name, bins in BINS.items()}
        self._classes: dict[int, int] = {}

    def add_unwell(self, fault: str, at_ms: int) -> None:
        """A frame of a camera that does not show what it should: counted, and in no histogram."""
        self._seen(at_ms)
        self.unwell[fault] = self.unwell.get(fault, 0) + 1

    def add(self, detections: Detections, *, level: float, size_wh: tuple[int, int], at_ms: int) -> None:
        """A frame.

        Args:
            detections: most confident first, as detectors give them.
            level: of `mean_level`.
            size_wh: of the frame, pixels.
        """
        self._seen(at_ms)
        counts = self._counts
        counts["brightness"][min(BRIGHTNESS_BINS - 1, int(level * BRIGHTNESS_BINS / 256.0))] += 1
        shown = 0
        if len(detections):
            scores = detections.scores
            places = np.minimum((scores * SCORE_BINS).astype(np.int64), SCORE_BINS - 1)
            counts["scores"] += np.bincount(places, minlength=SCORE_BINS)
            shown = int(np.count_nonzero(scores >= VISIBLE))
        counts["counts"][bisect_left(COUNT_ENDS, shown)] += 1
        if not shown:
            return
        boxes = detections.boxes_xyxy[:shown]
        areas = np.maximum(0.0, (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
        sides = np.sqrt(areas / float(size_wh[0] * size_wh[1]))
        counts["sizes"] += np.bincount(np.searchsorted(SIZE_ENDS, sides), minlength=BINS["sizes"])
        for class_id in detections.class_ids[:shown].tolist():
            if 0 <= class_id <= MAX_CLASS_ID:
                self._classes[class_id] = self._classes.get(class_id, 0) + 1

    def _seen(self, at_ms: int) -> None:
        self.frames += 1
        self.until_ms = max(self.until_ms, at_ms)

    def message(self) -> CameraHour:
        """As it is sent, and kept on disk."""
        return CameraHour(
            self.camera,
            self.from_ms,
            self.until_ms,
            self.frames,
            model=self.model,
            floor=self.floor,
            classes=pack_classes(self._classes),
            unwell=dict(self.unwell),
            clock_ok=self.clock_ok,
            scores=self._packed("scores"),
            counts=self._packed("counts"),
            sizes=self._packed("sizes"),
            brightness=self._packed("brightness"),
        )

    def _packed(self, name: str) -> bytes:
        return pack(self._counts[name].tolist())

    @classmethod
    def of(cls, hour: CameraHour) -> HourCounts:
        """Go on with what was kept.

        Raises:
            MessageError: it is damaged.
        """
        made = cls(hour.camera, hour.model, hour.floor, hour.from_ms, clock_ok=hour.clock_ok)
        made.until_ms, made.frames, made.unwell = hour.until_ms, hour.frames, dict(hour.unwell)
        made._counts = {name: np.array(unpack(getattr(hour, name), bins), np.int64) for name, bins in BINS.items()}
        made._classes = unpack_classes(hour.classes)
        return made
