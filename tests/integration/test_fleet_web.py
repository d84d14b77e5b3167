"""Devices over the web: what is seen of them, and who may let them in and shut them out; a real broker hears of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from bowerbird_server.access.roles import Role, Sites
from bowerbird_server.broker.embedded import find_program
from bowerbird_server.catalogue import accounts, fleet
from bowerbird_server.catalogue import identity as rows
from bowerbird_server.config import IngestConfig, ServerConfig
from bowerbird_server.fleet.provision import broker_of, server_address
from bowerbird_server.site import Site
from bowerbird_server.web.app import create_app
from bowerbird_testing.frame_messages import frame_message
from bowerbird_testing.lived_in_site import arrived, ingest_of

PASSWORD = "four random words stand"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """One device of each state, one of another site; an alarm about each site."""
    with Site.open(tmp_path / "data") as made:
        cat = made.catalogue
        fleet.add_device(cat, "cam-01", "site", "test")
        rows.add_pending(cat, "cam-02", site="site", label="north gate", serial="SN-2", actor="test")
        fleet.add_device(cat, "far-01", "south", "test")
        with cat.transaction():
            rows.alarm(cat, "cam-02", "two devices say the same serial number")
            rows.alarm(cat, "far-01", "a claim token was used again with another key")
        yield made


@pytest.fixture
def web(site: Site) -> TestClient:
    return TestClient(create_app(site.folder), base_url="http://127.0.0.1", follow_redirects=False)


def log_in(web: TestClient, site: Site, role: Role, *sites: str) -> str:
    """A session of somebody new; returns its CSRF token."""
    name = f"ada-{role.word}-{len(sites)}"
    accounts.add_user(site.catalogue, name, PASSWORD, role, Sites.of(sites), "test")
    web.cookies.clear()
    assert web.post("/login", data={"name": name, "password": PASSWORD}).status_code == 303
    return str(web.get("/session").json()["csrf_token"])


def state(site: Site, device: str) -> str:
    return str(fleet.get(site.catalogue, device)["state"])


def issued(site: Site, device: str, since: timedelta, life: timedelta = timedelta(days=45)) -> None:
    now = datetime.now(tz=UTC) + since
    rows.put_certificate(site.catalogue, device, 1, key_sha256="k", pem="", now=now, not_after=now + life)


def test_the_page_shows_states_labels_serial_numbers_and_alarms_and_to_viewers_no_buttons(web: TestClient, site: Site) -> None:
    log_in(web, site, Role.VIEWER)
    page = web.get("/devices").text
    for text in ("cam-01", "cam-02", "pending", "north gate", "SN-2", "two devices say the same serial number"):
        assert text in page
    assert '<form method="post" action="/devices/' not in page
    log_in(web, site, Role.OPERATOR)
    assert 'action="/devices/cam-02/approve"' in web.get("/devices").text


@pytest.mark.parametrize(
    ("since", "text"),
    [
        (timedelta(days=-60), "its certificate expired on"),
        (timedelta(days=-44), "was not renewed"),
        (timedelta(days=2), "clock is behind"),
    ],
)
def test_what_is_wrong_with_a_certificate_is_said_on_the_dashboard_and_on_the_page(
    web: TestClient, site: Site, since: timedelta, text: str
) -> None:
    issued(site, "cam-01", since)
    log_in(web, site, Role.VIEWER)
    assert text in web.get("/").text
    assert text in web.get("/devices").text


def test_a_device_that_is_away_is_said_to_be_with_where_to_look(web: TestClient, site: Site) -> None:
    """The server cannot know what only the device sees: another CA, another host name, its own clock."""
    site.catalogue.execute(
        "UPDATE device SET status_at = ? WHERE id = 'cam-01'", rows.text_of(datetime.now(tz=UTC) - timedelta(hours=3))
    )
    log_in(web, site, Role.VIEWER)
    page = web.get("/").text
    assert "not connected since" in page
    assert "bowerbird-agent doctor" in page


def test_alarms_of_the_last_week_are_on_the_dashboard_and_all_at_their_address(web: TestClient, site: Site) -> None:
    log_in(web, site, Role.VIEWER)
    assert "used again with another key" in web.get("/").text
    found = web.get("/api/v1/alarms").json()["items"]
    assert {alarm["subject"] for alarm in found} == {"far-01", "cam-02"}
    later = datetime.now(tz=UTC) + timedelta(days=8)
    assert rows.alarms(site.catalogue, since=later - timedelta(days=7)) == []


def test_a_pending_device_is_approved_in_the_place_of_another_by_form(web: TestClient, site: Site) -> None:
    token = log_in(web, site, Role.OPERATOR)
    answer = web.post("/devices/cam-02/approve", data={"csrf_token": token, "replaces": "cam-01"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/devices")
    assert (state(site, "cam-02"), state(site, "cam-01")) == ("active", "retired")
    event = site.catalogue.row("SELECT actor, origin FROM event WHERE kind = 'device approved'")
    assert event is not None
    assert event["actor"] == "ada-operator-0"
    broker = broker_of(site)
    assert broker is not None
    assert "cam-01" in broker.denied()


def test_a_device_is_shut_out_and_let_in_over_the_api(web: TestClient, site: Site) -> None:
    web.headers["X-CSRF-Token"] = log_in(web, site, Role.OPERATOR)
    told = web.post("/api/v1/devices/cam-01/suspend", json={"why": "seen twice"}).json()
    assert (told["state"], told["state_why"]) == ("suspended", "seen twice")
    assert "seen twice" in web.get("/devices").text
    assert web.post("/api/v1/devices/cam-01/resume", json={}).json()["state"] == "active"
    assert web.post("/api/v1/devices/cam-01/resume", json={}).status_code == 409
    assert web.post("/api/v1/devices/nobody/suspend", json={}).status_code == 404
    assert web.post("/api/v1/devices/cam-01/erase", json={}).status_code == 404
    assert web.post("/api/v1/devices/cam-01/suspend", json={"replaces": "cam-02"}).status_code == 422
    assert web.post("/api/v1/devices/cam-01/suspend", json={"why": "a\nb"}).status_code == 400
    assert state(site, "cam-01") == "active"


def test_a_form_without_the_sessions_token_changes_nothing(web: TestClient, site: Site) -> None:
    log_in(web, site, Role.OPERATOR)
    assert web.post("/devices/cam-02/approve", data={}).status_code == 403
    assert web.post("/devices/cam-02/approve", data={"csrf_token": "x" * 32}).status_code == 403
    assert state(site, "cam-02") == "pending"


def test_a_viewer_and_somebody_of_another_site_change_nothing(web: TestClient, site: Site) -> None:
    token = log_in(web, site, Role.VIEWER)
    assert web.post("/devices/cam-02/approve", data={"csrf_token": token}).status_code == 403
    web.headers["X-CSRF-Token"] = log_in(web, site, Role.OPERATOR, "south")
    assert web.post("/api/v1/devices/cam-02/approve", json={}).status_code == 404
    assert web.post("/api/v1/devices/far-01/approve", json={"replaces": "cam-01"}).status_code == 404
    page = web.get("/devices").text
    assert "far-01" in page
    assert "cam-02" not in page
    assert (state(site, "cam-01"), state(site, "cam-02"), state(site, "far-01")) == ("active", "pending", "active")


@pytest.mark.skipif(find_program("mosquitto") is None, reason="mosquitto is not installed: apt-get install mosquitto")
def test_the_broker_hears_of_it_before_the_answer_leaves(web: TestClient, site: Site) -> None:
    broker = broker_of(site)
    assert broker is not None
    server_address(site)
    assert "user cam-01" in broker.rules_path.read_text()
    web.headers["X-CSRF-Token"] = log_in(web, site, Role.OPERATOR)
    assert web.post("/api/v1/devices/cam-01/suspend", json={}).status_code == 200
    assert "user cam-01" not in broker.rules_path.read_text()
    assert web.post("/api/v1/devices/cam-01/resume", json={}).status_code == 200
    assert "user cam-01" in broker.rules_path.read_text()


def test_the_dashboard_says_why_frames_wait_on_the_devices(site: Site) -> None:
    """A full disk concerns everybody; who is over the daily limit, those who may see the device."""
    size = int(shutil.disk_usage(site.folder.blobs).total / 1024**2)
    full = ServerConfig(ingest=IngestConfig(stop_below_free_mib=size, go_on_above_free_mib=size))
    web = TestClient(create_app(site.folder, config=full), base_url="http://127.0.0.1", follow_redirects=False)
    log_in(web, site, Role.VIEWER)
    page = web.get("/").text
    assert "ingest.stop_below_free_mib" in page
    assert "daily limit" not in page

    ingest_of(site).take([arrived(frame_message("cam-01", sequence)) for sequence in range(2)])
    limited = ServerConfig(ingest=IngestConfig(stop_below_free_mib=0, device_frames_per_day=2))
    web = TestClient(create_app(site.folder, config=limited), base_url="http://127.0.0.1", follow_redirects=False)
    log_in(web, site, Role.LABELLER)
    assert "so their frames wait on the device: cam-01." in web.get("/fragments/dashboard").text
    log_in(web, site, Role.LABELLER, "south")
    assert "daily limit" not in web.get("/").text


def test_while_nothing_is_held_the_dashboard_says_nothing_of_it(web: TestClient, site: Site) -> None:
    log_in(web, site, Role.VIEWER)
    assert "nothing is lost" not in web.get("/").text
