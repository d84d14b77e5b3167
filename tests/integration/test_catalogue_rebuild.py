"""A catalogue lost and built again from the blobs, compared row by row; and blobs lost or damaged, and noticed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.testing

from bowerbird_server import scheduler
from bowerbird_server.catalogue import frames
from bowerbird_server.catalogue.classes import add_classes
from bowerbird_server.catalogue.rebuild import rebuild
from bowerbird_server.catalogue.record_keeping import delete_frames, keep_records
from bowerbird_server.catalogue.verify import verify
from bowerbird_server.cli.app import app
from bowerbird_server.errors import Conflict, NotFound
from bowerbird_server.labelling.backend import submit_label
from bowerbird_server.site import Site, only_one
from bowerbird_testing.frame_messages import frame_message
from bowerbird_testing.lived_in_site import BIRD, REBUILT, arrived, ingest_of, live_in, rows


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = live_in(tmp_path / "data", tmp_path / "scratch")
    yield made
    made.close()


def lose_and_rebuild(site: Site) -> Site:
    """The site after its catalogue was deleted and built again."""
    site.close()
    for file in site.folder.root.glob("catalogue.db*"):
        file.unlink()
    rebuild(site.folder.catalogue, site.blobs, "test")
    return Site.open(site.folder.root, make=False)


def as_rebuilt(table: str, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows as a rebuild gives them back: frames that waited in a batch wait for one again."""
    waiting = {"queued", "in_review"}
    return [{**row, "state": "received"} if table == "frame" and row["state"] in waiting else row for row in found]


def test_a_lost_catalogue_is_built_again_with_equal_rows(site: Site) -> None:
    """Also what was retired, corrected, rejected, deleted; a label import that was taken back stays taken back."""
    before = {table: as_rebuilt(table, rows(site, table)) for table in REBUILT}
    assert all(before.values()), "a table without rows would prove nothing"
    with lose_and_rebuild(site) as again:
        assert {table: rows(again, table) for table in REBUILT} == before
        assert verify(again.catalogue, again.blobs).faults == ()


def test_a_rebuild_of_a_rebuild_is_the_same(site: Site) -> None:
    """What a rebuild writes down changes nothing."""
    before = {table: rows(site, table) for table in REBUILT}
    with lose_and_rebuild(lose_and_rebuild(site)) as again:
        assert {table: rows(again, table) for table in REBUILT} == before


def test_a_label_made_a_moment_before_the_loss_comes_back(site: Site) -> None:
    """Nobody has written down yet that it became a row; its own event is enough."""
    frame = frame_message("cam-01", 12).header.frame_id
    submit_label(site.catalogue, site.blobs, frame, "anna", "labelled", [BIRD])
    before = rows(site, "label")
    with lose_and_rebuild(site) as again:
        assert rows(again, "label") == before
        assert frames.state_of(again.catalogue, frame) == "labelled"


def test_what_was_decided_before_an_orderly_end_comes_back(site: Site) -> None:
    """Classes are written down every few seconds, and once more when the server stops."""
    add_classes(site.catalogue, ["heron"], "test")
    stop = threading.Event()
    stop.set()
    scheduler.run(site, stop)
    with lose_and_rebuild(site) as again:
        assert "heron" in [row["name"] for row in rows(again, "class")]


def test_a_tombstone_wins_over_a_blob_that_came_back(site: Site) -> None:
    """An image put back from an old backup goes again, and its device is told that the frame is deleted."""
    message = frame_message("cam-01", 1)
    site.blobs.put(message.image)
    with lose_and_rebuild(site) as again:
        assert frames.state_of(again.catalogue, message.header.frame_id) == "deleted"
        assert not again.blobs.exists(message.header.image_sha256)
        ingest_of(again).take([arrived(message)])
        assert not again.blobs.exists(message.header.image_sha256)


