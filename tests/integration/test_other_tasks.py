"""Models for other tasks than detection at the server: taken in, named everywhere, never trained from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bowerbird_models.manifest import ModelManifest
from bowerbird_server.catalogue import models as model_rows
from bowerbird_server.config import TrainingConfig
from bowerbird_server.errors import BadInput
from bowerbird_server.releases.registry import import_model, package_of
from bowerbird_server.site import Site
from bowerbird_server.training.training_runs import queue_run
from bowerbird_testing.tiny_yolo import TinyBox, write_tiny_yolo

BOXES = (TinyBox((8, 8, 40, 40), 0, 0.9),)


@pytest.mark.parametrize("task", ["segment", "pose", "obb", "classify"])
def test_a_package_says_what_its_model_is_for(task: str, tmp_path: Path) -> None:
    site = Site.open(tmp_path / "site")
    onnx = write_tiny_yolo(tmp_path / "m.onnx", boxes=BOXES, task=task)
    row = import_model(site, onnx, trust=False, actor="test")
    assert model_rows.task_of(row) == task
    assert package_of(site, row["digest"]).manifest.task == task


def test_a_detection_model_is_written_down_as_before(tmp_path: Path) -> None:
    """Older devices read the manifest of a detection model to the byte as they did."""
    site = Site.open(tmp_path / "site")
    row = import_model(site, write_tiny_yolo(tmp_path / "m.onnx", boxes=BOXES), trust=False, actor="test")
    assert "task" not in json.loads(row["manifest"])
    assert ModelManifest.from_bytes(row["manifest"].encode()).task == "detect"


def test_no_training_begins_from_a_champion_of_another_task(tmp_path: Path) -> None:
    site = Site.open(tmp_path / "site")
    row = import_model(site, write_tiny_yolo(tmp_path / "m.onnx", boxes=BOXES, task="pose"), trust=False, actor="test")
    model_rows.promote(site.catalogue, row["digest"], "test", {"reasons": ["by hand"]})
    with pytest.raises(BadInput, match="is a model for pose, and this server trains detection only"):
        queue_run(site, {"id": "none"}, TrainingConfig(), "test")


def test_the_command_line_says_it_at_import_and_afterwards(tmp_path: Path) -> None:
    onnx = write_tiny_yolo(tmp_path / "m.onnx", boxes=BOXES, task="segment")

    def bowerbird(*arguments: object) -> str:
        command = [sys.executable, "-m", "bowerbird_server.cli", *map(str, arguments), "--data", str(tmp_path / "site")]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    said = " ".join(bowerbird("models", "import", onnx, "--promote").split())
    assert "it is a model for segment. Devices run it, score its frames and send them" in said
    assert "task    segment" in bowerbird("models", "show", "champion")
