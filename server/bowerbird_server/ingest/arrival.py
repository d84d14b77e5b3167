"""What a frame message must be before it is stored: pure rules, no I/O.

In: topic and payload as the broker brought them, and which devices there are. Out: `Accepted` or `Rejected` with the code that the
device is told. Nothing is decoded: header, digests and the picture's own header are compared, that is all.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import cbor2

from bowerbird_server.ingest.image_header import NotAnImage, image_size
from bowerbird_wire.codec import MAX_HEADER_BYTES, verify_frame, verify_reference
from bowerbird_wire.errors import MessageError, TopicError, WireError
from bowerbird_wire.linked import FETCHED, link_of
from bowerbird_wire.messages import FrameHeader
from bowerbird_wire.topics import DeviceTopic, FrameTopic, ReferenceTopic, check_name

_HEADER_AT = struct.calcsize(">4sBI")
_LATEST_MS = 253_370_764_800_000  # the year 9999; text order is time order only up to there
_MAX_DETECTIONS = 2000
_MAX_TEXT = 200


@dataclass(frozen=True)
class Accepted:
    """A frame that may be stored; `header_bytes` is its header's CBOR as it came, with whatever this release does not know.

    `image` lies in the message's payload, which is kept for it; a reference has none, and the digest in its header was not verified.
    """

    topic: DeviceTopic
    header: FrameHeader
    image: memoryview
    header_bytes: bytes

    @property
    def is_reference(self) -> bool:
        """Whether its picture is its twin's."""
        return len(self.image) == 0


@dataclass(frozen=True)
class Rejected:
    """A message that never will be. `topic` is None when not even that was right; `frame_id` is empty when it has none.

    `transfer` names the frame where only parts of it came.
    """

    topic: DeviceTopic | None
    frame_id: str
    code: str
    detail: str
    transfer: bytes = b""


def judge(topic_text: str, payload: bytes, devices: Mapping[str, str]) -> Accepted | Rejected:
    """Accept or reject one message.

    Args:
        topic_text: where it was published.
        payload: the frame message, or the reference.
        devices: name -> site of the devices whose frames are taken.
    """
    try:
        topic = _topic(topic_text)
    except TopicError as error:
        return Rejected(None, "", error.code, str(error))
    if devices.get(topic.device) != topic.site:
        return Rejected(topic, _claimed_id(payload), "unknown_device", f"no device {topic.device!r} of site {topic.site!r}")
    try:
        is_reference = isinstance(topic, ReferenceTopic)
        header, image = (verify_reference(payload), memoryview(b"")) if is_reference else verify_frame(payload)
        if header.device != topic.device:
            raise MessageError(f"the header names device {header.device[:80]!r}")
        check_header(header)
        if is_reference:
            return _accepted_reference(topic, header, payload)
        size = image_size(image)
    except NotAnImage as error:
        return Rejected(topic, _claimed_id(payload), "bad_image", str(error))
    except WireError as error:
        return Rejected(topic, _claimed_id(payload), error.code, str(error))
    if (size.image_format, size.width, size.height) != (header.image_format, header.width, header.height):
        detail = (
            f"the header promises {header.image_format[:16]} of {header.width} x {header.height}, "
            f"the image is {size.image_format} of {size.width} x {size.height}"
        )
        return Rejected(topic, header.frame_id, "bad_image", detail)
    return Accepted(topic, header, image, payload[_HEADER_AT : len(payload) - len(image)])


def _accepted_reference(topic: DeviceTopic, header: FrameHeader, payload: bytes) -> Accepted:
    """Whether its twin is here is the catalogue's to say."""
    if header.arm != "explore":
        raise MessageError("only a frame taken at random may come as a reference to its twin; send it whole")
    return Accepted(topic, header, memoryview(b""), payload[_HEADER_AT:])


@functools.lru_cache(maxsize=1024)  # a device publishes all its frames on one topic
def _topic(text: str) -> DeviceTopic:
    kind = ReferenceTopic if text.endswith(f"/{ReferenceTopic.LEAF}") else FrameTopic
    return kind.parse(text)


def check_header(header: FrameHeader) -> None:
    """The rules that the codec's types do not express.

    Raises:
        MessageError: a value outside its range.
    """
    check_name(header.camera, "camera")
    if header.arm not in ("policy", "explore", "campaign", FETCHED):
        raise MessageError(f"header.a must be 'policy', 'explore', 'campaign' or 'fetched', not {header.arm[:40]!r}")
    if (header.arm == FETCHED) != (link_of(header) is not None):
        raise MessageError("a fetched frame, and no other, must say in its header which frame it belongs to")
    if not 0 <= header.captured_at_ms <= _LATEST_MS or header.sequence < 0:
        raise MessageError("header.t and header.n must be 0 or more, and before the year 9999")
    if not 0 <= header.score <= 1 or not 0 <= header.inclusion_probability <= 1:
        raise MessageError("header.s and header.p must lie in [0, 1]")
    if header.arm == "explore" and header.inclusion_probability == 0:  # a policy without a random share has no chance to tell
        raise MessageError("header.p of a frame taken at random must be above 0")
    if min(header.source_width, header.source_height) < 0:
        raise MessageError("header.sw and header.sh must be 0 or more")
    if len(header.detections) > _MAX_DETECTIONS:
        raise MessageError(f"{len(header.detections)} detections; at most {_MAX_DETECTIONS} are taken")
    texts = (header.model_digest, *header.reasons, *header.strategy_scores, *(d.class_name for d in header.detections))
    if any(len(text) > _MAX_TEXT or not text.isprintable() for text in texts) or any("," in r for r in header.reasons):
        raise MessageError(f"texts in the header must be printable and at most {_MAX_TEXT} characters, reasons without commas")


def _claimed_id(payload: bytes) -> str:
    """The frame id that a bad message claims, so that its sender learns which frame of its spool it is; else empty."""
    try:
        (length,) = struct.unpack_from(">I", payload, 5)
        if length > MAX_HEADER_BYTES:
            return ""
        plain = cbor2.loads(payload[_HEADER_AT : _HEADER_AT + length])
        claimed = plain["id"]
    except Exception:
        # Whatever hostile bytes make a parser raise: without an id the message is refused all the same.
        return ""
    if isinstance(claimed, str) and len(claimed) == 64 and set(claimed) <= set("0123456789abcdef"):
        return claimed
    return ""
