"""A site backed up while it is written to, and restored elsewhere: consistent, checked, without keys unless asked."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.testing

from bowerbird_server.backup import RAISE_BY, back_up, restore
from bowerbird_server.catalogue import Catalogue, fleet, frames
from bowerbird_server.catalogue.record_keeping import delete_frames
from bowerbird_server.catalogue.verify import verify
from bowerbird_server.cli.app import app
from bowerbird_server.errors import BadInput, Conflict, EnvironmentFault, NotFound
from bowerbird_server.releases.registry import open_repository
from bowerbird_server.site import Site
from bowerbird_testing.frame_messages import frame_message
from bowerbird_testing.lived_in_site import REBUILT, arrived, ingest_of, live_in, rows
from bowerbird_wire.messages import Health


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = live_in(tmp_path / "data", tmp_path / "scratch")
    open_repository(made)
    (made.folder.root / "bowerbird.toml").write_text('site = "site"\n')
    (made.folder.root / "web.json").write_text('{"token": "secret"}\n')
    yield made
    made.close()


def test_a_backup_restores_equal_rows_and_every_blob(site: Site, tmp_path: Path) -> None:
    """All tables, batches and events too; only the versions of what devices were told are raised."""
    every = [*REBUILT, "batch", "training_run", "rollout", "execution", "round"]
    before = {table: rows(site, table) for table in every}
    back_up(site, tmp_path / "backup")
    restored = restore(tmp_path / "backup", tmp_path / "new", "test")
    assert (restored.missing, restored.frames) == ((), len(before["frame"]))
    for row in before["device"]:
        row["desired_version"] += RAISE_BY if row["desired_version"] else 0
    with Site.open(tmp_path / "new", make=False) as again:
        assert {table: rows(again, table) for table in every} == before
        assert verify(again.catalogue, again.blobs).faults == ()
        assert {row["kind"] for row in rows(again, "event")} >= {"site restored", "label added"}


def test_without_being_asked_no_secret_is_in_a_backup(site: Site, tmp_path: Path) -> None:
    """Neither keys nor the token nor passwords; with keys all of them, and back where they were, for their owner only."""
    back_up(site, tmp_path / "plain")
    plain = {path.name for path in (tmp_path / "plain").rglob("*")}
    assert not plain & {"keys", "web.json", "broker", "devices", "timestamp.pem"}
    assert "timestamp.json" in plain
    back_up(site, tmp_path / "all", with_keys=True)
    restore(tmp_path / "all", tmp_path / "new", "test")
    for path in site.folder.keys.rglob("*.pem"):
        copy = tmp_path / "new" / "keys" / path.relative_to(site.folder.keys)
        assert copy.read_bytes() == path.read_bytes()
        assert copy.stat().st_mode & 0o077 == 0
    assert (tmp_path / "new" / "web.json").exists()


def test_a_backup_made_while_frames_come_and_go_is_consistent(site: Site, tmp_path: Path) -> None:
    """A writer adds and deletes all the time; each backup holds every blob that its catalogue names."""
    stop, written = threading.Event(), threading.Semaphore(0)

    def write() -> None:
        with Site.open(site.folder.root, make=False) as own:
            ingest, number = ingest_of(own), 1000
            while not stop.is_set():
                messages = [frame_message("cam-01", number + n) for n in range(8)]
                ingest.take([arrived(message) for message in messages])
                delete_frames(own.catalogue, own.blobs, [messages[0].header.frame_id], "test", "")
                number += 8
                written.release()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        counts = []
        for n in range(3):
            for _ in range(2):
                assert written.acquire(timeout=30)
            back_up(site, tmp_path / "backup")
            restored = restore(tmp_path / "backup", tmp_path / f"new-{n}", "test")
            assert restored.missing == ()
            with Site.open(tmp_path / f"new-{n}", make=False) as again:
                assert verify(again.catalogue, again.blobs).faults == ()
                counts.append(frames.count_by_state(again.catalogue))
    finally:
        stop.set()
        writer.join(30)
    assert counts[0]["received"] < counts[1]["received"] < counts[2]["received"]
    assert counts[0]["deleted"] < counts[2]["deleted"]


def test_a_second_backup_copies_only_what_is_new_and_forgets_what_was_deleted(site: Site, tmp_path: Path) -> None:
    """One complete backup is in the folder at any time."""
    first = back_up(site, tmp_path / "backup")
    gone = frame_message("cam-01", 3).header
    delete_frames(site.catalogue, site.blobs, [gone.frame_id], "test", "")
    second = back_up(site, tmp_path / "backup")
    assert first.copied > 60
    assert second.copied == 2, "the tombstone and the record of the deletion"
    assert len(list((tmp_path / "backup").glob("*/backup.json"))) == 1
    assert not list((tmp_path / "backup").rglob(gone.image_sha256))
    assert restore(tmp_path / "backup", tmp_path / "new", "test").missing == ()


def test_damage_in_a_backup_is_noticed_and_nothing_half_restored_stays(site: Site, tmp_path: Path) -> None:
    """A changed file stops the restore; a changed blob is left out and named."""
    back_up(site, tmp_path / "backup")
    header = frame_message("cam-01", 4).header
    (blob,) = (tmp_path / "backup").rglob(header.image_sha256)
    blob.write_bytes(b"\0" * blob.stat().st_size)
    told = restore(tmp_path / "backup", tmp_path / "new", "test").missing
    assert any(header.frame_id[:12] in text for text in told)
    (catalogue,) = (tmp_path / "backup").glob("*/catalogue.db")
    catalogue.write_bytes(catalogue.read_bytes()[:-100])
    with pytest.raises(EnvironmentFault, match="damaged"):
        restore(tmp_path / "backup", tmp_path / "other", "test")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["../outside", "keys/../../outside", "/tmp/outside", ""])
def test_a_backup_that_names_a_file_elsewhere_restores_nothing(site: Site, tmp_path: Path, name: str) -> None:
    """Whoever can write the disk of the backups would otherwise write anywhere on the server."""
    back_up(site, tmp_path / "backup")
    (manifest,) = (tmp_path / "backup").glob("*/backup.json")
    (tmp_path / "backup" / "outside").write_bytes(b"x")
    said = json.loads(manifest.read_text())
    said["files"][name] = hashlib.sha256(b"x").hexdigest()
    manifest.write_text(json.dumps(said))
    with pytest.raises(BadInput, match="no file of a data folder"):
        restore(tmp_path / "backup", tmp_path / "new" / "site", "test")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"[" * 5000, b'{"kind": "bowerbird backup 1"}', b"\xff"],
    ids=["empty", "torn", "list", "deep", "bare", "bytes"],
)
def test_a_backup_whose_manifest_is_damaged_is_told_so(site: Site, tmp_path: Path, content: bytes) -> None:
    back_up(site, tmp_path / "backup")
    (manifest,) = (tmp_path / "backup").glob("*/backup.json")
    manifest.write_bytes(content)
    with pytest.raises(EnvironmentFault, match="use another backup"):
        restore(tmp_path / "backup", tmp_path / "new", "test")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "line",
    [
        {"kind": "erasure", "id": "e1"},
        {"kind": "frame", "frame": "0" * 64},
        {"kind": "device", "id": "a", "device": "cam-01", "state": "gone", "site": "demo", "at": "2026-01-01"},
        {"kind": "device", "id": "a", "device": "../x", "state": "retired", "site": "demo", "at": "2026-01-01"},
    ],
)
def test_with_a_damaged_log_of_deletions_nothing_is_restored(site: Site, tmp_path: Path, line: dict[str, str]) -> None:
    """A line that cannot be carried out may have been the one about a frame that must not come back."""
    back_up(site, tmp_path / "backup")
    log = tmp_path / "deletions.jsonl"
    log.write_text(json.dumps(line) + "\n")
    with pytest.raises(BadInput):
        restore(tmp_path / "backup", tmp_path / "new", "test", deletions=[log])
    assert not (tmp_path / "new").exists()


def _damage(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(b"\0" * path.stat().st_size)


def test_of_a_site_with_a_damaged_image_the_rest_is_backed_up(site: Site, tmp_path: Path) -> None:
    """A bit that has flipped must not keep a site from its nightly backup; the sentence names frame, damage and both ways out."""
    header = frame_message("cam-01", 4).header
    _damage(site.blobs.path(header.image_sha256))
    (told,) = back_up(site, tmp_path / "backup").lacks
    assert header.frame_id[:12] in told
    assert "is damaged in the site itself" in told
    assert "bowerbird frames delete" in told
    restored = restore(tmp_path / "backup", tmp_path / "new", "test")
    assert restored.frames == len(frames.blobs_of(site.catalogue))
    assert [header.frame_id[:12] in text for text in restored.missing] == [True]


def test_a_good_copy_of_an_earlier_backup_is_not_lost_to_damage(site: Site, tmp_path: Path) -> None:
    """Blobs are only added to a backup's store, so it holds what the site has lost."""
    back_up(site, tmp_path / "backup")
    _damage(site.blobs.path(frame_message("cam-01", 4).header.image_sha256))
    assert back_up(site, tmp_path / "backup").lacks == ()
    assert restore(tmp_path / "backup", tmp_path / "new", "test").missing == ()


