"""Blobs on a real disk and frames in a real catalogue."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bowerbird_server.blobs import LocalBlobs
from bowerbird_server.catalogue import Catalogue, fleet, frames, rollouts
from bowerbird_server.errors import BadInput, Conflict, EnvironmentFault, NotFound
from bowerbird_server.fleet.rollout import Event
from bowerbird_testing.frame_messages import START_MS, frame_message


@pytest.fixture
def cat(tmp_path: Path) -> Iterator[Catalogue]:
    with Catalogue(tmp_path / "catalogue.db") as opened:
        fleet.add_device(opened, "cam-01", "demo", "test")
        yield opened


def add(cat: Catalogue, count: int) -> list[str]:
    arrived = [frames.ArrivedFrame(frame_message(sequence=n).header, 1000) for n in range(count)]
    return list(frames.add_frames(cat, arrived).new)


@pytest.mark.parametrize("count", [1, 32])
def test_blobs_come_back_by_their_digest(tmp_path: Path, count: int) -> None:
    """Singly and in a group that is flushed together; nothing temporary stays."""
    blobs = LocalBlobs(tmp_path)
    data = [os.urandom(100 + n) for n in range(count)]
    digests = blobs.put_many(data)
    assert digests == [hashlib.sha256(item).hexdigest() for item in data]
    assert [blobs.read(digest) for digest in digests] == data
    assert set(blobs.digests()) == set(digests)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_damaged_blob_is_noticed_and_healed_by_storing_it_again(tmp_path: Path) -> None:
    """`verify` reads the bytes; a copy of the wrong size is replaced."""
    blobs = LocalBlobs(tmp_path)
    digest = blobs.put(b"content")
    blobs.path(digest).write_bytes(b"CONTENT")
    assert not blobs.verify(digest)
    blobs.path(digest).write_bytes(b"cut")
    assert blobs.put(b"content") == digest
    assert blobs.verify(digest)


def test_a_rename_that_a_power_cut_undid_is_done_again(tmp_path: Path) -> None:
    """What was flushed under its temporary name comes home with the next boot; what was not flushed whole does not."""
    LocalBlobs(tmp_path)
    whole, torn, ours = (hashlib.sha256(data).hexdigest() for data in (b"whole", b"torn", b"ours"))
    running = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    (tmp_path / "tmp" / f"0f-1.7.1.{whole}").write_bytes(b"whole")
    (tmp_path / "tmp" / f"0f-1.7.2.{torn}").write_bytes(b"to\0\0")
    (tmp_path / "tmp" / f"{running}.7.3.{ours}").write_bytes(b"ours")
    blobs = LocalBlobs(tmp_path)
    assert blobs.read(whole) == b"whole"
    assert list(blobs.digests()) == [whole]
    assert [left.name for left in (tmp_path / "tmp").iterdir()] == [f"{running}.7.3.{ours}"], "another process may be at it"


def test_a_file_is_stored_and_a_missing_one_is_named(tmp_path: Path) -> None:
    """`put_file` streams; what cannot be read is the caller's to put right."""
    blobs = LocalBlobs(tmp_path / "blobs")
    (tmp_path / "model.onnx").write_bytes(b"m" * 3_000_000)
    assert blobs.verify(blobs.put_file(tmp_path / "model.onnx"))
    with pytest.raises(BadInput, match=r"gone\.onnx"):
        blobs.put_file(tmp_path / "gone.onnx")


def test_only_a_digest_may_become_a_path(tmp_path: Path) -> None:
    """Anything else is refused before the file system is asked."""
    blobs = LocalBlobs(tmp_path)
    for name in ("../../etc/passwd", "", "A" * 64, "a" * 63):
        with pytest.raises(BadInput):
            blobs.read(name)
    with pytest.raises(NotFound):
        blobs.read("a" * 64)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which is Linux's")
