"""A class that is added later: what was labelled before teaches no misses of it, measures none, and is looked at again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from bowerbird_server.catalogue import second_looks
from bowerbird_server.catalogue.classes import add_classes, class_names, declare_looked_for, version_of
from bowerbird_server.catalogue.labels import newest_label
from bowerbird_server.cli.app import app
from bowerbird_server.errors import BadInput
from bowerbird_server.labelling.backend import Box, submit_label
from bowerbird_server.training.evaluate import EvaluationFrame, frames_digest
from bowerbird_server.training.snapshot import check_replay, evaluation_frames, materialise, read_manifest, take_snapshot
from bowerbird_testing.scene_frames import SceneSite

CAR, OWL = Box("car", (10.0, 10.0, 60.0, 60.0)), Box("owl", (200.0, 100.0, 260.0, 160.0))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[SceneSite]:
    made = SceneSite(tmp_path / "data")
    yield made
    made.close()


def label(site: SceneSite, frame: str, author: str, *boxes: Box) -> None:
    submit_label(site.cat, site.blobs, frame, author, "labelled", boxes)


def snapshot(site: SceneSite, share: float = 0.0) -> dict[str, object]:
    return dict(take_snapshot(site.cat, site.blobs, holdout_share=share, actor="test"))


def laid_out(site: SceneSite, version: dict[str, object], folder: Path) -> set[str]:
    data_yaml = materialise(site.blobs, version, folder)
    assert "owl" in yaml.safe_load(data_yaml.read_text())["names"].values()
    return {path.stem for path in (data_yaml.parent / "images" / "train").iterdir()}


def test_frames_from_before_a_class_are_left_out_of_training_once_it_is_shown_and_come_back_when_looked_at(
    site: SceneSite, tmp_path: Path
) -> None:
    old, older, *new = site.send(0, 10, 20, 30, 40, detections=())
    for frame in (old, older):
        label(site, frame, "anna", CAR)
    add_classes(site.cat, ["owl"], "test")
    for frame in new:
        label(site, frame, "anna", CAR)
    before = snapshot(site)
    assert laid_out(site, before, tmp_path / "before") == {old, older, *new}, (
        "nothing teaches the class yet, so nothing misleads"
    )
    label(site, new[0], "anna", CAR, OWL)
    version = snapshot(site)
    assert laid_out(site, version, tmp_path / "after") == set(new)
    check_replay(read_manifest(site.blobs, version))
    assert second_looks.ask(site.cat, 0.0, "test") == 2
    assert second_looks.ask(site.cat, 0.0, "test") == 0
    looks = second_looks.open_for(site.cat, "anna")
    assert {(row["frame"], row["kind"], row["why"]) for row in looks} == {
        (frame, "new_class", "nobody looked for owl") for frame in (old, older)
    }
    assert not second_looks.is_blind(site.cat, old, "anna"), "the label is the help that it is"
    label(site, old, "anna", CAR, OWL)
    assert [row["frame"] for row in second_looks.open_for(site.cat, "anna")] == [older]
    assert laid_out(site, snapshot(site), tmp_path / "then") == {old, *new}
    assert second_looks.report(site.cat) == [], "nobody was wrong"


def test_training_on_new_frames_alone_is_refused_with_what_to_do(site: SceneSite) -> None:
    *old, new = site.send(0, 10, 20, detections=())
    for frame in old:
        label(site, frame, "anna", CAR)
    add_classes(site.cat, ["owl"], "test")
    label(site, new, "anna", OWL)
    with pytest.raises(BadInput, match=r"2 of 3 training frames .* looked for owl.*--looked-for owl"):
        check_replay(read_manifest(site.blobs, snapshot(site)))
    shown = CliRunner().invoke(app, ["labels", "classes", "--data", str(site.folder.root)])
    assert f"version {len(class_names(site.cat))} of the class list" in " ".join(shown.output.split())
    said = CliRunner().invoke(app, ["labels", "classes", "--looked-for", "owl", "--data", str(site.folder.root)])
    assert said.exit_code == 0
    check_replay(read_manifest(site.blobs, snapshot(site)))
    second_looks.ask(site.cat, 0.0, "test")
    assert second_looks.open_for(site.cat, "anna") == [], "there is nothing left to look for"


def test_a_class_that_is_none_was_not_looked_for(site: SceneSite) -> None:
    with pytest.raises(BadInput, match="not in the class list"):
        declare_looked_for(site.cat, "unicorn", "test")


def test_the_class_list_only_grows_and_a_label_says_what_was_looked_for(site: SceneSite) -> None:
    (frame,) = site.send(0, detections=())
    label(site, frame, "anna", CAR)
    before = class_names(site.cat)
    assert add_classes(site.cat, ["owl", "car"], "test") == ["owl"]
    assert class_names(site.cat) == [*before, "owl"]
    (event,) = site.cat.rows("SELECT why FROM event WHERE kind = 'class.added' AND subject = 'owl'")
    assert json.loads(event["why"]) == {"id": len(before), "version": len(before) + 1}
    assert version_of(class_names(site.cat), before) == len(before), "an older list is a version too"
    assert version_of(class_names(site.cat), list(reversed(before))) == 0
    assert version_of(before, [*before, "owl"]) == 0
    row = newest_label(site.cat, frame)
    assert row is not None
    assert row["classes_reviewed"] == before


def test_a_held_out_frame_says_what_nobody_looked_for(site: SceneSite) -> None:
    (frame,) = site.send(0, detections=(), arm="explore")
    label(site, frame, "anna", CAR)
    add_classes(site.cat, ["owl"], "test")
    version = snapshot(site, 0.9999)
    ((held_out,), names) = evaluation_frames(site.cat, site.blobs, version)
    assert held_out.unreviewed == (names.index("owl"),)


def test_what_nobody_looked_for_makes_another_evaluation(tmp_path: Path) -> None:
    none = np.zeros((0, 4), np.float32)
    plain = EvaluationFrame(tmp_path / "a.jpg", "s", (), none, np.zeros(0, np.int32))
    partly = EvaluationFrame(tmp_path / "a.jpg", "s", (), none, np.zeros(0, np.int32), unreviewed=(1,))
    assert frames_digest([plain], ["car", "owl"]) != frames_digest([partly], ["car", "owl"])