def test_a_lost_image_is_named_and_the_rest_comes_back(site: Site, tmp_path: Path) -> None:
    """The command says which frame, builds the others, keeps the old catalogue, and ends with 1."""
    header = frame_message("cam-02", 115).header
    count = len(rows(site, "frame"))
    site.close()
    site.blobs.delete(header.image_sha256)
    result = typer.testing.CliRunner().invoke(app, ["catalogue", "rebuild", "--data", str(tmp_path / "data"), "--json"])
    told = json.loads(result.stdout)
    assert result.exit_code == 1
    assert told["lost"] == [f"frame {header.frame_id[:12]}: blob {header.image_sha256[:12]} is missing"]
    assert told["counts"]["frame"] == count - 1
    assert Path(told["previous"]).is_file()


def test_a_damaged_record_is_named_and_not_believed(site: Site) -> None:
    """Its digest does not hold, so nothing of it is used."""
    headers = next(digest for digest in site.blobs.digests() if site.blobs.read(digest).startswith(b"BWRH"))
    path = site.blobs.path(headers)
    path.write_bytes(path.read_bytes().replace(b"cam-01", b"cam-09").replace(b"cam-02", b"cam-09"))
    site.close()
    result = rebuild(site.folder.catalogue, site.blobs, "test")
    assert result.damaged_records == (headers,)
    with Site.open(site.folder.root, make=False) as again:
        assert "cam-09" not in {row["id"] for row in rows(again, "device")}


def test_a_folder_without_its_catalogue_says_how_to_build_it_again(site: Site) -> None:
    """No command takes it for a new site: an empty catalogue over old blobs would turn every device away."""
    site.close()
    for file in site.folder.root.glob("catalogue.db*"):
        file.unlink()
    for make in (True, False):
        with pytest.raises(Conflict, match="bowerbird catalogue rebuild"):
            Site.open(site.folder.root, make=make)
    assert not site.folder.catalogue.exists()


def test_nothing_is_rebuilt_under_a_running_server(site: Site, tmp_path: Path) -> None:
    """The command is refused, with the way to go on."""
    with only_one(site.folder):
        result = typer.testing.CliRunner().invoke(app, ["catalogue", "rebuild", "--data", str(tmp_path / "data")])
    assert result.exit_code != 0
    assert "served already" in str(result.exception)


def test_verify_finds_what_is_missing_and_what_is_damaged(site: Site, tmp_path: Path) -> None:
    """Each with its row and what to do; a site without faults ends with 0."""
    command = ["catalogue", "verify", "--data", str(tmp_path / "data"), "--json"]
    clean = typer.testing.CliRunner().invoke(app, command)
    assert (clean.exit_code, json.loads(clean.stdout)["ok"]) == (0, True)
    missing, damaged = (frame_message("cam-01", n).header for n in (2, 3))
    site.blobs.delete(missing.image_sha256)
    site.blobs.path(damaged.image_sha256).write_bytes(b"x")
    found = typer.testing.CliRunner().invoke(app, command)
    faults = {fault["key"]: fault for fault in json.loads(found.stdout)["faults"]}
    assert found.exit_code == 1
    assert {key: fault["kind"] for key, fault in faults.items()} == {missing.frame_id: "missing", damaged.frame_id: "damaged"}
    assert "backup" in faults[missing.frame_id]["what_to_do"]


def test_an_image_that_another_frame_shows_survives_a_deletion(site: Site) -> None:
    """Two cameras sent the same picture; it goes with the last of its frames."""
    first = frame_message("cam-01", 5)
    second = frame_message("cam-02", 5)
    assert first.header.image_sha256 == second.header.image_sha256
    assert delete_frames(site.catalogue, site.blobs, [first.header.frame_id], "test", "").images == 0
    assert site.blobs.exists(first.header.image_sha256)
    assert delete_frames(site.catalogue, site.blobs, [second.header.frame_id], "test", "").images == 1
    with pytest.raises(NotFound):
        delete_frames(site.catalogue, site.blobs, ["0" * 64], "test", "")


def test_what_is_kept_is_kept_once(site: Site) -> None:
    """A second call finds nothing new."""
    keep_records(site.catalogue, site.blobs)
    before = set(site.blobs.digests())
    assert keep_records(site.catalogue, site.blobs) == 0
    assert set(site.blobs.digests()) == before
