"""Metadata of a picture's source goes, pixels stay to the last bit."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bowerbird_server.ingest.image_header import NotAnImage
from bowerbird_server.ingest.image_metadata import without_metadata

SECRET = b"48.2082N 16.3738E"
IMAGE = np.random.default_rng(1).integers(0, 255, (24, 32, 3), dtype=np.uint8)


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", 2 + len(body)) + body


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def webp_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def bare(suffix: str) -> bytes:
    return bytes(cv2.imencode(suffix, IMAGE)[1])


def told() -> dict[str, bytes]:
    """One picture of each format with everything that tells of its source."""
    jpeg = bare(".jpg")
    extra = (
        jpeg_segment(0xE1, b"Exif\0\0MM\0*" + SECRET)
        + jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + SECRET)
        + jpeg_segment(0xED, SECRET)
        + jpeg_segment(0xFE, SECRET)
        + jpeg_segment(0xE2, b"MPF\0" + SECRET)
    )
    png = bare(".png")
    png_extra = b"".join(png_chunk(kind, SECRET) for kind in (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME"))
    webp = bare(".webp")
    size = struct.pack("<I", 31)[:3] + struct.pack("<I", 23)[:3]
    body = webp_chunk(b"VP8X", b"\x0c\0\0\0" + size) + webp[12:] + webp_chunk(b"EXIF", SECRET) + webp_chunk(b"XMP ", SECRET)
    return {
        "jpeg": jpeg[:2] + extra + jpeg[2:] + SECRET,
        "png": png[:33] + png_extra + png[33:] + SECRET,
        "webp": b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body,
    }


@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp"])
def test_nothing_of_the_source_is_left_and_every_pixel_is(image_format: str) -> None:
    data = told()[image_format]
    assert SECRET in data
    clean = without_metadata(data, image_format)
    assert SECRET not in clean
    before, after = (cv2.imdecode(np.frombuffer(each, np.uint8), cv2.IMREAD_COLOR) for each in (data, clean))
    assert before is not None
    assert after is not None
    assert (before == after).all()


@pytest.mark.parametrize(("suffix", "image_format"), [(".jpg", "jpeg"), (".png", "png"), (".webp", "webp")])
def test_a_picture_without_metadata_keeps_its_very_bytes(suffix: str, image_format: str) -> None:
    assert without_metadata(bare(suffix), image_format) == bare(suffix)


def test_how_colours_are_meant_is_kept() -> None:
    profile = jpeg_segment(0xE2, b"ICC_PROFILE\0\1\1colours")
    jpeg = bare(".jpg")
    assert profile in without_metadata(jpeg[:2] + profile + jpeg[2:], "jpeg")


@given(st.sampled_from(["jpeg", "png", "webp"]), st.data())
def test_a_file_that_is_cut_off_is_refused_or_cleaned_and_never_a_crash(image_format: str, data: st.DataObject) -> None:
    whole = told()[image_format]
    cut = whole[: data.draw(st.integers(30, len(whole)))]
    try:
        without_metadata(cut, image_format)
    except NotAnImage:
        return
