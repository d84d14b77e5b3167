"""The JSON API over a real catalogue and blob store: who may come in, what it answers, and what lands in the catalogue."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from bowerbird_server.batches.batch import build_batch
from bowerbird_server.catalogue import accounts, batches, fleet, frames
from bowerbird_server.catalogue.labels import labels_of, newest_label
from bowerbird_server.web.app import create_app
from bowerbird_testing.scene_frames import SceneSite
from bowerbird_wire.messages import Health

TOKEN = "api-test-token-0123456789"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[SceneSite]:
    made = SceneSite(tmp_path / "data")
    yield made
    made.close()


@pytest.fixture
def anyone(site: SceneSite) -> TestClient:
    """A client that has not logged in."""
    return TestClient(create_app(site.folder, TOKEN), base_url="http://127.0.0.1", follow_redirects=False)


@pytest.fixture
def api(anyone: TestClient) -> TestClient:
    """A program with the token."""
    anyone.headers.update(BEARER)
    return anyone


@pytest.fixture
def person(anyone: TestClient) -> TestClient:
    """Somebody who has logged in as Ada; `X-CSRF-Token` is set."""
    answer = anyone.post("/login", data={"token": TOKEN, "author": "Ada", "next": "/review"})
    assert answer.status_code == 303
    assert answer.headers["location"] == "/review"
    anyone.headers["X-CSRF-Token"] = anyone.get("/session").json()["csrf_token"]
    return anyone


def label_of(box: tuple[float, float, float, float], name: str = "car", **more: Any) -> dict[str, Any]:
    return {"boxes": [{"class_name": name, "box_xyxy": box}], **more}


def test_the_dashboard_says_what_a_device_runs_its_model_with(site: SceneSite, person: TestClient) -> None:
    device = site.device
    runs = {"variant": "onnx-int8-ort", "runtime": "onnxruntime-cpu <1.32>", "origin": "tuned", "file_digest": "0" * 12}
    fleet.record_health(site.cat, device, Health("boot", 1, "a" * 64, extra={"runtime": runs}))
    page = person.get("/").text
    assert "onnx-int8-ort on onnxruntime-cpu &lt;1.32&gt;" in page
    fleet.record_health(site.cat, device, Health("boot", 2, "a" * 64, extra={"runtime": "nonsense"}))
    assert person.get("/").status_code == 200


def test_the_dashboard_says_what_a_device_has_spent_on_what(site: SceneSite, person: TestClient) -> None:
    extra = {"spent": {"f": 1_500_000, "k": 900}, "uplink": {"total": [2_000_000, 5_000_000, 2_000_000, None], "quiet": True}}
    fleet.record_health(site.cat, site.device, Health("boot", 1, "a" * 64, extra=extra))
    page = person.get("/").text
    assert "frames 1.5 MB, control 900 B" in page
    assert "2.0 MB of 5.0 MB in 24 h, quiet hours" in page


# ---- who may come in


def test_every_route_but_login_and_health_is_closed_without_token_or_session(anyone: TestClient) -> None:
    """The gate is shut by default: each path and method of the application is tried."""
    paths = anyone.app.openapi()["paths"]  # type: ignore[attr-defined]
    assert len(paths) >= 15
    for path, methods in paths.items():
        for method in methods:
            answer = anyone.request(method, re.sub(r"\{\w+\}", "0" * 64, path))
            assert answer.status_code == (200 if path == "/api/v1/health" else 401), (method, path)
    assert anyone.get("/api/v1/openapi.json").status_code == 401
    for page in ("/", "/frames", "/review", "/frames/x", "/models/y"):
        answer = anyone.get(page)
        assert (answer.status_code, answer.headers["location"].split("?")[0]) == (303, "/login")


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", TOKEN[:-1]])
def test_a_wrong_token_opens_nothing(anyone: TestClient, token: str) -> None:
    """Neither as Bearer nor at the login page."""
    assert anyone.get("/api/v1/summary", headers={"Authorization": f"Bearer {token}"}).status_code == 401
    answer = anyone.post("/login", data={"token": token})
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert "This is not right" in answer.text


def test_the_session_cookie_is_httponly_and_strict(anyone: TestClient) -> None:
    """Scripts cannot read it and other sites cannot send it."""
    cookie = anyone.post("/login", data={"token": TOKEN}).headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert TOKEN not in cookie


def test_a_forged_or_altered_cookie_is_no_session(person: TestClient) -> None:
    """Changing one letter shuts the door."""
    value = person.cookies["bowerbird_session"]
    for altered in (value[:-1] + ("A" if value[-1] != "A" else "B"), value[:-1], value + "A", "x", ""):
        person.cookies.clear()
        assert person.get("/api/v1/summary", headers={"Cookie": f"bowerbird_session={altered}"}).status_code == 401


def test_a_session_survives_a_restart_until_its_token_is_revoked(person: TestClient, site: SceneSite) -> None:
    """An annotator is not thrown out when the web process restarts."""
    cookie = {"Cookie": f"bowerbird_session={person.cookies['bowerbird_session']}"}
    again = TestClient(create_app(site.folder))
    assert again.get("/api/v1/summary", headers=cookie).status_code == 200
    (token,) = accounts.list_tokens(site.cat)
    accounts.revoke_token(site.cat, token["id"], "test")
    assert again.get("/api/v1/summary", headers=cookie).status_code == 401
    assert again.get("/api/v1/summary", headers=BEARER).status_code == 401


def test_posts_on_a_cookie_need_the_csrf_token_and_the_same_origin(person: TestClient) -> None:
    """A cookie alone does not post; nor does the right token from another site."""
    body = {"names": ["deer"]}
    right = person.headers.pop("X-CSRF-Token")
    assert person.post("/api/v1/classes", json=body).json()["error"]["code"] == "csrf"
    assert person.post("/api/v1/classes", json=body, headers={"X-CSRF-Token": right[:-1]}).status_code == 403
    for elsewhere in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
        assert person.post("/api/v1/classes", json=body, headers={"X-CSRF-Token": right, **elsewhere}).status_code == 403
    assert person.post("/api/v1/classes", json=body, headers={"X-CSRF-Token": right}).status_code == 200


def test_logging_out_ends_the_session(person: TestClient) -> None:
    """The old cookie is worth nothing afterwards; without the form's token nobody is logged out."""
    cookie = {"Cookie": f"bowerbird_session={person.cookies['bowerbird_session']}"}
    assert person.post("/logout").status_code == 403
    assert person.post("/logout", data={"csrf_token": person.headers["X-CSRF-Token"]}).status_code == 303
    person.cookies.clear()
    assert person.get("/api/v1/summary", headers=cookie).status_code == 401


