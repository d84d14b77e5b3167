"""Who may do what over the web: every route with every role, rows of other sites, log-in, tokens, rollouts by two people, audit."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

import bowerbird_server.web
from bowerbird_server.access import anchors
from bowerbird_server.access.roles import Role, Sites
from bowerbird_server.access.throttle import FREE_TRIES
from bowerbird_server.batches.batch import build_batch
from bowerbird_server.catalogue import accounts, audit, fleet, frames, overview, rollouts
from bowerbird_server.catalogue.scope import SHARED, THEIRS, scoped
from bowerbird_server.catalogue.sessions import Ages
from bowerbird_server.labelling.backend import Box, submit_label
from bowerbird_server.web.app import create_app
from bowerbird_server.web.permissions import NEEDS
from bowerbird_testing.scene_frames import SceneSite
from bowerbird_wire.messages import Health

PASSWORD = "four random words stand"
MODEL = "a" * 64


class TwoSites(SceneSite):
    """One server, two sites: `demo` with cam-01 and `south` with cam-02; four frames each, queued, one labelled, a rollout to both."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        fleet.add_device(self.cat, "cam-02", "south", "test")
        self.north = self.send(0, 20, 40, 60)
        self.device = "cam-02"
        self.south = self.send(100, 120, 140, 160)
        for device in ("cam-01", "cam-02"):
            fleet.record_health(self.cat, device, Health("boot", 1, MODEL))
        self.batch = build_batch(self.cat, frames=8)
        for frame in (self.north[0], self.south[0]):
            submit_label(self.cat, self.blobs, frame, "anna", "labelled", [Box("car", (1.0, 2.0, 20.0, 30.0))])
        model = {
            "digest": MODEL,
            "created_at": "2026-01-01",
            "origin": "imported",
            "state": "champion",
            "onnx_sha256": "b" * 64,
        }
        self.cat.insert("model", {**model, "manifest": "{}", "class_names": "[]", "release": 1})
        self.rollout = rollouts.start_rollout(self.cat, MODEL, 1, ["cam-01", "cam-02"], "carl", approved=False)

    def token(self, role: Role, *sites: str) -> dict[str, str]:
        _, token = accounts.add_token(self.cat, f"t-{role.word}", role, Sites.of(sites), "test")
        return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[TwoSites]:
    made = TwoSites(tmp_path / "data")
    yield made
    made.close()


@pytest.fixture
def web(site: TwoSites) -> TestClient:
    return TestClient(create_app(site.folder), base_url="http://127.0.0.1", follow_redirects=False)


def log_in(web: TestClient, name: str = "ada", password: str = PASSWORD) -> None:
    web.cookies.clear()
    assert web.post("/login", data={"name": name, "password": password}).status_code == 303
    web.headers["X-CSRF-Token"] = web.get("/session").json()["csrf_token"]


# ---- routes and roles


def declared_routes() -> set[tuple[str, str]]:
    """(method, path) of every router of the package, found by looking into each module."""
    found = set()
    for module in pkgutil.iter_modules(bowerbird_server.web.__path__):
        values = vars(importlib.import_module(f"bowerbird_server.web.{module.name}")).values()
        for route in [route for value in values if isinstance(value, APIRouter) for route in value.routes]:
            assert isinstance(route, APIRoute)
            found |= {(method, route.path) for method in route.methods}
    return found


def test_every_route_of_the_application_is_in_the_table_and_nothing_else(web: TestClient) -> None:
    """A route that somebody forgets is reached by nobody; this says so before they wonder."""
    declared = declared_routes()
    described = {
        (method.upper(), path)
        for path, methods in web.app.openapi()["paths"].items()  # type: ignore[attr-defined]
        for method in methods
    }
    assert len(declared) > 35
    assert described <= declared
    assert declared | {("GET", "/static/{file}"), ("GET", "/api/v1/openapi.json")} == set(NEEDS)


def concrete(path: str, site: TwoSites) -> str:
    values = {"frame_id": site.north[1], "digest": MODEL, "rollout": site.rollout, "file": "icon.svg"}
    values |= {"device": "cam-01", "campaign": "none", "change": "none", "step": "pause"}
    return re.sub(r"\{(\w+)\}", lambda found: values[found.group(1)], path)


