"""Batches on a site with real pictures, a real champion in a child process, labels, and a policy that fails its control."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from bowerbird_agent.selection.fleet_novelty import fleet_novelty
from bowerbird_server.batches import batch_manifest
from bowerbird_server.batches.batch import build_batch, open_batch, plan_batch
from bowerbird_server.batches.evaluation_routing import HELD_OUT
from bowerbird_server.batches.looking import eyes, look_at_frames, try_to_look
from bowerbird_server.batches.yields import judge_policy
from bowerbird_server.catalogue import batches, fleet, fleet_sketches, frames, judged, looks, unsent
from bowerbird_server.catalogue import models as model_rows
from bowerbird_server.catalogue.audited import metrics
from bowerbird_server.catalogue.classes import add_classes
from bowerbird_server.catalogue.datasets import scene_splits
from bowerbird_server.catalogue.record_keeping import delete_frames
from bowerbird_server.catalogue.verify import verify
from bowerbird_server.cli.app import app
from bowerbird_server.config import LabellingConfig
from bowerbird_server.errors import BadInput, Conflict, NotFound
from bowerbird_server.fleet.wishes import wanted_of
from bowerbird_server.labelling.backend import Box, submit_label
from bowerbird_server.releases.registry import package_of, register_model
from bowerbird_server.site import Site
from bowerbird_server.training.snapshot import read_manifest, take_snapshot
from bowerbird_server.web.app import create_app
from bowerbird_testing.frame_messages import START_MS, frame_message
from bowerbird_testing.lived_in_site import arrived, ingest_of, live_in
from bowerbird_testing.tiny_yolo import TinyBox, write_tiny_yolo
from bowerbird_wire.codec import decode, encode
from bowerbird_wire.messages import Desired, Health, Tombstone, Tombstones

TOKEN = "batch-test-token-0123456789"
MINUTE_MS = 60_000
FIRST_MINUTE = START_MS // MINUTE_MS * MINUTE_MS


def picture(shade: int, seed: int) -> bytes:
    """A flat picture with a square that depends on `seed`: of one shade the square alone differs."""
    image = np.full((48, 64, 3), shade, np.uint8)
    left, top = 8 * (seed % 7), 6 * (seed // 7 % 7)
    image[top : top + 10, left : left + 10] = 255 - shade
    return bytes(cv2.imencode(".jpg", image)[1])


def send(
    site: Site,
    device: str,
    minute: int,
    *,
    arm: str,
    seed: int,
    shade: int = 60,
    second: int = 0,
    score: float = 0.5,
    **changes: object,
) -> str:
    """One frame in a minute of its own or somebody else's."""
    message = frame_message(
        device,
        sequence=minute * 60 + second,
        image=picture(shade, seed),
        captured_at_ms=FIRST_MINUTE + minute * MINUTE_MS + second * 1000,
        arm=arm,
        score=score,
        inclusion_probability=0.02 if arm == "explore" else 1.0,
        reasons=("random_audit",) if arm == "explore" else ("entropy",),
        **changes,
    )
    ingest_of(site).take([arrived(message)])
    return message.header.frame_id


def champion(site: Site, scratch: Path, salt: str = "") -> str:
    """A champion that doubts what is bright and is sure of what is dark, and has an embedding."""
    boxes = (TinyBox((8, 8, 40, 40), 0, 0.5, "bright"), TinyBox((30, 30, 60, 60), 1, 0.97, "dark"))
    path = write_tiny_yolo(
        scratch / f"champion{salt}.onnx", class_names=("bird", "fox"), boxes=boxes, embedding_size=8, salt=salt
    )
    row = register_model(site, path, weights=None, origin="imported", actor="test")
    model_rows.promote(site.catalogue, row["digest"], "test", {})
    return str(row["digest"])


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site.open(tmp_path / "site") as opened:
        fleet.add_device(opened.catalogue, "cam-01", "site", "test")
        fleet.add_device(opened.catalogue, "cam-02", "site", "test")
        add_classes(opened.catalogue, ["bird", "fox"], "test")
        yield opened


def events(site: Site, kind: str) -> list[dict[str, object]]:
    return [
        json.loads(row["why"]) for row in site.catalogue.rows("SELECT why FROM event WHERE kind = ? ORDER BY position", kind)
    ]