def test_a_backup_or_a_restore_never_writes_over_something_else(site: Site, tmp_path: Path) -> None:
    """Each refusal says what to do instead."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    with pytest.raises(BadInput, match="other things"):
        back_up(site, tmp_path / "mine")
    with pytest.raises(BadInput, match="data folder"):
        back_up(site, site.folder.root / "backup")
    with pytest.raises(NotFound, match="no complete backup"):
        restore(tmp_path / "mine", tmp_path / "new", "test")
    back_up(site, tmp_path / "backup")
    with pytest.raises(Conflict, match="not empty"):
        restore(tmp_path / "backup", tmp_path / "mine", "test")


def test_a_device_that_is_ahead_of_the_catalogue_is_asked_again_with_a_version_that_counts(site: Site) -> None:
    """Whatever was lost: the next wish is newer than the one that the device says it holds."""
    fleet.record_health(site.catalogue, "cam-02", Health(boot_id="b", at_ms=1, desired_version=41))
    assert fleet.desired(site.catalogue)["cam-02"].version == 42
    fleet.record_health(site.catalogue, "cam-02", Health(boot_id="b", at_ms=2, desired_version=42))
    assert fleet.desired(site.catalogue)["cam-02"].version == 42


def test_the_commands_back_up_and_restore(site: Site, tmp_path: Path) -> None:
    """With keys the update repository comes back ahead of what devices have seen; without, it says what is missing."""
    run = typer.testing.CliRunner().invoke
    site.close()
    (tmp_path / "pass").write_text("correct horse battery staple\n")
    (tmp_path / "pass").chmod(0o600)
    sealed = ["--passphrase-file", str(tmp_path / "pass")]
    back_up_all = ["backup", str(tmp_path / "b"), "--data", str(site.folder.root), "--with-keys", "--json"]
    assert "seal them with --passphrase-file" in str(run(app, back_up_all).exception)
    made = run(app, [*back_up_all, *sealed])
    assert (made.exit_code, json.loads(made.stdout)["with_keys"]) == (0, True)
    assert run(app, ["restore", str(tmp_path / "b"), "--data", str(tmp_path / "new"), *sealed]).exit_code == 0
    timestamp = json.loads((tmp_path / "new" / "repository" / "metadata" / "timestamp.json").read_text())
    assert timestamp["signed"]["version"] > RAISE_BY
    with Catalogue(tmp_path / "new" / "catalogue.db") as cat:
        assert fleet.desired(cat)["cam-02"].version > RAISE_BY
