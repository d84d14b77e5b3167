"""The spool on a real file system and real SQLite, in one process: states, account, cap, eviction, rebuilding."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bowerbird_agent.errors import SpoolFault, SpoolFull
from bowerbird_agent.spool.fate import fate_of
from bowerbird_agent.spool.files import FrameFiles
from bowerbird_agent.spool.index import WAKE_IN, FrameState
from bowerbird_agent.spool.room import INDEX_RESERVE_BYTES
from bowerbird_agent.spool.spool import Spool
from bowerbird_testing.frames import make_frame
from bowerbird_wire.messages import Receipt, Refusal

LARGE = 100_000_000
SMALL = 2 * INDEX_RESERVE_BYTES  # leaves INDEX_RESERVE_BYTES for frames


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path / "spool", max_bytes=LARGE)
    yield opened
    opened.close()


def reopen(spool: Spool, *, max_bytes: int = LARGE) -> Spool:
    spool.close()
    return Spool(spool.root, max_bytes=max_bytes)


def files(spool: Spool) -> list[str]:
    return sorted(path.name for path in (spool.root / "frames").iterdir())


def test_a_frame_comes_back_as_it_went_in(spool: Spool) -> None:
    header, image = make_frame(7, score=0.25, reasons=("margin",))
    assert spool.put(header, image)
    assert spool.read(header.frame_id) == (header, image)
    assert spool.counts() == {"candidate": 1, "new": 0, "sent": 0, "in_doubt": 0}


def test_a_frame_that_is_here_is_not_taken_twice(spool: Spool) -> None:
    frame = make_frame(1)
    assert spool.put(*frame)
    assert not spool.put(*frame)
    assert spool.ledger().spooled == 1


def test_promoted_frames_are_sent_in_the_order_of_promotion(spool: Spool) -> None:
    ids = []
    for number in range(4):
        header, image = make_frame(number)
        spool.put(header, image)
        ids.append(header.frame_id)
    order = [ids[2], ids[0], "gone", ids[3]]
    assert spool.promote(order) == (ids[2], ids[0], ids[3])
    sent: list[str] = []
    while (frame := spool.next_new(sent)) is not None:
        sent.append(frame.frame_id)
    assert sent == [ids[2], ids[0], ids[3]]
    assert spool.promoted == 3
    assert spool.promote([ids[0]]) == (), "a frame is promoted once"
    assert [name.endswith(".candidate") for name in files(spool)].count(True) == 1


def test_only_a_receipt_deletes_and_a_repeated_one_changes_nothing(spool: Spool) -> None:
    header, image = make_frame(1)
    spool.put(header, image, "new")
    assert spool.mark_sent(header.frame_id)
    assert spool.mark_in_doubt() == 1
    assert spool.read(header.frame_id) is not None
    receipt = Receipt(committed=(header.frame_id, "f" * 64))
    counts = spool.receipt(receipt)
    assert (counts.committed, counts.refused, counts.unknown) == (1, 0, 1)
    assert spool.receipt(receipt).committed == 0
    assert files(spool) == []
    assert spool.ledger().committed == 1
    assert spool.ledger().balanced


def test_a_committed_frame_is_remembered_over_a_restart_and_not_sent_twice(spool: Spool) -> None:
    header, image = make_frame(1)
    spool.put(header, image, "new")
    spool.receipt(Receipt(committed=(header.frame_id,)))
    again = reopen(spool)
    assert again.committed(header.frame_id)
    assert not again.put(header, image, "new")
    again.close()


def test_the_memory_of_committed_frames_is_bounded(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=LARGE, remember=3)
    headers = [make_frame(number, image_bytes=10) for number in range(5)]
    for frame in headers:
        spool.put(*frame, state="new")
    for header, _ in headers:
        spool.receipt(Receipt(committed=(header.frame_id,)))
    assert [spool.committed(header.frame_id) for header, _ in headers] == [False, False, True, True, True]
    spool.close()


def test_a_dropped_frame_may_come_again_but_a_refused_one_may_not(spool: Spool) -> None:
    dropped, refused = make_frame(1), make_frame(2)
    spool.put(*dropped)
    spool.put(*refused)
    assert spool.drop([dropped[0].frame_id, "gone"], "not_chosen") == 1
    spool.receipt(Receipt(refused=(Refusal(refused[0].frame_id, "bad_image"),)))
    assert spool.put(*dropped)
    assert not spool.put(*refused)
    ledger = spool.ledger()
    assert (ledger.spooled, ledger.dropped, ledger.refused) == (3, {"not_chosen.policy.0.0": 1}, {"bad_image": 1})
    assert ledger.balanced


def test_a_late_receipt_for_an_evicted_frame_keeps_it_from_being_sent_again(spool: Spool) -> None:
    frame = make_frame(1)
    spool.put(*frame, state="new")
    spool.drop([frame[0].frame_id], "restart")
    assert spool.receipt(Receipt(committed=(frame[0].frame_id,))).unknown == 1
    assert not spool.put(*frame)
    assert spool.ledger().balanced


def test_wake_in_is_total_and_a_restart_puts_sent_frames_in_doubt(spool: Spool) -> None:
    assert set(WAKE_IN) == set(FrameState)
    for number, state in enumerate(FrameState):
        header, image = make_frame(number)
        spool.put(header, image, "candidate" if state is FrameState.CANDIDATE else "new")
        if state in (FrameState.SENT, FrameState.IN_DOUBT):
            spool.mark_sent(header.frame_id)
        if state is FrameState.IN_DOUBT:
            spool.mark_in_doubt([header.frame_id])
    again = reopen(spool)
    assert again.counts() == {"candidate": 1, "new": 1, "sent": 0, "in_doubt": 2}
    assert again.promoted == 3
    again.close()


# -- full


def fill(spool: Spool, count: int, *, arm: str = "policy", first: int = 0, score: float = 0.5) -> list[str]:
    ids = []
    for number in range(first, first + count):
        header, image = make_frame(number, image_bytes=20_000, arm=arm, score=score)
        spool.put(header, image, "new")
        ids.append(header.frame_id)
    return ids


def test_when_full_the_lowest_score_per_byte_goes_first_and_the_cap_holds(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=SMALL)
    frames = [make_frame(number, image_bytes=20_000, score=(number % 10) / 10) for number in range(80)]
    for header, image in frames:
        try:
            spool.put(header, image, "new")
        except SpoolFull:
            assert header.score == 0.0 or spool.counts()["new"] > 30
        on_disk = sum(path.stat().st_blocks * 512 for path in spool.root.rglob("*") if path.is_file())
        assert on_disk <= SMALL
        assert spool.bytes_used <= SMALL
    kept = {frame.frame_id for frame in spool.frames(FrameState.NEW)}
    kept_scores = sorted(header.score for header, _ in frames if header.frame_id in kept)
    lost_scores = sorted(header.score for header, _ in frames if header.frame_id not in kept)
    assert min(kept_scores) >= max(lost_scores)
    assert sum(spool.evicted().values()) == spool.ledger().spooled - len(kept)
    assert all(reason.startswith("spool_full.policy.0.") for reason in spool.evicted())
    assert spool.ledger().balanced
    spool.close()


def test_the_random_sample_is_not_evicted_by_frames_chosen_by_score(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=SMALL)
    sample = fill(spool, 10, arm="explore", score=0.0)
    for number in range(100, 200):
        header, image = make_frame(number, image_bytes=20_000, score=0.9 + number / 10_000)
        spool.put(header, image, "new")
    kept = {frame.frame_id for frame in spool.frames(FrameState.NEW)}
    assert set(sample) <= kept
    spool.close()


def test_the_random_sample_takes_room_from_the_rest_but_not_all_of_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=SMALL)
    fill(spool, 50, score=0.9)
    for number in range(100, 300):
        try:
            spool.put(*make_frame(number, image_bytes=20_000, arm="explore"), state="new")
        except SpoolFull:
            continue
    arms = [frame.arm for frame in spool.frames(FrameState.NEW)]
    assert arms.count("explore") == pytest.approx(len(arms) / 2, abs=2)
    assert spool.ledger().balanced
    spool.close()


def test_a_frame_on_its_way_is_never_evicted(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=SMALL)
    sent = fill(spool, 5, score=0.01)
    for frame_id in sent:
        spool.mark_sent(frame_id)
    for number in range(100, 180):
        try:
            spool.put(*make_frame(number, image_bytes=20_000, score=0.5 + number / 1000), state="new")
        except SpoolFull:
            continue
    assert {frame.frame_id for frame in spool.frames(FrameState.SENT)} == set(sent)
    spool.close()


def test_a_full_spool_of_better_frames_refuses_the_new_one_and_loses_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=SMALL)
    with pytest.raises(SpoolFull, match="max_bytes is reached"):
        fill(spool, 100, score=0.5)
    before = spool.ledger()
    with pytest.raises(SpoolFull):
        spool.put(*make_frame(500, image_bytes=20_000, score=0.1))
    assert spool.ledger() == before
    assert spool.counter("spool.full") == 2
    spool.close()


def test_below_the_free_space_floor_the_spool_changes_but_does_not_grow(tmp_path: Path) -> None:
    disk = os.statvfs(tmp_path)
    spool = Spool(tmp_path / "spool", max_bytes=LARGE, min_free_bytes=disk.f_blocks * disk.f_frsize)
    with pytest.raises(SpoolFull, match="full down to"):
        spool.put(*make_frame(1))
    spool.close()
    roomy = Spool(tmp_path / "spool", max_bytes=LARGE)
    weak = make_frame(1, score=0.1)
    roomy.put(*weak, state="new")
    roomy.close()
    spool = Spool(tmp_path / "spool", max_bytes=LARGE, min_free_bytes=disk.f_blocks * disk.f_frsize)
    assert spool.put(*make_frame(2, score=0.9))
    assert spool.evicted() == {"disk_floor.policy.0.1": 1}
    spool.close()


def test_a_cap_that_is_too_small_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least"):
        Spool(tmp_path, max_bytes=1000)


# -- faults of disk and index


def test_a_write_that_fails_leaves_no_trace_and_the_next_one_works(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        with pytest.raises(SpoolFault, match="dmesg"):
            spool.put(*make_frame(1))
    assert files(spool) == []
    assert spool.put(*make_frame(1))
    assert spool.ledger().spooled == 1


def test_two_agents_on_one_spool_are_told_apart(spool: Spool) -> None:
    with pytest.raises(SpoolFault, match="in use"):
        Spool(spool.root, max_bytes=LARGE)


def test_a_missing_index_is_rebuilt_without_promoting_candidates(spool: Spool) -> None:
    candidate, chosen, done = make_frame(1, score=0.3, arm="explore"), make_frame(2), make_frame(3)
    for frame in (candidate, chosen, done):
        spool.put(*frame)
    spool.promote([chosen[0].frame_id, done[0].frame_id])
    spool.receipt(Receipt(committed=(done[0].frame_id,)))
    spool.add_counters({"frames_seen": 12})
    spool.close()
    (spool.root / "index.db").unlink()
    again = Spool(spool.root, max_bytes=LARGE)
    assert again.counts() == {"candidate": 1, "new": 1, "sent": 0, "in_doubt": 0}
    assert (again.ledger().spooled, again.ledger().committed, again.promoted) == (3, 1, 2)
    assert again.counter("frames_seen") == 12
    assert again.ledger().balanced
    found = again.frame(candidate[0].frame_id)
    assert found is not None
    assert (found.arm, found.score, found.sequence) == ("explore", 0.3, 1)
    again.close()


@pytest.mark.parametrize("damage", ["zeros", "text", "truncated", "header"])
def test_a_damaged_index_is_rebuilt_from_the_files(spool: Spool, damage: str) -> None:
    ids = fill(spool, 20)
    spool.close()
    path = spool.root / "index.db"
    good = path.read_bytes()
    path.write_bytes(
        {
            "zeros": bytes(len(good)),
            "text": b"not a database " * 1000,
            "truncated": good[: len(good) // 2],
            "header": good[:100] + b"\xff" * 4000 + good[4100:],
        }[damage]
    )
    again = Spool(spool.root, max_bytes=LARGE)
    assert {frame.frame_id for frame in again.frames(FrameState.NEW)} == set(ids)
    assert again.ledger().spooled == 20
    assert again.ledger().balanced
    again.close()


def test_an_index_and_its_copy_both_lost_still_give_a_balanced_account(spool: Spool) -> None:
    fill(spool, 3)
    spool.close()
    (spool.root / "index.db").unlink()
    (spool.root / "counters.json").write_text("{broken")
    again = Spool(spool.root, max_bytes=LARGE)
    assert (again.ledger().spooled, again.promoted) == (3, 3)
    assert again.ledger().balanced
    again.close()


def test_frames_settled_after_the_last_copy_are_counted_as_lost_with_the_index(spool: Spool) -> None:
    ids = fill(spool, 5)
    stale = (spool.root / "counters.json").read_bytes() if (spool.root / "counters.json").exists() else None
    spool.close()
    saved = (spool.root / "counters.json").read_bytes()
    spool = Spool(spool.root, max_bytes=LARGE)
    spool.receipt(Receipt(committed=tuple(ids[:2])))
    spool.close()
    (spool.root / "counters.json").write_bytes(saved)
    (spool.root / "index.db").unlink()
    again = Spool(spool.root, max_bytes=LARGE)
    assert stale is None
    assert again.ledger().dropped == {"index_lost": 2}
    assert again.ledger().balanced
    again.close()


def test_a_damaged_frame_file_is_dropped_and_counted_not_sent(spool: Spool) -> None:
    ids = fill(spool, 2)
    path = spool.root / "frames" / f"{ids[0]}.frame"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert spool.message(ids[0]) is None
    assert spool.message(ids[1]) is not None
    assert spool.ledger().dropped == {"file_damaged": 1}
    assert files(spool) == [f"{ids[1]}.frame"]
    assert spool.ledger().balanced


def test_a_deleted_frame_file_is_noticed_at_the_next_start(spool: Spool) -> None:
    ids = fill(spool, 2)
    (spool.root / "frames" / f"{ids[0]}.frame").unlink()
    again = reopen(spool)
    assert again.ledger().dropped == {"file_missing": 1}
    assert again.ledger().balanced
    again.close()


def test_half_written_and_foreign_files_are_not_frames(spool: Spool) -> None:
    fill(spool, 1)
    folder = spool.root / "frames"
    (folder / "abc.part").write_bytes(b"half")
    (folder / f"{'0' * 64}.frame").write_bytes(b"nonsense")
    again = reopen(spool)
    assert again.counts()["new"] == 1
    assert len(files(again)) == 1
    assert again.ledger().dropped == {"file_damaged": 1}
    assert again.ledger().balanced
    again.close()


def test_a_crash_between_file_and_row_keeps_the_frame(spool: Spool) -> None:
    """As left by kill -9 after the rename: the file is whole, the row is not there."""
    header, image = make_frame(5)
    spool.put(header, image)
    spool.close()
    with sqlite3.connect(spool.root / "index.db") as db:
        db.execute("DELETE FROM frame")
        db.execute("UPDATE counter SET value = 0 WHERE name = 'spool.spooled'")
    db.close()
    again = Spool(spool.root, max_bytes=LARGE)
    assert again.read(header.frame_id) == (header, image)
    assert again.ledger().spooled == 1
    again.close()


def test_a_crash_between_receipt_and_unlink_does_not_bring_the_frame_back(spool: Spool) -> None:
    header, image = make_frame(5)
    spool.put(header, image, "new")
    path = spool.root / "frames" / f"{header.frame_id}.frame"
    content = path.read_bytes()
    spool.receipt(Receipt(committed=(header.frame_id,)))
    path.write_bytes(content)
    again = reopen(spool)
    assert files(again) == []
    assert again.ledger().committed == 1
    assert again.ledger().balanced
    again.close()


def test_an_index_of_a_later_release_is_rebuilt_not_misread(spool: Spool) -> None:
    fill(spool, 2)
    spool.close()
    db = sqlite3.connect(spool.root / "index.db")
    db.execute("PRAGMA user_version = 99")
    db.commit()
    db.close()
    again = Spool(spool.root, max_bytes=LARGE)
    assert again.counts()["new"] == 2
    assert again.ledger().balanced
    again.close()


# -- counters, threads


def test_counters_and_notes_survive_a_restart(spool: Spool) -> None:
    spool.add_counters({"frames_seen": 2, "bytes_sent": 10})
    spool.add_counters({"frames_seen": 1})
    spool.set_counter("desired", 7)
    spool.set_note("budget", "{}")
    again = reopen(spool)
    assert (again.counter("frames_seen"), again.counter("bytes_sent"), again.counter("desired")) == (3, 10, 7)
    assert again.counter("never") == 0
    assert again.note("budget") == "{}"
    again.close()


def test_threads_that_write_read_and_settle_leave_a_balanced_account(spool: Spool) -> None:
    faults: list[BaseException] = []

    def write(first: int) -> None:
        try:
            for number in range(first, first + 25):
                spool.put(*make_frame(number, image_bytes=500), state="new")
                spool.add_counters({"frames_seen": 1})
        except BaseException as error:
            faults.append(error)

    def upload() -> None:
        try:
            while writers[0].is_alive() or writers[1].is_alive() or spool.counts()["new"]:
                frame = spool.next_new()
                if frame is not None and spool.mark_sent(frame.frame_id):
                    assert spool.message(frame.frame_id) is not None
                    spool.receipt(Receipt(committed=(frame.frame_id,)))
        except BaseException as error:
            faults.append(error)

    writers = [threading.Thread(target=write, args=(first,)) for first in (0, 1000)]
    threads = [*writers, threading.Thread(target=upload)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert spool.ledger().committed == 50
    assert spool.counter("frames_seen") == 50
    assert files(spool) == []


def test_files_are_written_under_a_part_name_first(tmp_path: Path) -> None:
    folder = FrameFiles(tmp_path)
    (tmp_path / f"x{'.candidate'}").mkdir()  # the rename fails: the name is taken by a folder
    with pytest.raises(OSError, match="directory"):
        folder.write("x", b"payload", candidate=True)
    assert [path.name for path in tmp_path.iterdir()] == ["x.candidate"], "no half file stays behind"


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["put", "new", "promote", "drop", "sent", "doubt", "commit", "refuse", "reopen", "lose_index"]),
        st.integers(0, 11),
    ),
    max_size=40,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(OPERATIONS)
def test_any_sequence_of_operations_keeps_the_account_balanced(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, int]]
) -> None:
    root = tmp_path_factory.mktemp("spool")
    spool = Spool(root, max_bytes=LARGE)
    try:
        for name, number in operations:
            header, image = make_frame(number, image_bytes=50)
            frame_id = header.frame_id
            if name in ("put", "new"):
                spool.put(header, image, "new" if name == "new" else "candidate")
            elif name == "promote":
                spool.promote([frame_id])
            elif name == "drop":
                spool.drop([frame_id], "test")
            elif name == "sent":
                spool.mark_sent(frame_id)
            elif name == "doubt":
                spool.mark_in_doubt()
            elif name == "commit":
                spool.receipt(Receipt(committed=(frame_id,)))
            elif name == "refuse":
                spool.receipt(Receipt(refused=(Refusal(frame_id, "test"),)))
            else:
                spool.close()
                if name == "lose_index":
                    (root / "index.db").unlink()
                spool = Spool(root, max_bytes=LARGE)
            assert spool.ledger().balanced
            assert len(files(spool)) == sum(spool.counts().values())
    finally:
        spool.close()


def test_what_became_of_a_frame_is_read_beside_the_running_spool(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=LARGE)
    frames = [make_frame(number) for number in range(3)]
    for header, image in frames:
        spool.put(header, image)
    waits, arrived, dropped = (header.frame_id for header, _ in frames)
    assert fate_of(spool.root, waits) == "waits for the end of its window"
    spool.promote([waits, arrived])
    spool.drop([dropped], "camera_gone")
    assert fate_of(spool.root, waits) == "waits to be sent"
    assert fate_of(spool.root, dropped).startswith("was given up unsent")
    spool.mark_sent(arrived)
    assert "receipt has not come" in fate_of(spool.root, arrived)
    spool.receipt(Receipt(committed=(arrived,)))
    assert fate_of(spool.root, arrived) == "the server has it"
    assert fate_of(spool.root, "ab" * 32) == fate_of(tmp_path / "elsewhere", waits) == ""
    spool.close()


def test_a_frame_that_a_full_spool_gave_up_says_so(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=SMALL)
    ids = []
    for number in range(12):
        header, image = make_frame(number, image_bytes=150_000, score=number / 20)
        spool.put(header, image)
        spool.promote([header.frame_id])
        ids.append(header.frame_id)
    told = [fate_of(spool.root, frame_id) for frame_id in ids]
    assert told[0] == "was given up unsent, for want of room or for its age"
    assert told[-1] == "waits to be sent"
    spool.close()
