"""Topics and messages: what is written today is read for ever, and nothing that arrives can do more than be refused."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import struct
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bowerbird_testing.frames import make_frame
from bowerbird_wire import codec
from bowerbird_wire.errors import DigestError, LengthError, MessageError, TopicError, VersionError, WireError
from bowerbird_wire.histograms import CameraHour
from bowerbird_wire.messages import (
    Block,
    Boost,
    Campaign,
    Desired,
    EraseWish,
    Fetch,
    FrameHeader,
    FrameMessage,
    Health,
    Message,
    Offer,
    Receipt,
    Redaction,
    Refusal,
    Tombstone,
    Want,
    WireDetection,
)
from bowerbird_wire.thumbnail import THUMBNAIL_BYTES
from bowerbird_wire.topics import (
    DOWN,
    LOCAL,
    UP,
    CreditTopic,
    DetectionsTopic,
    DeviceTopic,
    FrameTopic,
    check_name,
    parse_topic,
)
from unit import golden

names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
camera_topics = st.builds(lambda kind, *levels: kind(*levels), st.sampled_from(LOCAL), names, names, names)
topics = st.builds(lambda kind, *levels: kind(*levels), st.sampled_from(UP + DOWN), names, names) | camera_topics
text = st.text(max_size=20)
int64 = st.integers(-(2**63), 2**63 - 1)
numbers = st.floats(allow_nan=False, allow_infinity=False)
counts = st.dictionaries(text, int64, max_size=3)
plain: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | int64 | numbers | text | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)


def fields_of(kind: type[Message]) -> st.SearchStrategy[Any]:
    """Any valid message of a kind, with unknown keys that no field uses."""
    by_type: dict[str, st.SearchStrategy[Any]] = {
        "str": text,
        "int": int64,
        "float": numbers,
        "bool": st.booleans(),
        "bytes": st.binary(max_size=50),
        "int | None": st.none() | int64,
        "float | None": st.none() | numbers,
        "Mapping[str, tuple[int, int]]": st.dictionaries(text, st.tuples(int64, int64), max_size=3),
        "Boost | None": st.none() | st.deferred(lambda: fields_of(Boost)),
        "tuple[CameraHour, ...]": st.deferred(lambda: st.lists(fields_of(CameraHour), max_size=2).map(tuple)),
        "tuple[Campaign, ...]": st.deferred(lambda: st.lists(fields_of(Campaign), max_size=2).map(tuple)),
        "tuple[str, ...]": st.lists(text, max_size=3).map(tuple),
        "Mapping[str, int]": counts,
        "Mapping[str, str]": st.dictionaries(text, text, max_size=3),
        "Mapping[str, float]": st.dictionaries(text, numbers, max_size=3),
        "Mapping[str, Any]": st.dictionaries(st.text(max_size=8).map("zz".__add__), plain, max_size=2),
        "tuple[float, float, float, float]": st.tuples(numbers, numbers, numbers, numbers),
        "tuple[Refusal, ...]": st.deferred(lambda: st.lists(fields_of(Refusal), max_size=2).map(tuple)),
        "tuple[bytes, ...]": st.lists(st.binary(max_size=40), max_size=3).map(tuple),
        "tuple[Fetch, ...]": st.deferred(lambda: st.lists(fields_of(Fetch), max_size=2).map(tuple)),
        "tuple[Tombstone, ...]": st.deferred(lambda: st.lists(fields_of(Tombstone), max_size=2).map(tuple)),
        "tuple[Want, ...]": st.deferred(lambda: st.lists(fields_of(Want), max_size=2).map(tuple)),
        "tuple[Redaction, ...]": st.deferred(lambda: st.lists(fields_of(Redaction), max_size=2).map(tuple)),
        "tuple[EraseWish, ...]": st.deferred(lambda: st.lists(fields_of(EraseWish), max_size=2).map(tuple)),
        "tuple[WireDetection, ...]": st.deferred(lambda: st.lists(fields_of(WireDetection), max_size=2).map(tuple)),
    }
    return st.builds(kind, **{field.name: by_type[str(field.type)] for field in dataclasses.fields(kind)})


CONTROL = sorted({type(message) for message in golden.MESSAGES.values()}, key=lambda kind: kind.__name__)


# -- topics


@given(topics)
def test_every_topic_reads_back_as_itself(topic: DeviceTopic) -> None:
    assert type(topic).parse(str(topic)) == topic
    assert parse_topic(str(topic)) == topic


@given(topics)
def test_no_topic_is_of_two_types(topic: DeviceTopic) -> None:
    for kind in UP + DOWN + LOCAL:
        if kind is not type(topic):
            with pytest.raises(TopicError):
                kind.parse(str(topic))


@given(st.text() | topics.map(str).flatmap(lambda topic: st.text(max_size=3).map(lambda more: topic + "/" + more)))
def test_any_text_is_a_topic_or_a_topic_error(candidate: str) -> None:
    try:
        topic = parse_topic(candidate)
    except TopicError:
        return
    assert str(topic) == candidate


@given(names)
def test_the_credit_topic_reads_back_as_itself_and_is_of_no_device(site: str) -> None:
    topic = CreditTopic(site)
    assert CreditTopic.parse(str(topic)) == topic
    with pytest.raises(TopicError):
        parse_topic(str(topic))
    for text in (f"{topic}/x", str(topic).replace("credit", "debit"), str(FrameTopic(site, "cam-01"))):
        with pytest.raises(TopicError):
            CreditTopic.parse(text)


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "A", "-a", "a-", "a b", "a\n", "é", "a" * 64, "a\0", "..", "$sys"])
def test_names_that_could_leave_their_level_are_refused(name: str) -> None:
    with pytest.raises(TopicError):
        check_name(name)
    with pytest.raises(TopicError):
        FrameTopic("demo", name)
    with pytest.raises(TopicError):
        DetectionsTopic("demo", "cam-01", name)


def test_a_filter_matches_the_device_level_only() -> None:
    assert FrameTopic.filter("demo") == "bowerbird/v1/demo/up/+/frame"
    assert DetectionsTopic.filter("demo") == "bowerbird/v1/demo/local/+/+/detections"
    assert DetectionsTopic.of_device("demo", "cam-01") == "bowerbird/v1/demo/local/cam-01/+/detections"


# -- golden bytes


@pytest.mark.parametrize("name", sorted(golden.encoded()))
def test_golden_bytes_are_still_written(name: str) -> None:
    assert golden.encoded()[name] == (golden.FOLDER / name).read_bytes()


@pytest.mark.parametrize("name", sorted(golden.MESSAGES))
def test_golden_bytes_still_mean_the_same(name: str) -> None:
    message = golden.MESSAGES[name]
    assert codec.decode(type(message), (golden.FOLDER / f"{name}.bin").read_bytes()) == message


def test_the_golden_frame_still_means_the_same() -> None:
    assert codec.decode_frame((golden.FOLDER / "frame.bin").read_bytes()) == golden.FRAME


def test_every_golden_file_is_tested() -> None:
    assert {path.name for path in Path(golden.FOLDER).glob("*.bin")} == set(golden.encoded())


# -- round trips


@given(st.sampled_from(CONTROL).flatmap(fields_of))
def test_every_control_message_reads_back_as_itself(message: Message) -> None:
    assert codec.decode(type(message), codec.encode(message)) == message


@given(fields_of(FrameHeader), st.binary(max_size=200))
def test_every_frame_reads_back_as_itself(header: FrameHeader, image: bytes) -> None:
    header = dataclasses.replace(header, image_sha256=hashlib.sha256(image).hexdigest())
    header = dataclasses.replace(header, frame_id=codec.frame_id_of(header))
    message = FrameMessage(header, image)
    assert codec.decode_frame(codec.encode_frame(message)) == message


def test_unknown_keys_are_kept_and_sent_on() -> None:
    payload = cbor2.dumps({"v": 1, "n": 3, "campaign": {"name": "rain"}})
    desired = codec.decode(Desired, payload)
    assert desired.extra == {"campaign": {"name": "rain"}}
    assert cbor2.loads(codec.encode(desired)) == cbor2.loads(payload)


# -- whatever arrives


@given(st.sampled_from(CONTROL), st.binary(max_size=300) | plain.map(cbor2.dumps))
def test_arbitrary_bytes_are_a_message_or_a_wire_error(kind: type[Message], payload: bytes) -> None:
    with contextlib.suppress(WireError):
        codec.decode(kind, payload)


KEYS = ["v", "n", "s", "j", "m", "p", "i", "z", "id", "c", "ok", "no", "t", "boot", "ft", "sp"]


@given(st.sampled_from(CONTROL), st.dictionaries(st.sampled_from(KEYS), plain))
def test_right_keys_with_wrong_values_are_a_wire_error(kind: type[Message], content: dict[str, Any]) -> None:
    try:
        message = codec.decode(kind, cbor2.dumps({**content, "v": 1}))
    except WireError:
        return
    codec.encode(message)


# Dates, big numbers, decimals, fractions, shared references, patterns, addresses, sets: CBOR tags that a decoder may act on.
TAGS = [0, 1, 2, 3, 4, 5, 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 1004, 43000, 55799, 999_999]
tagged = st.builds(cbor2.CBORTag, st.sampled_from(TAGS), plain)


@example(Receipt, "v", cbor2.CBORTag(36, None))  # becomes a mail message, which CBOR cannot write
@given(st.sampled_from(CONTROL), st.sampled_from(KEYS), tagged)
def test_tagged_values_are_taken_or_refused_and_never_a_crash(kind: type[Message], key: str, value: cbor2.CBORTag) -> None:
    for content in ({"v": 1, "n": 1, key: value}, {"v": 1, "n": 1, "unknown": [value]}, value):
        try:
            message = codec.decode(kind, cbor2.dumps(content))
        except WireError:
            continue
        codec.encode(message)


@pytest.mark.parametrize(
    "payload",
    [
        b"\xa2\x61v\x01\x61x\xd8\x1c\x81\xd8\x1d\x00",  # a list that contains itself
        b"\xa1\xa1\x61a\x01\x02",  # a map as a key
        b"\xa1\x81\xa0\x01",  # a list of maps as a key
        b"\xbf\x61v\x01",  # without an end
        b"\x9b\x7f\xff\xff\xff\xff\xff\xff\xff",  # a list of 2^63 items
        b"\x5b\x00\x00\x7f\xff\xff\xff\xff\xff",  # 140 TB of bytes
        b"\xbb\x7f\xff\xff\xff\xff\xff\xff\xff",  # a map of 2^63 pairs
        b"\x62\xff\xff",  # text that is not UTF-8
    ],
)
def test_hostile_cbor_is_a_wire_error(payload: bytes) -> None:
    with pytest.raises(WireError):
        codec.decode(Desired, payload)


@given(st.binary(max_size=300), st.integers(0, 2**32 - 1))
def test_arbitrary_bytes_behind_a_frame_prefix_are_a_wire_error(rest: bytes, length: int) -> None:
    with pytest.raises(WireError):
        codec.decode_frame(struct.pack(">4sBI", b"BWRB", 1, length) + rest)


@given(st.data())
def test_a_frame_with_flipped_cut_or_added_bytes_is_never_taken(data: st.DataObject) -> None:
    good = codec.encode_frame(golden.FRAME)
    kind = data.draw(st.sampled_from(["flip", "cut", "add"]))
    if kind == "flip":
        at = data.draw(st.integers(0, len(good) - 1))
        bad = good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :]
    elif kind == "cut":
        bad = good[: data.draw(st.integers(0, len(good) - 1))]
    else:
        bad = good + data.draw(st.binary(min_size=1, max_size=20))
    try:
        message = codec.decode_frame(bad)
    except WireError:
        return
    # Fields outside the identity (score, detections) may change unseen; image and identity may not.
    assert message.image == golden.FRAME.image
    assert message.header.frame_id == golden.FRAME.header.frame_id


def test_the_golden_reference_still_means_the_same() -> None:
    assert codec.verify_reference((golden.FOLDER / "reference.bin").read_bytes()) == golden.REFERENCE


@given(st.data())
def test_a_reference_with_flipped_cut_or_added_bytes_names_its_frame_or_is_refused(data: st.DataObject) -> None:
    good = bytearray(codec.encode_reference(golden.REFERENCE))
    good[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(0, 255))
    bad = bytes(good[: data.draw(st.integers(0, len(good)))]) + data.draw(st.binary(max_size=20))
    try:
        header = codec.verify_reference(bad)
    except WireError:
        return
    assert header.frame_id == golden.REFERENCE.frame_id
    assert len(header.twin) == 64


def test_a_reference_carries_no_picture_and_names_another_frame() -> None:
    for header in (golden.FRAME.header, dataclasses.replace(golden.REFERENCE, twin=golden.REFERENCE.frame_id)):
        with pytest.raises(MessageError, match=r"header\.tw"):
            codec.verify_reference(codec.encode_reference(header))
    with pytest.raises(LengthError, match="64 stray bytes"):
        codec.verify_reference(codec.encode_frame(dataclasses.replace(golden.FRAME, header=golden.REFERENCE)))


def test_a_frame_without_a_twin_says_nothing_of_one() -> None:
    assert codec.to_map(golden.REFERENCE)["tw"] == golden.REFERENCE.twin
    assert "tw" not in codec.to_map(golden.FRAME.header)


@pytest.mark.parametrize("length", [0xFFFFFFFF, codec.MAX_HEADER_BYTES + 1, 10_000])
def test_a_header_length_that_lies_is_named(length: int) -> None:
    good = codec.encode_frame(golden.FRAME)
    with pytest.raises(LengthError, match=f"header of {length} bytes declared in a message of {len(good)}"):
        codec.decode_frame(good[:5] + struct.pack(">I", length) + good[9:])


def test_the_limits_of_size_hold() -> None:
    with pytest.raises(LengthError, match="at most"):
        codec.decode(Block, bytes(codec.MAX_CONTROL_BYTES + 1))
    with pytest.raises(LengthError, match="at most"):
        codec.decode_frame(bytes(codec.MAX_FRAME_BYTES + 1))
    with pytest.raises(LengthError, match="stray"):
        codec.decode(Desired, codec.encode(Desired(1)) + b"\0")


def test_deep_nesting_is_refused_not_a_crash() -> None:
    with pytest.raises(MessageError):
        codec.decode(Desired, b"\x81" * 100_000 + b"\x00")


def test_other_versions_are_told_apart_from_damage() -> None:
    good = codec.encode_frame(golden.FRAME)
    with pytest.raises(VersionError):
        codec.decode_frame(good[:4] + b"\x02" + good[5:])
    with pytest.raises(VersionError, match="schema version 2"):
        codec.decode(Desired, cbor2.dumps({"v": 2, "n": 1}))
    with pytest.raises(MessageError, match="magic"):
        codec.decode_frame(b"JFIF" + good[4:])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "1", None])
def test_numbers_that_are_none_are_refused(value: object) -> None:
    with pytest.raises(MessageError, match="fps"):
        codec.decode(Health, cbor2.dumps({"v": 1, "boot": "b", "t": 1, "fps": value}))


def test_the_image_of_another_frame_is_a_digest_error() -> None:
    header, _ = make_frame(1)
    _, image = make_frame(2)
    with pytest.raises(DigestError, match="does not have the digest"):
        codec.decode_frame(codec.encode_frame(FrameMessage(header, image)))


def test_a_header_that_claims_another_sequence_is_a_digest_error() -> None:
    header, image = make_frame(1)
    with pytest.raises(DigestError, match="does not match the header"):
        codec.decode_frame(codec.encode_frame(FrameMessage(dataclasses.replace(header, sequence=2), image)))


def test_the_same_source_frame_has_one_identity_whatever_the_model_said() -> None:
    header, _ = make_frame(1, score=0.1)
    again, _ = make_frame(1, score=0.9, model_digest="other", detections=(WireDetection((0, 0, 1, 1), 0.5, "car"),))
    assert header.frame_id == again.frame_id == codec.frame_id_of(again)


def test_a_receipt_for_nothing_is_small() -> None:
    assert len(codec.encode(Receipt())) <= 8


def test_a_question_about_a_frame_takes_about_forty_bytes() -> None:
    assert len(codec.encode(Offer(bytes(32)))) <= 42


def test_a_question_with_everything_in_it_stays_small() -> None:
    largest = Offer(bytes(32), bytes(16), codec.MAX_FRAME_BYTES)
    assert len(codec.encode(largest)) <= 96
    assert len(codec.encode(dataclasses.replace(largest, thumbnail=bytes(THUMBNAIL_BYTES)))) <= 96 + THUMBNAIL_BYTES