def label(site: Site, frame: str, *, changes: int = 0) -> None:
    submit_label(
        site.catalogue,
        site.blobs,
        frame,
        "anna",
        "labelled",
        [Box("bird", (1, 1, 20, 20))],
        edits={"kept": 1, "added": changes},
    )


def test_a_batch_on_a_lived_in_site_has_roles_a_manifest_and_a_snapshot_that_keeps_the_sides(tmp_path: Path) -> None:
    """The whole: looked at by the champion, routed, chosen, labelled, frozen; the evaluation set has explore frames only."""
    with live_in(tmp_path / "site", tmp_path) as site:
        cat = site.catalogue
        digest = champion(site, tmp_path)
        for minute in range(10, 30):
            send(site, "cam-01", minute, arm="explore", seed=minute)
            for second in (1, 30):
                send(site, "cam-01", minute, arm="policy", seed=100 + minute * 2 + second, second=second)
            send(site, "cam-02", 100 + minute, arm="policy", seed=minute, shade=180, score=minute / 100)
        assert [eye.digest for eye in eyes(site)] == [digest]
        assert look_at_frames(site) > 60
        assert look_at_frames(site) == 0, "each frame is looked at once"
        batch = build_batch(cat, frames=30, blobs=site.blobs, settings=site.config.labelling)
        assert batch is not None
        rows = cat.rows(
            "SELECT batch_frame.*, arm, scene FROM batch_frame JOIN frame ON frame.id = frame WHERE batch = ?", batch
        )
        roles = Counter(row["role"] for row in rows)
        assert sum(roles.values()) == 30
        assert roles["evaluation"] == 6
        assert roles["control"] == 6
        held_out = {scene for scene, (side, _) in scene_splits(cat).items() if side == HELD_OUT}
        assert {row["role"] for row in rows if row["scene"] in held_out} == {"evaluation"}
        assert 9 <= len([scene for scene in held_out if scene.startswith("cam-01")]) <= 12
        aside = cat.value("SELECT count(*) FROM event WHERE kind = 'frame of a held-out scene'")
        assert aside > 0
        manifest = json.loads(site.blobs.read(cat.value("SELECT manifest FROM batch WHERE id = ?", batch)))
        assert manifest["schema"] == batch_manifest.SCHEMA
        assert manifest["looked"] == {"champion": digest, "teacher": ""}
        assert [each["frame"] for each in manifest["chosen"]] == batches.batch_frames(cat, batch)
        assert all(each["inclusion_probability"] == 0.02 for each in manifest["chosen"] if each["arm"] == "explore")
        data = ["--data", str(site.folder.root)]
        printed = CliRunner().invoke(app, ["labels", "batches", batch[-7:], *data])
        assert json.loads(printed.stdout) == {"batch": batch, **manifest}, "the manifest is there to be read"
        listed = json.loads(CliRunner().invoke(app, ["labels", "batches", "--json", *data]).stdout)
        assert [(row["id"], row["frames"]) for row in listed] == [(batch, 30)]
        unknown = CliRunner().invoke(app, ["labels", "batches", "nosuchbatch", *data])
        assert isinstance(unknown.exception, NotFound)
        for row in rows:
            label(site, row["frame"])
        assert batches.progress(cat, batch)["state"] == "done"
        frozen = read_manifest(site.blobs, take_snapshot(cat, site.blobs, holdout_share=0.9, actor="test"))
        new = {entry["frame"]: entry["split"] for entry in frozen["frames"]}
        assert {new[row["frame"]] for row in rows if row["role"] == "evaluation"} == {"holdout"}
        assert {new[row["frame"]] for row in rows if row["role"] != "evaluation" and row["arm"] != "import"} == {"train"}
        assert verify(cat, site.blobs).faults == ()
        site.blobs.delete(cat.value("SELECT manifest FROM batch WHERE id = ?", batch))
        assert [fault.what for fault in verify(cat, site.blobs).faults] == ["batch"], "a lost manifest is told"


