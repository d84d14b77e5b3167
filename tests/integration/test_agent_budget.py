"""What a real agent spends over a real broker: counted by kind, told in health, held back in quiet hours."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bowerbird_agent.budget.budget import ByteLimits
from bowerbird_agent.budget.budget_note import BUDGET_NOTE, restore_budget
from bowerbird_agent.spool.spool import Spool
from bowerbird_models.manifest import Probation
from bowerbird_models.package import build_package
from bowerbird_testing.agent_process import UNSURE_BOXES, AgentProcess, write_config
from bowerbird_testing.broker import Mosquitto, free_port
from bowerbird_testing.mqtt_device import wait_until
from bowerbird_testing.site_server import SiteServer
from bowerbird_testing.tiny_yolo import TinyBox, write_tiny_yolo
from bowerbird_testing.update_server import UpdateServer

pytestmark = pytest.mark.broker

CAMERAS = '[[cameras]]\nname = "gate"\nsource = "synthetic:?seed=1&fps=5"\nfps = 30\n'


def test_every_byte_is_told_by_kind_and_what_day_and_month_have_cost(broker: Mosquitto, tmp_path: Path) -> None:
    caps = {"bytes_per_day": 50_000_000, "bytes_per_month": 900_000_000}
    config = write_config(tmp_path, port=broker.port, cameras=CAMERAS, overrides={"budget": caps})
    with SiteServer(broker.host, broker.port) as server, AgentProcess(config) as agent:
        server.wait(lambda: len(server.frames) >= 8, "frames")
        server.wait(lambda: "h" in server.health[-1].extra["spent"], "health among what was spent")
        images = sum(len(frame.image) for frame in server.frames.values())

        def of_frames() -> int:
            # Whole or in chunks: what the agent believes of the link decides.
            return sum(server.health[-1].extra["spent"].get(letter, 0) for letter in "fc")

        server.wait(lambda: of_frames() > images, "more bytes than the images have")
        health = server.health[-1]
        assert agent.terminate()[0] == 0
    spent = health.extra["spent"]
    assert {"h", "k"} < set(spent) <= {"f", "c", "o", "h", "k"}
    assert sum(spent.values()) >= health.bytes_sent + health.bytes_received
    day, day_cap, month, month_cap = health.extra["uplink"]["total"]
    assert (day_cap, month_cap) == (50_000_000, 900_000_000)
    assert day == month > images


def test_with_the_day_used_up_frames_and_health_stop_below_the_cap_and_the_agent_goes_on(
    broker: Mosquitto, tmp_path: Path
) -> None:
    cap, port = 120_000, free_port()
    overrides = {"budget": {"bytes_per_day": cap}, "health": {"interval_s": 0.2}, "metrics": {"listen": f"127.0.0.1:{port}"}}
    config = write_config(tmp_path, port=broker.port, cameras=CAMERAS, overrides=overrides)
    # A day of which two thirds are spent: by itself the agent would spread its frames over all of it.
    before = Spool(tmp_path / "state" / "spool", max_bytes=500_000_000)
    spent = restore_budget(before, ByteLimits(bytes_per_day=cap), 0.0)
    spent.charge(0.0, int(0.65 * cap))
    before.set_note(BUDGET_NOTE, json.dumps(spent.to_state()))
    before.close()

    def told(name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        return next(s.value for family in families for s in family.samples if s.name == f"bowerbird_agent_{name}")

    with SiteServer(broker.host, broker.port) as server, AgentProcess(config) as agent:
        server.wait(lambda: bool(server.health) and bool(server.frames), "a frame and health")
        wait_until(lambda: told("budget_spent_bytes") > 0.93 * cap, "the day to be used up", 60)
        seen, heard = told("frames_seen_total"), len(server.health)
        wait_until(lambda: told("frames_seen_total") > seen + 90, "three seconds of frames")
        assert len(server.health) <= heard + 5, "health came every 0.2 s before"
        assert told("connected") == 1
        assert agent.terminate()[0] == 0
    spool = Spool(tmp_path / "state" / "spool", max_bytes=500_000_000)
    budget = restore_budget(spool, ByteLimits(bytes_per_day=cap), 0.0)
    spool.close()
    assert 0.93 * cap < budget.total.spent_today_bytes(0.0) <= cap


def test_in_quiet_hours_control_goes_and_a_model_and_frames_wait_for_their_end(broker: Mosquitto, tmp_path: Path) -> None:
    updates = UpdateServer()
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / "root.json").write_bytes(updates.root)
    onnx = write_tiny_yolo(tmp_path / "new.onnx", boxes=(*UNSURE_BOXES, TinyBox((30, 2, 60, 20), 1, 0.8)))
    probation = Probation(good_frames=10, deadline_s=60, server_deadline_s=60)
    package = build_package(tmp_path / "package", onnx, created_at="2026-01-01T00:00:00.000Z", probation=probation)
    release = updates.publish(package)
    config = write_config(
        tmp_path / "device", port=broker.port, cameras=CAMERAS, overrides={"update": {"trusted_root": "root.json"}}
    )
    loud = config.read_text()
    config.write_text(loud.replace("[budget]\n", '[budget]\nquiet_hours = ["00:00-24:00"]\n'))
    with SiteServer(broker.host, broker.port, updates=updates) as server, AgentProcess(config) as agent:
        server.wait(
            lambda: bool(server.health) and server.health[-1].extra.get("uplink", {}).get("quiet") is True, "quiet in health"
        )
        server.offer("cam-01", updates.job(package, release))
        server.wait(lambda: "waits for the byte budget or for the end of quiet hours" in agent.log, "the download to wait")
        server.wait(lambda: server.health[-1].spool.get("new", 0) > 0, "a frame in the spool")
        assert not server.frames
        config.write_text(loud)
        agent.hang_up()
        server.wait(lambda: bool(server.frames), "frames after the quiet hours")
        server.wait(lambda: any(report.state == "committed" for report in server.reports), "the committed report", 60)
        server.wait(lambda: server.health[-1].extra["spent"].get("b", 0) > 1000, "the model among what was spent")
        assert "quiet" not in server.health[-1].extra.get("uplink", {})