@pytest.mark.parametrize("target", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)"])
def test_login_goes_nowhere_else(anyone: TestClient, target: str) -> None:
    """The address to go on to is one of ours or the dashboard."""
    assert anyone.post("/login", data={"token": TOKEN, "next": target}).headers["location"] == "/"


def test_pages_and_answers_carry_a_strict_policy(person: TestClient, site: SceneSite) -> None:
    """No inline script or style is allowed, and none is there to be forbidden."""
    (frame,) = site.send(0)
    for path in ("/", "/frames", "/review", f"/frames/{frame}", "/login", "/static/review.js", f"/api/v1/frames/{frame}"):
        answer = person.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        if "text/html" in answer.headers.get("content-type", ""):
            assert not re.search(r"<script(?![^>]*\bsrc=)|\sstyle=|\son[a-z]+=|https?://(?!www\.w3\.org)", answer.text)


# ---- what it answers


def test_the_openapi_description_is_whole(api: TestClient) -> None:
    """Every success has a described shape, every reference resolves, and the token is declared."""
    document = api.get("/api/v1/openapi.json").json()
    assert document["openapi"].startswith("3.")
    assert document["components"]["securitySchemes"]
    schemas = document["components"]["schemas"]
    for name in re.findall(r'"#/components/schemas/([^"]+)"', api.get("/api/v1/openapi.json").text):
        assert name in schemas
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            described = operation["responses"].get("200") or operation["responses"]["201"]
            if not path.endswith("/image"):
                assert "$ref" in described["content"]["application/json"]["schema"], (method, path)


def test_lists_answer_on_an_empty_catalogue(api: TestClient) -> None:
    """Nothing there is an empty list, not an error."""
    for name in ("frames", "queue", "models", "datasets", "runs", "rollouts", "batches"):
        assert api.get(f"/api/v1/{name}").json()["items"] == []
    assert api.get("/api/v1/summary").json()["classes"] == [row["name"] for row in api.get("/api/v1/classes").json()["items"]]


def test_frames_come_in_pages_that_miss_and_double_nothing_while_frames_arrive(api: TestClient, site: SceneSite) -> None:
    """The key of a page is a row, so a frame that arrives between two pages shifts nothing."""
    ids = set(site.send(*range(0, 70, 10)))
    first = api.get("/api/v1/frames", params={"limit": 4}).json()
    site.send(100)
    second = api.get("/api/v1/frames", params={"limit": 4, "after": first["next"]}).json()
    seen = [row["id"] for row in first["items"] + second["items"]]
    assert sorted(seen) == sorted(ids)
    assert second["next"] is None


