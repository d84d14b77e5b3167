"""Draws a snapshot with OpenCV: boxes on the picture, bars and words on a panel beside it.

In: plain values. Out: pictures. It judges nothing; OpenCV's letters are ASCII only, anything else becomes "?".
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

PANEL_WIDTH = 380
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_LINE_PX = 22
_INK, _PALE, _PAPER = (40, 40, 40), (150, 150, 150), (250, 250, 250)
_BAR, _UNUSED = (180, 110, 30), (205, 205, 205)
_GOOD, _BAD = (60, 140, 40), (60, 60, 190)
# Told apart also by those who do not tell red from green; BGR.
_COLOURS = ((178, 114, 0), (0, 159, 230), (115, 158, 0), (167, 121, 204), (233, 180, 86), (66, 228, 240), (0, 94, 213))


def draw_boxes(
    image_bgr: NDArray[np.uint8], boxes: Sequence[tuple[str, float, tuple[float, ...], int]], *, visible: float
) -> NDArray[np.uint8]:
    """A copy of the picture with boxes; those below `visible` are thin and say only their score.

    Args:
        image_bgr: (H, W, 3) uint8.
        boxes: class name, score in [0, 1], left, top, right, bottom in pixels, class id.
    """
    image = image_bgr.copy()
    thick = max(1, round(max(image.shape[:2]) / 500))
    scale = max(0.4, max(image.shape[:2]) / 1600)
    for name, score, (left, top, right, bottom), class_id in reversed(boxes):  # the most confident on top
        colour = _COLOURS[class_id % len(_COLOURS)]
        shown = score >= visible
        corners = (round(left), round(top)), (round(right), round(bottom))
        cv2.rectangle(image, *corners, colour, thick * 2 if shown else 1, cv2.LINE_AA)
        text = _ascii(f"{name} {score:.2f}" if shown else f"{score:.2f}")
        (width, height), _ = cv2.getTextSize(text, _FONT, scale, thick)
        x = max(0, min(corners[0][0], image.shape[1] - width))
        y = corners[0][1] - 4 if corners[0][1] > height + 8 else corners[0][1] + height + 6
        if shown:
            cv2.rectangle(image, (x, y - height - 4), (x + width + 4, y + 4), colour, cv2.FILLED)
        cv2.putText(image, text, (x + 2, y), _FONT, scale, (255, 255, 255) if shown else colour, thick, cv2.LINE_AA)
    return image


def draw_panel(
    title: str, rows: Sequence[tuple[str, float, float]], *, value: float, kept: bool, verdict: str
) -> NDArray[np.uint8]:
    """What each strategy says, the combined value, and the verdict.

    Args:
        rows: strategy, score in [0, 1], weight in the policy; weight 0 is drawn pale.
    """
    words = textwrap.wrap(_ascii(verdict), 40)
    height = 3 * _LINE_PX + len(rows) * _LINE_PX + 2 * _LINE_PX + len(words) * _LINE_PX
    panel = np.full((height, PANEL_WIDTH, 3), _PAPER, np.uint8)
    _write(panel, title, 1, _INK, scale=0.55)
    for number, (name, score, weight) in enumerate(rows, 3):
        used = weight > 0
        left, top = 190, number * _LINE_PX - 12
        cv2.rectangle(panel, (left, top), (left + 100, top + 12), (235, 235, 235), cv2.FILLED)
        cv2.rectangle(
            panel, (left, top), (left + round(100 * min(1.0, score)), top + 12), _BAR if used else _UNUSED, cv2.FILLED
        )
        _write(panel, name, number, _INK if used else _PALE)
        text = f"{score:.2f}" + (f" x{weight:g}" if used else "")
        cv2.putText(panel, text, (left + 108, number * _LINE_PX), _FONT, 0.42, _INK if used else _PALE, 1, cv2.LINE_AA)
    line = 3 + len(rows) + 1
    _write(panel, f"value {value:.2f}: {'KEPT' if kept else 'NOT KEPT'}", line, _GOOD if kept else _BAD, scale=0.55)
    for offset, text in enumerate(words, 1):
        _write(panel, text, line + offset, _INK)
    return panel


def side_by_side(image_bgr: NDArray[np.uint8], panel: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Picture and panel in one picture; the smaller one gets a margin below, and a tiny picture is enlarged."""
    factor = max(1, -(-panel.shape[0] // (2 * image_bgr.shape[0])))
    if factor > 1:
        size = (image_bgr.shape[1] * factor, image_bgr.shape[0] * factor)
        image_bgr = np.asarray(cv2.resize(image_bgr, size, interpolation=cv2.INTER_NEAREST), np.uint8)
    canvas = np.full((max(image_bgr.shape[0], panel.shape[0]), image_bgr.shape[1] + panel.shape[1], 3), _PAPER, np.uint8)
    canvas[: image_bgr.shape[0], : image_bgr.shape[1]] = image_bgr
    canvas[: panel.shape[0], image_bgr.shape[1] :] = panel
    return canvas


def _write(panel: NDArray[np.uint8], text: str, line: int, colour: tuple[int, int, int], *, scale: float = 0.45) -> None:
    cv2.putText(panel, _ascii(text), (12, line * _LINE_PX), _FONT, scale, colour, 1, cv2.LINE_AA)


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()