@pytest.mark.parametrize("role", list(Role))
def test_every_role_is_refused_and_let_through_as_the_table_says(web: TestClient, site: TwoSites, role: Role) -> None:
    """403 where the role does not suffice, anything but 401 and 403 where it does; every line of the table is tried."""
    bearer = site.token(role)
    for (method, path), need in NEEDS.items():
        if path in {"/logout", "/login", "/frames/{frame_id}/fetch", "/devices/{device}/{step}"}:
            continue  # forms of sessions, which carry their token in a field; and the way in
        answer = web.request(method, concrete(path, site), headers=bearer, json={} if method == "POST" else None)
        refused = need.role is not None and role < need.role
        assert (answer.status_code == 403) == refused, (method, path, answer.text[:200])
        assert answer.status_code != 401, (method, path)


def test_a_route_that_is_missing_in_the_table_is_reached_by_nobody(site: TwoSites) -> None:
    app = create_app(site.folder)
    app.add_api_route("/api/v1/forgotten", lambda: {"secret": 1}, methods=["GET", "POST"])
    web = TestClient(app)
    bearer = site.token(Role.ADMINISTRATOR)
    assert web.get("/api/v1/forgotten").status_code == 401
    assert web.get("/api/v1/forgotten", headers=bearer).status_code == 404
    assert web.post("/api/v1/forgotten", headers=bearer).status_code == 404


def test_a_page_says_to_a_person_why_not(web: TestClient, site: TwoSites) -> None:
    accounts.add_user(site.cat, "vic", PASSWORD, Role.VIEWER, Sites(), "test")
    log_in(web, "vic")
    answer = web.get("/review")
    assert answer.status_code == 403
    assert "<html" in answer.text
    assert "needs the role labeller" in answer.text
    assert 'href="/review"' not in web.get("/").text


@pytest.mark.parametrize("path", ["/login%3f/../x", "/static/..%2fapi/v1/summary", "//api/v1/summary", "/static/%2e%2e/frames"])
def test_tricks_with_the_path_open_nothing(web: TestClient, path: str) -> None:
    answer = web.get(path)
    assert answer.status_code in {303, 400, 401, 404}
    assert "frame_bytes" not in answer.text


# ---- rows of other sites


def test_nothing_of_another_site_is_in_any_answer(web: TestClient, site: TwoSites) -> None:
    """Every GET of the API and the pages, searched for names and ids of the other site."""
    theirs = [*site.south, "cam-02", "south"]
    bearer = site.token(Role.LABELLER, "demo")
    for (method, path), need in NEEDS.items():
        if method != "GET" or need.role is None or need.role > Role.LABELLER or path in {"/session"}:
            continue
        answer = web.get(concrete(path, site), headers=bearer)
        assert answer.status_code == (404 if "{campaign}" in path else 200), path
        found = [name for name in theirs if name.encode() in answer.content]
        assert not found, (path, found)
    assert web.get("/api/v1/summary", headers=bearer).json()["frames"]["queued"] == 3
    assert web.get("/api/v1/summary", headers=site.token(Role.VIEWER)).json()["frames"]["queued"] == 6
    assert web.get("/api/v1/summary", headers=bearer).json()["labels"] == 1
    assert web.get("/api/v1/queue", headers=bearer).json()["length"] == 3
    assert {row["id"] for row in web.get("/api/v1/frames", headers=bearer).json()["items"]} == set(site.north)
    assert [row["device"] for row in web.get("/api/v1/rollouts", headers=bearer).json()["items"][0]["executions"]] == ["cam-01"]
    (batch,) = web.get("/api/v1/batches", headers=bearer).json()["items"]
    assert (batch["frames"], batch["waiting"], batch["labelled"]) == (4, 3, 1)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/frames/{id}"),
        ("GET", "/api/v1/frames/{id}/image"),
        ("GET", "/frames/{id}"),
        ("POST", "/api/v1/frames/{id}/open"),
        ("POST", "/api/v1/frames/{id}/label"),
    ],
)
def test_an_id_of_another_site_is_like_one_that_does_not_exist(web: TestClient, site: TwoSites, method: str, path: str) -> None:
    """The same status and, but for the id, the same words; and nothing is changed or recorded."""
    bearer = site.token(Role.LABELLER, "demo")
    before = site.cat.rows("SELECT id, state FROM frame ORDER BY id")
    body = {"verdict": "rejected"} if path.endswith("label") else {}
    answers = [
        web.request(method, path.replace("{id}", frame), headers=bearer, json=body if method == "POST" else None)
        for frame in (site.south[1], "f" * 64)
    ]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].text.replace(site.south[1][:12], "") == answers[1].text.replace("f" * 12, "")
    assert site.cat.rows("SELECT id, state FROM frame ORDER BY id") == before
    assert audit.sights(site.cat, frame=site.south[1]) == []


