"""Records come back as what they were; other bytes are told apart from them."""

from __future__ import annotations

import cbor2
import pytest

from bowerbird_server.catalogue.records import (
    HEADERS_MAGIC,
    HeaderRecord,
    decode_fact,
    decode_headers,
    encode_fact,
    encode_headers,
)
from bowerbird_testing.frame_messages import frame_message
from bowerbird_wire.codec import encode
from bowerbird_wire.errors import MessageError

AT = "2026-11-22T19:45:12.345Z"


def test_headers_come_back_with_the_keys_that_this_release_does_not_know() -> None:
    headers = [frame_message(sequence=n, extra={"lens": "wide"}).header for n in range(3)]
    data = encode_headers(AT, [("north", encode(header), 9) for header in headers])
    assert decode_headers(data) == HeaderRecord(AT, tuple(("north", header, 9) for header in headers))


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xd8\xff\xe0", HEADERS_MAGIC, HEADERS_MAGIC + b"\xff", HEADERS_MAGIC + cbor2.dumps({"at": AT})]
    + [
        HEADERS_MAGIC + cbor2.dumps({"at": AT, "frames": frames})
        for frames in (5, [[1]], [["north", b"\xff", 1]], [["a", b"\xa0", 1]])
    ],
)
def test_bytes_that_are_no_record_of_headers_raise_one_kind_of_error(data: bytes) -> None:
    with pytest.raises(MessageError):
        decode_headers(data)


def test_a_fact_comes_back_with_its_kind_and_the_same_fact_is_the_same_bytes() -> None:
    data = encode_fact("tombstone", {"frame": "ab", "at": AT})
    assert data == encode_fact("tombstone", {"at": AT, "frame": "ab"})
    assert decode_fact(data) == ("tombstone", {"kind": "bowerbird tombstone 1", "frame": "ab", "at": AT})


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"kind":1}', b'{"kind":"other 1"}', b'{"kind":"bowerbird label 2"}', b"\xff\xd8"]
)
def test_other_bytes_are_no_fact(data: bytes) -> None:
    assert decode_fact(data) is None
