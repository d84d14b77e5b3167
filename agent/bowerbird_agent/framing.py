"""What of a picture goes further: privacy masks are filled first, then the region of interest is cut out.

In: a frame as the camera gave it. Out: the frame that everything else sees. It runs in the capture thread before the frame is handed
over, so a masked pixel reaches neither detector, disk nor network. It fails closed: a mask that cannot be applied is an
error, and no frame goes on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import cv2
import numpy as np

from bowerbird_agent.errors import MaskError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from bowerbird_agent.camera_config import CameraConfig
    from bowerbird_agent.capture import Frame

# The gray of letterbox borders: a detector has learned that nothing is there.
FILL_GRAY = 114
# The outline is drawn as well, so that a border between two pixels belongs to the mask on both sides.
_OUTLINE_PX = 3


class Framing:
    """Masks and region of one camera.

    Args:
        config: the camera's section; polygons and region are shares of the whole picture.
    """

    def __init__(self, config: CameraConfig) -> None:
        self._name = config.name
        self._masks, self._region = config.masks, config.region
        self._visible: dict[tuple[int, int], NDArray[np.bool_]] = {}

    def apply(self, frame: Frame) -> Frame:
        """The frame as everything else may see it; the given frame's picture is filled in place.

        Raises:
            MaskError: a mask cannot be applied to this picture.
        """
        image = frame.image_bgr
        if self._masks:
            image = self._masked(image)
        if self._region is not None:
            height, width = image.shape[:2]
            left, top, right, bottom = self._crop_xyxy(width, height)
            # A copy: a view would carry the whole picture along.
            image = image[top:bottom, left:right].copy()
        return frame if image is frame.image_bgr else replace(frame, image_bgr=image)

    def visible(self, width: int, height: int) -> NDArray[np.bool_] | None:
        """Which pixels of the cut out region are under no mask, when that region is shown at `width` x `height`; None for all.

        Returns:
            (height, width) bool; a border of the masks is left out as well.
        """
        if not self._masks:
            return None
        if (width, height) not in self._visible:
            self._visible = {(width, height): self._outside_masks(width, height)}
        return self._visible[width, height]

    def _outside_masks(self, width: int, height: int) -> NDArray[np.bool_]:
        side = 512
        canvas = np.zeros((side, side), np.uint8)
        _draw(canvas, self._masks, 255)
        left, top, right, bottom = self._crop_xyxy(side, side) if self._region is not None else (0, 0, side, side)
        shown = cv2.resize(canvas[top:bottom, left:right], (width, height), interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.dilate(shown, np.ones((5, 5), np.uint8)) == 0, np.bool_)

    def _masked(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        try:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(f"a picture of shape {image.shape} and type {image.dtype} is no BGR picture")
            if not (image.flags.writeable and image.flags.c_contiguous):
                image = np.array(image, order="C")
            _draw(image, self._masks, FILL_GRAY)
        except (ValueError, cv2.error) as error:
            raise MaskError(
                f"camera {self._name}: its privacy masks cannot be applied ({error}), so none of its pictures is used; "
                "correct `masks` of this camera and start the agent again"
            ) from error
        return image

    def _crop_xyxy(self, width: int, height: int) -> tuple[int, int, int, int]:
        region = self._region
        if region is None:
            return 0, 0, width, height
        left, top = min(width - 1, round(region.x * width)), min(height - 1, round(region.y * height))
        right = max(left + 1, min(width, round((region.x + region.width) * width)))
        bottom = max(top + 1, min(height, round((region.y + region.height) * height)))
        return left, top, right, bottom


def _draw(image: NDArray[np.uint8], polygons: Sequence[Sequence[Sequence[float]]], gray: int) -> None:
    """Fill polygons given in shares of the picture, outline included, in place."""
    height, width = image.shape[:2]
    colour = (gray, gray, gray)
    for polygon in polygons:
        points = np.rint(np.asarray(polygon, np.float64) * (width - 1, height - 1)).astype(np.int32)
        cv2.fillPoly(image, [points], colour)
        cv2.polylines(image, [points], isClosed=True, color=colour, thickness=_OUTLINE_PX)
