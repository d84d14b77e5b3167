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

from bowerbird_agent.capture.opencv_build import has_gstreamer
from bowerbird_agent.selection.policy import STRATEGIES, Policy
from bowerbird_models.runtime_options import RUNTIMES
from bowerbird_models.scenes import SceneStream
from bowerbird_testing.agent_process import UNSURE_BOXES, AgentProcess, write_config
from bowerbird_testing.broker import Mosquitto, free_port
from bowerbird_testing.mqtt_device import wait_until
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


def test_tune_shows_a_reason_for_every_candidate_and_says_that_nothing_is_remembered(model: Path, tmp_path: Path) -> None:
    done = agent("tune", "--model", model, "--seconds", "6", "--runtime", "onnxruntime-cpu", "--config", tmp_path / "none.toml")
    assert done.returncode == 0, done.stderr
    assert "* onnx-fp32 on onnxruntime-cpu" in done.stdout
    assert "usable" in done.stdout
    assert "not remembered" in done.stdout


def test_tune_remembers_for_the_device_and_doctor_says_what_runs_and_why(tmp_path: Path) -> None:
    overrides = {"model": {"runtime": None, "huge_pages": False, "spinning": False}}
    config = write_config(tmp_path, port=free_port(), cameras=CAMERA, overrides=overrides)
    model_line = {row["name"]: row for row in json.loads(agent("doctor", "--config", config, "--json").stdout)}["model"]
    assert model_line["state"] == "ok"
    assert "not tuned here yet" in model_line["found"]
    assert model_line["advice"].startswith("run `bowerbird-agent tune`")
    done = agent("tune", "--config", config, "--seconds", "6", "--runtime", "onnxruntime-cpu", "--json")
    answer = json.loads(done.stdout)
    assert answer["chosen"]["runtime"] == "onnxruntime-cpu"
    assert {row["verdict"] for row in answer["rows"]} <= {"chosen", "slower", "discarded"}
    assert all(row["reason"] for row in answer["rows"])
    findings = {row["name"]: row for row in json.loads(agent("doctor", "--config", config, "--json").stdout)}
    assert "tuned" in findings["model"]["found"]
    assert answer["why"] in findings["model"]["found"]
    assert findings["model"]["advice"] == ""


def test_tune_without_a_usable_candidate_exits_with_one(model: Path) -> None:
    done = agent("tune", "--model", model, "--seconds", "3", "--memory-mb", "1", "--runtime", "onnxruntime-cpu")
    assert done.returncode == 1
    assert "over the memory limit of 1 MB" in done.stdout


def test_doctor_names_every_runtime_and_fails_on_one_that_is_named_and_absent(tmp_path: Path) -> None:
    overrides = {"model": {"runtime": "onnxruntime-cuda"}}
    config = write_config(tmp_path, port=free_port(), cameras=CAMERA, overrides=overrides)
    findings = {row["name"]: row for row in json.loads(agent("doctor", "--config", config, "--json").stdout)}
    assert {f"runtime {name}" for name in RUNTIMES} <= findings.keys()
    assert findings["runtime onnxruntime-cpu"]["state"] == "ok"
    assert findings["runtime onnxruntime-cuda"]["state"] == "fail"
    assert 'model.runtime = "auto"' in findings["runtime onnxruntime-cuda"]["advice"]
    absent = [row for name, row in findings.items() if name.startswith("runtime ") and row["state"] == "-"]
    assert all(row["advice"] for row in absent)


def test_bench_puts_runtimes_side_by_side(model: Path) -> None:
    done = agent("bench", "--model", model, "--compare", "--frames", "10", "--source", "synthetic:?seed=1", "--json")
    lines = json.loads(done.stdout)
    reference = lines[0]
    assert reference["candidate"]["runtime"] == "onnxruntime-cpu"
    assert reference["result"]["frames"] == 10
    assert reference["differing_cases"] == 0
    assert set(reference["result"]["stages"]["infer"]) == {"p50_ms", "p95_ms", "p99_ms"}
    text = agent("bench", "--model", model, "--compare", "--frames", "5", "--source", "synthetic:?seed=1").stdout
    assert "1/1" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--runtime", "onnxruntime-cuda"), "CUDA"),
        (("--precision", "bf16"), "computes in fp32"),
        (("--variant", "onnx-int8-ort"), "is one file"),
    ],
)
def test_bench_says_what_cannot_be_had(model: Path, arguments: tuple[str, ...], says: str) -> None:
    done = agent("bench", "--model", model, "--frames", "3", *arguments)
    assert done.returncode == 1
    assert says in done.stderr


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
    assert {"opencv", "model", "camera gate", "broker login", "broker echo", "disk", "clock"} <= {
        finding["name"] for finding in findings
    }


def test_doctor_says_what_to_do_and_exits_with_one(tmp_path: Path) -> None:
    config = write_config(tmp_path, port=free_port(), cameras=CAMERA.replace("synthetic:?seed=1&frames=20", "/dev/video97"))
    (tmp_path / "model.onnx").write_bytes(b"")
    done = agent("doctor", "--config", config)
    assert done.returncode == 1
    assert "group `video`" in done.stdout
    assert "check broker.host" in done.stdout
    assert "model.onnx" in done.stdout