@pytest.mark.parametrize("asked", [{"device": "cam-02"}, {"camera": "cam-02/gate"}, {"state": "labelled", "device": "cam-02"}])
def test_filters_do_not_reach_into_another_site(web: TestClient, site: TwoSites, asked: dict[str, str]) -> None:
    bearer = site.token(Role.VIEWER, "demo")
    assert web.get("/api/v1/frames", params=asked, headers=bearer).json()["items"] == []
    assert web.get("/api/v1/events", params={"subject": site.south[0]}, headers=bearer).json()["items"] == []
    assert web.get("/api/v1/events", params={"subject": site.north[0]}, headers=bearer).json()["items"]


def test_somebody_of_one_site_labels_and_opens_batches_there(web: TestClient, site: TwoSites) -> None:
    labeller, operator = site.token(Role.LABELLER, "demo"), site.token(Role.OPERATOR, "demo")
    assert web.post(f"/api/v1/frames/{site.north[1]}/open", headers=labeller, json={}).json()["state"] == "in_review"
    assert web.post(f"/api/v1/frames/{site.north[1]}/label", headers=labeller, json={"verdict": "rejected"}).status_code == 200
    (new_south,) = site.send(300)
    site.device = "cam-01"
    (new_north,) = site.send(320)
    answer = web.post("/api/v1/batches", headers=operator, json={"frames": 5})
    assert (answer.status_code, answer.json()["frames"]) == (201, 1)
    assert frames.state_of(site.cat, new_north) == "queued"
    assert frames.state_of(site.cat, new_south) == "received"
    assert web.post("/api/v1/classes", headers=operator, json={"names": ["x"]}).status_code == 403


def test_a_rollout_with_devices_of_other_sites_is_not_steered_from_one(web: TestClient, site: TwoSites) -> None:
    bearer = site.token(Role.RELEASE_MANAGER, "demo")
    for verb in ("approve", "pause", "abort", "resume"):
        answer = web.post(f"/api/v1/rollouts/{site.rollout}/{verb}", headers=bearer)
        assert answer.status_code == 409
        assert "other sites" in answer.json()["error"]["message"]
    assert web.post("/api/v1/rollouts", headers=bearer, json={"model": MODEL}).status_code == 409
    assert web.post("/api/v1/rollouts", headers=bearer, json={"model": MODEL, "devices": ["cam-02"]}).status_code == 404
    assert overview.rollout(site.cat, site.rollout)["state"] == "draft"


ERASURES = ("erasure", "deletion", "erasure_device", "erasure_done", "erasure_package")


def test_a_scoped_catalogue_cannot_write_and_knows_every_table(site: TwoSites) -> None:
    """A table that nobody thought of is empty there; the list below makes somebody think of it."""
    kept_from_them = {
        "dead_letter",
        "round",
        "setting",
        "scene_split",
        "user",
        "api_token",
        "web_session",
        "sight",
        "invitation",
        *ERASURES,
    }
    cat = scoped(site.folder.catalogue, Sites.of(["demo"]))
    tables = {name for name in site.cat.db.table_names() if not name.startswith(("_sqlite", "sqlite"))}
    assert tables == set(THEIRS) | SHARED | kept_from_them
    site.cat.execute("CREATE TABLE tomorrow (x TEXT)")
    site.cat.execute("INSERT INTO tomorrow (x) VALUES ('1')")
    later = scoped(site.folder.catalogue, Sites.of(["demo"]))
    for table in (*kept_from_them, "tomorrow"):
        assert later.value(f'SELECT count(*) FROM "{table}"') == 0, table  # noqa: S608
    for sql in ("UPDATE class SET name = 'x'", "DELETE FROM main.frame", "INSERT INTO our_site (site) VALUES ('south')"):
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            cat.execute(sql)
    assert scoped(site.folder.catalogue, Sites(frozenset())).value("SELECT count(*) FROM frame") == 0
    cat.close()
    later.close()