def test_the_queue_comes_in_pages_with_reasons_and_detections(api: TestClient, site: SceneSite) -> None:
    """Two pages hold every queued frame once, in the batch's order."""
    site.send(*range(0, 50, 10))
    batch = build_batch(site.cat, frames=5)
    assert batch is not None
    first = api.get("/api/v1/queue", params={"limit": 3}).json()
    second = api.get("/api/v1/queue", params={"limit": 3, "after": first["next"]}).json()
    items = first["items"] + second["items"]
    assert [item["id"] for item in items] == batches.batch_frames(site.cat, batch)
    assert first["length"] == 5
    assert all(item["why"] and item["reasons"] == ["entropy", "novelty"] for item in items)
    assert any(item["detections"] for item in items)


def test_an_image_is_served_for_ever_under_its_digest(api: TestClient, site: SceneSite) -> None:
    """Bytes as stored, immutable, and 304 for whoever has them."""
    (frame,) = site.send(0)
    row = frames.get(site.cat, frame)
    answer = api.get(f"/api/v1/frames/{frame}/image")
    assert answer.content == site.blobs.read(row["blob"])
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["cache-control"] == "private, max-age=3600, immutable", "an erased picture must not stay for long"
    assert answer.headers["etag"] == f'"{row["blob"]}"'
    assert api.get(f"/api/v1/frames/{frame}/image", headers={"If-None-Match": answer.headers["etag"]}).status_code == 304


def test_an_image_that_is_gone_says_so(api: TestClient, site: SceneSite) -> None:
    """A missing blob is a 404 with advice, not a stack trace."""
    (frame,) = site.send(0)
    site.blobs.delete(frames.get(site.cat, frame)["blob"])
    answer = api.get(f"/api/v1/frames/{frame}/image")
    assert answer.status_code == 404
    assert "backup" in answer.json()["error"]["message"]


# ---- taking labels


def test_a_label_is_taken_and_the_batch_ends(person: TestClient, site: SceneSite) -> None:
    """Opening a queued frame puts it in review; a label in the session's name, then a rejection, empty the queue."""
    one, two = site.send(0, 10)
    batch = build_batch(site.cat, frames=2)
    assert batch is not None
    assert person.post(f"/api/v1/frames/{one}/open", json={}).json()["state"] == "in_review"
    taken = person.post(f"/api/v1/frames/{one}/label", json=label_of((1, 2, 50, 60), author="Mallory", seconds=3.5)).json()
    assert taken == {"frame": one, "revision": 1, "state": "labelled", "queue": 1}
    label = newest_label(site.cat, one)
    assert label is not None
    assert label["author"] == "Ada"
    assert batches.progress(site.cat, batch)["state"] == "open"
    person.post(f"/api/v1/frames/{two}/label", json={"verdict": "rejected"})
    assert batches.progress(site.cat, batch)["state"] == "done"


def test_a_save_that_is_repeated_is_taken_once(api: TestClient, site: SceneSite) -> None:
    """The same label id again answers with the same revision; another frame may not use it."""
    one, two = site.send(0, 10)
    body = label_of((1, 2, 50, 60), label_id="01890000-0000-7000-8000-000000000001")
    answers = [api.post(f"/api/v1/frames/{one}/label", json=body).json()["revision"] for _ in range(3)]
    assert answers == [1, 1, 1]
    assert len(labels_of(site.cat, one)) == 1
    assert api.post(f"/api/v1/frames/{two}/label", json=body).status_code == 409


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (label_of((400, 10, 500, 50)), 400, "wholly outside the 320x240 image"),
        (label_of((50, 10, 20, 50)), 400, "inverted"),
        (label_of((50, 10, 50, 50)), 400, "no area"),
        (label_of((1, 1, 9, 9), name="yeti"), 400, "'yeti' is not in the class list"),
        ({"verdict": "rejected", **label_of((1, 1, 9, 9))}, 400, "no boxes"),
        ({"verdict": "perhaps"}, 422, "verdict"),
        ({"boxs": []}, 422, "boxs"),
        (label_of((1, 1, 9, 9), edits={"kissed": 1}), 400, "kissed"),
        (label_of((1, 1, 9, 9), label_id="7"), 400, "UUID"),
    ],
)
def test_a_bad_label_is_refused_in_words_and_changes_nothing(
    api: TestClient, site: SceneSite, body: dict[str, Any], status: int, said: str
) -> None:
    """Each refusal names what is wrong."""
    (frame,) = site.send(0)
    answer = api.post(f"/api/v1/frames/{frame}/label", json=body)
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]
    assert labels_of(site.cat, frame) == []
    assert frames.get(site.cat, frame)["state"] == "received"


