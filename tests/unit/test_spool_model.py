"""The spool and its eviction against a model in memory: whatever happens, no frame is lost, the cap and the floors hold."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bowerbird_agent.errors import SpoolFull
from bowerbird_agent.spool.eviction import FLOORS, Row, choose, group_of
from bowerbird_agent.spool.files import on_disk_bytes
from bowerbird_agent.spool.index import FrameState
from bowerbird_agent.spool.room import INDEX_RESERVE_BYTES
from bowerbird_agent.spool.send_order import Turn, turn
from bowerbird_agent.spool.spool import Spool
from bowerbird_testing.frames import make_frame
from bowerbird_wire.linked import FETCHED
from bowerbird_wire.messages import FrameHeader, Receipt, Refusal

SMALL = 2 * INDEX_RESERVE_BYTES
ROOM = SMALL - INDEX_RESERVE_BYTES
IMAGE_BYTES = 120_000  # eight of them fill the room


def row(number: int, group: str, score: float, size: int = 100) -> Row:
    return Row(f"{number:064x}", group, score, score / size, size)


@pytest.mark.parametrize(
    ("arm", "reasons", "group"),
    [
        ("explore", ("rare_class",), "explore"),
        ("policy", ("margin", "rare_class"), "rare_class"),
        ("policy", ("margin",), "policy"),
        ("policy", ("explore",), "policy"),
        (FETCHED, (), FETCHED),
    ],
)
def test_a_frame_counts_to_its_arm_or_to_its_first_reason_with_a_floor(arm: str, reasons: tuple[str, ...], group: str) -> None:
    assert group_of(arm, reasons, FLOORS) == group


def test_a_rare_class_below_its_floor_does_not_make_way_for_better_plain_frames() -> None:
    waiting = [row(1, "rare_class", 0.01), row(2, "policy", 0.5), row(3, "policy", 0.9)]
    used = {"rare_class": 100, "policy": 200}
    victims, freed = choose(row(9, "policy", 0.95), (), waiting, used=used, floors={"rare_class": 100}, to_free=100)
    assert ([victim.score for victim in victims], freed) == ([0.5], 100)


def test_what_a_group_has_above_its_floor_competes_by_score_per_byte() -> None:
    waiting = [row(1, "rare_class", 0.01), row(2, "rare_class", 0.02), row(3, "policy", 0.9)]
    used = {"rare_class": 200, "policy": 100}
    victims, freed = choose(row(9, "policy", 0.5), (), waiting, used=used, floors={"rare_class": 100}, to_free=200)
    assert ([victim.score for victim in victims], freed) == ([0.01], 100), "the second one is its group's own"


def test_a_group_below_its_floor_takes_room_from_plain_frames_that_are_worth_more() -> None:
    waiting = [row(1, "policy", 0.8), row(2, "policy", 0.9)]
    new = row(9, "rare_class", 0.1)
    victims, _ = choose(new, (), waiting, used={"policy": 200}, floors={"rare_class": 100}, to_free=100)
    assert [victim.score for victim in victims] == [0.8]
    victims, _ = choose(new, (), waiting, used={"policy": 200, "rare_class": 100}, floors={"rare_class": 100}, to_free=100)
    assert victims == []


def test_of_ten_frames_two_go_because_they_are_the_freshest_and_one_because_it_is_the_oldest() -> None:
    turns = [turn(number) for number in range(100)]
    assert (turns.count(Turn.VALUE), turns.count(Turn.FRESHEST), turns.count(Turn.OLDEST)) == (70, 20, 10)


def test_value_goes_first_with_room_for_the_freshest_and_the_oldest(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=100_000_000)
    scores = [0.1, 0.9, 0.5, 0.8, 0.2, 0.7, 0.3, 0.6, 0.4, 0.05]
    frames = [make_frame(number, score=score, image_bytes=50) for number, score in enumerate(scores)]
    for header, image in frames:
        spool.put(header, image, "new")
    sent: list[str] = []
    while (frame := spool.next_new(sent)) is not None:
        assert spool.next_new(sent) == frame, "asking twice changes nothing"
        sent.append(frame.frame_id)
    numbers = [next(header.sequence for header, _ in frames if header.frame_id == one) for one in sent]
    #       value value freshest value value oldest value value freshest value
    assert numbers == [1, 3, 9, 5, 7, 0, 2, 8, 6, 4]
    spool.close()


def test_the_random_sample_goes_before_what_was_asked_for_and_that_before_the_rest(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=100_000_000)
    for number, arm in enumerate(("policy", FETCHED, "explore")):
        spool.put(*make_frame(number, arm=arm, score=0.9, image_bytes=50), state="new")
    first, second = spool.next_new(), spool.next_new([spool.next_new().frame_id])  # type: ignore[union-attr]  # it is there
    assert first is not None
    assert second is not None
    assert (first.arm, second.arm) == ("explore", FETCHED)
    assert spool.promoted == 2, "what was asked for is not the selection's"
    spool.close()


def test_evicted_frames_of_the_random_sample_are_named_until_the_server_has_noted_them(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=SMALL)
    for number in range(20):
        try:
            spool.put(*make_frame(number, arm="explore", inclusion_probability=0.05, image_bytes=IMAGE_BYTES), state="new")
        except SpoolFull:
            continue
    named = spool.tombstones()
    assert len(named) == sum(spool.evicted().values()) > 0
    assert {(one.arm, one.why, one.inclusion_probability) for one in named} == {("explore", "evicted:spool_full", 0.05)}
    spool.close()
    spool = Spool(tmp_path, max_bytes=SMALL)
    assert spool.tombstones() == named
    assert spool.forget_tombstones(named[-1].number) == len(named)
    assert spool.tombstones() == ()
    spool.close()


def test_a_candidate_of_the_random_sample_that_is_not_sent_is_named_and_one_of_the_policy_is_only_counted(
    tmp_path: Path,
) -> None:
    spool = Spool(tmp_path, max_bytes=SMALL)
    taken, chosen, kept = (make_frame(number, arm=arm)[0] for number, arm in enumerate(("explore", "policy", "explore")))
    for number, arm in enumerate(("explore", "policy", "explore")):
        spool.put(*make_frame(number, arm=arm))
    spool.drop([taken.frame_id, chosen.frame_id], "window_cut_short")
    spool.promote([kept.frame_id])
    (named,) = spool.tombstones()
    assert (named.frame.hex(), named.why) == (taken.frame_id, "dropped:window_cut_short")
    assert spool.ledger().balanced
    spool.close()


def test_an_index_of_the_first_version_is_carried_over_with_its_states(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=SMALL)
    headers = [make_frame(number, arm=arm, score=0.4)[0] for number, arm in enumerate(("explore", "policy"))]
    for number, arm in enumerate(("explore", "policy")):
        spool.put(*make_frame(number, arm=arm, score=0.4), state="new")
    spool.mark_sent(headers[1].frame_id)
    spool.close()
    with closing(sqlite3.connect(tmp_path / "index.db")) as db:
        db.executescript(
            "DROP INDEX frame_by_value; DROP INDEX frame_by_time; DROP TABLE tombstone; "
            "ALTER TABLE frame DROP COLUMN eviction_group; ALTER TABLE frame DROP COLUMN send_value; "
            "ALTER TABLE frame DROP COLUMN probability; CREATE INDEX frame_by_state ON frame (state, send_order); "
            "CREATE INDEX frame_by_density ON frame (density); PRAGMA user_version = 1;"
        )
    spool = Spool(tmp_path, max_bytes=SMALL)
    assert spool.counts() == {"candidate": 0, "new": 1, "sent": 0, "in_doubt": 1}
    assert [frame.group for frame in spool.frames(FrameState.NEW)] == ["explore"]
    assert spool.ledger().balanced
    spool.close()


class SpoolAgainstModel(RuleBasedStateMachine):
    """A full spool under everything that can happen to it; the model knows which frames went in and how each left."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.spool = Spool(self.root / "spool", max_bytes=SMALL)
        self.number = 0
        self.inside: dict[str, FrameHeader] = {}
        self.sent: set[str] = set()
        self.settled = 0

    def lost(self) -> set[str]:
        return self.inside.keys() - {frame.frame_id for state in FrameState for frame in self.spool.frames(state)}

    @rule(
        arm=st.sampled_from(["policy", "policy", "explore", FETCHED]),
        rare=st.booleans(),
        score=st.floats(0, 1),
        size=st.integers(20_000, IMAGE_BYTES),
        state=st.sampled_from(["candidate", "new"]),
    )
    def put(self, arm: str, rare: bool, score: float, size: int, state: str) -> None:
        self.number += 1
        reasons = ("rare_class",) if rare else ("margin",)
        header, image = make_frame(self.number, arm=arm, reasons=reasons, score=score, image_bytes=size)
        used = self.used()
        try:
            assert self.spool.put(header, image, state)  # type: ignore[arg-type]  # one of the two
        except SpoolFull:
            assert self.lost() == set(), "a frame that does not fit costs no other"
            return
        group = group_of(arm, reasons, FLOORS)
        for frame_id in self.lost():
            victim = self.inside.pop(frame_id)
            self.settled += 1
            other = group_of(victim.arm, victim.reasons, FLOORS)
            assert frame_id not in self.sent, "what is on its way is not evicted"
            assert other != "explore" or group == "explore", "the random sample makes way for itself only"
            used[other] -= on_disk_bytes(size_of(victim))
            if other not in (group, "explore"):
                assert used[other] >= FLOORS.get(other, 0) * ROOM - 1, "a floor holds against others"
        self.inside[header.frame_id] = header
        _SIZES[header.frame_id] = size + 1000

    def used(self) -> dict[str, int]:
        totals = dict.fromkeys(("policy", "explore", "rare_class", FETCHED), 0)
        for header in self.inside.values():
            totals[group_of(header.arm, header.reasons, FLOORS)] += on_disk_bytes(size_of(header))
        return totals

    @precondition(lambda self: self.inside)
    @rule(data=st.data(), what=st.sampled_from(["promote", "send", "commit", "refuse", "drop"]))
    def something_happens(self, data: st.DataObject, what: str) -> None:
        frame_id = data.draw(st.sampled_from(sorted(self.inside)))
        if what == "promote":
            self.spool.promote([frame_id])
        elif what == "send":
            if self.spool.mark_sent(frame_id):
                self.sent.add(frame_id)
        else:
            if what == "commit":
                self.spool.receipt(Receipt(committed=(frame_id,)))
            elif what == "refuse":
                self.spool.receipt(Receipt(refused=(Refusal(frame_id, "bad_image"),)))
            else:
                self.spool.drop([frame_id], "weaker")
            del self.inside[frame_id]
            self.settled += 1

    @rule(index_is_lost=st.booleans())
    def the_agent_is_restarted(self, index_is_lost: bool) -> None:
        self.spool.close()
        if index_is_lost:
            for path in (self.root / "spool").glob("index.db*"):
                path.unlink()
            self.sent.clear()  # that they were sent is what was lost; asked about again, they are known at the server
        self.spool = Spool(self.root / "spool", max_bytes=SMALL)

    @invariant()
    def nothing_is_lost_and_the_cap_holds(self) -> None:
        ledger = self.spool.ledger()
        assert self.lost() == set()
        assert sum(ledger.in_spool.values()) == len(self.inside)
        assert ledger.balanced
        assert ledger.settled == self.settled
        assert self.spool.bytes_used <= SMALL

    def teardown(self) -> None:
        self.spool.close()
        shutil.rmtree(self.root)


_SIZES: dict[str, int] = {}


def size_of(header: FrameHeader) -> int:
    return _SIZES[header.frame_id]


SpoolAgainstModel.TestCase.settings = settings(
    max_examples=15, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestSpoolAgainstModel = SpoolAgainstModel.TestCase