# ---- logging in


def test_a_user_logs_in_with_a_password_and_labels_in_their_own_name(web: TestClient, site: TwoSites) -> None:
    accounts.add_user(site.cat, "ada", PASSWORD, Role.LABELLER, Sites(), "test")
    log_in(web)
    answer = web.post(f"/api/v1/frames/{site.north[1]}/label", json={"verdict": "rejected", "author": "mallory"})
    assert answer.status_code == 200
    (event, *_) = audit.events(site.cat, subject=site.north[1])
    assert event["actor"] == "ada"
    assert event["origin"] == "testclient user:ada"


def test_a_wrong_log_in_gets_the_same_answer_whatever_is_wrong_with_it(web: TestClient, site: TwoSites) -> None:
    """A name that exists, one that does not, a token: no difference in status or words."""
    accounts.add_user(site.cat, "ada", PASSWORD, Role.LABELLER, Sites(), "test")
    metrics = site.token(Role.METRICS)["Authorization"].removeprefix("Bearer ")
    tries = [
        {"name": "ada", "password": "wrong wrong wrong"},
        {"name": "eve", "password": PASSWORD},
        {"token": "bbt_nonsense"},
        {"token": metrics},
    ]
    answers = [web.post("/login", data=data) for data in tries]
    assert {answer.status_code for answer in answers} == {401}
    said = {re.sub(r'value="[^"]*"', "", answer.text) for answer in answers}
    assert len(said) == 1
    assert all("set-cookie" not in answer.headers for answer in answers)


def test_an_accounts_name_is_not_taken_by_somebody_with_a_token(web: TestClient, site: TwoSites) -> None:
    accounts.add_user(site.cat, "ada", PASSWORD, Role.LABELLER, Sites(), "test")
    bearer = site.token(Role.LABELLER)
    token = bearer["Authorization"].removeprefix("Bearer ")
    assert web.post("/login", data={"token": token, "author": " Ada "}).status_code == 401
    body = {"verdict": "rejected", "author": "ada"}
    assert web.post(f"/api/v1/frames/{site.north[1]}/label", headers=bearer, json=body).status_code == 400
    assert web.post("/login", data={"token": token, "author": "Grace"}).status_code == 303


def test_who_tries_too_often_is_told_to_wait_even_with_the_right_password(web: TestClient, site: TwoSites) -> None:
    accounts.add_user(site.cat, "ada", PASSWORD, Role.LABELLER, Sites(), "test")
    for _ in range(FREE_TRIES + 1):
        last = web.post("/login", data={"name": "ada", "password": "wrong wrong wrong"})
    assert last.status_code == 429
    assert int(last.headers["retry-after"]) >= 1
    assert web.post("/login", data={"name": "ada", "password": PASSWORD}).status_code == 429
    refusals = [event for event in audit.events(site.cat) if event["kind"] == "log-in refused"]
    assert [event["subject"] for event in refusals] == ["ada"] * FREE_TRIES


def test_what_was_typed_into_the_wrong_field_is_not_in_the_log(web: TestClient, site: TwoSites) -> None:
    web.post("/login", data={"name": PASSWORD, "password": "x"})
    assert PASSWORD not in json.dumps(audit.events(site.cat))


def test_a_session_ends_by_idleness_age_password_and_removal(site: TwoSites) -> None:
    accounts.add_user(site.cat, "ada", PASSWORD, Role.LABELLER, Sites(), "test")
    accounts.add_user(site.cat, "root", PASSWORD, Role.ADMINISTRATOR, Sites(), "test")
    web = TestClient(create_app(site.folder, ages=Ages(idle_s=100, oldest_s=1000)))

    def alive() -> bool:
        return web.get("/api/v1/summary").status_code == 200

    for ending in ("seen_at = seen_at - 101", "created_at = created_at - 1001"):
        log_in_at(web)
        assert alive()
        site.cat.execute(f"UPDATE web_session SET {ending}")  # noqa: S608
        assert not alive()
    log_in_at(web)
    accounts.set_password(site.cat, "ada", PASSWORD + "!", "test")
    assert not alive()
    log_in_at(web, PASSWORD + "!")
    accounts.set_role(site.cat, "ada", Role.VIEWER, Sites(), "test")
    assert alive()
    assert web.get("/review").status_code == 403
    accounts.remove_user(site.cat, "ada", "test")
    assert not alive()


