"""Records: what the catalogue says, kept as immutable blobs, so that a lost catalogue can be built again from the blob store alone.

In: headers of frames, or facts as JSON. Out: bytes to be stored as a blob, and the values back. Headers of one group of frames are one
record (`magic | CBOR`), everything else is a JSON object whose `kind` says what it is. It stores nothing itself and knows no rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cbor2

from bowerbird_wire.codec import from_map
from bowerbird_wire.errors import MessageError
from bowerbird_wire.messages import FrameHeader

HEADERS_MAGIC = b"BWRH\x01"
_KIND = "bowerbird "


@dataclass(frozen=True)
class HeaderRecord:
    """The headers of a group of frames and when they were received (UTC ISO text).

    `frames`: (site of the device, header, size of the image in bytes, 0 for a reference, which has none).
    """

    received_at: str
    frames: tuple[tuple[str, FrameHeader, int], ...]


def encode_headers(received_at: str, headers: Sequence[tuple[str, bytes, int]]) -> bytes:
    """A record of headers.

    Args:
        headers: (site, the header's CBOR as the device sent it, so that keys which this release does not know are kept, size of the
            image in bytes).
    """
    return HEADERS_MAGIC + cbor2.dumps({"at": received_at, "frames": [list(one) for one in headers]})


def decode_headers(data: bytes) -> HeaderRecord:
    """A record of headers from its bytes.

    Raises:
        MessageError: it is none.
    """
    try:
        if not data.startswith(HEADERS_MAGIC):
            raise MessageError("not a record of frame headers")
        plain = cbor2.loads(data[len(HEADERS_MAGIC) :])
        frames = tuple(
            (str(site), from_map(FrameHeader, cbor2.loads(header), "header"), int(size))
            for site, header, size in plain["frames"]
        )
        return HeaderRecord(str(plain["at"]), frames)
    except (cbor2.CBORDecodeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise MessageError(f"a damaged record of frame headers: {type(error).__name__}") from error


def encode_fact(kind: str, fact: Mapping[str, Any]) -> bytes:
    """A fact of some kind, e.g. `tombstone`, as canonical JSON: the same fact is the same blob."""
    return json.dumps({**fact, "kind": f"{_KIND}{kind} 1"}, sort_keys=True, separators=(",", ":")).encode()


def decode_fact(data: bytes) -> tuple[str, dict[str, Any]] | None:
    """Kind and content of a fact; None when the bytes are something else, or a kind of a later release."""
    if not data.startswith(b"{"):
        return None
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError):
        return None
    kind = plain.get("kind") if isinstance(plain, dict) else None
    if not isinstance(kind, str) or not kind.startswith(_KIND) or not kind.endswith(" 1"):
        return None
    return kind.removeprefix(_KIND).removesuffix(" 1"), plain
