"""Privacy masks and the region of interest: what is covered goes nowhere, and what cannot be covered stops the camera."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bowerbird_agent.capture.camera_config import CameraConfig, Region
from bowerbird_agent.capture.capture import Camera, Frame, Source, open_camera
from bowerbird_agent.capture.exchange import FrameExchange
from bowerbird_agent.capture.framing import FILL_GRAY, Framing, framed
from bowerbird_agent.capture.worker import CaptureWorker
from bowerbird_agent.errors import MaskError

LEFT_HALF = ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))


def camera(**options: Any) -> CameraConfig:
    return CameraConfig("gate", "synthetic:", **options)


def framing(**options: Any) -> Framing:
    return Framing(camera(**options).to_source())


def frame(image: NDArray[Any]) -> Frame:
    return Frame(image, "gate", 7, 70, 700)


def bright(width: int = 100, height: int = 60) -> NDArray[np.uint8]:
    return np.full((height, width, 3), 250, np.uint8)


def test_a_mask_covers_its_polygon_and_nothing_else_but_its_border() -> None:
    image = framing(masks=(LEFT_HALF,)).apply(frame(bright())).image_bgr
    assert (image[:, :50] == FILL_GRAY).all()
    assert (image[:, 53:] == 250).all()


def test_number_and_time_of_a_frame_stay() -> None:
    framed = framing(masks=(LEFT_HALF,), region=Region(0.5, 0.0, 0.5, 0.5)).apply(frame(bright()))
    assert (framed.sequence, framed.captured_at_ms, framed.monotonic_ns) == (7, 70, 700)


def test_the_region_is_cut_out_behind_the_masks_and_keeps_nothing_of_the_rest() -> None:
    image = framing(masks=(LEFT_HALF,), region=Region(0.25, 0.5, 0.5, 0.5)).apply(frame(bright())).image_bgr
    assert image.shape == (30, 50, 3)
    assert (image[:, :25] == FILL_GRAY).all(), "masks are in shares of the whole picture"
    assert (image[:, 28:] == 250).all()
    assert image.base is None, "a view would carry the whole picture"


def test_a_picture_that_nobody_may_write_is_masked_as_a_copy() -> None:
    image = bright()
    image.flags.writeable = False
    assert (framing(masks=(LEFT_HALF,)).apply(frame(image)).image_bgr[:, :50] == FILL_GRAY).all()


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=3),
    st.integers(8, 300),
    st.integers(8, 300),
)
def test_every_pixel_inside_a_triangle_is_covered_at_every_resolution(
    points: list[tuple[float, float]], width: int, height: int
) -> None:
    try:
        config = camera(masks=(tuple(points),))
    except ValueError:
        return  # a line
    image = Framing(config.to_source()).apply(frame(bright(width, height))).image_bgr
    ys, xs = np.mgrid[0:height, 0:width]
    x, y = (xs + 0.5) / width, (ys + 0.5) / height
    (ax, ay), (bx, by), (cx, cy) = points
    sides = [
        (bx - ax) * (y - ay) - (by - ay) * (x - ax),
        (cx - bx) * (y - by) - (cy - by) * (x - bx),
        (ax - cx) * (y - cy) - (ay - cy) * (x - cx),
    ]
    inside = np.all([side > 0 for side in sides], axis=0) | np.all([side < 0 for side in sides], axis=0)
    assert (image[inside] == FILL_GRAY).all()


def test_without_masks_and_region_a_frame_is_the_same_frame() -> None:
    given_frame = frame(bright())
    assert framing().apply(given_frame) is given_frame


def test_what_is_under_a_mask_is_not_looked_at_for_health() -> None:
    visible = framing(masks=(LEFT_HALF,), region=Region(0.25, 0.0, 0.5, 1.0)).visible(64, 48)
    assert visible is not None
    assert not visible[:, :32].any()
    assert visible[:, 36:].all()


def test_whoever_opens_a_camera_gets_it_masked() -> None:
    opened = open_camera(camera(masks=(LEFT_HALF,), region=Region(0.0, 0.0, 1.0, 0.5)).to_source())
    bare = open_camera(camera().to_source())
    framed_frame, bare_frame = opened.read(), bare.read()
    assert framed_frame is not None
    assert bare_frame is not None
    assert framed_frame.image_bgr.shape == (120, 320, 3)
    assert (framed_frame.image_bgr[:, :160] == FILL_GRAY).all()
    assert np.array_equal(framed_frame.image_bgr[:, 163:], bare_frame.image_bgr[:120, 163:])
    assert (opened.name, opened.live, opened.fps, opened.addressable, opened.trouble) == ("gate", False, 10.0, True, "")


class GrayCamera:
    """Gives pictures of one channel, which no mask can be drawn on as it should."""

    addressable, live, fps, trouble, name = True, False, 10.0, "", "gate"

    def read(self) -> Frame | None:
        return frame(np.full((60, 100), 250, np.uint8))

    def close(self) -> None:
        """Nothing is open."""


def test_a_mask_that_cannot_be_applied_stops_the_camera_and_no_frame_goes_on() -> None:
    with pytest.raises(MaskError, match="correct `masks`"):
        framing(masks=(LEFT_HALF,)).apply(frame(np.full((60, 100), 250, np.uint8)))
    exchange = FrameExchange(lambda _: None)

    def open_(source: Source) -> Camera:
        return framed(GrayCamera(), source)

    worker = CaptureWorker(camera(masks=(LEFT_HALF,), pace="fast"), exchange, open_=open_)
    worker.run()
    assert worker.is_done
    assert "privacy masks cannot be applied" in worker.state
    assert exchange.is_empty


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"masks": (((0, 0), (1, 1)),)}, "three"),
        ({"masks": (((0, 0), (1, 1), (0.5, 0.5)),)}, "covers nothing"),
        ({"masks": (((0, 0), (1, 1), (0, 1.2)),)}, "shares of the picture"),
        ({"masks": (((0, 0), (1, 1), (0,)),)}, r"\[x, y\]"),
        ({"stall_s": 0.1}, "stall_s"),
    ],
)
def test_a_wrong_mask_is_refused_before_anything_starts(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        camera(**options)


@pytest.mark.parametrize("values", [(0.5, 0, 0.6, 1), (-0.1, 0, 0.5, 1), (0, 0, 0, 1), (0, 0, 640, 480)])
def test_a_region_beyond_the_picture_is_refused(values: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match="picture"):
        Region(*values)
