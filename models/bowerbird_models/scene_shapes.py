"""The things that move through a synthetic scene: silhouettes made of polygons and ellipses, with their exact extent.

In: a class, a place, a size, a colour, a walking phase. Out: pixels on a canvas, or the same silhouette's box without drawing
it. It knows nothing of time, light or cameras (`scenes.py`, `scene_backdrop.py`). The shapes are drawings, not pictures of
real things: a model trained on them is good at nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLASS_NAMES: tuple[str, ...] = ("car", "person", "cyclist", "truck", "fox")
CAR, PERSON, CYCLIST, TRUCK, FOX = range(5)

# Width and height in pixels of each class at scale 1 in a picture 240 pixels high.
NOMINAL_SIZE: tuple[tuple[float, float], ...] = ((112.0, 52.0), (42.0, 88.0), (72.0, 84.0), (148.0, 80.0), (76.0, 48.0))

_SUBPIXEL_BITS = 4
_GLASS = (96, 80, 66)
_TYRE = (34, 32, 32)
_SKIN = (128, 160, 205)
_LAMP = (190, 235, 250)
_TAIL_LAMP = (40, 40, 190)

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Part:
    """One filled piece of a silhouette in unit coordinates, x right and y down.

    Args:
        points: (k, 2) vertices of a polygon; for an ellipse (2, 2): centre and radii.
        colour: BGR.
        ellipse: whether `points` means an ellipse.
    """

    points: NDArray[np.float32]
    colour: Colour
    ellipse: bool = False

    def extent(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in unit coordinates."""
        if self.ellipse:
            (cx, cy), (rx, ry) = self.points.tolist()
            return cx - rx, cy - ry, cx + rx, cy + ry
        low, high = self.points.min(axis=0), self.points.max(axis=0)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])


@dataclass(frozen=True)
class Thing:
    """One object as it stands in one frame.

    Args:
        class_id: index into CLASS_NAMES.
        x: left edge of its unit square, in pixels; may be outside the picture.
        ground_y: where it stands, in pixels: the bottom of its unit square.
        width, height: size of the unit square in pixels.
        colour: BGR of body or clothes.
        faces_right: direction of travel.
        phase: of the gait, in radians.
    """

    class_id: int
    x: float
    ground_y: float
    width: float
    height: float
    colour: Colour
    faces_right: bool
    phase: float

    def parts(self) -> list[Part]:
        """The pieces in drawing order, still in unit coordinates and facing right."""
        return _DRAWINGS[self.class_id](self.colour, self.phase)

    def to_pixels(self, x: float, y: float) -> tuple[float, float]:
        """Picture coordinates of a point of the unit square."""
        across = x if self.faces_right else 1.0 - x
        return self.x + across * self.width, self.ground_y + (y - 1.0) * self.height

    def box_xyxy(self) -> tuple[float, float, float, float]:
        """The tight box around the whole silhouette in pixels, not clipped to the picture."""
        extents = np.array([part.extent() for part in self.parts()])
        left, top = self.to_pixels(float(extents[:, 0].min()), float(extents[:, 1].min()))
        right, bottom = self.to_pixels(float(extents[:, 2].max()), float(extents[:, 3].max()))
        return min(left, right), top, max(left, right), bottom

    def paint(self, canvas: NDArray[np.uint8]) -> None:
        """Draw on a (H, W, 3) uint8 BGR canvas, in place."""
        # OpenCV counts from pixel centres, boxes from pixel edges: half a pixel between them.
        one, half = 1 << _SUBPIXEL_BITS, 1 << (_SUBPIXEL_BITS - 1)
        for part in self.parts():
            if part.ellipse:
                (cx, cy), (rx, ry) = part.points.tolist()
                px, py = self.to_pixels(cx, cy)
                cv2.ellipse(
                    canvas,
                    (round(px * one) - half, round(py * one) - half),
                    (max(half, round(rx * self.width * one)), max(half, round(ry * self.height * one))),
                    0.0,
                    0.0,
                    360.0,
                    part.colour,
                    cv2.FILLED,
                    cv2.LINE_AA,
                    _SUBPIXEL_BITS,
                )
            else:
                corners = np.array([self.to_pixels(x, y) for x, y in part.points.tolist()])
                cv2.fillPoly(
                    canvas,
                    [np.round(corners * one).astype(np.int32) - half],
                    part.colour,
                    cv2.LINE_AA,
                    _SUBPIXEL_BITS,
                )


def _poly(colour: Colour, *points: tuple[float, float]) -> Part:
    return Part(np.array(points, np.float32), colour)


def _rect(colour: Colour, left: float, top: float, right: float, bottom: float) -> Part:
    return _poly(colour, (left, top), (right, top), (right, bottom), (left, bottom))


def _ellipse(colour: Colour, cx: float, cy: float, rx: float, ry: float) -> Part:
    return Part(np.array([[cx, cy], [rx, ry]], np.float32), colour, ellipse=True)


def _bar(colour: Colour, x0: float, y0: float, x1: float, y1: float, half: float) -> Part:
    """A limb: a bar with horizontal ends, `half` its half width."""
    return _poly(colour, (x0 - half, y0), (x0 + half, y0), (x1 + half, y1), (x1 - half, y1))


def _shade(colour: Colour, factor: float) -> Colour:
    blue, green, red = (min(255, round(channel * factor)) for channel in colour)
    return blue, green, red