def test_a_full_disk_says_what_to_do_and_leaves_nothing_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The temporary file is on a device that is always full."""
    blobs = LocalBlobs(tmp_path)
    temporary = tmp_path / "tmp" / "always-full"
    temporary.symlink_to("/dev/full")
    monkeypatch.setattr(blobs, "_new_temporary", lambda _digest: str(temporary))
    with pytest.raises(EnvironmentFault, match="free space"):
        blobs.put(b"x" * 10_000_000)
    assert list(blobs.digests()) == []


def test_a_commit_that_is_not_durable_is_seen_by_others_at_once(cat: Catalogue) -> None:
    """Only the flush waits; its log is a file that can be flushed with the next group."""
    with cat.transaction(durable=False):
        add(cat, 2)
    with Catalogue(cat.path) as other:
        assert frames.count_by_state(other)["received"] == 2
    assert cat.write_ahead_log.stat().st_size > 0


def test_frames_are_added_once(cat: Catalogue) -> None:
    """The second time they are known; a deleted one is told apart."""
    ids = add(cat, 3)
    frames.change_state(cat, ids[:1], "deleted", "test")
    added = frames.add_frames(cat, [frames.ArrivedFrame(frame_message(sequence=n).header, 1000) for n in range(4)])
    assert (added.new, added.known, added.deleted) == ((frame_message(sequence=3).header.frame_id,), tuple(ids[1:]), (ids[0],))


def test_a_page_goes_on_where_the_last_one_ended_while_frames_arrive(cat: Catalogue) -> None:
    """Keys, not counts: every old frame is seen exactly once."""
    ids = set(add(cat, 25))
    page = frames.list_frames(cat, limit=10)
    seen = [row["id"] for row in page.rows]
    frames.add_frames(cat, [frames.ArrivedFrame(frame_message(sequence=100).header, 1)])
    while page.after is not None:
        page = frames.list_frames(cat, limit=10, after=page.after)
        seen += [row["id"] for row in page.rows]
    assert len(seen) == 25
    assert set(seen) == ids


def test_a_state_changes_for_all_frames_or_none(cat: Catalogue) -> None:
    """One frame in the wrong state undoes the others; each change has its event."""
    ids = add(cat, 3)
    frames.change_state(cat, ids[:1], "labelled", "anna")
    with pytest.raises(Conflict, match="is labelled"):
        frames.change_state(cat, [ids[1], ids[0]], "queued", "batch", {"received"})
    assert frames.count_by_state(cat)["queued"] == 0
    assert frames.change_state(cat, ids[1:], "queued", "batch", {"received"}) == 2
    assert frames.change_state(cat, ids[1:], "queued", "batch", {"received"}) == 0
    assert cat.value("SELECT count(*) FROM event WHERE kind = 'frame queued'") == 2
    with pytest.raises(NotFound):
        frames.change_state(cat, ["0" * 64], "queued", "batch")


def test_an_imported_image_is_one_row_without_a_device(cat: Catalogue) -> None:
    """The same content again is the same frame."""
    values = {"blob": "c" * 64, "image_format": "jpeg", "image_bytes": 10, "width": 8, "height": 6, "captured_at_ms": START_MS}
    identity, new = frames.add_imported_frame(cat, **values, source="holiday")  # type: ignore[arg-type]
    assert new
    assert frames.add_imported_frame(cat, **values, source="again") == (identity, False)  # type: ignore[arg-type]
    row = frames.get(cat, identity)
    assert (row["device"], row["arm"], row["scene"]) == (None, "import", "import/holiday@2023-11-14T22:13")


def test_frames_total_bumps_the_version_only_when_it_changes(cat: Catalogue) -> None:
    """A repeated wish is the same wish."""
    assert fleet.desired(cat) == {}
    assert [fleet.set_frames_total(cat, "cam-01", total) for total in (5, 5, None, None, 0)] == [1, 1, 2, 2, 3]
    assert fleet.desired(cat)["cam-01"].frames_total == 0
    with pytest.raises(BadInput):
        fleet.set_frames_total(cat, "cam-01", -1)


def test_a_newer_rollout_supersedes_and_resume_tries_again(cat: Catalogue) -> None:
    """One rollout at a time; a resumed one has new job ids for those that failed."""
    for digest in ("a" * 64, "b" * 64):
        cat.insert(
            "model",
            {"digest": digest, "created_at": "", "origin": "trained", "state": "candidate"}
            | {"onnx_sha256": "", "manifest": "{}", "class_names": "[]"},
        )
    first = rollouts.start_rollout(cat, "a" * 64, 1, ["cam-01"], "test")
    rollouts.advance(cat)
    second = rollouts.start_rollout(cat, "b" * 64, 2, ["cam-01"], "test")
    assert rollouts.get(cat, first)["state"] == "aborted"
    assert [row["id"] for row in rollouts.running(cat)] == [second]
    assert rollouts.jobs(cat)[0].job.action == "cancel"
    rollouts.advance(cat)
    job = rollouts.jobs(cat)[0].job
    assert (job.action, job.model_digest, job.release) == ("install", "b" * 64, 2)
    rollouts.transition(cat, second, Event.PAUSE, "test")
    with pytest.raises(Conflict, match="cannot pause"):
        rollouts.steer(cat, second, "pause", "test")
    cat.execute("UPDATE execution SET state = 'failed' WHERE rollout = ?", second)
    assert rollouts.jobs(cat) == []
    rollouts.steer(cat, second, "resume", "test")
    rollouts.advance(cat)
    assert rollouts.jobs(cat)[0].job.job_id != job.job_id