def log_in_at(web: TestClient, password: str = PASSWORD) -> None:
    web.cookies.clear()
    web.post("/login", data={"name": "ada", "password": password})


def test_the_cookie_is_secure_on_tls_only_and_pages_ask_for_tls_there(site: TwoSites) -> None:
    accounts.add_user(site.cat, "ada", PASSWORD, Role.LABELLER, Sites(), "test")
    for scheme in ("http", "https"):
        web = TestClient(create_app(site.folder), base_url=f"{scheme}://127.0.0.1", follow_redirects=False)
        answer = web.post("/login", data={"name": "ada", "password": PASSWORD})
        assert ("secure" in answer.headers["set-cookie"].lower()) == (scheme == "https")
        assert ("strict-transport-security" in answer.headers) == (scheme == "https")


def test_no_secret_lies_in_the_catalogue(web: TestClient, site: TwoSites) -> None:
    accounts.add_user(site.cat, "ada", PASSWORD, Role.ADMINISTRATOR, Sites(), "test")
    token = site.token(Role.VIEWER)["Authorization"].removeprefix("Bearer ")
    log_in(web)
    secrets = [PASSWORD, token, web.cookies["bowerbird_session"], web.headers["X-CSRF-Token"]]
    content = b"".join(path.read_bytes() for path in site.folder.root.glob("catalogue.db*"))
    assert [secret for secret in secrets if secret.encode() in content] == []
    assert site.folder.catalogue.stat().st_mode & 0o077 == 0


# ---- tokens


def test_a_token_is_good_until_it_expires_or_is_revoked(web: TestClient, site: TwoSites) -> None:
    identity, token = accounts.add_token(site.cat, "ci", Role.VIEWER, Sites(), "test", days=1)
    bearer = {"Authorization": f"Bearer {token}"}
    assert web.get("/api/v1/summary", headers=bearer).status_code == 200
    assert accounts.list_tokens(site.cat)[0]["used_at"]
    site.cat.execute("UPDATE api_token SET expires_at = '2026-01-01T00:00:00.000Z' WHERE id = ?", identity)
    assert web.get("/api/v1/summary", headers=bearer).status_code == 401
    site.cat.execute("UPDATE api_token SET expires_at = NULL WHERE id = ?", identity)
    assert web.get("/api/v1/summary", headers=bearer).status_code == 200
    accounts.revoke_token(site.cat, identity, "test")
    assert web.get("/api/v1/summary", headers=bearer).status_code == 401


def test_when_nobody_can_be_looked_up_nobody_is_let_in_and_it_is_no_crash(web: TestClient, site: TwoSites) -> None:
    bearer = site.token(Role.ADMINISTRATOR)
    site.cat.execute("DROP TABLE api_token")
    answer = web.get("/api/v1/summary", headers=bearer)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "environment")


def test_a_catalogue_that_cannot_be_written_still_lets_in(site: TwoSites) -> None:
    """When a token was last used is a convenience, and a full disk must not shut the door."""
    token = site.token(Role.VIEWER)["Authorization"].removeprefix("Bearer ")
    site.cat.connection.execute("PRAGMA query_only = ON")
    assert accounts.principal_of_token(site.cat, token) is not None


def test_a_token_for_metrics_reads_them_and_nothing_else(web: TestClient, site: TwoSites) -> None:
    bearer = site.token(Role.METRICS, "demo")
    answer = web.get("/metrics", headers=bearer)
    assert answer.status_code == 200
    assert 'device="cam-01"' in answer.text
    assert "cam-02" not in answer.text
    assert web.get("/api/v1/summary", headers=bearer).status_code == 403
    assert web.get("/", headers=bearer).status_code == 403