def test_the_champion_of_today_overrules_the_scores_of_devices(site: Site, tmp_path: Path) -> None:
    """Devices were sure of the bright frames; the champion doubts them."""
    dark = [send(site, "cam-01", minute, arm="policy", seed=minute, shade=20, score=0.9) for minute in range(8)]
    bright = [send(site, "cam-01", minute, arm="policy", seed=minute, shade=235, score=0.1) for minute in range(20, 28)]
    settings = LabellingConfig(control_share=0.0)
    plan = plan_batch(site.catalogue, frames=4, settings=settings)
    assert plan is not None
    assert {member.frame for member in plan.members} <= set(dark)
    champion(site, tmp_path)
    look_at_frames(site)
    plan = plan_batch(site.catalogue, frames=4, settings=settings)
    assert plan is not None
    chosen = {member.frame for member in plan.members}
    # The shortlist is four times as long as the batch and holds both; farthest-first begins with the greatest doubt.
    assert plan.members[0].frame in bright
    assert chosen & set(bright)


def test_a_teacher_points_at_what_devices_do_not_show(site: Site, tmp_path: Path) -> None:
    """The device saw one bird everywhere; the teacher sees it in dark frames only as it is, and a fox besides in bright ones."""
    champion(site, tmp_path)
    boxes = (TinyBox((1, 2, 20, 30), 0, 0.9), TinyBox((30, 10, 60, 50), 1, 0.9, "bright"))
    teacher = write_tiny_yolo(tmp_path / "teacher.onnx", class_names=("bird", "fox"), boxes=boxes, salt="teacher")
    (site.folder.root / "bowerbird.toml").write_text(f'[labelling]\nrescore = "teacher"\nteacher = "{teacher}"\n')
    dark = [send(site, "cam-01", minute, arm="policy", seed=minute, shade=20) for minute in range(4)]
    bright = [send(site, "cam-01", minute, arm="policy", seed=minute, shade=235) for minute in range(20, 24)]
    with Site.open(site.folder.root) as again:
        assert look_at_frames(again) == 16, "champion and teacher each look once"
        taught = looks.of_received(again.catalogue, eyes(again)[1].digest)
        assert min(taught[frame].doubt or 0 for frame in bright) > max(taught[frame].doubt or 0 for frame in dark)
        plan = plan_batch(again.catalogue, frames=8, settings=again.config.labelling)
        assert plan is not None
        assert plan.manifest["looked"]["teacher"] == eyes(again)[1].digest
    teacher.unlink()
    with Site.open(site.folder.root) as again, pytest.raises(BadInput, match=r"labelling\.teacher"):
        look_at_frames(again)


def test_near_copies_of_labelled_frames_are_set_aside_but_never_those_of_the_audit(site: Site, tmp_path: Path) -> None:
    champion(site, tmp_path)
    first = send(site, "cam-01", 0, arm="policy", seed=3)
    label(site, first)
    near = cv2.imencode(".jpg", cv2.imdecode(np.frombuffer(picture(60, 3), np.uint8), cv2.IMREAD_COLOR) + np.uint8(1))[
        1
    ].tobytes()
    twins = []
    for n, arm in enumerate(("policy", "explore"), start=1):
        message = frame_message(
            "cam-01", sequence=n, image=near + b"\0" * n, captured_at_ms=FIRST_MINUTE + n * MINUTE_MS, arm=arm
        )
        ingest_of(site).take([arrived(message)])
        twins.append(message.header.frame_id)
    other = send(site, "cam-01", 5, arm="policy", seed=24)
    look_at_frames(site)
    build_batch(site.catalogue, frames=10, blobs=site.blobs)
    assert frames.states_of(site.catalogue, [*twins, other]) == {twins[0]: "rejected", twins[1]: "queued", other: "queued"}
    assert events(site, "frame is nearly a copy") == [{"like": first}]


def test_a_scene_whose_chosen_frames_were_shown_already_is_never_held_out(site: Site) -> None:
    """An audit frame that comes late finds its scene spoilt, whatever the lot would say."""
    settings = LabellingConfig(evaluation_share=1.0)
    send(site, "cam-01", 1, arm="policy", seed=1)
    assert build_batch(site.catalogue, frames=5, settings=settings) is not None
    send(site, "cam-01", 1, arm="explore", seed=2, second=5)
    send(site, "cam-01", 2, arm="explore", seed=3)
    batch = build_batch(site.catalogue, frames=5, settings=settings)
    roles = site.catalogue.rows("SELECT role, scene FROM batch_frame JOIN frame ON frame.id = frame WHERE batch = ?", batch)
    assert sorted(row["role"] for row in roles) == ["control", "evaluation"]
    assert [side for _, (side, _) in sorted(scene_splits(site.catalogue).items())] == ["train", "holdout"]


