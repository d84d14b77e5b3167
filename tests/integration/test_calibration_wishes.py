"""A model's calibration, from its evaluation into the wishes of the devices that run it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bowerbird_agent.selection.calibration_book import CalibrationBook
from bowerbird_server.catalogue import Catalogue, fleet
from bowerbird_server.catalogue import models as model_rows
from bowerbird_server.fleet.wishes import wanted_of
from bowerbird_server.site import Site
from bowerbird_server.training.average_precision import MatchTable
from bowerbird_server.training.evaluate import EvaluationFrame, EvaluationRun, summarise
from bowerbird_server.training.training_runs import first_verdict, keep_verdict
from bowerbird_wire.codec import decode, encode
from bowerbird_wire.messages import Desired, Health

FIRST, SECOND, IMPORTED = "aa" * 32, "bb" * 32, "cc" * 32


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site.open(tmp_path / "site") as opened:
        for device in ("cam-01", "cam-02"):
            fleet.add_device(opened.catalogue, device, "site", "test")
        yield opened


def add_model(cat: Catalogue, digest: str) -> None:
    """A row as registration makes it, without its files."""
    row = {"digest": digest, "parent": None, "dataset_version": None, "training_run": None, "origin": "imported"}
    more = {"state": "candidate", "onnx_sha256": digest, "weights_sha256": None, "manifest": "{}"}
    model_rows.add_model(cat, {**row, **more, "class_names": json.dumps(["fox", "bird"])}, "test")


def measured(right: float) -> EvaluationRun:
    """A model that says 0.85 of 100 birds and is right about a share of them."""
    hits = np.repeat((np.arange(100) < 100 * right)[:, None], 10, axis=1)
    none = np.zeros(100, np.int64)
    matches = MatchTable(none, none, np.full(100, 0.85), hits, np.array([[100, 0]], np.int64))
    frames = [EvaluationFrame(Path("a.jpg"), "scene", (), np.zeros((0, 4), np.float32), np.zeros(0, np.int32))]
    names = ("bird", "fox")
    evaluation = summarise(matches, frames, names, file_digest="", missing_classes=(), latency_ms_p50=1.0, seconds=1.0)
    return EvaluationRun(evaluation, names, ("scene",), ((),), matches)


def evaluated(site: Site, digest: str, right: float) -> None:
    add_model(site.catalogue, digest)
    run = measured(right)
    keep_verdict(site, digest, run, first_verdict(run, "significant"))


def runs(site: Site, device: str, digest: str) -> dict[str, Desired]:
    """What is wished of all devices once this one has said what it runs."""
    fleet.record_health(site.catalogue, device, Health("boot", 1, digest))
    return wanted_of(site.catalogue, fleet.active_devices(site.catalogue))


def bird_of(payload: bytes, digest: str, score: float = 0.85) -> float:
    book = CalibrationBook()
    book.take(payload, digest)
    calibration = book.of(digest)
    assert calibration is not None
    return calibration.probabilities([score], [1])[0]  # second of the model's classes, first of the data set's


def test_a_device_is_told_the_table_of_the_model_that_it_runs_and_again_when_it_goes_back(site: Site) -> None:
    """Nothing before a device says what it runs; one message a model; nothing about a model that was never evaluated."""
    evaluated(site, FIRST, 0.4)
    evaluated(site, SECOND, 0.8)
    add_model(site.catalogue, IMPORTED)
    assert wanted_of(site.catalogue, fleet.active_devices(site.catalogue)) == {}
    first = runs(site, "cam-01", FIRST)
    assert first.keys() == {"cam-01"}
    told = decode(Desired, encode(first["cam-01"])).calibration
    assert 0 < len(told) < 60
    assert bird_of(told, FIRST) == pytest.approx(0.48, abs=0.01)  # 100 boxes against 20 that were as right as they said
    assert runs(site, "cam-01", FIRST) == first, "an idle day says nothing"
    second = runs(site, "cam-01", SECOND)["cam-01"].calibration
    assert bird_of(second, SECOND) == pytest.approx(0.81, abs=0.01)
    assert "cam-01" not in runs(site, "cam-01", IMPORTED), "its scores are taken at their word"
    assert runs(site, "cam-01", FIRST) == first
    assert runs(site, "cam-02", FIRST)["cam-02"] == first["cam-01"]


def test_a_class_that_is_hard_weighs_more_in_the_wish(site: Site) -> None:
    evaluated(site, FIRST, 0.4)
    book = CalibrationBook()
    book.take(runs(site, "cam-01", FIRST)["cam-01"].calibration, FIRST)
    calibration = book.of(FIRST)
    assert calibration is not None
    assert calibration.weights([0, 1]) == [1.0, pytest.approx(1.12, abs=0.01)]
    assert model_rows.model(site.catalogue, FIRST)["state"] == "champion"


def test_figures_from_before_there_were_tables_make_none(site: Site) -> None:
    add_model(site.catalogue, FIRST)
    old = json.loads(measured(0.4).evaluation.to_json())
    del old["calibration"]
    model_rows.set_metrics(site.catalogue, FIRST, old, {})
    assert runs(site, "cam-01", FIRST) == {}