def test_after_a_restore_no_session_or_token_is_good(site: TwoSites, web: TestClient) -> None:
    """One that was revoked after the backup must not come back with it."""
    bearer = site.token(Role.VIEWER)
    accounts.add_user(site.cat, "ada", PASSWORD, Role.ADMINISTRATOR, Sites(), "test")
    log_in(web)
    accounts.forget_credentials(site.cat, "restore")
    assert web.get("/api/v1/summary").status_code == 401
    assert web.get("/api/v1/summary", headers=bearer).status_code == 401
    log_in(web)


# ---- two people for a rollout


def test_whoever_started_a_rollout_does_not_approve_it_under_any_name(site: TwoSites) -> None:
    app = create_app(site.folder, approval_is_manual=True)
    web = TestClient(app, base_url="http://127.0.0.1", follow_redirects=False)
    one, other = site.token(Role.RELEASE_MANAGER), site.token(Role.RELEASE_MANAGER)
    made = web.post("/api/v1/rollouts", headers=one, json={"model": MODEL})
    assert (made.status_code, made.json()["state"]) == (201, "draft")
    identity = made.json()["id"]
    assert web.post(f"/api/v1/rollouts/{identity}/approve", headers=one).status_code == 409
    token = one["Authorization"].removeprefix("Bearer ")
    web.post("/login", data={"token": token, "author": "somebody else"})
    csrf = {"X-CSRF-Token": web.get("/session").json()["csrf_token"]}
    answer = web.post(f"/api/v1/rollouts/{identity}/approve", headers=csrf)
    assert answer.status_code == 409
    assert "somebody else has to" in answer.json()["error"]["message"]
    assert web.post(f"/api/v1/rollouts/{identity}/resume", headers=one).status_code == 409
    web.cookies.clear()
    assert web.post(f"/api/v1/rollouts/{identity}/approve", headers=other).status_code == 409, "the same name"
    _, third = accounts.add_token(site.cat, "third", Role.RELEASE_MANAGER, Sites(), "test")
    answer = web.post(f"/api/v1/rollouts/{identity}/approve", headers={"Authorization": f"Bearer {third}"})
    assert (answer.status_code, answer.json()["state"]) == (200, "running")


def test_without_manual_approval_a_rollout_begins_at_once_and_an_operator_stops_it(web: TestClient, site: TwoSites) -> None:
    made = web.post("/api/v1/rollouts", headers=site.token(Role.RELEASE_MANAGER), json={"model": MODEL, "devices": ["cam-01"]})
    assert made.json()["state"] == "running"
    operator = site.token(Role.OPERATOR, "demo")
    for verb, state in (("pause", "paused"), ("abort", "aborted")):
        assert web.post(f"/api/v1/rollouts/{made.json()['id']}/{verb}", headers=operator).json()["state"] == state
    assert web.post(f"/api/v1/rollouts/{site.rollout}/resume", headers=operator).status_code == 403


# ---- audit


def test_the_event_log_cannot_be_changed_by_a_statement(site: TwoSites) -> None:
    for sql in ("UPDATE event SET actor = 'eve'", "DELETE FROM event WHERE position = 2"):
        with pytest.raises(sqlite3.IntegrityError, match="only ever appended"):
            site.cat.execute(sql)
    assert list(audit.verify(site.cat)) == []


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("UPDATE event SET actor = 'eve' WHERE position = 3", "event 3 "),
        ("UPDATE event SET why = '{}' WHERE position = 2", "event 2 "),
        ("DELETE FROM event WHERE position = 2", "events 2 to 2 are missing"),
        ("DELETE FROM event WHERE position > 4", "its end was cut off"),
        ("UPDATE event SET position = NULL WHERE position = 3", "are missing"),
    ],
)
def test_somebody_with_the_file_who_edits_or_cuts_the_log_is_found_out(
    site: TwoSites, tmp_path: Path, sql: str, said: str
) -> None:
    path = tmp_path / "anchors"
    anchors.note(site.cat, path)
    for trigger in ("event_is_never_changed", "event_is_never_deleted"):
        site.cat.execute(f"DROP TRIGGER {trigger}")
    site.cat.execute(sql)
    assert any(said in fault for fault in audit.verify(site.cat, anchors.read(path)))


