"""The API and the pages of remote configuration and campaigns, over a real site."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from bowerbird_server.catalogue import config_changes
from bowerbird_server.site import Site
from bowerbird_server.web.app import create_app
from bowerbird_testing.lived_in_site import live_in
from bowerbird_wire.messages import Reported

TOKEN = "remote-test-token-0123456789"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = live_in(tmp_path / "data", tmp_path / "scratch")
    yield made
    made.close()


@pytest.fixture
def web(site: Site) -> TestClient:
    client = TestClient(create_app(site.folder, TOKEN), base_url="http://127.0.0.1", follow_redirects=False)
    client.headers["Authorization"] = f"Bearer {TOKEN}"
    return client


def test_a_change_is_made_watched_and_ended_over_the_api(web: TestClient, site: Site) -> None:
    made = web.post("/api/v1/config-changes", json={"all": True, "set": {"log": {"level": "debug"}}})
    assert made.status_code == 201
    change = made.json()["id"]
    config_changes.advance(site.catalogue)
    shown = web.get("/api/v1/devices/cam-01/config").json()
    assert (shown["version"], shown["state"], shown["document"]) == (1, "waiting", {"log": {"level": "debug"}})
    assert len(web.get("/api/v1/devices/cam-01/config/history").json()["items"]) == 1
    assert web.post(f"/api/v1/config-changes/{change}/pause").json()["state"] == "paused"
    assert web.post(f"/api/v1/config-changes/{change}/abort").json()["state"] == "aborted"
    assert web.post(f"/api/v1/config-changes/{change}/resume").status_code == 409
    assert web.get("/api/v1/config-changes").json()["items"][0]["state"] == "aborted"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"all": True}, 400),
        ({"set": {"log": {"level": "debug"}}}, 400),
        ({"devices": ["nobody"], "set": {"log": {}}}, 404),
        ({"all": True, "set": {"broker": {"host": "evil"}}}, 400),
        ({"all": True, "set": {"log": {"level": None}}}, 400),
        ({"all": True, "sets": {}}, 422),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(web: TestClient, body: dict[str, object], status: int) -> None:
    assert web.post("/api/v1/config-changes", json=body).status_code == status


def test_a_campaign_is_begun_shown_and_stopped_over_the_api(web: TestClient) -> None:
    until = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    body = {"all": True, "frames": 20, "bytes": 2_000_000, "until": until, "condition": {"below": 0.5}}
    made = web.post("/api/v1/campaigns", json=body)
    assert made.status_code == 201
    identity = made.json()["id"]
    assert web.get("/api/v1/campaigns").json()["items"][0]["frames_received"] == 0
    assert web.get(f"/api/v1/campaigns/{identity}").json()["condition"]["below"] == 0.5
    assert identity in web.get("/campaigns").text
    assert web.post(f"/api/v1/campaigns/{identity}/stop").json()["state"] == "stopped"
    assert web.post(f"/api/v1/campaigns/{identity}/stop").status_code == 409
    assert web.post("/api/v1/campaigns", json={**body, "until": "2020-01-01T00:00:00Z"}).status_code == 400
    assert web.post("/api/v1/campaigns", json={**body, "condition": {"weather": "rain"}}).status_code == 422


def test_the_page_of_a_device_says_what_is_wished_and_why_it_is_not_in_force(web: TestClient, site: Site) -> None:
    config_changes.change(site.catalogue, ["cam-01"], {"set": {"log": {"level": "loud"}}}, "anna")
    config_changes.advance(site.catalogue)
    fault = "log: level is 'loud' <script>"
    config_changes.record(site.catalogue, "cam-01", Reported(1, 0, "refused", faults=(fault,)))
    page = web.get("/devices/cam-01/config")
    assert page.status_code == 200
    assert "log.level" in page.text
    assert "refused" in page.text
    assert "&lt;script&gt;" in page.text
    assert "<script>" not in page.text
    assert "/devices/cam-01/config" in web.get("/").text
    assert web.get("/devices/nobody/config").status_code == 404


def test_nobody_sees_or_changes_anything_without_a_token(site: Site) -> None:
    anyone = TestClient(create_app(site.folder, TOKEN), base_url="http://127.0.0.1", follow_redirects=False)
    assert anyone.get("/api/v1/devices/cam-01/config").status_code == 401
    assert anyone.post("/api/v1/campaigns", json={}).status_code in (401, 403)
    assert anyone.get("/campaigns").status_code == 303