def test_unknown_things_are_404_in_json_and_on_pages(api: TestClient) -> None:
    """With advice, and as JSON only below /api."""
    for path in ("/api/v1/frames/nope", "/api/v1/models/0123456789", "/api/v1/nothing"):
        answer = api.get(path)
        assert answer.status_code == 404
        assert answer.json()["error"]["message"]
    assert "<html" in api.get("/frames/nope").text


def test_batches_are_opened_over_the_api_or_refused_when_nothing_waits(api: TestClient, site: SceneSite) -> None:
    """201 with the batch's progress; 409 when no received frame is left."""
    site.send(0, 10)
    answer = api.post("/api/v1/batches", json={"frames": 5})
    assert (answer.status_code, answer.json()["frames"]) == (201, 2)
    assert api.post("/api/v1/batches", json={"frames": 5}).status_code == 409


def test_a_body_too_large_is_refused_unread(api: TestClient, site: SceneSite) -> None:
    """Four megabytes are the most."""
    (frame,) = site.send(0)
    assert api.post(f"/api/v1/frames/{frame}/label", content=b"x" * 4_200_000).status_code == 413


# ---- the dashboard


def test_the_dashboard_says_what_is_wrong_with_each_camera_even_one_that_never_sent_a_frame(
    person: TestClient, site: SceneSite
) -> None:
    said = {"gate": "ok", "yard": "frozen", "hall": "camera hall: <it> does not answer"}
    health = Health("boot", 1_767_225_600_000, cameras=said, extra={"camera_dropped": {"gate": 12}})
    fleet.record_health(site.cat, site.device, health)
    page = person.get("/").text
    assert "yard: frozen" in page
    assert "restart the camera or its encoder" in page
    assert "12 frames dropped" in page
    assert "hall: camera hall: &lt;it&gt; does not answer" in page


def test_the_page_of_a_frame_says_in_words_why_its_device_chose_it(person: TestClient, site: SceneSite) -> None:
    (policy,) = site.send(0, score=0.87)
    (explore,) = site.send(1, arm="explore")
    page = person.get(f"/frames/{policy}").text
    assert "ranked above 87 % of the frames judged lately" in page
    assert page.count("spoke for it") == 2
    assert "how unlike the frames kept before" in page
    assert "no batch has asked for it" in page
    assert "bowerbird-agent explain" in page
    assert person.get(f"/api/v1/frames/{explore}").json()["explanation"].endswith("it stands for about 50 frames.")
    assert "Taken at random before its device looked at it, with probability 0.02" in person.get(f"/frames/{explore}").text


# ---- more of a frame


def test_more_of_a_frame_is_asked_for_over_the_api_and_on_its_page(api: TestClient, site: SceneSite) -> None:
    frame = frames.get(site.cat, site.send(0)[0])
    site.cat.execute("UPDATE frame SET source_width = width * 2, source_height = height * 2 WHERE id = ?", frame["id"])
    answer = api.post(f"/api/v1/frames/{frame['id']}/fetch", json={"kind": "original"})
    assert answer.status_code == 201
    assert [(row["kind"], row["state"]) for row in answer.json()["items"]] == [("original", "asked")]
    again = api.post(f"/api/v1/frames/{frame['id']}/fetch", json={"kind": "original"}).json()
    assert len(again["items"]) == 1, "the same wish is one"
    assert api.post(f"/api/v1/frames/{frame['id']}/fetch", json={"kind": "around", "seconds": 3}).status_code == 201
    assert api.post(f"/api/v1/frames/{frame['id']}/fetch", json={"kind": "film"}).status_code == 422
    assert api.get(f"/api/v1/frames/{frame['id']}/fetch").json()["parent"] is None
    assert api.get(f"/api/v1/devices/{site.device}/unsent").json()["named"] == {}
    assert api.get("/api/v1/devices/nobody/unsent").status_code == 404


def test_a_person_asks_on_the_page_of_a_frame_with_the_csrf_token_only(person: TestClient, site: SceneSite) -> None:
    (frame,) = site.send(0)
    token = person.headers.pop("X-CSRF-Token")
    assert person.post(f"/frames/{frame}/fetch", data={"kind": "around", "seconds": "2"}).status_code == 403
    sent = person.post(f"/frames/{frame}/fetch", data={"kind": "around", "seconds": "2", "csrf_token": token})
    assert sent.status_code == 303
    page = person.get(f"/frames/{frame}").text
    assert "More of it" in page
    assert "asked" in page
    assert "by Ada" in page