def test_events_that_were_there_before_the_chain_are_in_it(tmp_path: Path) -> None:
    """The migration of a catalogue of the release before."""
    from sqlite_utils import Database

    from bowerbird_server.catalogue.access_tables import chain_events

    db = Database(tmp_path / "old.db")
    db.execute("CREATE TABLE event (id TEXT PRIMARY KEY, at TEXT, actor TEXT, kind TEXT, subject TEXT, why TEXT)")
    for number in range(4):
        db.execute("INSERT INTO event VALUES (?, 'then', 'ada', 'k', 's', '{}')", (f"e{number}",))
    chain_events(db)
    from bowerbird_server.access.event_chain import faults

    rows = list(db.query("SELECT * FROM event ORDER BY position"))
    assert [row["position"] for row in rows] == [1, 2, 3, 4]
    assert list(faults(rows)) == []


def test_anchors_are_appended_once_and_a_torn_last_line_is_no_fault(site: TwoSites, tmp_path: Path) -> None:
    path = tmp_path / "anchors"
    anchors.note(site.cat, path)
    anchors.note(site.cat, path)
    assert len(path.read_text().splitlines()) == 1
    site.cat.log("ada", "something", "x")
    anchors.note(site.cat, path)
    assert path.stat().st_mode & 0o077 == 0
    with path.open("a") as file:
        file.write("99")
    assert len(anchors.read(path)) == 2
    assert list(audit.verify(site.cat, anchors.read(path))) == []


def test_who_saw_a_frame_is_one_row_a_day(web: TestClient, site: TwoSites) -> None:
    accounts.add_user(site.cat, "ada", PASSWORD, Role.LABELLER, Sites(), "test")
    log_in(web)
    frame = site.north[0]
    for path in (f"/api/v1/frames/{frame}/image", f"/frames/{frame}", f"/api/v1/frames/{frame}/image"):
        assert web.get(path).status_code == 200
    etag = web.get(f"/api/v1/frames/{frame}/image").headers["etag"]
    other = site.north[2]
    etag = web.get(f"/api/v1/frames/{other}/image").headers["etag"]
    site.cat.execute("DELETE FROM sight WHERE frame = ?", other)
    assert web.get(f"/api/v1/frames/{other}/image", headers={"If-None-Match": etag}).status_code == 304
    rows = audit.sights(site.cat)
    assert sorted((row["person"], row["frame"]) for row in rows) == sorted([("ada", frame), ("ada", other)])
    assert rows[0]["origin"] == "testclient user:ada"
    seen = web.get("/api/v1/sights", headers=site.token(Role.ADMINISTRATOR)).json()["items"]
    assert len(seen) == 2


# ---- requests that mean no good


def test_deep_json_is_an_answer_and_not_a_crash(web: TestClient, site: TwoSites) -> None:
    bearer = {**site.token(Role.ADMINISTRATOR), "Content-Type": "application/json"}
    for body in ("[" * 100_000, '{"a":' * 50_000, '{"names": ' + "[" * 1000 + "]" * 1000 + "}", "\x00", '{"names": [NaN]}'):
        assert web.post("/api/v1/classes", content=body, headers=bearer).status_code in {400, 422}


@pytest.mark.parametrize("length", ["-1", "abc", "9" * 40, "4200000", "\u0663"])
def test_a_length_that_is_too_large_or_none_is_refused(web: TestClient, site: TwoSites, length: str) -> None:
    headers = {**site.token(Role.ADMINISTRATOR), "Content-Length": length.encode()}
    assert web.post("/api/v1/classes", content=b"{}", headers=headers).status_code == 413  # type: ignore[arg-type]


def test_a_log_in_takes_little(web: TestClient) -> None:
    assert web.post("/login", data={"token": "x" * 17_000}).status_code == 413


def test_an_administrator_remains(site: TwoSites) -> None:
    accounts.add_user(site.cat, "root", PASSWORD, Role.ADMINISTRATOR, Sites(), "test")
    actions: list[Any] = [
        lambda: accounts.remove_user(site.cat, "root", "test"),
        lambda: accounts.set_role(site.cat, "root", Role.VIEWER, Sites(), "test"),
    ]
    for action in actions:
        with pytest.raises(Exception, match="nobody would be administrator"):
            action()
    assert accounts.list_users(site.cat)[0]["role"] == "administrator"