def test_a_picture_that_cannot_be_read_and_a_model_that_hurts_stop_nothing(site: Site, tmp_path: Path) -> None:
    """The first is looked at once and then counts by its device's score; the second is told and leaves no look."""
    frame = send(site, "cam-01", 1, arm="policy", seed=1)
    site.blobs.path(frames.get(site.catalogue, frame)["blob"]).write_bytes(b"no picture")
    assert look_at_frames(site) == 1
    assert look_at_frames(site) == 0
    assert looks.of_received(site.catalogue, "")[frame].luma == b""
    path = write_tiny_yolo(tmp_path / "nan.onnx", class_names=("bird", "fox"), emit_nan=True)
    send(site, "cam-01", 2, arm="policy", seed=2)
    (site.folder.root / "bowerbird.toml").write_text(f'[labelling]\nrescore = "teacher"\nteacher = "{path}"\n')
    with Site.open(site.folder.root) as again:
        with pytest.raises(Exception, match="NaN"):
            look_at_frames(again)
        assert build_batch(again.catalogue, frames=5, blobs=again.blobs) is not None


def test_two_who_queue_at_once_share_no_frame(site: Site) -> None:
    """The plan of the second is refused whole; choosing again finds what is left."""
    for minute in range(6):
        send(site, "cam-01", minute, arm="policy", seed=minute)
    plan = plan_batch(site.catalogue, frames=4)
    assert plan is not None
    assert build_batch(site.catalogue, frames=3) is not None
    with pytest.raises(Conflict):
        open_batch(site.catalogue, plan, "late", site.blobs)
    assert frames.count_by_state(site.catalogue)["received"] == 3
    assert build_batch(site.catalogue, frames=4) is not None


def test_a_package_says_its_version_of_the_class_list_or_that_its_classes_are_none(site: Site, tmp_path: Path) -> None:
    listed = register_model(
        site, write_tiny_yolo(tmp_path / "a.onnx", class_names=("bird", "fox")), weights=None, origin="imported", actor="test"
    )
    assert package_of(site, listed["digest"]).manifest.class_list == 2
    add_classes(site.catalogue, ["elk"], "test")
    for names, version in ((("bird", "fox"), 2), (("bird", "fox", "elk"), 3), (("fox", "bird"), 0), (("bird", "owl"), 0)):
        onnx = write_tiny_yolo(tmp_path / "b.onnx", class_names=names, salt="b")
        row = register_model(site, onnx, weights=None, origin="imported", actor="test")
        assert package_of(site, row["digest"]).manifest.class_list == version


def test_the_first_frames_of_a_site_without_a_model_are_queued_and_judge_no_policy(site: Site) -> None:
    """Nobody had seen them: every box that people draw is an addition, and says nothing about the choice or the pre-labels."""
    cat = site.catalogue
    for minute in range(40):
        arm = "explore" if minute % 2 else "policy"
        send(site, "cam-01", minute, arm=arm, seed=minute, shade=40 + minute, detections=())
    batch = build_batch(cat, frames=20, blobs=site.blobs, settings=site.config.labelling)
    assert batch is not None
    rows = cat.rows("SELECT frame, role FROM batch_frame WHERE batch = ?", batch)
    assert {row["role"] for row in rows} == {"policy", "control", "evaluation"}
    for row in rows:
        label(site, row["frame"], changes=2)
    assert batches.progress(cat, batch)["state"] == "done"
    assert judged.judged_frames(cat) == []
    assert metrics(cat) == [], "nor do they say how often a model was right"
    frozen = read_manifest(site.blobs, take_snapshot(cat, site.blobs, holdout_share=0.0, actor="test"))
    assert {entry["split"] for entry in frozen["frames"]} == {"train", "holdout"}


