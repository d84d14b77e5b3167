"""Second looks on a real catalogue and through the API: who is asked, who sees what, and what follows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from bowerbird_server.access.roles import Role, Sites
from bowerbird_server.catalogue import accounts, second_looks
from bowerbird_server.catalogue.labels import newest_label
from bowerbird_server.catalogue.record_keeping import delete_frames
from bowerbird_server.errors import BadInput
from bowerbird_server.labelling.backend import Box, submit_label
from bowerbird_server.web.app import create_app
from bowerbird_testing.scene_frames import SceneSite
from bowerbird_wire.messages import WireDetection

CAR, OTHER = Box("car", (10.0, 10.0, 60.0, 60.0)), Box("car", (200.0, 100.0, 260.0, 160.0))
TOKEN = "second-looks-token-0123456789"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[SceneSite]:
    made = SceneSite(tmp_path / "data")
    yield made
    made.close()


def label(site: SceneSite, frame: str, author: str, *boxes: Box, verdict: str = "labelled") -> None:
    submit_label(site.cat, site.blobs, frame, author, verdict, boxes)


def kinds(site: SceneSite, author: str) -> list[str]:
    return [row["kind"] for row in second_looks.open_for(site.cat, author)]


def test_two_who_do_not_agree_make_a_frame_suspicious_and_two_who_do_do_not(site: SceneSite) -> None:
    same, other = site.send(0, 10, detections=())
    label(site, same, "anna", CAR)
    label(site, other, "anna", CAR)
    assert second_looks.ask(site.cat, 1.0, "test") == 2
    assert second_looks.ask(site.cat, 1.0, "test") == 0, "each label is asked about once"
    assert kinds(site, "anna") == [], "nobody is asked for a second opinion of their own"
    assert kinds(site, "ben") == ["consensus", "consensus"]
    label(site, same, "anna", CAR, OTHER)  # her own correction is no second opinion
    assert kinds(site, "ben") == ["consensus", "consensus"]
    label(site, same, "ben", CAR)
    label(site, other, "ben", OTHER)
    states = site.cat.rows("SELECT frame, state FROM second_look WHERE kind = 'consensus'")
    assert {row["frame"]: row["state"] for row in states} == {same: "agreed", other: "differs"}
    (odd,) = second_looks.open_for(site.cat, "carla")
    assert (odd["frame"], odd["kind"]) == (other, "suspicious")
    assert "anna and ben do not agree" in odd["why"]
    label(site, other, "carla", CAR)
    assert kinds(site, "dora") == []
    (row,) = [row for row in second_looks.report(site.cat) if row["kind"] == "consensus"]
    assert (row["author"], row["looks"], row["agreed"]["value"], row["agreement"]) == ("anna", 2, 0.5, 0.5)


def test_what_the_model_was_sure_of_and_nobody_drew_is_asked_about(site: SceneSite) -> None:
    (frame,) = site.send(0, detections=(WireDetection(CAR.box_xyxy, 0.95, "car"),))
    label(site, frame, "anna")
    second_looks.ask(site.cat, 0.0, "test")
    (odd,) = second_looks.open_for(site.cat, "anna")
    assert odd["why"] == "a car seen with 0.95 is not drawn"
    label(site, frame, "anna", CAR)
    assert kinds(site, "anna") == []


def test_a_gold_frame_is_asked_of_everybody_once_and_keeps_its_reference(site: SceneSite) -> None:
    (frame,) = site.send(0, detections=())
    with pytest.raises(BadInput, match="label it first"):
        second_looks.make_gold(site.cat, frame, "test")
    label(site, frame, "expert", CAR)
    second_looks.make_gold(site.cat, frame, "test")
    with pytest.raises(BadInput, match="gold already"):
        second_looks.make_gold(site.cat, frame, "test")
    label(site, frame, "anna", CAR)
    label(site, frame, "ben", OTHER)
    label(site, frame, "ben", CAR)  # what he says after having been held against it counts no more
    held = newest_label(site.cat, frame)
    assert held is not None
    assert [box["box_xyxy"] for box in held["boxes"]] == [list(CAR.box_xyxy)]
    assert held["author"] == second_looks.REFERENCE
    found = {row["author"]: row["agreement"] for row in second_looks.report(site.cat)}
    assert found["anna"] == 1
    assert found["ben"] == 0
    assert kinds(site, "anna") == kinds(site, "ben") == kinds(site, "expert") == []
    assert kinds(site, "carla") == ["gold"]


def test_somebody_who_is_asked_for_an_opinion_of_their_own_does_not_see_the_label(site: SceneSite) -> None:
    (frame,) = site.send(0, detections=())
    label(site, frame, "anna", CAR)
    second_looks.ask(site.cat, 1.0, "test")
    program = TestClient(create_app(site.folder, TOKEN), headers={"Authorization": f"Bearer {TOKEN}"})
    assert program.get(f"/api/v1/frames/{frame}").json()["label"] is not None, "a program sees what there is"
    for name in ("anna", "ben"):
        accounts.add_user(site.cat, name, "correct horse battery", Role.LABELLER, Sites.of(["demo"]), "test")
    for name, sees in (("anna", True), ("ben", False)):
        person = TestClient(create_app(site.folder), base_url="http://127.0.0.1", follow_redirects=False)
        assert person.post("/login", data={"name": name, "password": "correct horse battery"}).status_code == 303
        assert (person.get(f"/api/v1/frames/{frame}").json()["label"] is not None) == sees
        items = person.get("/api/v1/second-looks").json()["items"]
        assert [item["blind"] for item in items] == ([] if sees else [True])
        assert (frame[:10] in person.get("/second-looks").text) != sees


def test_a_deleted_frame_is_not_asked_about(site: SceneSite) -> None:
    (frame,) = site.send(0, detections=())
    label(site, frame, "anna", CAR)
    second_looks.ask(site.cat, 1.0, "test")
    delete_frames(site.cat, site.blobs, [frame], "test", "asked by the owner")
    assert kinds(site, "ben") == []
