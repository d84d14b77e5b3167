"""What Prometheus reads, over a real site; and that the example dashboard asks only for what is there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from bowerbird_server.catalogue import campaigns, fleet
from bowerbird_server.ingest.dead_letters import DeadLetters
from bowerbird_server.site import Site
from bowerbird_server.web.app import create_app
from bowerbird_testing.lived_in_site import live_in
from bowerbird_wire.messages import Health, Status

TOKEN = "metrics-test-token-0123456789"
DEPLOY = Path(__file__).parents[2] / "deploy" / "grafana"
HEALTH = Health(
    boot_id="b",
    at_ms=1,
    frames_seen=900,
    frames_selected=30,
    bytes_sent=123_456,
    spool={"new": 4, "sent": 1},
    evicted={"low score": 7},
    fps=9.5,
    inference_ms=40.0,
    extra={
        "tm": {"r": 250, "n": 2, "c": 61, "l": [0, 0, 0, 900, 0, 0, 0, 0], "s": [800, 0, 0, 0, 100, 0, 0, 0, 0, 0]},
        "spent": {"f": 120_000, "h": 3_456},
    },
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = live_in(tmp_path / "data", tmp_path / "scratch")
    fleet.record_status(made.catalogue, "cam-01", Status("online"))
    fleet.record_health(made.catalogue, "cam-01", HEALTH)
    campaigns.start(
        made.catalogue,
        frames=7,
        size_bytes=1_000_000,
        until=datetime.now(UTC) + timedelta(hours=1),
        condition=campaigns.Condition(),
        actor="test",
        everyone=True,
    )
    DeadLetters(tmp_path / "letters").add(made.catalogue, "topic", b"poison", "bad_message", "detail")
    yield made
    made.close()


@pytest.fixture
def web(site: Site) -> TestClient:
    return TestClient(create_app(site.folder, TOKEN), base_url="http://127.0.0.1", follow_redirects=False)


def scrape(web: TestClient) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """(name, labels) -> value, read with Prometheus' own parser."""
    answer = web.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(answer.text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_nobody_reads_the_metrics_without_the_token(web: TestClient) -> None:
    """A scraper gets a status, not a login page."""
    assert web.get("/metrics").status_code == 401
    assert web.get("/metrics", headers={"Authorization": "Bearer wrong-token-0123456789"}).status_code == 401


def test_the_metrics_say_what_the_catalogue_and_the_devices_say(web: TestClient, site: Site) -> None:
    """Values, not only names; a device that has said nothing has no made-up zeros."""
    found = scrape(web)
    cam = (("device", "cam-01"), ("site", "site"))
    assert found["bowerbird_frames", (("state", "deleted"),)] == 2
    assert found["bowerbird_models", ()] == 2
    assert found["bowerbird_dead_letters", (("code", "bad_message"),)] == 1
    assert found["bowerbird_device_online", cam] == 1
    assert found["bowerbird_device_frames_received_total", cam] == 20
    assert found["bowerbird_device_frames_seen_total", cam] == 900
    assert found["bowerbird_device_bytes_sent_total", cam] == 123_456
    assert found["bowerbird_device_bytes_total", tuple(sorted((*cam, ("kind", "frames"))))] == 120_000
    assert found["bowerbird_device_bytes_total", tuple(sorted((*cam, ("kind", "health"))))] == 3_456
    assert found["bowerbird_device_spool_frames", tuple(sorted((*cam, ("state", "new"))))] == 4
    assert found["bowerbird_device_evicted_frames_total", tuple(sorted((*cam, ("reason", "low score"))))] == 7
    assert found["bowerbird_device_inference_seconds", cam] == 0.04
    assert found["bowerbird_device_round_trip_seconds", cam] == 0.25
    assert (found["bowerbird_device_reconnects", cam], found["bowerbird_device_temperature_celsius", cam]) == (2, 61)
    assert found["bowerbird_device_frames_by_latency_total", tuple(sorted((*cam, ("ms", "50"))))] == 900
    assert found["bowerbird_device_frames_by_score_total", tuple(sorted((*cam, ("score", "0.4"))))] == 100
    campaigns = {labels[0][1]: value for (name, labels), value in found.items() if name == "bowerbird_campaign_quota_frames"}
    assert list(campaigns.values()) == [7]
    silent = (("device", "cam-02"), ("site", "site"))
    assert found["bowerbird_device_online", silent] == 0
    assert ("bowerbird_device_frames_seen_total", silent) not in found
    assert not [labels for _, labels in found if ("device", "cam-03") in labels], "a retired device"
    fleet.record_health(site.catalogue, "cam-01", Health(boot_id="b", at_ms=2, frames_seen=901))
    assert scrape(web)["bowerbird_device_frames_seen_total", cam] == 901


def _queries(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in {"expr", "query"} and isinstance(value, str):
                yield value
            yield from _queries(value)
    elif isinstance(node, list):
        for value in node:
            yield from _queries(value)


def test_every_metric_that_the_dashboard_names_exists(web: TestClient) -> None:
    """With the labels that its legends show; every panel asks for something."""
    dashboard = json.loads((DEPLOY / "bowerbird.json").read_text())
    names: dict[str, set[str]] = {}
    families = text_string_to_metric_families(web.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).text)
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        names[name] = {label for sample in family.samples for label in sample.labels}
    asked = {name for query in _queries(dashboard) for name in re.findall(r"bowerbird_\w+", query)}
    assert len(asked) >= 12
    assert asked <= names.keys()
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            (name, *_) = re.findall(r"bowerbird_\w+", target["expr"])
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= (names[name] or {"state"}), panel["title"]


def test_the_example_for_prometheus_reads_the_path_that_the_server_has(web: TestClient) -> None:
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    assert web.get(job["metrics_path"], headers={"Authorization": f"{job['authorization']['type']} {TOKEN}"}).status_code == 200
