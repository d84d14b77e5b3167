"""Oriented boxes: how alike two are, which of them stay, and the upright boxes around them; pure NumPy.

In: boxes as centre x, centre y, width, height in pixels and rotation in radians, clockwise on the picture. Out: similarities, row
numbers, corners. Boxes are compared as Gaussians (ProbIoU), and overlaps are dropped in one pass (Fast NMS), both as Ultralytics
does for its `obb` models, so that the same boxes stay. It reads no network output.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from bowerbird_models.nms import MAX_DETECTIONS

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK = 256
_MOST_CANDIDATES = 30_000
_EPSILON = 1e-7


def probiou(a_xywhr: NDArray[np.float64], b_xywhr: NDArray[np.float64]) -> NDArray[np.float64]:
    """One minus the Hellinger distance of the Gaussians of each pair of boxes.

    Args:
        a_xywhr, b_xywhr: (..., 5), pair by pair.
    Returns:
        (...) in [0, 1]; 1 for equal boxes.
    Source: Llerena et al., "Gaussian Bounding Boxes and Probabilistic Intersection-over-Union for Object Detection"
        (arXiv 2106.06072), equations 5 to 9.
    """
    a_xx, a_yy, a_xy = _covariances(a_xywhr)
    b_xx, b_yy, b_xy = _covariances(b_xywhr)
    xx, yy, xy = a_xx + b_xx, a_yy + b_yy, a_xy + b_xy
    dx, dy = a_xywhr[..., 0] - b_xywhr[..., 0], a_xywhr[..., 1] - b_xywhr[..., 1]
    determinant = xx * yy - xy**2
    apart = (xx * dy**2 + yy * dx**2 - 2 * xy * dx * dy) / (determinant + _EPSILON) / 4
    areas = np.maximum(a_xx * a_yy - a_xy**2, 0.0) * np.maximum(b_xx * b_yy - b_xy**2, 0.0)
    unlike = np.log(np.maximum(determinant, 0.0) / (4 * np.sqrt(areas) + _EPSILON) + _EPSILON) / 2
    bhattacharyya = np.clip(apart + unlike, _EPSILON, 100.0)
    similarity: NDArray[np.float64] = 1 - np.sqrt(1 - np.exp(-bhattacharyya) + _EPSILON)
    return similarity


def suppress_rotated(
    boxes_xywhr: NDArray[np.float32],
    scores: NDArray[np.float32],
    class_ids: NDArray[np.int32],
    iou: float,
    *,
    max_detections: int = MAX_DETECTIONS,
) -> NDArray[np.intp]:
    """Row numbers of the boxes that stay, by falling score.

    A box goes when any more confident box of its class is more alike than `iou`, even one that goes itself.

    Args:
        boxes_xywhr: (n, 5).
        scores: (n,).
        class_ids: (n,).
        iou: similarity in [0, 1] above which the weaker box goes.
        max_detections: how many stay at most.
    Source: Bolya et al., "YOLACT" (ICCV 2019), section 3.4, for Fast NMS.
    """
    order = np.argsort(-scores, kind="stable")[:_MOST_CANDIDATES]
    boxes, classes = boxes_xywhr[order].astype(np.float64), class_ids[order]
    reach = np.maximum(np.abs(boxes[:, 2]), np.abs(boxes[:, 3]))
    # Gaussians as far apart as this times their longer side cannot be that alike: nearly all pairs end here.
    far = math.sqrt(_bhattacharyya_at(iou) / 1.5) * 1.01

    def is_near(rivals: NDArray[np.intp], rows: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Pairs of a more confident box of the same class that may be alike enough, and a row."""
        apart = np.hypot(boxes[rivals, None, 0] - boxes[None, rows, 0], boxes[rivals, None, 1] - boxes[None, rows, 1])
        near = apart <= far * np.maximum(reach[rivals, None], reach[None, rows]) + 1.0
        near &= classes[rivals, None] == classes[None, rows]
        near &= rivals[:, None] < rows[None, :]
        return near

    kept = np.zeros(0, np.intp)
    # Whether a box stays depends on more confident ones only: blocks from the top, until there are enough.
    for start in range(0, len(order), _BLOCK):
        stop = min(start + _BLOCK, len(order))
        stays = np.arange(start, stop)
        # Most boxes go because of one that stayed: an undecided model's thousands end here.
        for rivals in (kept, np.arange(stop)):
            stronger, weaker = np.nonzero(is_near(rivals, stays))
            alike = probiou(boxes[rivals[stronger]], boxes[stays[weaker]]) > iou
            stays = np.delete(stays, weaker[alike])
        kept = np.concatenate([kept, stays])
        if len(kept) >= max_detections:
            break
    return order[kept[:max_detections]]


def corners(boxes_xywhr: NDArray[np.float32]) -> NDArray[np.float32]:
    """The four corners of each box, (n, 5) -> (n, 4, 2), clockwise on the picture, in the order of Ultralytics' `xyxyxyxy`."""
    centre, half = boxes_xywhr[:, None, :2], boxes_xywhr[:, 2:4] / 2
    cos, sin = np.cos(boxes_xywhr[:, 4]), np.sin(boxes_xywhr[:, 4])
    along = np.stack([half[:, 0] * cos, half[:, 0] * sin], axis=1)
    across = np.stack([-half[:, 1] * sin, half[:, 1] * cos], axis=1)
    steps = np.stack([along + across, along - across, -along - across, across - along], axis=1)
    return np.asarray(centre + steps, np.float32)


def enclosing_boxes(boxes_xywhr: NDArray[np.float32]) -> NDArray[np.float32]:
    """The upright box around each, (n, 5) -> (n, 4) left, top, right, bottom."""
    points = corners(boxes_xywhr)
    return np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1)


def _covariances(boxes_xywhr: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Of the uniform distribution on each box: variance in x, in y, and covariance."""
    along, across = boxes_xywhr[..., 2] ** 2 / 12, boxes_xywhr[..., 3] ** 2 / 12
    cos, sin = np.cos(boxes_xywhr[..., 4]), np.sin(boxes_xywhr[..., 4])
    return along * cos**2 + across * sin**2, along * sin**2 + across * cos**2, (along - across) * cos * sin


def _bhattacharyya_at(iou: float) -> float:
    """The distance beyond which two boxes are less alike than `iou`."""
    return min(-math.log(max(1 - (1 - iou) ** 2, 1e-43)), 100.0)
