"""`bowerbird-agent run` as a process: what is redacted stays so over a real broker, and a wish to forget is obeyed."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from bowerbird_agent.capture.framing import FILL_GRAY
from bowerbird_agent.config import read_config
from bowerbird_agent.doctor.doctor import FAIL, examine
from bowerbird_testing.agent_process import AgentProcess, write_config
from bowerbird_testing.broker import Mosquitto, free_port
from bowerbird_testing.site_server import SiteServer
from bowerbird_testing.tiny_yolo import TinyBox, write_tiny_yolo
from bowerbird_wire.messages import EraseWish

pytestmark = pytest.mark.broker

REDACTED = """[[cameras]]
name = "gate"
source = "synthetic:?seed=1&frames=120&fps=5"
pace = "fast"
redact = {{ classes = ["{}"], margin = 0.0 }}"""
ENDLESS = '[[cameras]]\nname = "gate"\nsource = "synthetic:?seed=1&fps=5"\nfps = 60'
EVERYTHING = EraseWish("wish-1", "gate", 0, 2**52)


def test_every_frame_that_the_server_gets_is_redacted_where_its_header_says(broker: Mosquitto, tmp_path: Path) -> None:
    write_tiny_yolo(tmp_path / "model.onnx", boxes=(TinyBox((10, 10, 40, 50), 0, 0.45),), class_names=("person", "car"))
    config = write_config(tmp_path, port=broker.port, cameras=REDACTED.format("person"))
    with SiteServer(broker.host, broker.port) as server, AgentProcess(config, "--until-done") as agent:
        assert agent.wait() == 0, agent.log
        assert len(server.frames) >= 10
        for message in server.frames.values():
            shown = cv2.imdecode(np.frombuffer(message.image, np.uint8), cv2.IMREAD_COLOR)
            assert shown is not None
            assert [region.class_name for region in message.header.redacted] == ["person"]
            left, top, right, bottom = (int(edge) for edge in message.header.redacted[0].box_xyxy)
            # JPEG's colour comes in squares of 16 pixels: those at the edge mix in what is outside.
            inside = shown[top + 16 : bottom - 16, left + 16 : right - 16].astype(int)
            assert inside.size > 1000
            assert np.abs(inside - FILL_GRAY).max() <= 3


def test_a_model_that_does_not_know_the_class_sends_nothing_and_says_why(broker: Mosquitto, tmp_path: Path) -> None:
    config = write_config(tmp_path, port=broker.port, cameras=REDACTED.format("face"))
    with SiteServer(broker.host, broker.port) as server, AgentProcess(config, "--until-done") as agent:
        assert agent.wait() == 0, agent.log
        health = server.health[-1]
        assert server.frames == {}
        assert health.extra["failures"]["redaction_failures"] > 0
        assert "does not know face" in health.extra["trouble"][0]
    assert list((tmp_path / "state" / "spool" / "frames").iterdir()) == []


def test_doctor_says_so_before_a_day_without_frames(tmp_path: Path) -> None:
    config = write_config(tmp_path, port=free_port(), cameras=REDACTED.format("face"))
    (model,) = [finding for finding in examine(read_config(config), str(config)) if finding.name == "model"]
    assert model.state == FAIL
    assert "redact.classes names face" in model.advice


def test_a_wish_to_forget_empties_the_spool_and_outlives_a_kill(broker: Mosquitto, tmp_path: Path) -> None:
    """The uplink is too thin for frames, so they wait; control passes."""
    config = write_config(
        tmp_path, port=broker.port, cameras=ENDLESS, overrides={"budget": {"bytes_per_s": 1.0, "burst_bytes": 10_000}}
    )
    frames = tmp_path / "state" / "spool" / "frames"
    with SiteServer(broker.host, broker.port) as server, AgentProcess(config) as agent:
        server.wait(lambda: bool(server.health) and server.health[-1].spool.get("new", 0) >= 5, "frames that wait")
        server.desire("cam-01", 0, None, erase=(EVERYTHING,))
        server.wait(lambda: server.health[-1].extra.get("erased", {}).get("wish-1", 0) >= 5, "the answer")
        server.wait(lambda: sum(server.health[-1].spool.values()) == 0, "an empty spool")
        assert server.health[-1].extra["refused"]["erased"] >= 5
        seen = server.health[-1].frames_seen
        agent.kill()
        heard = len(server.health)
        agent.start()
        server.wait(lambda: len(server.health) > heard and server.health[-1].frames_seen > seen + 120, "two windows more")
        assert server.health[-1].extra["erased"]["wish-1"] >= 5
        assert sum(server.health[-1].spool.values()) == 0, "what comes late is not stored"
        assert list(frames.iterdir()) == []
        server.desire("cam-01", 0, None)
        server.wait(lambda: server.health[-1].spool.get("new", 0) > 0, "frames again, once the wish is taken back")
        assert "erased" not in server.health[-1].extra
