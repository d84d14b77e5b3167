"""`bowerbird-agent run` as a process, against a real broker, a real spool and a real ONNX model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bowerbird_agent.spool.spool import Spool
from bowerbird_models.manifest import Probation
from bowerbird_models.package import build_package
from bowerbird_testing.agent_process import UNSURE_BOXES, AgentProcess, write_config
from bowerbird_testing.broker import Mosquitto, free_port
from bowerbird_testing.site_server import SiteServer
from bowerbird_testing.tiny_yolo import TinyBox, write_tiny_yolo
from bowerbird_testing.update_server import UpdateServer

pytestmark = pytest.mark.broker

SYNTHETIC = '[[cameras]]\nname = "gate"\nsource = "synthetic:?seed=1&frames=180&fps=5"\npace = "fast"'
ENDLESS = '[[cameras]]\nname = "gate"\nsource = "synthetic:?seed=1&fps=5"\nfps = 60'


def test_a_finished_source_ends_with_every_chosen_frame_committed_once(broker: Mosquitto, tmp_path: Path) -> None:
    config = write_config(tmp_path, port=broker.port, cameras=SYNTHETIC)
    with SiteServer(broker.host, broker.port) as server, AgentProcess(config, "--until-done") as agent:
        assert agent.wait() == 0, agent.log
        health = server.health[-1]
        assert health.frames_seen == health.frames_scored == 180
        assert health.frames_selected == health.frames_committed == len(server.frames) == 15, "three windows of five"
        assert set(server.arrivals.values()) == {1}
        assert health.extra["window"]["closed"] >= 3
        assert 0 < health.bytes_sent < health.all_bytes
        assert 0 < health.rule_frames < 180
        assert 0 < health.rule_bytes < health.all_bytes
        frame = next(iter(server.frames.values()))
        assert (frame.header.width, frame.header.height) == (320, 240)
        assert frame.header.model_digest == health.model_digest != ""
        assert frame.header.reasons
        server.wait(lambda: server.status[-1].state == "offline", "the will")


@pytest.mark.parametrize("task", ["segment", "pose", "obb", "classify"])
def test_a_model_of_any_task_is_run_scored_and_sent(broker: Mosquitto, tmp_path: Path, task: str) -> None:
    """Headers carry its boxes and classes; a classification is one box as large as the picture."""
    write_tiny_yolo(tmp_path / "model.onnx", boxes=UNSURE_BOXES, task=task)
    config = write_config(tmp_path, port=broker.port, cameras=SYNTHETIC.replace("frames=180", "frames=60"))
    with SiteServer(broker.host, broker.port) as server, AgentProcess(config, "--until-done") as agent:
        assert agent.wait() == 0, agent.log
        health = server.health[-1]
        assert health.frames_scored == health.frames_seen == 60
        assert health.frames_committed == len(server.frames) > 0
        headers = [frame.header for frame in server.frames.values()]
        assert any(header.score > 0 and header.detections for header in headers)
        if task == "classify":
            boxes = {detection.box_xyxy for header in headers for detection in header.detections}
            assert boxes == {(0.0, 0.0, 320.0, 240.0)}


def test_the_same_source_frames_have_the_same_ids_on_another_run(broker: Mosquitto, tmp_path: Path) -> None:
    ids = []
    for run in ("one", "two"):
        config = write_config(tmp_path / run, port=broker.port, cameras=SYNTHETIC)
        with SiteServer(broker.host, broker.port) as server, AgentProcess(config, "--until-done") as agent:
            assert agent.wait() == 0, agent.log
            ids.append(set(server.frames))
    assert ids[0] == ids[1]


def test_a_killed_agent_goes_on_behind_its_last_frame_and_counts_no_frame_twice(broker: Mosquitto, tmp_path: Path) -> None:
    config = write_config(tmp_path, port=broker.port, cameras=SYNTHETIC.replace("frames=180", "frames=900"))
    with SiteServer(broker.host, broker.port) as server, AgentProcess(config, "--until-done") as agent:
        server.wait(lambda: bool(server.health) and server.health[-1].frames_seen > 150, "frames")
        agent.kill()
        before = server.health[-1].frames_seen
        agent.start()
        assert agent.wait() == 0, agent.log
        assert before <= server.health[-1].frames_seen <= 900
        # At most the seconds since the last flush are lost from the count, and frames on their way when it died.
        assert server.health[-1].frames_seen > 850
    spool = Spool(tmp_path / "state" / "spool", max_bytes=500_000_000)
    ledger = spool.ledger()
    spool.close()
    assert ledger.balanced
    assert ledger.committed == len(server.frames)


def test_sigterm_says_offline_and_ends_within_two_seconds(broker: Mosquitto, tmp_path: Path) -> None:
    config = write_config(tmp_path, port=broker.port, cameras=ENDLESS)
    with SiteServer(broker.host, broker.port) as server, AgentProcess(config) as agent:
        server.wait(lambda: bool(server.health) and server.health[-1].frames_seen > 10, "frames")
        code, took_s = agent.terminate()
        assert code == 0, agent.log
        assert took_s < 5, "two seconds are promised; the rest is for a loaded test machine"
        server.wait(lambda: server.status[-1].state == "offline", "status offline")


def test_frames_total_is_a_limit_that_a_restart_does_not_forget(broker: Mosquitto, tmp_path: Path) -> None:
    config = write_config(tmp_path, port=broker.port, cameras=ENDLESS)
    with SiteServer(broker.host, broker.port) as server, AgentProcess(config) as agent:
        server.desire("cam-01", 1, 7)
        server.wait(lambda: bool(server.health) and server.health[-1].extra["window"]["round_closed"] >= 3, "three windows")
        assert server.health[-1].desired_version == 1
        server.wait(lambda: len(server.frames) == 7, "seven frames")
        agent.kill()
        seen = len(server.health)
        agent.start()
        server.wait(
            lambda: len(server.health) > seen + 2 and server.health[-1].extra["window"]["round_closed"] >= 5, "more windows"
        )
        assert len(server.frames) == 7, "nothing above the limit"
        server.desire("cam-01", 2, 9)
        server.wait(lambda: len(server.frames) == 9, "two more")
        assert server.health[-1].round_frames_seen < server.health[-1].frames_seen


def test_a_signed_model_is_swapped_in_without_a_restart_and_reported(broker: Mosquitto, tmp_path: Path) -> None:
    updates = UpdateServer()
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / "root.json").write_bytes(updates.root)
    onnx = write_tiny_yolo(tmp_path / "new.onnx", boxes=(*UNSURE_BOXES, TinyBox((30, 2, 60, 20), 1, 0.8)))
    probation = Probation(good_frames=10, deadline_s=60, server_deadline_s=60)
    package = build_package(tmp_path / "package", onnx, created_at="2026-01-01T00:00:00.000Z", probation=probation)
    release = updates.publish(package)
    config = write_config(
        tmp_path / "device", port=broker.port, cameras=ENDLESS, overrides={"update": {"trusted_root": "root.json"}}
    )
    with SiteServer(broker.host, broker.port, updates=updates) as server, AgentProcess(config) as agent:
        server.wait(lambda: bool(server.health), "health")
        assert server.health[-1].model_digest not in {"", package.digest}
        assert agent.process is not None
        pid = agent.process.pid
        server.offer("cam-01", updates.job(package, release))
        server.wait(lambda: any(report.state == "committed" for report in server.reports), "the committed report", 60)
        assert server.reports[-1].running_digest == package.digest
        server.wait(lambda: server.health[-1].model_digest == package.digest, "health with the new model")
        server.wait(lambda: server.status[-1].model_digest == package.digest, "status with the new model")
        assert agent.process.poll() is None
        assert agent.process.pid == pid


def test_without_a_model_only_frames_that_the_server_asks_for_are_sent_and_it_is_told(
    broker: Mosquitto, tmp_path: Path
) -> None:
    (tmp_path / "root.json").write_bytes(UpdateServer().root)
    overrides = {"update": {"trusted_root": "root.json"}, "model": {"factory": None}}
    config = write_config(tmp_path, port=broker.port, cameras=ENDLESS, overrides=overrides)
    with SiteServer(broker.host, broker.port) as server, AgentProcess(config) as agent:
        server.wait(lambda: len(server.health) > 3, "health")
        assert "no model yet" in str(server.health[-1].extra["trouble"])
        assert "none goes before the server asks" in str(server.health[-1].extra["trouble"])
        assert server.health[-1].frames_selected == 0
        assert not server.frames
        server.desire("cam-01", 1, 3)
        server.wait(lambda: len(server.frames) == 3, "the frames that were asked for", 60)
        server.wait(lambda: server.health[-1].frames_committed == 3, "health that counts them")
        assert server.health[-1].frames_scored == 0
        assert server.health[-1].model_digest == ""
        assert "none goes before" not in str(server.health[-1].extra["trouble"])
        assert "no model yet" in agent.log


def test_a_missing_camera_is_named_in_health_and_the_other_one_works(broker: Mosquitto, tmp_path: Path) -> None:
    cameras = ENDLESS + '\n[[cameras]]\nname = "yard"\nsource = "rtsp://user:secret@127.0.0.1:1/stream"'
    config = write_config(tmp_path, port=broker.port, cameras=cameras)
    with SiteServer(broker.host, broker.port) as server, AgentProcess(config) as agent:
        server.wait(
            lambda: (
                bool(server.health)
                and "does not answer" in server.health[-1].cameras["yard"]
                and server.health[-1].cameras["gate"] == "ok"
            ),
            "cameras in health",
        )
        assert "does not answer" in agent.log
        assert "secret" not in agent.log


def test_a_wrong_password_is_said_once_and_the_agent_keeps_trying(
    start_broker: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    broker = start_broker(users={"cam-01": "right", "server": "s"})
    (tmp_path / "password").write_text("wrong\n")
    (tmp_path / "password").chmod(0o600)
    config = write_config(tmp_path, port=broker.port, cameras=ENDLESS, overrides={"broker": {"password_file": "password"}})
    with SiteServer(broker.host, broker.port, username="server", password="s") as server, AgentProcess(config) as agent:
        server.wait(lambda: "refuses device cam-01" in agent.log, "the refusal in the log")
        assert agent.process is not None
        assert agent.process.poll() is None
        assert "wrong" not in agent.log.replace("wrong_", "")
        broker.reload(users={"cam-01": "wrong", "server": "s"})
        server.wait(lambda: bool(server.health), "health once the password fits")
        assert "Traceback" not in agent.log


def test_an_absent_broker_does_not_stop_the_agent_from_filling_its_spool(tmp_path: Path) -> None:
    port = free_port()
    config = write_config(tmp_path, port=port, cameras=SYNTHETIC)
    with AgentProcess(config) as agent:
        with Mosquitto(tmp_path / "late", port=port) as broker, SiteServer(broker.host, port) as server:
            server.wait(lambda: len(server.frames) == 15, "all frames, late", 60)
        assert "Traceback" not in agent.log


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "is empty"), (b"not a model at all", "model.onnx")],
    ids=["zero bytes", "not a model"],
)
def test_a_factory_model_that_is_none_ends_with_a_clear_message(tmp_path: Path, content: bytes, says: str) -> None:
    config = write_config(tmp_path, port=free_port(), cameras=SYNTHETIC)
    (tmp_path / "model.onnx").write_bytes(content)
    with AgentProcess(config) as agent:
        assert agent.wait() == 1
        assert says in agent.log
        assert "Traceback" not in agent.log


def test_a_full_disk_is_counted_and_told_and_the_agent_goes_on(broker: Mosquitto, tmp_path: Path) -> None:
    config = write_config(tmp_path, port=broker.port, cameras=ENDLESS, overrides={"spool": {"min_free_bytes": 10**15}})
    with SiteServer(broker.host, broker.port) as server, AgentProcess(config) as agent:
        server.wait(
            lambda: bool(server.health) and bool(server.health[-1].extra.get("failures", {}).get("store_refused")), "refusals"
        )
        seen = server.health[-1].frames_seen
        server.wait(lambda: server.health[-1].frames_seen > seen, "more frames")
        assert server.health[-1].extra["trouble"]
        assert "Traceback" not in agent.log
