"""The agent as a process: it runs what was chosen, says so, begins again on huge pages once, and never runs what was not asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bowerbird_agent.tuning.autotune import Candidate
from bowerbird_agent.tuning.hardware import can_huge_pages, this_machine
from bowerbird_agent.tuning.runtime_choice import FILE_NAME, ModelShape, RuntimeChoice, RuntimeChoices
from bowerbird_agent.updates.model_store import ModelStore
from bowerbird_models.manifest import Probation
from bowerbird_models.package import build_package
from bowerbird_testing.agent_process import UNSURE_BOXES, AgentProcess, write_config
from bowerbird_testing.broker import Mosquitto, free_port
from bowerbird_testing.site_server import SiteServer
from bowerbird_testing.tiny_yolo import write_tiny_yolo
from bowerbird_testing.update_server import UpdateServer
from bowerbird_testing.variant_packages import variant_package

pytestmark = pytest.mark.broker

ENDLESS = '[[cameras]]\nname = "gate"\nsource = "synthetic:?seed=1"\nfps = 20'
AUTO: dict[str, dict[str, Any]] = {"model": {"runtime": None}}


def remember(folder: Path, candidate: Candidate, factory: Path | None = None) -> str:
    """Install the factory model as a first start would, and a choice for it; returns its digest."""
    slot = ModelStore(folder / "state" / "models").install_factory(factory or folder / "model.onnx")
    shape = ModelShape.of(slot.manifest)
    choice = RuntimeChoice(candidate, "measured", slot.digest, shape, this_machine().key, "2026-01-01T00:00:00Z", 90.0)
    RuntimeChoices(folder / "state" / FILE_NAME).remember(choice)
    return slot.digest


def test_the_first_start_runs_the_reference_and_reports_it(broker: Mosquitto, tmp_path: Path) -> None:
    config = write_config(tmp_path, port=broker.port, cameras=ENDLESS, overrides=AUTO)
    with SiteServer(broker.host, broker.port) as server, AgentProcess(config):
        server.wait(lambda: bool(server.health) and bool(server.health[-1].extra.get("runtime")), "health with a runtime")
        runs = server.health[-1].extra["runtime"]
        assert runs["runtime"].startswith("onnxruntime-cpu 1.")
        assert (runs["variant"], runs["origin"]) == ("onnx-fp32", "default")
        status = server.status[-1].extra["runtime"]
        assert status["file_digest"].startswith(runs["file_digest"])
        assert len(status["file_digest"]) == 64
        assert "bowerbird-agent tune" in status["why"]


def test_a_named_runtime_is_the_only_one_that_is_loaded(broker: Mosquitto, tmp_path: Path) -> None:
    """Only looking whether OpenVINO is there would cost 45 MB for as long as the agent runs."""
    config = write_config(tmp_path, port=broker.port, cameras=ENDLESS)
    with SiteServer(broker.host, broker.port) as server, AgentProcess(config) as agent:
        server.wait(lambda: bool(server.health) and server.health[-1].frames_scored > 0, "a frame that was scored")
        assert agent.process is not None
        maps = Path(f"/proc/{agent.process.pid}/maps").read_text()
        assert "onnxruntime" in maps
        assert "openvino" not in maps


def test_a_remembered_choice_is_what_runs_and_an_update_of_the_same_shape_inherits_it(
    broker: Mosquitto, tmp_path: Path
) -> None:
    updates = UpdateServer()
    folder = tmp_path / "device"
    config = write_config(
        folder, port=broker.port, cameras=ENDLESS, overrides={**AUTO, "update": {"trusted_root": "root.json"}}
    )
    (folder / "root.json").write_bytes(updates.root)
    first = remember(folder, Candidate(threads=2))
    onnx = write_tiny_yolo(tmp_path / "new.onnx", boxes=UNSURE_BOXES, salt="retrained")
    probation = Probation(good_frames=10, deadline_s=60, server_deadline_s=60)
    package = build_package(tmp_path / "package", onnx, created_at="2026-01-01T00:00:00.000Z", probation=probation)
    release = updates.publish(package)
    with SiteServer(broker.host, broker.port, updates=updates) as server, AgentProcess(config):
        server.wait(lambda: bool(server.status) and server.status[-1].model_digest == first, "the first model")
        assert server.status[-1].extra["runtime"]["threads"] == 2
        assert server.status[-1].extra["runtime"]["origin"] == "tuned"
        server.offer("cam-01", updates.job(package, release))
        server.wait(lambda: any(report.state == "committed" for report in server.reports), "the committed report", 60)
        server.wait(lambda: server.status[-1].model_digest == package.digest, "status with the new model")
        assert server.reports[-1].running_file_digest == package.file_digest
        runs = server.status[-1].extra["runtime"]
        assert (runs["threads"], runs["origin"]) == (2, "tuned")
        assert first[:12] in runs["why"]


@pytest.mark.skipif(this_machine().cores < 2, reason="with one core and one runtime there is nothing to choose from")
def test_an_update_of_another_shape_is_tuned_while_the_old_model_goes_on(broker: Mosquitto, tmp_path: Path) -> None:
    updates = UpdateServer()
    folder = tmp_path / "device"
    overrides = {
        "model": {"runtime": None, "spinning": False, "huge_pages": False},
        "update": {"trusted_root": "root.json"},
    }
    config = write_config(folder, port=broker.port, cameras=ENDLESS, overrides=overrides)
    (folder / "root.json").write_bytes(updates.root)
    onnx = write_tiny_yolo(tmp_path / "new.onnx", boxes=UNSURE_BOXES, image_size=96)
    probation = Probation(good_frames=10, deadline_s=60, server_deadline_s=60)
    package = build_package(tmp_path / "package", onnx, created_at="2026-01-01T00:00:00.000Z", probation=probation)
    release = updates.publish(package)
    with SiteServer(broker.host, broker.port, updates=updates) as server, AgentProcess(config):
        server.wait(lambda: bool(server.health) and server.health[-1].frames_seen > 0, "frames")
        server.offer("cam-01", updates.job(package, release))
        server.wait(lambda: any(report.state == "selftest" for report in server.reports), "the self-test")
        seen = server.health[-1].frames_seen
        server.wait(lambda: any(report.state == "trial" for report in server.reports), "the trial", 120)
        assert server.health[-1].frames_seen > seen
        old = [health for health in server.health if health.model_digest != package.digest]
        assert {health.extra["runtime"]["origin"] for health in old} == {"default"}, "until the swap it runs as it did"
        server.wait(lambda: server.status[-1].model_digest == package.digest, "status with the new model", 60)
        assert server.status[-1].extra["runtime"]["origin"] == "tuned"
    kept = RuntimeChoices(folder / "state" / FILE_NAME).exact(this_machine().key, package.digest)
    assert kept is not None
    assert {row["threads"] for row in kept.rows} >= {1, 2}


def test_a_file_of_the_package_that_was_chosen_is_named_by_its_own_digest(broker: Mosquitto, tmp_path: Path) -> None:
    reference = write_tiny_yolo(tmp_path / "model.onnx", boxes=UNSURE_BOXES)
    variants = {"onnx-int8-ort": write_tiny_yolo(tmp_path / "int8.onnx", boxes=UNSURE_BOXES, salt="int8")}
    package = variant_package(tmp_path / "package", reference, variants, {"onnx-fp32": 0.6, "onnx-int8-ort": 0.6})
    overrides = {"model": {"runtime": None, "factory": "package"}}
    config = write_config(tmp_path, port=broker.port, cameras=ENDLESS, overrides=overrides)
    remember(tmp_path, Candidate(role="onnx-int8-ort"), factory=package.dir)
    with SiteServer(broker.host, broker.port) as server, AgentProcess(config):
        server.wait(lambda: bool(server.status) and bool(server.status[-1].extra.get("runtime")), "status with a runtime")
        assert server.status[-1].model_digest == package.digest
        assert server.status[-1].extra["runtime"]["variant"] == "onnx-int8-ort"
        assert server.status[-1].extra["runtime"]["file_digest"] == package.manifest.files["onnx-int8-ort"].sha256


def test_a_choice_that_does_not_load_is_trouble_that_the_server_hears_of(broker: Mosquitto, tmp_path: Path) -> None:
    config = write_config(tmp_path, port=broker.port, cameras=ENDLESS, overrides=AUTO)
    remember(tmp_path, Candidate(runtime="onnxruntime-cuda"))
    with SiteServer(broker.host, broker.port) as server, AgentProcess(config):
        server.wait(lambda: bool(server.health) and server.health[-1].frames_seen > 0, "frames")
        assert "does not load" in str(server.health[-1].extra["trouble"])
        assert server.health[-1].extra["runtime"]["origin"] == "fallback"


@pytest.mark.skipif(not can_huge_pages(), reason="this kernel or C library gives no huge pages on request")
def test_the_agent_begins_again_on_huge_pages_once_and_keeps_its_process_id(
    broker: Mosquitto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    config = write_config(tmp_path, port=broker.port, cameras=ENDLESS, overrides=AUTO)
    remember(tmp_path, Candidate(huge_pages=True))
    with SiteServer(broker.host, broker.port) as server, AgentProcess(config) as agent:
        server.wait(lambda: bool(server.health) and server.health[-1].frames_seen > 0, "frames")
        assert agent.process is not None
        environment = Path(f"/proc/{agent.process.pid}/environ").read_bytes().replace(b":", b"\0").split(b"\0")
        assert b"glibc.malloc.hugetlb=1" in environment
        assert b"GLIBC_TUNABLES=glibc.malloc.arena_max=2" in environment
        assert server.status[-1].extra["runtime"]["huge_pages"] is True
        assert agent.terminate()[0] == 0


def test_a_damaged_memory_of_choices_costs_a_warning_and_no_start(broker: Mosquitto, tmp_path: Path) -> None:
    config = write_config(tmp_path, port=broker.port, cameras=ENDLESS, overrides=AUTO)
    remember(tmp_path, Candidate(threads=2))
    (tmp_path / "state" / FILE_NAME).write_bytes(b'{"schema": 1, "choices": [')
    with SiteServer(broker.host, broker.port) as server, AgentProcess(config) as agent:
        server.wait(lambda: bool(server.health) and server.health[-1].frames_seen > 0, "frames")
        assert server.status[-1].extra["runtime"]["origin"] == "default"
        assert "is passed over" in agent.log
        assert "Traceback" not in agent.log


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"runtime": "onnxruntime-cuda"}, 'model.runtime = "onnxruntime-cuda" cannot be used here'),
        ({"runtime": "onnxruntime-cpu", "variant": "onnx-int8-ort"}, 'model.variant = "onnx-int8-ort"'),
    ],
)
def test_what_the_operator_named_and_is_not_here_ends_the_agent_with_a_word(
    tmp_path: Path, model: dict[str, Any], says: str
) -> None:
    config = write_config(tmp_path, port=free_port(), cameras=ENDLESS, overrides={"model": model})
    with AgentProcess(config) as agent:
        assert agent.wait() == 1
        assert says in agent.log
        assert "Traceback" not in agent.log