def test_a_policy_that_is_no_better_than_chance_is_taken_out_of_force_until_a_new_champion(site: Site, tmp_path: Path) -> None:
    """Labellers change every control frame and no chosen one: said in the log, in the manifest, and undone by a new champion."""
    cat = site.catalogue
    champion(site, tmp_path)
    for minute in range(120):
        arm = "explore" if minute % 2 else "policy"
        send(site, "cam-01", minute, arm=arm, seed=minute, shade=40 + minute)
    settings = LabellingConfig(evaluation_share=0.0, control_share=0.5)
    batch = build_batch(cat, frames=120, settings=settings)
    assert batch is not None
    for row in cat.rows("SELECT frame, role FROM batch_frame WHERE batch = ?", batch):
        label(site, row["frame"], changes=int(row["role"] == "control"))
    assert judge_policy(judged.judged_frames(cat)).word == "not_better"
    for minute in range(200, 210):
        send(site, "cam-01", minute, arm="policy", seed=minute)
    second = build_batch(cat, frames=3, settings=settings, blobs=site.blobs)
    assert second is not None
    assert batches.progress(cat, second)["policy"]["by"] == "diversity"
    (event,) = events(site, "selection fell back to diversity")
    assert "changed boxes per label" in str(event["why"])
    manifest = json.loads(site.blobs.read(cat.value("SELECT manifest FROM batch WHERE id = ?", second)))
    assert manifest["evidence"]["fall_back"]["why"] == event["why"]
    told = TestClient(create_app(site.folder, TOKEN), headers={"Authorization": f"Bearer {TOKEN}"})
    answer = told.get("/api/v1/yield").json()
    assert (answer["by"], answer["verdict"]["word"], answer["fallen_back"]["why"]) == ("diversity", "not_better", event["why"])
    assert [one["strategy"] for one in answer["strategies"]] == ["entropy"]
    told.post("/login", data={"token": TOKEN, "author": "Ada", "next": "/"})
    told.headers.pop("Authorization")
    assert "by diversity alone since" in told.get("/").text
    assert "No better than its control" in told.get("/selection").text
    build_batch(cat, frames=1, settings=settings)
    assert len(events(site, "selection fell back to diversity")) == 1, "said once"
    champion(site, tmp_path, "next")
    third = build_batch(cat, frames=1, settings=settings)
    assert third is not None
    assert batches.progress(cat, third)["policy"]["by"] == "score"
    assert judged.fallen_back(cat) is None
    assert judge_policy(judged.judged_frames(cat)).word == "undecided", "old labels say nothing of the new champion's doubts"


def test_what_is_labelled_often_enough_is_not_new_to_any_device_that_runs_the_champion(site: Site, tmp_path: Path) -> None:
    """One device's labels become a sketch in the other's wish; its novelty uses it; another model is told nothing."""
    cat = site.catalogue
    digest = champion(site, tmp_path)
    for minute in range(12):
        label(site, send(site, "cam-01", minute, arm="policy", seed=minute))
    (site.folder.root / "bowerbird.toml").write_text("[labelling]\nenough_labels = 10\n")
    with Site.open(site.folder.root) as again:
        try_to_look(again)
        assert fleet_sketches.wished(cat) == {}, "no device reports to run it yet"
        for device in ("cam-01", "cam-02"):
            fleet.record_health(cat, device, Health("boot", 1, digest))
        assert fleet_sketches.wished(cat) == {}, "both classes are rare still: nothing is there often enough"
        for minute in range(20, 30):
            boxes = [Box("bird", (1, 1, 20, 20)), Box("fox", (30, 1, 50, 20))] * 5
            submit_label(cat, site.blobs, send(site, "cam-01", minute, arm="policy", seed=minute), "anna", "labelled", boxes)
        try_to_look(again)
        wanted = wanted_of(cat, fleet.active_devices(cat))
        assert wanted["cam-01"] == wanted["cam-02"]
        payload = decode(Desired, encode(wanted["cam-02"])).enough
        assert 0 < len(payload) < 1000
        try_to_look(again)
        assert wanted_of(cat, fleet.active_devices(cat)) == wanted, "nothing new is said without need"
        novelty = fleet_novelty(payload, digest)
        assert novelty is not None
        ((_, look), *_) = looks.of_labelled(cat, digest)
        assert look.embedding is not None
        assert novelty.distance(look.embedding) < 0.02
        assert novelty.distance(-look.embedding) == 1
        assert fleet_novelty(payload, "ab" * 32) is None
        champion(again, tmp_path, "next")
        fleet.record_health(cat, "cam-02", Health("boot", 2, "ab" * 32))
        assert "cam-02" not in wanted_of(cat, fleet.active_devices(cat))
        try_to_look(again)
        assert fleet_sketches.wished(cat) == {}, "the new champion is not run by anybody yet"
        assert cat.value("SELECT count(DISTINCT model) FROM look") == 1, "what the old one saw is let go of"


