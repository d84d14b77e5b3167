"""Every byte has one kind; what the operator reads about it is what the device wrote, or nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bowerbird_agent.budget.spending import Spending
from bowerbird_server.web.spending import spent
from bowerbird_wire.spent import BLOCKS, CONTROL, FRAMES, LETTERS, kinds_of
from bowerbird_wire.topics import BlocksTopic, FrameTopic, HealthTopic, ReceiptTopic, StatusTopic

_TOPICS = [kind("demo", "cam-01") for kind in (FrameTopic, HealthTopic, BlocksTopic, ReceiptTopic, StatusTopic)]


def test_what_nothing_else_claims_is_control() -> None:
    spending = Spending()
    spending.packet(FrameTopic("demo", "cam-01"), 60_000)
    spending.packet(BlocksTopic("demo", "cam-01"), 32_000)
    spending.packet(ReceiptTopic("demo", "cam-01"), 90)
    assert spending.by_kind(92_500) == {FRAMES: 60_000, BLOCKS: 32_000, CONTROL: 500}


@given(st.lists(st.tuples(st.sampled_from(_TOPICS), st.integers(0, 10**6), st.integers(0, 10**6)), max_size=30))
def test_kinds_never_fall_and_hold_every_byte(steps: list[tuple[StatusTopic, int, int]]) -> None:
    spending, total, before = Spending(), 0, {}
    for topic, packet_bytes, passed in steps:
        spending.packet(topic, packet_bytes)
        total += passed
        now = spending.by_kind(total)
        assert sum(now.values()) >= total
        assert all(now[kind] >= size for kind, size in before.items())
        before = now


def test_letters_are_one_to_a_kind() -> None:
    assert len(set(LETTERS.values())) == len(LETTERS)
    assert kinds_of({"f": 5, "k": 9, "x": 7, "c": "many", "h": True, "o": -1}) == {"control": 9, "frames": 5}
    assert kinds_of(None) == {}


def test_the_dashboard_says_what_was_spent_on_what_and_what_of_the_caps_is_gone() -> None:
    extra = {"spent": {"f": 700, "b": 900}, "uplink": {"total": [5, 10, 50, None], "metered": [1, None, 2, 3], "quiet": True}}
    said = spent(extra, lambda size: f"{size} B")
    assert said.kinds == "update blocks 900 B, frames 700 B"
    assert said.caps == "5 B of 10 B in 24 h, metered 2 B of 3 B in 31 d, quiet hours"


@given(st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda part: st.lists(part, max_size=4)), st.booleans())
def test_nonsense_from_a_device_is_left_out(nonsense: object, nested: bool) -> None:
    extra = {"spent": nonsense, "uplink": {"total": nonsense, "quiet": nonsense} if nested else nonsense}
    said = spent(extra, str)
    assert said.kinds == ""
    assert "quiet" not in said.caps
