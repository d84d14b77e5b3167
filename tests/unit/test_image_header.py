"""The size of a picture from its header, against what the encoder was told, and against hostile bytes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bowerbird_server.ingest.image_header import MAX_PIXELS, MAX_SIDE, ImageSize, NotAnImage, image_size
from bowerbird_testing.frame_messages import jpeg

sides = st.integers(1, 300)


@pytest.mark.parametrize(("suffix", "name"), [(".jpg", "jpeg"), (".png", "png"), (".webp", "webp")])
@given(width=sides, height=sides)
def test_every_encoded_picture_has_the_size_it_was_made_with(suffix: str, name: str, width: int, height: int) -> None:
    """JPEG, PNG and WebP of any small size."""
    data = bytes(cv2.imencode(suffix, np.zeros((height, width, 3), np.uint8))[1])
    assert image_size(data) == ImageSize(name, width, height)


def test_lossless_webp_has_its_size() -> None:
    """The VP8L form packs its sides into 14 bits each."""
    picture = np.zeros((7, 300, 3), np.uint8)
    data = bytes(cv2.imencode(".webp", picture, [cv2.IMWRITE_WEBP_QUALITY, 101])[1])
    assert data[12:16] == b"VP8L"
    assert image_size(data) == ImageSize("webp", 300, 7)


@given(data=st.binary(max_size=300), prefix=st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP"]))
def test_any_bytes_give_a_size_within_the_limits_or_are_no_image(data: bytes, prefix: bytes) -> None:
    """No other exception, no endless loop, no absurd size."""
    try:
        size = image_size(prefix + data)
    except NotAnImage:
        return
    assert 0 < size.width <= MAX_SIDE
    assert 0 < size.height <= MAX_SIDE
    assert size.width * size.height <= MAX_PIXELS


@given(cut=st.integers(0, 200))
def test_a_jpeg_that_is_cut_in_its_header_is_no_image(cut: int) -> None:
    """Truncation is told, not guessed around."""
    whole = jpeg(3)
    start_of_frame = whole.index(b"\xff\xc0")
    with pytest.raises(NotAnImage):
        image_size(whole[: min(cut, start_of_frame + 8)])


def test_a_declared_bomb_is_refused() -> None:
    """A few bytes that promise 65535 x 65535 pixels."""
    bomb = jpeg(1).replace(b"\x00\x30\x00\x40", b"\xff\xff\xff\xff", 1)
    with pytest.raises(NotAnImage, match="65535 x 65535"):
        image_size(bomb)
