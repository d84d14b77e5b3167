"""Redaction: objects of chosen classes are made unrecognisable before a frame is stored, sent, or shown to anybody.

In: a picture, and what the running model saw in it. Out: a copy of the picture with those objects covered, and the regions. It fails
closed: whatever keeps the right boxes from being known (no detections, a model without such a class, a fault of ours) is a
`RedactionError`, and the frame is not kept. The given picture stays as it is: the model and the selection still need it, in memory.

A small object that the model does not see at all is not redacted; that is the limit of every such method (docs/privacy.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from bowerbird_agent.capture.framing import FILL_GRAY
from bowerbird_agent.errors import RedactionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from bowerbird_agent.capture.camera_config import CameraConfig, RedactConfig
    from bowerbird_models.detections import Detections

# A region's longer side as so many mosaic tiles: too few for a face or a number plate, whatever the resolution.
_TILES = 6
_LEAST_TILE_PX = 4


@dataclass(frozen=True)
class RedactedRegion:
    """A covered region in pixels of the picture, its edges whole pixels, and the detection that called for it."""

    box_xyxy: tuple[int, int, int, int]
    class_name: str
    score: float
    method: str


class Redactor:
    """Redaction of one camera.

    Args:
        camera: its name, for messages.
        config: classes, method, margin, confidence.
    """

    def __init__(self, camera: str, config: RedactConfig) -> None:
        self._camera, self.config = camera, config

    def apply(
        self, image_bgr: NDArray[np.uint8], detections: Detections | None, class_names: Sequence[str]
    ) -> tuple[NDArray[np.uint8], tuple[RedactedRegion, ...]]:
        """A picture that may be kept, and what is covered in it; the picture itself when there is nothing to cover.

        Args:
            image_bgr: (H, W, 3) uint8; not changed.
            detections: in its pixels, at `config.confidence` or lower; None when the model failed on it, or when there is none.
            class_names: of the model, none without one.

        Raises:
            RedactionError: it cannot be known what to cover, or it cannot be covered; the picture must not be kept.
        """
        if detections is None:
            why = "the model failed" if class_names else "there is no model yet"
            raise RedactionError(f"camera {self._camera}: {why}, so nobody knows what to redact; the frame is not kept")
        try:
            regions = self._regions(image_bgr.shape[1], image_bgr.shape[0], detections, class_names)
            if not regions:
                return image_bgr, ()
            covered = np.array(image_bgr, np.uint8, order="C")
            for region in regions:
                cover(covered, region.box_xyxy, region.method)
        except RedactionError:
            raise
        except Exception as error:  # whatever went wrong, the picture is not fit to be seen
            raise RedactionError(
                f"camera {self._camera}: its pictures cannot be redacted ({type(error).__name__}: {error}), so none is kept; "
                "report this, or take `redact` out if the law allows"
            ) from error
        return covered, regions

    def _regions(
        self, width: int, height: int, detections: Detections, class_names: Sequence[str]
    ) -> tuple[RedactedRegion, ...]:
        wanted = self._class_ids(class_names)
        found = []
        for row in range(len(detections)):
            class_id, score = self._called_for(detections, row, wanted)
            if class_id < 0:
                continue
            box = grown(detections.boxes_xyxy[row].tolist(), self.config.margin, width, height)
            found.append(RedactedRegion(box, class_names[class_id], score, self.config.method))
        return tuple(found)

    def _class_ids(self, class_names: Sequence[str]) -> list[int]:
        missing = [name for name in self.config.classes if name not in class_names]
        if missing:
            raise RedactionError(
                f"camera {self._camera}: the running model does not know {', '.join(missing)}, which redact.classes names, so no "
                f"picture is kept; use a model that does, or correct the list (it knows {', '.join(list(class_names)[:20])})"
            )
        return [class_names.index(name) for name in self.config.classes]

    def _called_for(self, detections: Detections, row: int, wanted: Sequence[int]) -> tuple[int, float]:
        """The class for which a detection is covered and its score, (-1, 0) for none.

        Where the head tells every class's score, a person who looks a little more like a dog is still covered.
        """
        if detections.class_scores is not None:
            scores = detections.class_scores[row]
            best = max(wanted, key=lambda class_id: float(scores[class_id]))
            score = float(scores[best])
        else:
            best = int(detections.class_ids[row])
            score = float(detections.scores[row]) if best in wanted else 0.0
        return (best, score) if score >= self.config.confidence else (-1, 0.0)


def grown(box_xyxy: Sequence[float], margin: float, width: int, height: int) -> tuple[int, int, int, int]:
    """A box in whole pixels that contains the given one, `margin` of its sides larger on each side, inside the picture.

    Raises:
        RedactionError: an edge is no number.
    """
    if not np.isfinite(box_xyxy).all():
        raise RedactionError("a detection's box is no box; the frame is not kept")
    left, top, right, bottom = box_xyxy
    # Two pixels at least: JPEG and the shrinking to the sending size both carry a border's colours inwards.
    dx, dy = max(2.0, (right - left) * margin), max(2.0, (bottom - top) * margin)
    x0, y0 = max(0, int(np.floor(left - dx))), max(0, int(np.floor(top - dy)))
    x1, y1 = min(width, int(np.ceil(right + dx))), min(height, int(np.ceil(bottom + dy)))
    return min(x0, width - 1), min(y0, height - 1), max(x1, 1), max(y1, 1)


def cover(image_bgr: NDArray[np.uint8], box_xyxy: tuple[int, int, int, int], method: str) -> None:
    """Make a region unrecognisable in place.

    Args:
        method: `fill` leaves one gray; `pixelate` a mosaic of at most six tiles a side; `blur` spreads that mosaic smoothly,
            so that it looks like a blur and holds no more than the mosaic does (a blur alone can be undone).
    """
    left, top, right, bottom = box_xyxy
    region = image_bgr[top:bottom, left:right]
    height, width = region.shape[:2]
    if method == "fill":
        region[:] = FILL_GRAY
        return
    # A tile is a sixth of the longer side and never smaller than four pixels: a fine mosaic of a small region would be the picture.
    side = max(_LEAST_TILE_PX, max(width, height) / _TILES)
    tiles = (max(1, int(width / side)), max(1, int(height / side)))
    mosaic = cv2.resize(region, tiles, interpolation=cv2.INTER_AREA)
    # Spread smoothly, the mosaic looks like a blur and is a function of the mosaic alone: no filter takes its loss back.
    smoothly = cv2.INTER_LINEAR if method == "blur" else cv2.INTER_NEAREST
    region[:] = cv2.resize(mosaic, (width, height), interpolation=smoothly)


def redactors_of(cameras: Iterable[CameraConfig]) -> dict[str, Redactor]:
    """Camera name -> its redactor, of the cameras that have one."""
    return {camera.name: Redactor(camera.name, camera.redact) for camera in cameras if camera.redact is not None}


def redactors_after(before: Mapping[str, Redactor], cameras: Iterable[CameraConfig]) -> dict[str, Redactor]:
    """The redactors once other cameras are in force. One of a camera that is gone stays: its last frame may still be in the model, and
    a frame whose redactor is missing would be kept as it is."""
    there = tuple(cameras)
    names = {camera.name for camera in there}
    return {**{name: redactor for name, redactor in before.items() if name not in names}, **redactors_of(there)}
