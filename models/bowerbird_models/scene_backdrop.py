"""What a synthetic camera looks at when nothing moves, and what the light does to it.

In: a random generator and a size; later a picture and the lamps in it. Out: the empty street, the light maps of day and night,
sensor noise. No object and no schedule lives here (`scene_shapes.py`, `scenes.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Noise is cut from a larger tile at a place drawn for each frame: drawing fresh normal numbers costs ten times the rest.
_NOISE_MARGIN = 64
_DAY_NOISE = 4.0
_NIGHT_NOISE = 10.0
# Blue stays longest in the dark, as in moonlight and cheap sensors: gains of blue, green and red.
_NIGHT_GAIN_BGR = (0.42, 0.33, 0.30)
_LAMP_GAIN_BGR = (0.10, 0.22, 0.28)


@dataclass(frozen=True)
class Backdrop:
    """One camera's fixed view.

    Args:
        picture: (H, W, 3) uint8 BGR, the empty street in plain daylight.
        horizon_y, kerb_y, verge_y: pixels from the top: where the pavement begins, where the road begins, where it ends.
        night_gain: (H, W, 3) float32 in [0, 1], what night leaves of each pixel; street lamps are its bright pools.
        noise: two (H + margin, W + margin, 3) uint8 tiles, added and subtracted; by condition.
    """

    picture: NDArray[np.uint8]
    horizon_y: float
    kerb_y: float
    verge_y: float
    night_gain: NDArray[np.float32]
    noise: dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]


def build_backdrop(rng: np.random.Generator, width: int, height: int) -> Backdrop:
    """Draw a street: sky, buildings, pavement, road, grass, trees and lamps, all placed by `rng`.

    Args:
        rng: decides everything; the same generator state gives the same street.
        width, height: pixels.
    """
    horizon = height * float(rng.uniform(0.36, 0.42))
    kerb = horizon + height * float(rng.uniform(0.10, 0.14))
    verge = height * float(rng.uniform(0.84, 0.90))
    canvas = np.empty((height, width, 3), np.uint8)
    rows = np.linspace(0.0, 1.0, max(1, round(horizon)), dtype=np.float32)[:, None, None]
    sky = np.array([228, 200, 172], np.float32) + rows * np.array([6, 20, 34], np.float32)
    canvas[: round(horizon)] = np.broadcast_to(sky, (round(horizon), width, 3)).astype(np.uint8)
    _buildings(canvas, rng, horizon)
    canvas[round(horizon) : round(kerb)] = rng.integers(140, 172, 3)
    canvas[round(kerb) : round(verge)] = rng.integers(88, 112)
    canvas[round(verge) :] = (62, 112, 84)
    cv2.line(canvas, (0, round(kerb)), (width, round(kerb)), (180, 182, 184), 2)
    middle = round((kerb + verge) / 2)
    dash = max(8, width // 14)
    for x in range(int(rng.integers(0, dash)), width, 2 * dash):
        cv2.line(canvas, (x, middle), (x + dash, middle), (206, 214, 216), 2)
    _trees(canvas, rng, horizon)
    # Coarse and fine texture: a flat background would teach a model that any edge is an object.
    coarse = rng.normal(0.0, 9.0, (height // 12 + 2, width // 12 + 2, 1)).astype(np.float32)
    fine = rng.normal(0.0, 5.0, (height, width)).astype(np.float32)
    texture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) + fine
    picture = np.clip(canvas.astype(np.float32) + texture[:, :, None], 0, 255).astype(np.uint8)
    noise = {
        "day": _noise_tiles(rng, width, height, _DAY_NOISE),
        "night": _noise_tiles(rng, width, height, _NIGHT_NOISE),
    }
    return Backdrop(picture, horizon, kerb, verge, _night_gain(rng, width, height, verge), noise)


def _buildings(canvas: NDArray[np.uint8], rng: np.random.Generator, horizon: float) -> None:
    height, width = canvas.shape[:2]
    x = 0
    while x < width:
        span = int(rng.integers(width // 8, width // 3))
        top = round(horizon - height * float(rng.uniform(0.12, 0.34)))
        wall = tuple(int(v) for v in rng.integers(96, 190, 3))
        cv2.rectangle(canvas, (x, top), (x + span, round(horizon)), wall, cv2.FILLED)
        pane = tuple(int(v * 0.55) for v in wall)
        for window_y in range(top + 5, round(horizon) - 9, 13):
            for window_x in range(x + 5, x + span - 8, 14):
                cv2.rectangle(canvas, (window_x, window_y), (window_x + 6, window_y + 7), pane, cv2.FILLED)
        x += span


def _trees(canvas: NDArray[np.uint8], rng: np.random.Generator, horizon: float) -> None:
    height, width = canvas.shape[:2]
    for _ in range(int(rng.integers(2, 5))):
        x = int(rng.integers(0, width))
        crown = height * float(rng.uniform(0.05, 0.09))
        foot = round(horizon + height * 0.02)
        cv2.line(canvas, (x, foot), (x, round(foot - 2 * crown)), (48, 62, 78), 3)
        for _ in range(5):
            centre = (round(x + crown * rng.uniform(-0.7, 0.7)), round(foot - crown * rng.uniform(1.8, 3.0)))
            green = (40, int(rng.integers(84, 126)), int(rng.integers(50, 84)))
            cv2.circle(canvas, centre, round(crown * 0.7), green, cv2.FILLED)


def _night_gain(rng: np.random.Generator, width: int, height: int, verge: float) -> NDArray[np.float32]:
    gain = np.broadcast_to(np.array(_NIGHT_GAIN_BGR, np.float32), (height, width, 3)).copy()
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    for _ in range(2):
        x, y = width * rng.uniform(0.1, 0.9), verge * rng.uniform(0.7, 0.95)
        pool = np.exp(-(((xs - x) / (0.18 * width)) ** 2) - ((ys - y) / (0.22 * height)) ** 2)
        gain += pool[:, :, None].astype(np.float32) * np.array(_LAMP_GAIN_BGR, np.float32)
    return gain


def _noise_tiles(
    rng: np.random.Generator, width: int, height: int, sigma: float
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    noise = rng.normal(0.0, sigma, (height + _NOISE_MARGIN, width + _NOISE_MARGIN, 3)).astype(np.float32)
    return np.clip(noise, 0, 255).astype(np.uint8), np.clip(-noise, 0, 255).astype(np.uint8)


def add_noise(picture: NDArray[np.uint8], backdrop: Backdrop, condition: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The picture with sensor noise of its condition, the place in the noise tile drawn from `rng`."""
    height, width = picture.shape[:2]
    y, x = (int(v) for v in rng.integers(0, _NOISE_MARGIN, 2))
    plus, minus = backdrop.noise[condition]
    noisy = cv2.add(picture, plus[y : y + height, x : x + width])
    return np.asarray(cv2.subtract(noisy, minus[y : y + height, x : x + width]), np.uint8)


def add_glow(picture: NDArray[np.uint8], x: float, y: float, radius: float, colour: tuple[int, int, int]) -> None:
    """Add a soft light at a place in pixels, in place; light outside the picture is cut off."""
    height, width = picture.shape[:2]
    left, right = max(0, round(x - radius)), min(width, round(x + radius))
    top, bottom = max(0, round(y - radius)), min(height, round(y + radius))
    if left >= right or top >= bottom:
        return
    across = (np.arange(left, right, dtype=np.float32) - x) / radius
    down = (np.arange(top, bottom, dtype=np.float32) - y) / radius
    fall = np.exp(-6.0 * (across[None, :] ** 2 + down[:, None] ** 2))
    light = (fall[:, :, None] * np.array(colour, np.float32)).astype(np.uint8)
    picture[top:bottom, left:right] = cv2.add(picture[top:bottom, left:right], light)
