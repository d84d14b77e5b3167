"""Delete by request on a lived-in site: the picture is nowhere, what comes late is refused, and what knew it is named."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from bowerbird_agent.spool.spool import Spool
from bowerbird_agent.storing.erasing import Erasing
from bowerbird_server import scheduler
from bowerbird_server.backup import back_up, restore
from bowerbird_server.catalogue import audit, erasures, thumbnails
from bowerbird_server.catalogue import frames as frame_rows
from bowerbird_server.catalogue import training as run_rows
from bowerbird_server.catalogue.datasets import dataset_version
from bowerbird_server.catalogue.erasures import Criteria
from bowerbird_server.catalogue.rebuild import rebuild
from bowerbird_server.catalogue.verify import verify
from bowerbird_server.cli.app import app
from bowerbird_server.errors import BadInput, EnvironmentFault
from bowerbird_server.fleet.delivery import Delivery
from bowerbird_server.fleet.offers import BlockQueue
from bowerbird_server.ingest.chunks import ChunkStore, TransferKey
from bowerbird_server.ingest.dead_letters import DeadLetters
from bowerbird_server.ingest.incoming import Incoming
from bowerbird_server.labelling.backend import submit_label
from bowerbird_server.privacy.deletion_log import DeletionLog
from bowerbird_server.privacy.erase import erase, finish_all, plan, report, text_of
from bowerbird_server.privacy.retention import apply
from bowerbird_server.releases.registry import register_model
from bowerbird_server.site import Site
from bowerbird_server.training.dataset_import import import_frames
from bowerbird_server.training.snapshot import evaluation_frames, materialise, read_manifest, take_snapshot
from bowerbird_testing.frame_messages import START_MS, frame_message
from bowerbird_testing.lived_in_site import ANNOTATOR, BIRD, arrived, ingest_of, live_in
from bowerbird_testing.tiny_yolo import write_tiny_yolo
from bowerbird_wire import codec
from bowerbird_wire.messages import Chunk, Desired, EraseWish, FrameMessage, Health, Offer
from bowerbird_wire.topics import DesiredTopic, HealthTopic, OfferTopic
from bowerbird_wire.transfer import BLOCK_BYTES, transfer_id

# Frames 2 to 6 of cam-01: labelled 2 to 5, rejected 6; frame 5 is the same picture as cam-02's.
RANGE = Criteria("", "cam-01/gate", START_MS + 200, START_MS + 600)
WHY = "request 17 of a passer-by"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = live_in(tmp_path / "data", tmp_path / "scratch")
    yield site
    site.close()


def message(n: int, device: str = "cam-01") -> FrameMessage:
    return frame_message(device, n)


def files_with(folder: Path, needles: list[bytes]) -> list[str]:
    """Files anywhere below a folder in which one of these byte strings occurs."""
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and any(needle in path.read_bytes() for needle in needles)
    ]


def pictures(numbers: range) -> list[bytes]:
    """Something of the middle of each picture, as no other file would have it."""
    return [message(n).image[600:700] for n in numbers]


def carried_out(site: Site, criteria: Criteria = RANGE) -> dict[str, object]:
    identity = erase(site, plan(site, criteria), "test", WHY)
    row = erasures.get(site.catalogue, identity)
    assert row is not None
    return report(site, row)


# -- everything that held the picture


def test_an_erased_picture_is_in_no_file_of_the_site(site: Site, tmp_path: Path) -> None:
    """Blobs, a laid-out data set, a training's folder, parts of an unfinished transfer and a refused message all hold it before."""
    data = site.folder.root
    version = dataset_version(site.catalogue, "newest")
    materialise(site.blobs, version, site.folder.datasets)
    under_way = site.folder.datasets / f".{version['id']}.4711" / "images"
    under_way.mkdir(parents=True)
    (under_way / "3.jpg").write_bytes(message(3).image)
    run = run_rows.queue_run(site.catalogue, version["id"], None, {}, "test")
    leftover = site.folder.training / run / "batch.jpg"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(message(3).image)
    half = codec.encode_frame(frame_message("cam-01", 90, captured_at_ms=START_MS + 300, image=message(3).image))
    ChunkStore(site.folder.parts).put([("cam-01", Chunk(transfer_id(half), len(half), 0, half[: len(half) // 1024 * 1024]))])
    letters = DeadLetters(data / "dead-letters")
    letters.keep_payloads([half])
    with site.catalogue.transaction():
        letters.add(site.catalogue, "bowerbird/v1/site/up/cam-01/frame", half, "bad_image", "")
    killed_writer = data / "blobs" / "tmp" / f"boot.1.1.{message(3).header.image_sha256}"
    killed_writer.write_bytes(message(3).image)
    thumbnails.keep(site.catalogue, message(3).header.frame_id, "site", bytes(576))
    assert len(files_with(data, pictures(range(3, 4)))) >= 6

    found = carried_out(site)

    assert files_with(data, pictures(range(2, 7))) == []
    assert found["left"] == []
    assert found["removed"] == {
        "frames": 6,
        "images": 5,
        "dataset_versions_redacted": 2,
        "refused_messages": 1,
        "training_files": 1,
        "unfinished_transfers": 1,
    }
    for table in ("thumbnail", "detection", "redaction"):
        rows = site.catalogue.rows(f"SELECT 1 FROM {table} WHERE frame = ?", message(3).header.frame_id)  # noqa: S608
        assert rows == [], table
    assert verify(site.catalogue, site.blobs).faults == ()


def test_a_thumbnail_is_not_left_behind_in_free_pages_of_the_catalogue(site: Site) -> None:
    luma = bytes(np.random.default_rng(5).integers(0, 255, 576, dtype=np.uint8))
    thumbnails.keep(site.catalogue, message(3).header.frame_id, "site", luma)
    assert files_with(site.folder.root, [luma])
    carried_out(site)
    assert files_with(site.folder.root, [luma]) == []


def test_the_same_picture_of_another_camera_goes_as_well(site: Site) -> None:
    found = carried_out(site)
    assert message(5, "cam-02").header.frame_id in found["frames"]  # type: ignore[operator]


def test_other_frames_are_untouched(site: Site) -> None:
    before = {row["id"]: row["state"] for row in site.catalogue.rows("SELECT id, state FROM frame")}
    found = carried_out(site)
    after = {row["id"]: row["state"] for row in site.catalogue.rows("SELECT id, state FROM frame")}
    assert {frame for frame in before if before[frame] != after[frame]} == set(found["frames"])  # type: ignore[call-overload]
    assert site.blobs.exists(message(8).header.image_sha256)


def test_a_plan_changes_nothing_and_says_what_would_happen(site: Site) -> None:
    events = site.catalogue.value("SELECT count(*) FROM event")
    made = plan(site, RANGE)
    assert made.by_state == {"labelled": 4, "received": 1, "rejected": 1}
    assert made.devices == ("cam-01",)
    assert [version["number"] for version in made.versions] == [1, 2]
    assert site.catalogue.value("SELECT count(*) FROM event") == events
    assert all(site.blobs.exists(row["blob"]) for row in made.frames)


def test_a_request_without_a_reason_or_without_criteria_is_refused(site: Site) -> None:
    with pytest.raises(BadInput, match="say why"):
        erase(site, plan(site, RANGE), "test", " ")
    with pytest.raises(BadInput, match="name what to erase"):
        plan(site, Criteria())


# -- data sets and models


def test_versions_stay_and_are_used_without_what_was_erased(site: Site) -> None:
    before = dataset_version(site.catalogue, 1)
    manifest = site.blobs.read(before["manifest"])
    materialise(site.blobs, before, site.folder.datasets)
    carried_out(site)
    after = dataset_version(site.catalogue, 1)
    gone = {message(n).header.frame_id for n in range(2, 6)}
    assert (after["id"], after["frames"]) == (before["id"], before["frames"]), "the version itself is immutable"
    assert site.blobs.read(after["manifest"]) == manifest
    assert gone <= set(after["removed"])
    used = {entry["frame"] for entry in read_manifest(site.blobs, after)["frames"]}
    assert used == {entry["frame"] for entry in json.loads(manifest)["frames"]} - set(after["removed"])
    laid_out = materialise(site.blobs, after, site.folder.datasets).parent
    assert {path.stem for path in laid_out.glob("images/*/*")} == used
    assert {frame.image_path.name for frame in evaluation_frames(site.catalogue, site.blobs, after)[0]} <= {
        row["blob"] for row in site.catalogue.rows("SELECT blob FROM frame WHERE state <> 'deleted'")
    }
    assert take_snapshot(site.catalogue, site.blobs, holdout_share=0.5, actor="test")["number"] == 3


def test_the_models_that_learnt_from_a_frame_are_named_down_to_the_devices_that_run_them(site: Site, tmp_path: Path) -> None:
    cat = site.catalogue
    with cat.transaction():
        cat.execute("UPDATE dataset_frame SET split = 'train'")
    second = cat.row("SELECT * FROM model WHERE parent IS NOT NULL")
    assert second is not None
    child = register_model(
        site,
        write_tiny_yolo(tmp_path / "child.onnx", class_names=("bird", "fox"), salt="child"),
        weights=None,
        origin="trained",
        actor="test",
        parent=second["digest"],
    )
    with cat.transaction():
        cat.execute("UPDATE device SET model_digest = ? WHERE id = 'cam-02'", child["digest"])
    found = carried_out(site)
    relations = {model["digest"]: (model["relation"], model["devices"]) for model in found["models"]}  # type: ignore[attr-defined]
    assert relations == {second["digest"]: ("trained_on", []), child["digest"]: ("descended", ["cam-02"])}
    assert any("descended, runs on cam-02" in line for line in text_of(found))


def test_a_model_that_was_only_judged_with_a_frame_has_not_learnt_from_it(site: Site) -> None:
    with site.catalogue.transaction():
        site.catalogue.execute("UPDATE dataset_frame SET split = 'holdout'")
    assert [model["relation"] for model in carried_out(site)["models"]] == ["evaluated_on"]  # type: ignore[attr-defined]


def test_a_package_that_carries_a_small_copy_is_named(site: Site, tmp_path: Path) -> None:
    model = register_model(
        site,
        write_tiny_yolo(tmp_path / "golden.onnx", class_names=("bird", "fox"), salt="golden"),
        weights=None,
        origin="imported",
        actor="test",
        golden_images=[site.blobs.path(message(3).header.image_sha256)],
    )
    assert carried_out(site)["packages_with_a_picture"] == [model["digest"]]


def test_exports_and_backups_that_hold_it_are_named(site: Site, tmp_path: Path) -> None:
    runner, data = CliRunner(), str(site.folder.root)
    for arguments in (
        ["dataset", "export", str(tmp_path / "out"), "--version", "1"],
        ["labels", "export", str(tmp_path / "labels")],
        ["backup", str(tmp_path / "backup")],
    ):
        assert runner.invoke(app, [*arguments, "--data", data]).exit_code == 0
    copies = carried_out(site)["copies_elsewhere"]
    assert [(copy["kind"], copy["why"]["folder"]) for copy in copies] == [  # type: ignore[attr-defined]
        ("dataset exported", str(tmp_path / "out")),
        ("labels exported", str(tmp_path / "labels")),
        ("site backed up", str(tmp_path / "backup")),
    ]


def test_who_saw_the_frames_is_part_of_the_report(site: Site) -> None:
    audit.note_sight(site.catalogue, ANNOTATOR, message(3).header.frame_id)
    (sight,) = carried_out(site)["seen_by"]
    assert (sight["person"], sight["frame"]) == (ANNOTATOR, message(3).header.frame_id)


# -- what comes late


def test_a_frame_of_the_interval_that_comes_late_is_refused_and_leaves_no_image(site: Site) -> None:
    carried_out(site)
    late = frame_message("cam-01", 77, captured_at_ms=START_MS + 400)
    other_camera = frame_message("cam-01", 78, camera="yard", captured_at_ms=START_MS + 400)
    ingest_of(site).take([arrived(late), arrived(other_camera), arrived(message(3))])
    assert frame_rows.state_of(site.catalogue, late.header.frame_id) is None
    assert frame_rows.state_of(site.catalogue, other_camera.header.frame_id) == "received"
    assert frame_rows.state_of(site.catalogue, message(3).header.frame_id) == "deleted"
    assert not site.blobs.exists(late.header.image_sha256)
    assert not site.blobs.exists(message(3).header.image_sha256)


def test_a_request_between_the_look_and_the_commit_wins(site: Site) -> None:
    late = frame_message("cam-01", 77, captured_at_ms=START_MS + 400)
    ingest = ingest_of(site)

    def passed(point: str) -> None:
        if point == "blob":
            carried_out(site)

    ingest._passed = passed
    ingest.take([arrived(late)])
    assert frame_rows.state_of(site.catalogue, late.header.frame_id) is None
    assert not site.blobs.exists(late.header.image_sha256)


def test_a_named_frame_that_never_came_is_refused_when_it_does(site: Site) -> None:
    late = message(500)
    carried_out(site, Criteria(frames=(late.header.frame_id,)))
    ingest_of(site).take([arrived(late)])
    assert not site.blobs.exists(late.header.image_sha256)
    offer = arrived(late)
    asked = Incoming(site.catalogue, ChunkStore(site.folder.parts)).unpack(
        [type(offer)(1, str(OfferTopic("site", "cam-01")), codec.encode(Offer(bytes.fromhex(late.header.frame_id))), 1, 1)],
        {"cam-01": "site"},
    )
    assert [refusal.code for _, refusal in asked.refused] == ["deleted"]


def test_an_import_does_not_bring_an_erased_picture_back(site: Site, tmp_path: Path) -> None:
    cat = site.catalogue
    imported = cat.row("SELECT id, blob FROM frame WHERE arm = 'import' ORDER BY id")
    assert imported is not None
    again = tmp_path / "again"
    again.mkdir()
    shutil.copy(site.blobs.path(imported["blob"]), again / "again.jpg")
    carried_out(site, Criteria(frames=(imported["id"],)))
    import_frames(site, again)
    assert not site.blobs.exists(imported["blob"])
    assert frame_rows.state_of(cat, imported["id"]) == "deleted"


def test_parts_whose_header_is_not_here_yet_are_dropped_and_those_of_other_frames_stay(site: Site) -> None:
    chunks = ChunkStore(site.folder.parts)
    keys = []
    for n, first in ((3, 1), (300, 0)):
        whole = codec.encode_frame(message(n))
        chunks.put(
            [("cam-01", Chunk(transfer_id(whole), len(whole), first, whole[first * BLOCK_BYTES : (first + 2) * BLOCK_BYTES]))]
        )
        keys.append(TransferKey("cam-01", transfer_id(whole), len(whole)))
    carried_out(site)
    assert not any(chunks.bitmap(keys[0]))
    assert any(chunks.bitmap(keys[1]))


# -- devices


class Broker:
    """Keeps what is retained."""

    def __init__(self) -> None:
        self.retained: dict[str, bytes] = {}

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        self.retained[topic] = payload
        return True

    def desired(self, device: str) -> Desired | None:
        payload = self.retained.get(str(DesiredTopic("site", device)))
        return None if payload is None else codec.decode(Desired, payload)


def delivery_of(site: Site, broker: Broker) -> Delivery:
    return Delivery(site.catalogue, BlockQueue(site.folder.repository), broker, lambda job, _device: job)


def say_health(delivery: Delivery, device: str, erased: dict[str, int]) -> None:
    health = Health("boot", int(time.time() * 1000), extra={"erased": erased})
    delivery.received(str(HealthTopic("site", device)), codec.encode(health))


def test_a_device_that_was_offline_is_asked_when_it_comes_back_and_its_spool_is_cleaned(site: Site, tmp_path: Path) -> None:
    """End to end but for the wire: the wish is retained, the device obeys, answers, and the wish goes."""
    broker = Broker()
    delivery = delivery_of(site, broker)
    delivery.wishes.publish()
    assert broker.desired("cam-01") is None
    spool = Spool(tmp_path / "spool", max_bytes=10_000_000)
    kept, doomed = message(1000), frame_message("cam-01", 1001, captured_at_ms=START_MS + 350)
    for one in (kept, doomed):
        spool.put(one.header, one.image, "new")
    erasing = Erasing(spool, [spool])

    found = carried_out(site)
    delivery.wishes.publish()
    assert [one["device"] for one in found["devices"]["waiting"]] == ["cam-01"]  # type: ignore[index]
    wished = broker.desired("cam-01")
    assert wished is not None
    assert wished.erase == (EraseWish(str(found["erasure"]), "gate", RANGE.from_ms, RANGE.to_ms),)
    assert broker.desired("cam-02") == Desired(1, 50), "another device is not told whose frames are erased"

    erasing.obey(wished.erase)
    assert [path.stem for path in (tmp_path / "spool" / "frames").iterdir()] == [kept.header.frame_id]
    say_health(delivery, "cam-01", dict(erasing.done))
    delivery.wishes.publish()
    assert broker.desired("cam-01") == Desired(0)
    row = erasures.get(site.catalogue, str(found["erasure"]))
    assert row is not None
    after = report(site, row)
    assert after["devices"]["waiting"] == []
    assert [(one["device"], one["frames"]) for one in after["devices"]["confirmed"]] == [("cam-01", 1)]
    spool.close()


@pytest.mark.parametrize("answer", [{"no-such-wish": 3}, {"x" * 300: "many"}, {"": None}])
def test_a_device_cannot_confirm_what_it_was_not_asked(site: Site, answer: dict[str, int]) -> None:
    found = carried_out(site)
    say_health(delivery_of(site, Broker()), "cam-01", answer)
    say_health(delivery_of(site, Broker()), "cam-02", {str(found["erasure"]): 1})
    row = erasures.get(site.catalogue, str(found["erasure"]))
    assert row is not None
    assert [one["device"] for one in report(site, row)["devices"]["waiting"]] == ["cam-01"]


def test_a_device_that_was_offline_for_long_is_asked_in_portions_that_a_message_holds(site: Site) -> None:
    names = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(12_000)]
    rows = [
        erasures.new_row(Criteria(frames=tuple(names[start : start + 4000])), "test", WHY) for start in range(0, 12_000, 4000)
    ]
    for row in rows:
        erasures.add(site.catalogue, row, ["cam-01"])
    asked = []
    while wishes := erasures.wishes(site.catalogue)["cam-01"]:
        assert len(codec.encode(Desired(1, erase=wishes))) < codec.MAX_CONTROL_BYTES
        asked += [wish.wish for wish in wishes]
        erasures.confirm(site.catalogue, "cam-01", {wish.wish: 0 for wish in wishes})
    assert sorted(asked) == sorted(row["id"] for row in rows)


def test_a_retired_device_is_named_since_nobody_can_ask_it(site: Site) -> None:
    found = carried_out(site, Criteria("cam-03", "", START_MS, START_MS + 1000))
    assert found["devices"] == {"confirmed": [], "waiting": [], "not_asked": ["cam-03"]}
    assert any("cam-03 is retired" in line for line in text_of(found))


def test_a_request_for_all_cameras_asks_every_device_also_such_as_have_sent_nothing(site: Site) -> None:
    made = plan(site, Criteria("", "", START_MS, START_MS + 1000))
    assert made.devices == ("cam-01", "cam-02")
    assert made.not_asked == ("cam-03",)


# -- killed, backed up, rebuilt


def test_a_process_killed_anywhere_is_followed_by_the_scheduler(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"n": 0}
    real = site.blobs.delete

    def dies(blob: str) -> bool:
        calls["n"] += 1
        if calls["n"] == 3:
            raise KeyboardInterrupt
        return real(blob)

    monkeypatch.setattr(site.blobs, "delete", dies)
    with pytest.raises(KeyboardInterrupt):
        carried_out(site)
    monkeypatch.undo()
    (row,) = erasures.listed(site.catalogue)
    assert row["done_at"] is None
    assert finish_all(site) == 0, "it may still be in work"
    assert finish_all(site, older_than_s=-1) == 1
    assert report(site, row)["left"] == []
    assert files_with(site.folder.root, pictures(range(2, 7))) == []


def test_the_scheduler_finishes_requests_and_deletes_what_is_due(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(scheduler, "finish_all", lambda _site: done.append("erasures"))
    stop = threading.Event()
    monkeypatch.setattr(scheduler.retention, "apply", lambda _site: (done.append("retention"), stop.set()))
    scheduler.run(site, stop)
    assert done == ["erasures", "retention"]


def test_without_a_log_of_deletions_nothing_is_deleted(site: Site) -> None:
    site.folder.deletions.unlink()
    site.folder.deletions.mkdir()
    with pytest.raises(EnvironmentFault, match="nothing was deleted"):
        carried_out(site)
    assert site.blobs.exists(message(3).header.image_sha256)
    assert erasures.listed(site.catalogue) == []
    site.folder.deletions.rmdir()


@pytest.mark.parametrize("kept_apart", [True, False])
def test_a_backup_made_before_an_erasure_does_not_bring_the_frame_back(site: Site, tmp_path: Path, kept_apart: bool) -> None:
    """With the log that was kept apart; the other row shows that the test could fail."""
    back_up(site, tmp_path / "old")
    found = carried_out(site)
    restored = restore(tmp_path / "old", tmp_path / "again", "test", deletions=[site.folder.deletions] if kept_apart else [])
    with Site.open(tmp_path / "again") as again:
        states = {frame_rows.state_of(again.catalogue, frame) for frame in found["frames"]}  # type: ignore[attr-defined]
        there = files_with(again.folder.root, pictures(range(2, 7)))
        if not kept_apart:
            assert "labelled" in states
            assert there
            return
        assert (restored.erased, states, there) == (6, {"deleted"}, [])
        late = frame_message("cam-01", 77, captured_at_ms=START_MS + 400)
        ingest_of(again).take([arrived(late)])
        assert not again.blobs.exists(late.header.image_sha256)
        assert dict(erasures.wishes(again.catalogue))["cam-01"][0].wish == found["erasure"]
        assert verify(again.catalogue, again.blobs).faults == ()
        assert DeletionLog(again.folder.deletions).read(), "the next restore must know as well"


def test_a_later_backup_into_the_same_folder_carries_the_log_for_every_earlier_copy(site: Site, tmp_path: Path) -> None:
    back_up(site, tmp_path / "backup")
    shutil.copytree(tmp_path / "backup", tmp_path / "old-tape")
    carried_out(site)
    back_up(site, tmp_path / "backup")
    restored = restore(tmp_path / "old-tape", tmp_path / "again", "test", deletions=[tmp_path / "backup" / "deletions.jsonl"])
    assert restored.erased == 6
    assert files_with(tmp_path / "again", pictures(range(2, 7))) == []


def test_a_frame_deleted_by_hand_or_by_age_does_not_come_back_either(site: Site, tmp_path: Path) -> None:
    back_up(site, tmp_path / "old")
    config = site.config.model_copy(update={"retention": site.config.retention.model_copy(update={"unlabelled_days": 1.0})})
    aged = Site(site.folder, config, site.catalogue, site.blobs)
    counts = apply(aged)
    assert counts.keys() == {"retention: unlabelled for 1 days"}
    restored = restore(tmp_path / "old", tmp_path / "again", "test", deletions=[site.folder.deletions])
    assert restored.erased == sum(counts.values()) > 20


def test_a_restore_that_cannot_read_the_log_it_was_given_restores_nothing(site: Site, tmp_path: Path) -> None:
    back_up(site, tmp_path / "old")
    with pytest.raises(BadInput, match="no log of deletions"):
        restore(tmp_path / "old", tmp_path / "again", "test", deletions=[tmp_path / "nowhere"])
    assert not (tmp_path / "again").exists()


def test_a_log_that_a_power_cut_tore_is_read_up_to_there_and_goes_on(tmp_path: Path) -> None:
    log = DeletionLog(tmp_path / "deletions.jsonl")
    whole = {"kind": "frame", "blob": "", "at": "2026-01-01", "actor": "test", "why": "asked", "erasure": ""}
    log.append([{**whole, "frame": "a"}])
    with log.path.open("ab") as file:
        file.write(b'{"kind":"frame","fra')
    log.append([{**whole, "frame": "b"}])
    assert [entry["frame"] for entry in log.read()] == ["a", "b"]


def test_a_rebuilt_catalogue_still_refuses_and_still_reports(site: Site) -> None:
    found = carried_out(site)
    path = site.folder.catalogue
    site.catalogue.close()
    rebuild(path, site.blobs, "test")
    with Site.open(site.folder.root) as again:
        row = erasures.get(again.catalogue, str(found["erasure"]))
        assert row is not None
        after = report(again, row)
        for key in ("removed", "frames", "left", "dataset_versions", "models", "done_at"):
            assert after[key] == found[key], key
        late = frame_message("cam-01", 77, captured_at_ms=START_MS + 400)
        ingest_of(again).take([arrived(late)])
        assert not again.blobs.exists(late.header.image_sha256)


# -- covered regions


def test_a_covered_person_is_neither_an_object_nor_background(site: Site) -> None:
    from bowerbird_server.labelling.backend import Box
    from bowerbird_wire.messages import Redaction

    region = Redaction((30.0, 10.0, 50.0, 40.0), "person", "blur", 0.3)
    redacted = frame_message("cam-01", 700, redacted=(region,))
    ingest_of(site).take([arrived(redacted)])
    identity = redacted.header.frame_id
    assert [row["class_name"] for row in frame_rows.get(site.catalogue, identity)["redactions"]] == ["person"]
    on_the_person = Box("fox", (32.0, 12.0, 48.0, 38.0))
    submit_label(site.catalogue, site.blobs, identity, ANNOTATOR, "labelled", [BIRD, on_the_person])
    version = take_snapshot(site.catalogue, site.blobs, holdout_share=0.0, actor="test")
    folder = materialise(site.blobs, version, site.folder.datasets).parent
    (image,) = folder.glob(f"images/*/{identity}.jpg")
    (label,) = folder.glob(f"labels/*/{identity}.txt")
    shown = cv2.imread(str(image))
    assert np.abs(shown[14:36, 34:46].astype(int) - 114).max() <= 12, "painted in the gray of borders"
    assert len(label.read_text().splitlines()) == 1, "the label on the covered person teaches nothing"
    assert hashlib.sha256(site.blobs.read(redacted.header.image_sha256)).hexdigest() == redacted.header.image_sha256
    assert "redacted" not in json.dumps(
        [entry for entry in read_manifest(site.blobs, version)["frames"] if entry["frame"] != identity]
    )


# -- the command


def test_the_command_shows_a_plan_then_does_it_then_reports(site: Site) -> None:
    runner, data = CliRunner(), str(site.folder.root)
    chosen = ["--camera", "cam-01/gate", "--from", "2023-11-14T22:13:20.200Z", "--to", "2023-11-14T22:13:20.600Z"]
    shown = runner.invoke(app, ["erase", *chosen, "--data", data, "--json"])
    assert json.loads(shown.stdout)["by_state"] == {"labelled": 4, "received": 1, "rejected": 1}
    assert erasures.listed(site.catalogue) == []
    text = runner.invoke(app, ["erase", *chosen, "--data", data])
    assert "nothing was erased" in text.stdout
    done = runner.invoke(app, ["erase", *chosen, "--yes", "--why", WHY, "--data", data, "--json"])
    assert json.loads(done.stdout)["removed"]["frames"] == 6
    identity = json.loads(done.stdout)["erasure"]
    again = runner.invoke(app, ["erasures", identity[:20], "--data", data])
    assert "1 have not yet" in again.stdout
    listed = runner.invoke(app, ["erasures", "--data", data, "--json"])
    assert [row["waiting"] for row in json.loads(listed.stdout)] == [1]


def test_a_scene_is_erased_with_whatever_of_it_comes_late(site: Site) -> None:
    scene = frame_rows.get(site.catalogue, message(3).header.frame_id)["scene"]
    runner = CliRunner()
    done = runner.invoke(app, ["erase", "--scene", scene, "--yes", "--why", WHY, "--data", str(site.folder.root), "--json"])
    minute = START_MS // 60_000 * 60_000
    assert json.loads(done.stdout)["criteria"]["from_ms"] == minute
    late = frame_message("cam-01", 900, captured_at_ms=minute + 59_999)
    ingest_of(site).take([arrived(late)])
    assert not site.blobs.exists(late.header.image_sha256)


@pytest.mark.parametrize(
    ("arguments", "message_"),
    [
        (["--camera", "gate"], "device/camera"),
        (["--device", "cam-01", "--to", "2999-01-01T00:00Z"], "lies in the future"),
        (["--device", "cam-01", "--from", "2023-01-02", "--to", "2023-01-01"], "is before --from"),
        (["--device", "cam-01", "--from", "yesterday"], "write it like"),
        (["--frames", "zz"], "no frames start with"),
        (["--scene", "nowhere"], "no scene"),
    ],
)
def test_a_request_that_would_erase_something_else_than_meant_is_refused(
    site: Site, arguments: list[str], message_: str
) -> None:
    result = CliRunner().invoke(app, ["erase", *arguments, "--data", str(site.folder.root)])
    assert message_ in str(result.exception)