def test_what_a_deleted_frame_looked_like_goes_with_it(site: Site, tmp_path: Path) -> None:
    """Also when somebody was just looking at it."""
    digest = champion(site, tmp_path)
    frame = send(site, "cam-01", 1, arm="policy", seed=1)
    look_at_frames(site)
    (look,) = looks.of_received(site.catalogue, digest).values()
    delete_frames(site.catalogue, site.blobs, [frame], "test", "asked by the owner")
    assert site.catalogue.value("SELECT count(*) FROM look") == 0
    assert looks.add(site.catalogue, digest, [look]) == 0


def test_a_budget_in_boxes_ends_a_batch_of_crowded_frames_early(site: Site, tmp_path: Path) -> None:
    path = write_tiny_yolo(
        tmp_path / "crowd.onnx",
        class_names=("bird", "fox"),
        boxes=tuple(TinyBox((4 + 12 * n, 4, 12 + 12 * n, 30), 0, 0.8, "bright") for n in range(5)),
    )
    row = register_model(site, path, weights=None, origin="imported", actor="test")
    model_rows.promote(site.catalogue, row["digest"], "test", {})
    for minute in range(10):
        send(site, "cam-01", minute, arm="policy", seed=minute, shade=250)
    look_at_frames(site)
    seen = looks.of_received(site.catalogue, row["digest"])
    crowd = max(look.boxes for look in seen.values())
    assert crowd >= 4
    settings = LabellingConfig(cost_unit="boxes", cost_limit=2 * crowd)
    plan = plan_batch(site.catalogue, frames=10, settings=settings)
    assert plan is not None
    assert 2 <= len(plan.members) < 5


def test_a_frame_that_its_device_gave_up_is_explained_in_place_of_being_unknown(site: Site) -> None:
    send(site, "cam-01", 1, arm="policy", seed=1)
    stone = Tombstone(1, b"\xab" * 32, "explore", "evicted:spool_full", 0.5, 0.25, "yard", START_MS)
    unsent.record(site.catalogue, "cam-01", Tombstones(1, named=(stone,)))
    said = r"frame abababababab of cam-01/yard \(.*\) was kept at random and never sent: its device evicted it \(spool full\)"
    with pytest.raises(NotFound, match=said):
        frames.find(site.catalogue, "ababab")
    told = TestClient(create_app(site.folder, TOKEN), headers={"Authorization": f"Bearer {TOKEN}"})
    for address in ("/frames/" + "ab" * 32, "/api/v1/frames/" + "ab" * 32):
        answer = told.get(address)
        assert answer.status_code == 404
        assert "evicted it (spool full)" in answer.text


def test_a_label_of_a_program_that_counts_no_edits_is_counted_against_what_the_model_showed(site: Site) -> None:
    bird = (1.0, 2.0, 20.0, 30.0)  # what every model of these tests shows
    shown = send(site, "cam-01", 1, arm="policy", seed=1)
    build_batch(site.catalogue, frames=1, settings=LabellingConfig(control_share=0.0))
    told = TestClient(create_app(site.folder, TOKEN), headers={"Authorization": f"Bearer {TOKEN}"})
    boxes = [{"class_name": "bird", "box_xyxy": box} for box in (bird, (30, 5, 40, 20))]
    assert told.post(f"/api/v1/frames/{shown}/label", json={"boxes": boxes}).status_code == 200
    (one,) = judged.judged_frames(site.catalogue)
    assert (one.shown, one.drawn, one.right, one.changes) == (1, 2, 1, 1)
