"""Accuracy in the field from a real catalogue: labels, copies, tombstones, classes nobody looked for; over the API and on the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from bowerbird_server.catalogue import audited, drift_rows, unsent
from bowerbird_server.catalogue.core import utc_text
from bowerbird_server.cli.app import app
from bowerbird_server.drift.watch import DriftWatch
from bowerbird_server.errors import NotFound
from bowerbird_server.labelling.backend import Box, submit_label
from bowerbird_server.site import Site
from bowerbird_server.web.app import create_app
from bowerbird_testing.drifting_camera import DriftingCamera
from bowerbird_testing.frame_messages import START_MS, frame_message, jpeg
from bowerbird_testing.lived_in_site import arrived, ingest_of, live_in
from bowerbird_wire.histograms import Histograms
from bowerbird_wire.messages import Redaction, Tombstone, Tombstones, WireDetection

TOKEN = "field-test-token-0123456789"
BIRD = (1.0, 2.0, 20.0, 30.0)
FROM_MS = START_MS + 10_000_000
EXPLORE = {"arm": "explore", "model_digest": "ab" * 32, "camera": "yard"}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = live_in(tmp_path / "data", tmp_path / "scratch")
    yield made
    made.close()


def take(site: Site, number: int, probability: float, *found: WireDetection, seed: int | None = None, **how: object) -> str:
    """A frame of the audit arrives; returns its id."""
    message = frame_message(
        sequence=1000 + number,
        captured_at_ms=FROM_MS + number * 60_000,
        inclusion_probability=probability,
        detections=found,
        image=jpeg(9000 + (number if seed is None else seed)),
        **{**EXPLORE, **how},
    )
    ingest_of(site).take([arrived(message)])
    return message.header.frame_id


def label(site: Site, frame: str, *boxes: Box) -> None:
    submit_label(site.catalogue, site.blobs, frame, "anna", "labelled", list(boxes))


SEEN = WireDetection(BIRD, 0.9, "bird")
FAINT = WireDetection(BIRD, 0.1, "bird")


def yard(site: Site, **how: str) -> dict[str, object]:
    (row,) = [row for row in audited.metrics(site.catalogue, period="all", **how) if row["camera"] == "cam-01/yard"]  # type: ignore[arg-type]
    return dict(row)


def test_weights_copies_and_what_is_missing_are_allowed_for(site: Site) -> None:
    for number in range(4):  # each stands for ten frames, and the model sees the bird
        label(site, take(site, number, 0.1, SEEN), Box("bird", BIRD))
    for number in range(4, 8):  # each stands for two, and it does not
        label(site, take(site, number, 0.5, FAINT), Box("bird", BIRD))
    row = yard(site)
    recall = row["recall"]
    assert isinstance(recall, dict)
    assert recall["value"] == pytest.approx(40 / 48)
    assert row["frames_seen"] == pytest.approx(48)
    assert (row["missing"], recall["least"]) == (0, pytest.approx(40 / 48))

    take(site, 20, 0.1, SEEN)  # not labelled yet
    take(site, 21, 0.1, SEEN, seed=0)  # the very picture of the first
    take(site, 22, 0.1, SEEN, arm="policy")
    take(site, 23, 0.1, SEEN, model_digest="")
    stones = (
        Tombstone(1, b"\x01" * 32, "explore", "evicted:full", 0.5, 0.25, "yard", FROM_MS),
        Tombstone(2, b"\x02" * 32, "policy", "evicted:full", 0.5, 0.25, "yard", FROM_MS),
    )
    unsent.record(site.catalogue, "cam-01", Tombstones(1, named=stones))
    row = yard(site)
    recall = row["recall"]
    assert isinstance(recall, dict)
    assert (row["frames"], row["missing"]) == (9, 2)
    assert row["missing_share"] == pytest.approx((10 + 4) / (48 + 10 + 10 + 4))
    assert recall["value"] == pytest.approx(50 / 58)
    assert recall["least"] < recall["value"] < recall["most"]
    assert yard(site, model="ab")["missing"] == 1
    assert not [row for row in audited.metrics(site.catalogue, model="cd") if row["camera"] == "cam-01/yard"]


def test_a_deleted_label_is_missing_and_a_rejected_frame_too(site: Site) -> None:
    frames = [take(site, number, 0.5, SEEN) for number in range(3)]
    for frame in frames[:2]:
        label(site, frame, Box("bird", BIRD))
    site.catalogue.execute("UPDATE frame SET state = 'deleted' WHERE id = ?", frames[0])
    assert (yard(site)["frames"], yard(site)["missing"]) == (1, 2)


def test_boxes_in_regions_that_the_device_covered_count_on_neither_side(site: Site) -> None:
    hidden = (40.0, 2.0, 60.0, 30.0)
    frame = take(
        site, 0, 0.5, SEEN, WireDetection(hidden, 0.8, "bird"), redacted=(Redaction((38.0, 0.0, 62.0, 32.0), "bird", "blur"),)
    )
    label(site, frame, Box("bird", BIRD))
    row = yard(site)
    assert isinstance(row["precision"], dict)
    assert row["precision"]["value"] == 1.0


def test_a_fall_of_recall_is_noticed_in_the_catalogues_own_frames(site: Site) -> None:
    for number in range(130):
        label(site, take(site, number, 0.1, SEEN if number < 80 else FAINT), Box("bird", BIRD))
    (first, *_) = audited.recall_changes(site.catalogue, "cam-01/yard")
    assert first["before"] > first["after"]


@pytest.fixture
def web(site: Site) -> TestClient:
    client = TestClient(create_app(site.folder, TOKEN), base_url="http://127.0.0.1", follow_redirects=False)
    client.headers["Authorization"] = f"Bearer {TOKEN}"
    return client


def test_page_api_and_commands_say_how_good_the_model_is_and_what_has_drifted(site: Site, web: TestClient) -> None:
    page = web.get("/field")
    assert page.status_code == 200
    assert "No camera has drifted" in page.text
    for number in range(3):
        label(site, take(site, number, 0.1, SEEN), Box("bird", BIRD))
    camera, watch = DriftingCamera(name="yard"), DriftWatch(site.catalogue)
    hours = tuple(camera.hour(number, score_shift=-0.35 if number >= 48 else 0.0) for number in range(50))
    watch.take("cam-01", Histograms(hours))
    rows = web.get("/api/v1/field", params={"by": "all", "camera": "cam-01/yard"}).json()["items"]
    assert [row["recall"]["value"] for row in rows] == [1.0, 1.0], "all cameras together, and this one"
    (episode,) = web.get("/api/v1/drift").json()["items"]
    assert (episode["camera"], episode["far"]) == ("cam-01/yard", ["scores"])
    page = web.get("/field").text
    assert "1.000 (" in page
    assert episode["slice"] in page
    assert web.get("/api/v1/field", params={"by": "century"}).status_code == 422

    run = CliRunner().invoke
    data = ["--data", str(site.folder.root)]
    assert "cam-01/yard" in run(app, ["drift", "field", "--by", "all", *data]).output
    assert "scores" in run(app, ["drift", "list", *data]).output
    (told,) = json.loads(run(app, ["drift", "list", "--json", *data]).output)
    assert told["boosted_until"] == utc_text(told["boost_until_ms"]), "what was done about it, and until when"
    assert told["boosted_until"] in page
    assert "no change of recall" in run(app, ["drift", "changes", "cam-01/yard", *data]).output
    assert "drifted" in run(app, ["drift", "hours", "cam-01/yard", *data]).output
    assert "explores as usual again" in run(app, ["drift", "stop-boost", "cam-01", *data]).output
    assert drift_rows.boosts(site.catalogue, 0) != {}, "the episode stays"
    assert "was not boosted" in run(app, ["drift", "stop-boost", "cam-01", *data]).output
    for unknown in (
        ("hours", "cam-01/nothing"),
        ("field", "--camera", "cam-01/nothing"),
        ("list", "--device", "cam-77"),
        ("stop-boost", "cam-77"),
    ):
        assert isinstance(run(app, ["drift", *unknown, *data]).exception, NotFound), unknown


def test_nobody_sees_it_without_a_token(site: Site) -> None:
    stranger = TestClient(create_app(site.folder, TOKEN), base_url="http://127.0.0.1", follow_redirects=False)
    for path in ("/field", "/api/v1/field", "/api/v1/drift"):
        assert stranger.get(path).status_code in (303, 401)
