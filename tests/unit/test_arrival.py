"""Whatever a device sends, it is accepted or rejected: nothing that arrives makes the judge itself fail."""

from __future__ import annotations

import cbor2
from hypothesis import given, settings
from hypothesis import strategies as st

from bowerbird_server.ingest.arrival import Accepted, Rejected, judge
from bowerbird_testing.frame_messages import frame_message
from bowerbird_wire.codec import encode_frame

TOPIC = "bowerbird/v1/demo/up/cam-01/frame"
DEVICES = {"cam-01": "demo"}
GOOD = encode_frame(frame_message())
_HEADER_END = 9 + int.from_bytes(GOOD[5:9], "big")
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def test_a_good_frame_is_accepted_with_its_header_as_it_came() -> None:
    verdict = judge(TOPIC, GOOD, DEVICES)
    assert isinstance(verdict, Accepted)
    assert verdict.header_bytes == GOOD[9:_HEADER_END]
    assert verdict.header == frame_message().header
    assert verdict.image == GOOD[_HEADER_END:]


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60), st.integers(0, len(GOOD)), st.integers(0, 80))
def test_bytes_changed_anywhere_are_judged(patch: bytes, at: int, cut: int) -> None:
    verdict = judge(TOPIC, GOOD[:at] + patch + GOOD[at + cut :], DEVICES)
    assert isinstance(verdict, Accepted | Rejected)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(cbor2.loads(GOOD[9:_HEADER_END]))), _values)
def test_any_value_under_any_key_of_the_header_is_judged(key: str, value: object) -> None:
    header = cbor2.dumps({**cbor2.loads(GOOD[9:_HEADER_END]), key: value})
    payload = GOOD[:5] + len(header).to_bytes(4, "big") + header + GOOD[_HEADER_END:]
    assert isinstance(judge(TOPIC, payload, DEVICES), Accepted | Rejected)


@given(st.text(max_size=80))
def test_any_topic_is_judged(topic: str) -> None:
    assert isinstance(judge(topic, GOOD, DEVICES), Rejected)
