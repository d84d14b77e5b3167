"""What of a picture goes further: privacy masks are filled first, then the region of interest is cut out.

In: a camera. Out: the same camera, whose frames are masked before anybody gets them; `open_camera` gives no other. So a masked pixel
reaches neither detector, disk nor network, whoever opens the camera. It fails closed: a mask that cannot be applied is an
error, and no frame goes on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import cv2
import numpy as np

from bowerbird_agent.capture.capture import GrabbingCamera
from bowerbird_agent.errors import MaskError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from bowerbird_agent.capture.capture import Camera, Frame, Source

# The gray of letterbox borders: a detector has learned that nothing is there.
FILL_GRAY = 114
# The outline is drawn as well, so that a border between two pixels belongs to the mask on both sides.
_OUTLINE_PX = 3
# How far width to height may differ from what masks were drawn on: 1920x1088 is 1920x1080 with a rounded height.
_SHAPE_TOLERANCE = 0.01


class Framing:
    """Masks and region of one camera.

    Args:
        source: the camera's name, region and masks.
    """

    def __init__(self, source: Source) -> None:
        self._name = source.name
        self._masks, self._region = source.masks, source.region
        self._masks_wh = source.masks_wh
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
            self._check_shape(image.shape[1], image.shape[0])
            if not (image.flags.writeable and image.flags.c_contiguous):
                image = np.array(image, order="C")
            _draw(image, self._masks, FILL_GRAY)
        except (ValueError, cv2.error) as error:
            raise MaskError(
                f"camera {self._name}: its privacy masks cannot be applied ({error}), so none of its pictures is used; "
                "correct `masks` of this camera and start the agent again"
            ) from error
        return image

    def _check_shape(self, width: int, height: int) -> None:
        """Shares fit every resolution, but not another crop of the sensor: what is at (0.5, 0.5) of 16:9 is elsewhere at 4:3."""
        if self._masks_wh is None:
            return
        drawn_width, drawn_height = self._masks_wh
        if abs(width * drawn_height - height * drawn_width) > _SHAPE_TOLERANCE * width * drawn_height:
            raise ValueError(f"they were drawn on {drawn_width}x{drawn_height} and the pictures are {width}x{height}")

    def _crop_xyxy(self, width: int, height: int) -> tuple[int, int, int, int]:
        region = self._region
        if region is None:
            return 0, 0, width, height
        x, y, share_of_width, share_of_height = region
        left, top = min(width - 1, round(x * width)), min(height - 1, round(y * height))
        right = max(left + 1, min(width, round((x + share_of_width) * width)))
        bottom = max(top + 1, min(height, round((y + share_of_height) * height)))
        return left, top, right, bottom


class FramedCamera:
    """A camera of which nobody sees more than its masks and region leave; implements `Camera`.

    Args:
        camera: the bare one; this one's from now on.
        framing: what to leave.
    """

    def __init__(self, camera: Camera, framing: Framing) -> None:
        self._camera, self._framing = camera, framing

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self._camera.name

    @property
    def addressable(self) -> bool:
        """As the bare camera's."""
        return self._camera.addressable

    @property
    def live(self) -> bool:
        """As the bare camera's."""
        return self._camera.live

    @property
    def fps(self) -> float:
        """As the bare camera's."""
        return self._camera.fps

    @property
    def trouble(self) -> str:
        """As the bare camera's."""
        return self._camera.trouble

    def read(self) -> Frame | None:
        """The next frame, masked and cropped, or None when there are no more.

        Raises:
            MaskError: a mask cannot be applied.
            CameraError: the camera has died.
        """
        frame = self._camera.read()
        return None if frame is None else self._framing.apply(frame)

    def close(self) -> None:
        """Let go of file or device."""
        self._camera.close()


class FramedGrabbingCamera(FramedCamera):
    """The same of a live camera; implements `GrabbingCamera`."""

    def __init__(self, camera: GrabbingCamera, framing: Framing) -> None:
        super().__init__(camera, framing)
        self._grabbing = camera

    def grab(self) -> None:
        """Wait for the next frame and hold it.

        Raises:
            CameraError: the camera has died.
        """
        self._grabbing.grab()

    def retrieve(self) -> Frame | None:
        """The frame held, masked and cropped.

        Raises:
            MaskError: a mask cannot be applied.
            CameraError: no picture could be made of several frames in a row.
        """
        frame = self._grabbing.retrieve()
        return None if frame is None else self._framing.apply(frame)


def framed(camera: Camera, source: Source) -> Camera:
    """A camera behind its source's masks and region."""
    framing = Framing(source)
    return FramedGrabbingCamera(camera, framing) if isinstance(camera, GrabbingCamera) else FramedCamera(camera, framing)


def _draw(image: NDArray[np.uint8], polygons: Sequence[Sequence[Sequence[float]]], gray: int) -> None:
    """Fill polygons given in shares of the picture, outline included, in place."""
    height, width = image.shape[:2]
    colour = (gray, gray, gray)
    for polygon in polygons:
        points = np.rint(np.asarray(polygon, np.float64) * (width - 1, height - 1)).astype(np.int32)
        cv2.fillPoly(image, [points], colour)
        cv2.polylines(image, [points], isClosed=True, color=colour, thickness=_OUTLINE_PX)