def _car(colour: Colour, phase: float) -> list[Part]:
    del phase
    return [
        _poly(
            colour,
            (0.0, 0.50),
            (0.16, 0.42),
            (0.30, 0.02),
            (0.68, 0.02),
            (0.84, 0.42),
            (1.0, 0.52),
            (1.0, 0.84),
            (0.0, 0.84),
        ),
        _poly(_GLASS, (0.22, 0.42), (0.33, 0.10), (0.48, 0.10), (0.48, 0.42)),
        _poly(_GLASS, (0.52, 0.42), (0.52, 0.10), (0.66, 0.10), (0.78, 0.42)),
        _rect(_shade(colour, 0.7), 0.02, 0.70, 0.98, 0.84),
        _rect(_LAMP, 0.95, 0.54, 1.0, 0.66),
        _rect(_TAIL_LAMP, 0.0, 0.54, 0.03, 0.66),
        _ellipse(_TYRE, 0.22, 0.82, 0.085, 0.18),
        _ellipse(_TYRE, 0.78, 0.82, 0.085, 0.18),
    ]


def _truck(colour: Colour, phase: float) -> list[Part]:
    del phase
    return [
        _rect(colour, 0.0, 0.0, 0.70, 0.84),
        _rect(_shade(colour, 0.8), 0.0, 0.40, 0.70, 0.48),
        _poly(_shade(colour, 0.6), (0.72, 0.84), (0.72, 0.24), (0.90, 0.24), (1.0, 0.52), (1.0, 0.84)),
        _poly(_GLASS, (0.78, 0.50), (0.78, 0.30), (0.88, 0.30), (0.95, 0.50)),
        _rect(_LAMP, 0.965, 0.64, 1.0, 0.74),
        _rect(_TAIL_LAMP, 0.0, 0.72, 0.02, 0.80),
        *(_ellipse(_TYRE, x, 0.86, 0.07, 0.14) for x in (0.14, 0.32, 0.84)),
    ]


def _person(colour: Colour, phase: float) -> list[Part]:
    stride, trousers = 0.26 * math.sin(phase), _shade((92, 70, 62), 0.9)
    return [
        _bar(_SKIN, 0.50, 0.26, 0.50 - 1.2 * stride, 0.58, 0.10),
        _bar(trousers, 0.44, 0.55, 0.46 - stride, 1.0, 0.14),
        _bar(_shade(trousers, 1.25), 0.56, 0.55, 0.54 + stride, 1.0, 0.14),
        _poly(colour, (0.22, 0.22), (0.78, 0.22), (0.74, 0.60), (0.26, 0.60)),
        _bar(_shade(colour, 0.75), 0.50, 0.24, 0.50 + 1.2 * stride, 0.56, 0.10),
        _ellipse(_SKIN, 0.52, 0.11, 0.22, 0.11),
        _ellipse((40, 48, 60), 0.48, 0.06, 0.21, 0.06),
    ]


def _cyclist(colour: Colour, phase: float) -> list[Part]:
    pedal, metal = 0.07 * math.sin(phase), (70, 60, 60)
    hub = (150, 146, 140)
    return [
        _ellipse(_TYRE, 0.21, 0.77, 0.21, 0.23),
        _ellipse(hub, 0.21, 0.77, 0.16, 0.18),
        _ellipse(_TYRE, 0.79, 0.77, 0.21, 0.23),
        _ellipse(hub, 0.79, 0.77, 0.16, 0.18),
        _bar(metal, 0.24, 0.77, 0.48, 0.78, 0.03),
        _bar(metal, 0.38, 0.50, 0.50, 0.80, 0.03),
        _bar(metal, 0.70, 0.46, 0.79, 0.77, 0.03),
        _poly(metal, (0.38, 0.52), (0.72, 0.50), (0.72, 0.55), (0.38, 0.57)),
        _bar((84, 66, 58), 0.40, 0.46, 0.52 + pedal, 0.84, 0.07),
        _poly(colour, (0.30, 0.48), (0.54, 0.16), (0.70, 0.22), (0.48, 0.52)),
        _bar(_shade(colour, 0.75), 0.62, 0.22, 0.72, 0.46, 0.05),
        _ellipse(_SKIN, 0.68, 0.09, 0.10, 0.09),
        _ellipse((50, 60, 190), 0.67, 0.05, 0.11, 0.05),
    ]


def _fox(colour: Colour, phase: float) -> list[Part]:
    stride, pale = 0.06 * math.sin(phase), (205, 214, 226)
    return [
        _poly(colour, (0.24, 0.40), (0.02, 0.52), (0.0, 0.74), (0.10, 0.78), (0.27, 0.52)),
        _poly(pale, (0.0, 0.74), (0.10, 0.78), (0.05, 0.66)),
        *(_bar(_shade(colour, 0.5), x, 0.55, x + sign * stride, 1.0, 0.025) for x, sign in _FOX_LEGS),
        _ellipse(colour, 0.45, 0.48, 0.26, 0.17),
        _poly(colour, (0.62, 0.52), (0.68, 0.22), (0.72, 0.02), (0.79, 0.20), (0.86, 0.24), (1.0, 0.44), (0.78, 0.52)),
        _poly(pale, (0.72, 0.52), (0.84, 0.40), (1.0, 0.44), (0.80, 0.56)),
    ]


_FOX_LEGS = ((0.28, 1.0), (0.34, -1.0), (0.58, 1.0), (0.64, -1.0))
_DRAWINGS = (_car, _person, _cyclist, _truck, _fox)
