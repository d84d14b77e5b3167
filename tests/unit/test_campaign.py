"""Campaigns on the device: which frames are looked for, how long, and that a share is never exceeded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bowerbird_agent.budget.tariff import QuietHours
from bowerbird_agent.selection.campaign import Condition, Lifetime, Term
from bowerbird_agent.selection.campaign_book import MOST, CampaignBook, counter_names
from bowerbird_models.detections import Detections
from bowerbird_wire.messages import Campaign

NAMES = ("person", "car")
NOON_MS = 1_790_000_000_000 // 86_400_000 * 86_400_000 + 12 * 3_600_000
FAR_MS = NOON_MS + 10 * 86_400_000


def seen(*found: tuple[str, float]) -> Detections:
    boxes = np.tile(np.array([0, 0, 10, 10], np.float32), (len(found), 1))
    ids = np.array([NAMES.index(name) for name, _ in found], np.int64)
    return Detections(boxes, np.array([score for _, score in found], np.float32), ids)


def holds(condition: Condition, *found: tuple[str, float], camera: str = "gate", wall_s: float = NOON_MS / 1000) -> bool:
    return condition.holds(camera, seen(*found), NAMES, wall_s=wall_s, utc_offset_s=0.0)


def test_a_class_below_a_score_is_found_and_nothing_else() -> None:
    condition = Condition("person", 0.25, 0.5)
    assert holds(condition, ("person", 0.4), ("car", 0.9))
    assert not holds(condition, ("person", 0.6))
    assert not holds(condition, ("person", 0.1))
    assert not holds(condition, ("car", 0.4))
    assert not holds(condition)


def test_frames_without_detections_can_be_looked_for() -> None:
    condition = Condition(count_min=0, count_max=0)
    assert holds(condition)
    assert holds(condition, ("person", 0.1)), "below what is shown"
    assert not holds(condition, ("person", 0.3))


def test_a_count_has_two_ends() -> None:
    condition = Condition("car", count_min=2, count_max=3)
    assert [holds(condition, *[("car", 0.9)] * n) for n in range(5)] == [False, False, True, True, False]


def test_camera_and_time_of_day_are_conditions() -> None:
    assert not holds(Condition(cameras=("yard",)), ("car", 0.9))
    assert holds(Condition(cameras=("yard",)), ("car", 0.9), camera="yard")
    night = Condition(hours=(QuietHours.parse("22:00-06:00 UTC"),))
    assert not holds(night, ("car", 0.9))
    assert holds(night, ("car", 0.9), wall_s=NOON_MS / 1000 + 12 * 3600)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"campaign": "../etc"}, "campaign"),
        ({"frames": -1}, "frames"),
        ({"bytes": -1}, "bytes"),
        ({"at_least": 1.5}, "at_least"),
        ({"below": 0.1}, "below"),
        ({"count_max": 0}, "count_max"),
        ({"gap_s": -1.0}, "gap_s"),
        ({"hours": ("noon",)}, "time range"),
        ({"cameras": ("gate",) * 200}, "too much"),
        ({"extra": {"weather": "rain"}}, "does not know: weather"),
    ],
)
def test_a_campaign_that_makes_no_sense_is_not_taken_up_and_the_others_are(changes: dict[str, object], why: str) -> None:
    good = Campaign("good", 5, 1000, FAR_MS)
    bad = replace(Campaign("bad", 5, 1000, FAR_MS), **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=why):
        Term.of(bad)
    book = CampaignBook(wall_s=lambda: NOON_MS / 1000)
    book.take_up(1, (bad, good))
    assert [why in text for text in book.faults().values()] == [True]
    assert book.match("gate", NOON_MS, seen(("car", 0.9)), NAMES) == "good"


class Clock:
    def __init__(self) -> None:
        self.now_s, self.wall_s, self.is_good = 0.0, NOON_MS / 1000, True

    def book(self, folder: Path | None = None, counters: dict[str, int] | None = None, *, allowed: bool = True) -> CampaignBook:
        return CampaignBook(
            folder,
            counters,
            clock_ok=lambda: self.is_good,
            allowed=lambda: allowed,
            now_s=lambda: self.now_s,
            wall_s=lambda: self.wall_s,
        )

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.wall_s += seconds


def wants(book: CampaignBook, clock: Clock) -> bool:
    return book.match("gate", int(clock.wall_s * 1000), seen(("car", 0.9)), NAMES) != ""


def test_a_campaign_ends_by_the_wall_clock() -> None:
    clock = Clock()
    book = clock.book()
    book.take_up(1, (Campaign("c", 9, 9000, NOON_MS + 60_000),))
    clock.wait(59)
    assert wants(book, clock)
    clock.wait(2)
    assert not wants(book, clock)


def test_a_campaign_ends_when_the_wall_clock_was_turned_back() -> None:
    clock = Clock()
    book = clock.book()
    book.take_up(1, (Campaign("c", 9, 9000, NOON_MS + 60_000),))
    clock.wait(61)
    clock.wall_s -= 86_400
    assert not wants(book, clock)


def test_a_campaign_waits_for_a_good_clock_and_after_a_restart_without_one_ends_by_the_time_it_ran(tmp_path: Path) -> None:
    clock = Clock()
    clock.is_good, clock.wall_s = False, 1000.0
    book = clock.book(tmp_path)
    book.take_up(1, (Campaign("c", 9, 9000, NOON_MS + 600_000, gap_s=0.0),))
    assert not wants(book, clock)
    clock.is_good, clock.wall_s = True, NOON_MS / 1000
    assert wants(book, clock)
    clock.wait(400)
    book.keep_if_due()
    clock.is_good, clock.wall_s = False, 0.0
    again = clock.book(tmp_path)
    assert wants(again, clock)
    clock.wait(150)
    assert wants(again, clock)
    clock.wait(60)
    assert not wants(again, clock)


def test_a_lifetime_that_was_over_when_it_came_never_runs() -> None:
    assert not Lifetime(1000).runs(0.0, 2000, clock_ok=True)


def test_campaigns_and_what_was_taken_survive_a_restart(tmp_path: Path) -> None:
    clock = Clock()
    book = clock.book(tmp_path)
    book.take_up(3, (Campaign("c", 2, 9000, FAR_MS),))
    assert wants(book, clock)
    frames, size = counter_names("c")
    again = clock.book(tmp_path, {frames: 1, size: 700})
    assert (again.version, again.taken()) == (3, {"c": (1, 700)})
    assert not again.take_up(3, ())
    assert wants(again, clock)
    assert again.claim("c", 100)
    clock.wait(5)
    assert not wants(again, clock), "the share is used up"
    assert again.is_hungry()


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"version": 1, "campaigns": ["zz"], "left_s": {}}'])
def test_a_damaged_file_leaves_campaigns_to_the_server(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "campaigns.json").write_bytes(content)
    book = Clock().book(tmp_path)
    assert book.is_empty
    assert book.take_up(1, (Campaign("c", 2, 9000, FAR_MS),))


def test_a_camera_waits_the_gap_and_another_does_not() -> None:
    clock = Clock()
    book = clock.book()
    book.take_up(1, (Campaign("c", 9, 9000, FAR_MS, gap_s=10.0),))
    at_ms = int(clock.wall_s * 1000)
    assert book.match("gate", at_ms, seen(("car", 0.9)), NAMES) == "c"
    assert book.match("gate", at_ms + 9_000, seen(("car", 0.9)), NAMES) == ""
    assert book.match("yard", at_ms + 9_000, seen(("car", 0.9)), NAMES) == "c"
    assert book.match("gate", at_ms + 10_000, seen(("car", 0.9)), NAMES) == "c"


def test_a_device_that_does_not_allow_campaigns_says_so() -> None:
    book = Clock().book(allowed=False)
    book.take_up(1, (Campaign("c", 9, 9000, FAR_MS),))
    assert book.is_empty
    assert "does not allow" in book.faults()["c"]


def test_only_so_many_campaigns_are_taken_up() -> None:
    book = Clock().book()
    book.take_up(1, tuple(Campaign(f"c{n}", 9, 9000, FAR_MS) for n in range(MOST + 5)))
    assert len(book.faults()) == 5
    assert len(book.taken()) == MOST


@given(
    st.integers(0, 5),
    st.integers(0, 2000),
    st.lists(st.one_of(st.tuples(st.just("claim"), st.integers(1, 700)), st.tuples(st.just("share"), st.integers(0, 8)))),
)
def test_a_share_is_never_exceeded_whatever_is_claimed_and_however_it_changes(
    frames: int, size: int, steps: list[tuple[str, int]]
) -> None:
    clock = Clock()
    book = clock.book()
    version, most_frames = 1, frames
    book.take_up(version, (Campaign("c", frames, size, FAR_MS),))
    for what, number in steps:
        if what == "claim":
            book.claim("c", number)
        else:
            version, most_frames = version + 1, max(most_frames, number)
            book.take_up(version, (Campaign("c", number, size, FAR_MS),))
        assert book.taken()["c"][0] <= most_frames
        assert book.taken()["c"][1] <= size
