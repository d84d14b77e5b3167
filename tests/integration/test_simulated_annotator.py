"""The simulated annotator against the real application: it labels the queue from ground truth and outlives a server that is away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import httpx
import pytest
from fastapi.testclient import TestClient

from bowerbird_models.scenes import CLASS_NAMES
from bowerbird_server.access.roles import Role, Sites
from bowerbird_server.batches.batch import build_batch
from bowerbird_server.catalogue import accounts, batches, frames
from bowerbird_server.catalogue.labels import labels_of, newest_label
from bowerbird_server.errors import ServerError
from bowerbird_server.labelling.ground_truth import SceneTruth
from bowerbird_server.labelling.simulated import Tally, run_annotator
from bowerbird_server.web.app import create_app
from bowerbird_testing.scene_frames import SceneSite

TOKEN = "annotator-test-token-01234"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[SceneSite]:
    made = SceneSite(tmp_path / "data")
    yield made
    made.close()


class AppTransport(httpx.BaseTransport):
    """The application without a socket; fails every so many requests, before or after it was carried out."""

    def __init__(self, site: SceneSite, fail_every: int = 0) -> None:
        self._client = TestClient(create_app(site.folder, TOKEN))
        self._fail_every, self._count = fail_every, 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self._count += 1
        failing = self._fail_every and self._count % self._fail_every == 0
        if failing and self._count % (2 * self._fail_every) == 0:
            raise httpx.ConnectError("the server is away")
        answer = self._client.request(
            request.method, str(request.url.raw_path, "ascii"), headers=dict(request.headers), content=request.read()
        )
        if failing:
            raise httpx.ReadError("the answer was lost on the way")
        return httpx.Response(answer.status_code, content=answer.content, headers={"content-type": "application/json"})


def annotate(site: SceneSite, frames_wanted: int, fail_every: int = 0, token: str = TOKEN) -> Tally:
    stop = Event()
    return run_annotator(
        "http://server",
        token,
        SceneTruth({site.camera_id: site.stream}).boxes,
        stop,
        class_names=CLASS_NAMES,
        poll_s=0.01,
        on_label=lambda tally: stop.set() if tally.frames >= frames_wanted else None,
        transport=AppTransport(site, fail_every),
    )


def test_it_labels_the_queue_from_the_ground_truth_of_the_source(site: SceneSite) -> None:
    """Frames stored at half size get the truth at half size, in its own name, and the batch ends."""
    ids = site.send(*range(0, 60, 10), scale=0.5)
    batch = build_batch(site.cat, frames=6)
    assert batch is not None
    tally = annotate(site, 6)
    assert (tally.frames, batches.progress(site.cat, batch)["state"]) == (6, "done")
    for sequence, frame in zip(range(0, 60, 10), ids, strict=True):
        label = newest_label(site.cat, frame)
        assert label is not None
        assert label["author"] == "simulated annotator"
        truth = site.stream.truth(sequence)
        assert len(label["boxes"]) + label["edits"]["left_out"] == len(truth)
        for box in label["boxes"]:
            assert min(abs(truth.boxes_xyxy * 0.5 - box["box_xyxy"]).max(axis=1)) < 0.01


def test_lost_requests_and_lost_answers_double_nothing(site: SceneSite) -> None:
    """Every third request fails, half of them after they were carried out: still one label a frame."""
    ids = site.send(*range(0, 50, 10))
    build_batch(site.cat, frames=5)
    annotate(site, 5, fail_every=3)
    assert [len(labels_of(site.cat, frame)) for frame in ids] == [1] * 5


def test_a_camera_without_ground_truth_stays_for_a_person(site: SceneSite) -> None:
    """It answers for what it knows and leaves the rest in the queue."""
    (frame,) = site.send(0)
    build_batch(site.cat, frames=1)
    stop = Event()
    asked: list[str] = []

    def nothing(camera: str, sequence: int) -> None:
        asked.append(camera)
        stop.set()

    tally = run_annotator("http://server", TOKEN, nothing, stop, transport=AppTransport(site))
    assert asked == ["cam-01/gate"]
    assert tally.unknown == {frame}
    assert frames.get(site.cat, frame)["state"] == "queued"


def test_a_wrong_token_ends_it_with_advice(site: SceneSite) -> None:
    """Trying for ever would hide it."""
    with pytest.raises(ServerError, match="token"):
        run_annotator("http://server", "wrong-token-0123456789", lambda _c, _s: None, Event(), transport=AppTransport(site))


def test_an_operators_token_is_enough_for_it_and_a_labellers_ends_it_with_advice(site: SceneSite) -> None:
    """It appends the classes of its ground truth, which a labeller may not."""
    site.send(0)
    build_batch(site.cat, frames=1)
    _, labeller = accounts.add_token(site.cat, "annotator", Role.LABELLER, Sites(), "test")
    with pytest.raises(ServerError, match="operator"):
        annotate(site, 1, token=labeller)
    _, operator = accounts.add_token(site.cat, "annotator", Role.OPERATOR, Sites(), "test", only_one=True)
    assert annotate(site, 1, token=operator).frames == 1


def test_every_label_is_also_a_blob(site: SceneSite) -> None:
    """The label event in the blob store says what the row says, so that the row can be made again."""
    (frame,) = site.send(0)
    build_batch(site.cat, frames=1)
    annotate(site, 1)
    label = newest_label(site.cat, frame)
    assert label is not None
    event = site.cat.row("SELECT why FROM event WHERE kind = 'label added' AND subject = ?", frame)
    assert event is not None
    stored = json.loads(site.blobs.read(json.loads(event["why"])["blob"]))
    assert stored["kind"] == "bowerbird label 1"
    for key in ("id", "frame", "author", "created_at", "verdict", "boxes", "classes_reviewed", "seconds", "edits"):
        assert stored[key] == label[key]


def test_copies_of_a_queued_picture_are_set_aside(site: SceneSite) -> None:
    """A frozen camera's second identical picture is not labelled twice; the event names its twin."""
    (first,) = site.send(0)
    build_batch(site.cat, frames=1)
    (copy,) = site.send(400, image_of=0)
    assert build_batch(site.cat, frames=1) is None
    assert frames.get(site.cat, copy)["state"] == "rejected"
    event = site.cat.row("SELECT why FROM event WHERE kind = 'frame is a copy' AND subject = ?", copy)
    assert event is not None
    assert json.loads(event["why"])["of"] == first
