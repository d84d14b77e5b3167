"""Format and size of a picture from its first bytes, without decoding it.

In: JPEG, PNG or WebP bytes from somebody we do not trust. Out: `ImageSize`. A decoder never runs here: a few kilobytes can declare
a picture of gigabytes, and that has to be refused before anything allocates it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

MAX_SIDE = 16384
MAX_PIXELS = 64_000_000

_JPEG_SIZE_MARKERS = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # the SOFn segments; ITU T.81, table B.1
_EXIF_ORIENTATION, _TIFF_SHORT = 0x0112, 3
_JPEG_BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD8)})  # have no length


class NotAnImage(ValueError):
    """Not a JPEG, PNG or WebP header, or one that declares an impossible size."""


@dataclass(frozen=True)
class ImageSize:
    """`image_format` is `jpeg`, `png` or `webp`; width and height in pixels."""

    image_format: str
    width: int
    height: int


def image_size(data: bytes | memoryview) -> ImageSize:
    """Read the header of a picture.

    Raises:
        NotAnImage: another format, a truncated header, a side of 0, or more than 16384 pixels a side or 64 million in all.
    """
    if data[:3] == b"\xff\xd8\xff":
        size = ImageSize("jpeg", *_jpeg(data))
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        size = ImageSize("png", *_png(data))
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        size = ImageSize("webp", *_webp(data))
    else:
        raise NotAnImage("neither JPEG nor PNG nor WebP")
    if not (0 < size.width <= MAX_SIDE and 0 < size.height <= MAX_SIDE and size.width * size.height <= MAX_PIXELS):
        raise NotAnImage(f"{size.image_format} of {size.width} x {size.height} pixels is not accepted")
    return size


def is_upright(data: bytes) -> bool:
    """Whether the pixels lie as they are meant to be seen: False for a JPEG whose EXIF turns or mirrors it.

    Source: Exif 2.32, tag 0x0112; the first IFD of the TIFF structure in the APP1 segment.
    """
    at = 2 if data[:2] == b"\xff\xd8" else len(data)
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in {0xD9, 0xDA}:
        (length,) = struct.unpack_from(">H", data, at + 2)
        if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            return _orientation(data[at + 10 : at + 2 + length]) in {0, 1}
        at += 2 + max(length, 2)
    return True


def _orientation(tiff: bytes) -> int:
    """The orientation in a TIFF structure, 0 when it says none."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 10:
        return 0
    (at,) = struct.unpack_from(order + "I", tiff, 4)
    if at + 2 > len(tiff):
        return 0
    (count,) = struct.unpack_from(order + "H", tiff, at)
    for entry in range(at + 2, min(at + 2 + 12 * count, len(tiff) - 11), 12):
        tag, kind = struct.unpack_from(order + "HH", tiff, entry)
        if tag == _EXIF_ORIENTATION and kind == _TIFF_SHORT:
            (value,) = struct.unpack_from(order + "H", tiff, entry + 8)
            return int(value)
    return 0


def _jpeg(data: bytes | memoryview) -> tuple[int, int]:
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise NotAnImage("damaged JPEG header")
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in _JPEG_BARE_MARKERS:
            at += 2
        elif marker in (0xD9, 0xDA):  # end of image or start of scan before any size
            break
        else:
            (length,) = struct.unpack_from(">H", data, at + 2)
            if length < 2:
                raise NotAnImage("damaged JPEG header")
            if marker in _JPEG_SIZE_MARKERS:
                if at + 9 > len(data):
                    break
                height, width = struct.unpack_from(">HH", data, at + 5)
                return width, height
            at += 2 + length
    raise NotAnImage("JPEG without a size")


def _png(data: bytes | memoryview) -> tuple[int, int]:
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise NotAnImage("PNG without a header")
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _webp(data: bytes | memoryview) -> tuple[int, int]:
    if len(data) < 30:
        raise NotAnImage("WebP without a header")
    kind = data[12:16]
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    raise NotAnImage("WebP without a size")
