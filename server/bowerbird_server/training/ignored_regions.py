"""Regions that teach nothing: what a device covered in a picture before it sent it.

In: boxes and covered regions, in pixels of the stored image. Out: which boxes count, and pictures in which covered regions are one flat
gray. A blurred person left in a training picture without a label would teach that people are background, and with a label that people
look like blurs; so the region is painted in the gray of letterbox borders, which every detector knows as nothing, and boxes
that lie in it count neither for training nor for or against a model that is judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bowerbird_server.errors import BadInput

NEUTRAL_GRAY = 114
# A box of which this share lies in covered regions shows nothing of its object.
COVERED_SHARE = 0.5
_QUALITY = 95


def covered(boxes_xyxy: NDArray[np.float64], regions_xyxy: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which boxes lie in a covered region by half of their area or more.

    Args:
        boxes_xyxy: (n, 4), n may be 0.
        regions_xyxy: (m, 4), m may be 0. Overlapping regions are not added up: a box is compared with the one that covers most.

    Returns:
        (n,) bool.
    """
    boxes, regions = boxes_xyxy.reshape(-1, 4), regions_xyxy.reshape(-1, 4)
    if not len(boxes) or not len(regions):
        return np.zeros(len(boxes), np.bool_)
    corner = np.maximum(boxes[:, None, :2], regions[None, :, :2])
    opposite = np.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    common = np.clip(opposite - corner, 0, None).prod(axis=2).max(axis=1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return np.asarray(common >= COVERED_SHARE * np.maximum(area, 1e-9), np.bool_)


def paint(source: Path, target: Path, regions_xyxy: Sequence[Sequence[float]]) -> None:
    """A picture with its covered regions in neutral gray, as a file of its own.

    Raises:
        BadInput: the picture cannot be read or written.
    """
    import cv2

    image = cv2.imread(str(source), cv2.IMREAD_COLOR)
    if image is None:
        raise BadInput(f"{source}: cannot be decoded; restore it from a backup or delete the frame")
    for left, top, right, bottom in regions_xyxy:
        image[max(0, int(top)) : int(np.ceil(bottom)), max(0, int(left)) : int(np.ceil(right))] = NEUTRAL_GRAY
    if not cv2.imwrite(str(target), image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]):
        raise BadInput(f"{target} cannot be written; free space or choose another folder")
