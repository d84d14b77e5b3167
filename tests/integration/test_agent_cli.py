"""The device's commands as a user types them: exit codes, messages without stack traces, JSON for scripts."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from bowerbird_models.scenes import SceneStream
from bowerbird_testing.agent_process import UNSURE_BOXES, write_config
from bowerbird_testing.broker import Mosquitto, free_port
from bowerbird_testing.tiny_yolo import TinyBox, write_tiny_yolo

CAMERA = '[[cameras]]\nname = "gate"\nsource = "synthetic:?seed=1&frames=20"'


def agent(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "bowerbird_agent", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six different scenes, each twice with noise, and a broken file."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    stream = SceneStream(5)
    rng = np.random.default_rng(1)
    # Empty scenes of one street are near-duplicates of each other; take some in which there is something.
    busy = [index for index in range(0, 300, 10) if len(stream.truth(index)) > 1][:6]
    for n, index in enumerate(busy):
        image = stream.render(index)[0]
        cv2.imwrite(str(folder / f"{n}-a.png"), image)
        noisy = np.clip(image.astype(np.int16) + rng.integers(-2, 3, image.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{n}-b.png"), noisy)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_yolo(tmp_path / "m.onnx", boxes=UNSURE_BOXES)


def test_score_chooses_pictures_that_differ_and_reports_the_broken_one(pictures: Path, model: Path, tmp_path: Path) -> None:
    done = agent("score", pictures, "--model", model, "--top", "4", "--out", tmp_path / "out", "--csv", tmp_path / "all.csv")
    assert done.returncode == 0, done.stderr
    chosen = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert 0 < len(chosen) <= 4
    assert len({name[0] for name in chosen}) == len(chosen), "never both twins of a scene"
    assert "broken.jpg" in done.stderr
    rows = list(csv.DictReader((tmp_path / "all.csv").open()))
    assert len(rows) == 13
    twins = [row for row in rows if row["outcome"] == "near_duplicate"]
    assert twins
    assert all(Path(row["path"]).name[0] == Path(row["like"]).name[0] for row in twins)


def test_score_keeps_a_byte_budget_and_answers_as_json(pictures: Path, model: Path) -> None:
    budget = 200_000
    done = agent("score", pictures, "--model", model, "--budget-bytes", str(budget), "--json")
    answer = json.loads(done.stdout)
    chosen = [row for row in answer["pictures"] if row["outcome"] == "chosen"]
    assert 0 < sum(row["bytes"] for row in chosen) <= budget
    assert answer["chosen"] == len(chosen)
    assert answer["broken"] == 1
    assert all(row["reasons"] for row in chosen)


@pytest.mark.parametrize("task", ["segment", "pose", "obb", "classify"])
def test_score_chooses_pictures_with_a_model_of_any_task(pictures: Path, tmp_path: Path, task: str) -> None:
    """Uncertainty is that of boxes and classes, whatever else the model says."""
    boxes = [TinyBox((4, 4, 60, 60), 0, 0.52, "bright"), TinyBox((4, 4, 60, 60), 1, 0.5, "dark")]
    model = write_tiny_yolo(tmp_path / f"{task}.onnx", boxes=boxes, task=task)
    done = agent("score", pictures, "--model", model, "--top", "3", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["chosen"] == 3
    assert all(row["value"] > 0 and row["reasons"] for row in answer["pictures"] if row["outcome"] == "chosen")


@pytest.mark.parametrize("what", ["no folder", "no pictures", "no model", "empty model"])
def test_score_says_what_is_missing(what: str, pictures: Path, model: Path, tmp_path: Path) -> None:
    folder, file = pictures, model
    if what == "no folder":
        folder = tmp_path / "none"
    elif what == "no pictures":
        folder = tmp_path / "empty"
        folder.mkdir()
    elif what == "no model":
        file = tmp_path / "none.onnx"
    else:
        model.write_bytes(b"")
    done = agent("score", folder, "--model", file)
    assert done.returncode == 1
    assert done.stderr.startswith("bowerbird-agent: ")
    assert len(done.stderr.strip().splitlines()) == 1


def test_check_config_lists_all_faults_and_exits_with_two(tmp_path: Path) -> None:
    config = write_config(tmp_path, port=1883, cameras=CAMERA + '\npace = "slow"\n[image]\nqality = 3')
    for done in (agent("--check-config", "--config", config), agent("run", "--check-config", "--config", config)):
        assert done.returncode == 2
        assert "2 faults" in done.stderr
        assert "pace" in done.stderr
        assert "did you mean 'quality'" in done.stderr
    answer = json.loads(agent("--check-config", "--json", "--config", config).stdout)
    assert (answer["ok"], len(answer["faults"])) == (False, 2)


def test_check_config_of_a_good_file_is_quiet(tmp_path: Path) -> None:
    config = write_config(tmp_path, port=1883, cameras=CAMERA)
    assert agent("--check-config", "--config", config).returncode == 0
    assert json.loads(agent("--config", config, "--check-config", "--json").stdout)["device"] == "cam-01"


def test_run_with_a_missing_film_does_not_start(tmp_path: Path) -> None:
    config = write_config(tmp_path, port=1883, cameras='[[cameras]]\nname = "gate"\nsource = "none.avi"')
    done = agent("run", "--config", config)
    assert done.returncode == 2
    assert "none.avi does not exist" in done.stderr


def test_bench_measures_every_stage(model: Path) -> None:
    done = agent("bench", "--model", model, "--frames", "5", "--source", "synthetic:?seed=1", "--json")
    answer = json.loads(done.stdout)
    assert list(answer["stages"]) == ["read", "letterbox", "infer", "score", "encode"]
    assert answer["frames"] == 5
    assert answer["fps"] > 0


@pytest.mark.broker
def test_doctor_finds_everything_well_and_the_broker_is_let_go(broker: Mosquitto, tmp_path: Path) -> None:
    config = write_config(tmp_path, port=broker.port, cameras=CAMERA)
    done = agent("doctor", "--config", config, "--json")
    findings = json.loads(done.stdout)
    assert done.returncode == 0, findings
    assert {"opencv", "model", "camera gate", "broker", "disk", "clock"} <= {finding["name"] for finding in findings}


def test_doctor_says_what_to_do_and_exits_with_one(tmp_path: Path) -> None:
    config = write_config(tmp_path, port=free_port(), cameras=CAMERA.replace("synthetic:?seed=1&frames=20", "/dev/video97"))
    (tmp_path / "model.onnx").write_bytes(b"")
    done = agent("doctor", "--config", config)
    assert done.returncode == 1
    assert "group `video`" in done.stdout
    assert "check broker.host" in done.stdout
    assert "model.onnx" in done.stdout


def test_version_and_help_are_quick_to_read() -> None:
    assert agent("--version").stdout.startswith("bowerbird-agent ")
    for command in ("run", "score", "bench", "doctor"):
        assert "example:" in agent(command, "--help").stdout
    assert agent().returncode == 2


def test_the_command_line_starts_without_the_heavy_packages() -> None:
    code = "import sys, bowerbird_agent.cli; print(sorted({'cv2', 'onnxruntime', 'numpy', 'paho', 'tuf'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