def test_doctor_says_which_opencv_it_found_and_that_a_csi_camera_needs_another(tmp_path: Path) -> None:
    if has_gstreamer():
        pytest.skip("this OpenCV has GStreamer")
    config = write_config(tmp_path, port=free_port(), cameras='[[cameras]]\nname = "gate"\nsource = "csi:0"')
    findings = {finding["name"]: finding for finding in json.loads(agent("doctor", "--config", config, "--json").stdout)}
    assert findings["opencv"]["state"] == "ok"
    assert f"{cv2.__version__}, the wheel opencv-python-headless ({cv2.__file__})" in findings["opencv"]["found"]
    assert "with FFmpeg, without GStreamer" in findings["opencv"]["found"]
    assert findings["camera gate"]["state"] == "fail"
    assert "pip uninstall opencv-python-headless, then use the system's OpenCV" in findings["camera gate"]["found"]


@pytest.mark.parametrize("command", ["run", "doctor", "bench"])
def test_without_opencv_every_command_names_the_extra(command: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, port=free_port(), cameras=CAMERA)
    code = "import sys; sys.modules['cv2'] = None; from bowerbird_agent.cli import main; sys.exit(main(sys.argv[1:]))"
    argv = [sys.executable, "-c", code, command, "--config", str(config)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "OpenCV is not installed: pip install 'bowerbird[opencv]'" in done.stdout + done.stderr


def test_version_and_help_are_quick_to_read() -> None:
    assert agent("--version").stdout.startswith("bowerbird-agent ")
    for command in ("run", "score", "tune", "bench", "doctor"):
        assert "example:" in agent(command, "--help").stdout
    assert agent().returncode == 2


def test_the_command_line_starts_without_the_heavy_packages() -> None:
    code = (
        "import sys, bowerbird_agent.cli.app; print(sorted({'cv2', 'onnxruntime', 'numpy', 'paho', 'tuf'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_snapshot_shows_every_strategy_and_says_whether_the_frame_would_be_kept(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "snap.jpg"
    source = "synthetic:?seed=1&frames=60"
    done = agent("snapshot", "--source", source, "--model", model, "--out", out, "--warm-up", "40", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["sequence"] == 40
    assert set(told["strategies"]) == set(STRATEGIES)
    assert all(0 <= entry["score"] <= 1 for entry in told["strategies"].values())
    assert {name: entry["weight"] for name, entry in told["strategies"].items() if entry["weight"]} == dict(Policy().strategies)
    assert told["strategies"]["rule_max"]["score"] in {0.0, 1.0}
    assert isinstance(told["kept"], bool)
    assert told["verdict"].startswith("candidate, because of" if told["kept"] else "not kept: ")
    picture = cv2.imread(str(out))
    width, height = told["width"], told["height"]
    assert picture.shape[0] >= height
    assert picture.shape[1] > width, "a panel stands beside the picture"
    plain = SceneStream(1).render(40)[0]
    differs = cv2.absdiff(picture[: plain.shape[0], : plain.shape[1]], plain).max(axis=2) > 60
    assert differs.any() == any(box["shown"] for box in told["detections"]), "boxes are drawn where there are some"


def test_a_snapshot_of_a_configured_camera_needs_no_server_and_disturbs_no_running_agent(tmp_path: Path) -> None:
    config = write_config(tmp_path, port=free_port(), cameras=CAMERA)
    with AgentProcess(config) as running:
        out = tmp_path / "shots" / "snap.png"
        done = agent("snapshot", "--config", config, "--camera", "gate", "--out", out)
        assert done.returncode == 0, done.stderr
        assert "entropy" in done.stdout
        assert cv2.imread(str(out)) is not None
        assert running.process is not None
        assert running.process.poll() is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--camera", "garden", "--out", "x.jpg"), "there is no camera 'garden'"),
        (("--source", "synthetic:?seed=1", "--out", "x.jpg"), "needs --model"),
        (("--out", "x.webm"), ".jpg or .png"),
        (("--source", "nothing.avi", "--model", "m.onnx", "--out", "x.jpg"), "nothing.avi"),
    ],
)
def test_a_snapshot_that_cannot_be_taken_says_why(arguments: tuple[str, ...], says: str, tmp_path: Path, model: Path) -> None:
    config = write_config(tmp_path, port=free_port(), cameras=CAMERA)
    told = [str(model) if word == "m.onnx" else word for word in arguments]
    done = agent("snapshot", "--config", config, *told)
    assert done.returncode != 0
    assert says in done.stderr


def test_a_running_agent_can_be_asked_why_a_frame_was_or_was_not_sent(tmp_path: Path) -> None:
    config = write_config(tmp_path, port=free_port(), cameras=CAMERA)
    with AgentProcess(config) as running:
        wait_until(lambda: any((tmp_path / "state" / "decisions").glob("*.z")), "decisions on disk", timeout_s=40)
        done = agent("explain", "gate:3", "--config", config, "--json")
        assert running.process is not None
        assert running.process.poll() is None
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["camera"], found["sequence"]) == ("gate", 3)
    assert found["outcome"] in {"refused", "dropped", "chosen"}
    assert set(found["weights"]) == set(Policy().strategies)
    words = agent("explain", "gate:3", "--config", config)
    assert f"weight {found['weights']['entropy']:g}" in words.stdout
    unknown = agent("explain", "gate:999", "--config", config)
    assert unknown.returncode == 1
    assert "gate:999 is not among the 20 decisions" in unknown.stderr
