"""Line charts as SVG text, for a report that must open anywhere.

In: named series of (x, y). Out: an `<svg>` element with axes, a line and a legend entry for each. No interaction, no scripts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# Distinct for colour-blind readers too (Okabe and Ito, "Color Universal Design", 2008).
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 150, 16, 44


@dataclass(frozen=True)
class Series:
    """A line, or a single point."""

    name: str
    points: Sequence[tuple[float, float]]


def nice_step(span: float, steps: int = 5) -> float:
    """A round distance between ticks: 1, 2 or 5 times a power of ten."""
    if span <= 0:
        return 1.0
    raw = span / steps
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)


def line_chart(series: Sequence[Series], *, x_title: str, y_title: str, y_max: float | None) -> str:
    """The chart as one SVG element; a sentence when there is nothing to draw."""
    points = [point for one in series for point in one.points]
    if not points:
        return "<p>No measurements.</p>"
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    x_high = max(x_high, x_low + 1e-9)
    y_high = y_max if y_max is not None else max(1e-9, *(y for _, y in points)) * 1.05

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - min(y / y_high, 1.0) * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(y_title)} over {escape(x_title)}">']
    parts += _grid(x_low, x_high, y_high, place)
    for number, one in enumerate(series):
        colour = _COLOURS[number % len(_COLOURS)]
        placed = [place(x, y) for x, y in one.points]
        if len(placed) > 1:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(placed) <= 12:
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"><title>{escape(one.name)}: {point[1]:.3f}</title></circle>'
                for (x, y), point in zip(placed, one.points, strict=True)
            ]
        legend_y = _TOP + 12 + number * 20
        parts.append(f'<rect x="{_WIDTH - _RIGHT + 14}" y="{legend_y - 9}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{_WIDTH - _RIGHT + 32}" y="{legend_y + 1}">{escape(one.name)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_title)}</text>')
    turned = f"translate(14 {(_HEIGHT - _BOTTOM + _TOP) / 2:.0f}) rotate(-90)"
    parts.append(f'<text transform="{turned}" text-anchor="middle">{escape(y_title)}</text>')
    return "".join(parts) + "</svg>"


def _grid(x_low: float, x_high: float, y_high: float, place: object) -> list[str]:
    assert callable(place)  # noqa: S101 - for the type checker
    parts = []
    step = nice_step(y_high)
    for tick in range(int(y_high / step + 1e-6) + 1):
        x, y = place(x_low, tick * step)
        parts.append(f'<line x1="{x:.1f}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{tick * step:g}</text>')
    step = nice_step(x_high - x_low)
    tick_x = math.ceil(x_low / step) * step
    while tick_x <= x_high + 1e-9:
        x, y = place(tick_x, 0)
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{tick_x:g}</text>')
        tick_x += step
    return parts
