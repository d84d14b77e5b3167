"""Takes out of a picture what it says of its source: EXIF with place and time, XMP, comments, the maker's notes. Pixels stay.

In: JPEG, PNG or WebP bytes whose header was read (`image_header.py`). Out: the same without such segments. Nothing is decoded. What
says how colours are meant (JFIF, ICC profile, Adobe's transform; PNG's and WebP's own) is kept.

Source: ITU T.81 annex B; PNG specification, section 11.3; WebP container specification.
"""

from __future__ import annotations

import struct

from bowerbird_server.ingest.image_header import NotAnImage

_JPEG_KEPT_APPS = frozenset({0xE0, 0xEE})  # JFIF, Adobe
_PNG_METADATA = frozenset({b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME"})
_WEBP_METADATA = frozenset({b"EXIF", b"XMP "})
_WEBP_FLAGS = 0x08 | 0x04  # of the VP8X chunk: EXIF, XMP


def without_metadata(data: bytes, image_format: str) -> bytes:
    """The picture without metadata; the very bytes where there is none.

    Args:
        image_format: `jpeg`, `png` or `webp`.

    Raises:
        NotAnImage: the file does not hold together, so nobody knows what is in it.
    """
    try:
        return {"jpeg": _jpeg, "png": _png, "webp": _webp}[image_format](data)
    except (struct.error, IndexError) as error:
        raise NotAnImage(f"a {image_format} whose parts do not hold together") from error


def _jpeg(data: bytes) -> bytes:
    out = bytearray(data[:2])
    at = 2
    while True:
        if data[at] != 0xFF:
            raise NotAnImage("damaged JPEG header")
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0xDA:  # the picture begins; what stands behind its end belongs to nobody
            end = data.rfind(b"\xff\xd9")
            out += data[at : end + 2] if end > at else data[at:]
            return bytes(out)
        (length,) = struct.unpack_from(">H", data, at + 2)
        segment = data[at : at + 2 + length]
        is_app = 0xE0 <= marker <= 0xEF
        is_profile = marker == 0xE2 and segment[4:16] == b"ICC_PROFILE\0"
        if not (is_app or marker == 0xFE) or marker in _JPEG_KEPT_APPS or is_profile:
            out += segment
        at += 2 + max(2, length)


def _png(data: bytes) -> bytes:
    out = bytearray(data[:8])
    at = 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind = data[at + 4 : at + 8]
        if at + 12 + length > len(data):
            raise NotAnImage("a PNG that is cut off")
        if kind not in _PNG_METADATA:
            out += data[at : at + 12 + length]
        at += 12 + length
        if kind == b"IEND":
            break
    return bytes(out)


def _webp(data: bytes) -> bytes:
    body = bytearray()
    at = 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        chunk = bytearray(data[at : at + 8 + length + length % 2])
        if kind == b"VP8X" and length >= 10:
            chunk[8] &= ~_WEBP_FLAGS & 0xFF
        if kind not in _WEBP_METADATA:
            body += chunk
        at += 8 + length + length % 2
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + bytes(body)
