"""Detections for the site's own use, over a real broker with the access rules that the server would write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bowerbird_server.broker.embedded import BrokerAddress, access_rules
from bowerbird_testing.agent_process import AgentProcess, write_config
from bowerbird_testing.broker import Mosquitto
from bowerbird_testing.mqtt_device import MqttDevice, wait_until
from bowerbird_testing.site_server import SiteServer
from bowerbird_wire.local_detections import from_json
from bowerbird_wire.topics import DetectionsTopic, parse_topic

pytestmark = pytest.mark.broker

CAMERAS = """\
[[cameras]]
name = "gate"
source = "synthetic:?seed=1&fps=5"
fps = 30
[[cameras]]
name = "yard"
source = "synthetic:?seed=2&fps=5"
fps = 30
"""


def test_what_the_model_sees_reaches_the_sites_programs_and_frames_still_arrive(
    start_broker: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    rules = access_rules({"cam-01": "demo"}, readers={"barrier": "demo", "stranger": "other"})
    broker = start_broker(
        users={"cam-01": "device", "bowerbird-server": "server", "barrier": "reader", "stranger": "other"}, acl=rules
    )
    (tmp_path / "password").write_text("device\n")
    (tmp_path / "password").chmod(0o600)
    overrides = {"publish": {"detections": True, "max_per_s": 4}, "broker": {"password_file": "password"}}
    config = write_config(tmp_path, port=broker.port, cameras=CAMERAS, overrides=overrides)
    reader = BrokerAddress(broker.host, broker.port, "barrier", "reader")
    stranger = BrokerAddress(broker.host, broker.port, "stranger", "other")
    with (
        SiteServer(broker.host, broker.port, username="bowerbird-server", password="server") as server,
        MqttDevice(reader, "barrier") as site,
        MqttDevice(stranger, "stranger") as outsider,
    ):
        site.subscribe("#")
        outsider.subscribe("#")
        with AgentProcess(config) as agent:
            wait_until(lambda: len(site.messages) >= 20, "detections")
            server.wait(lambda: len(server.frames) >= 5, "frames")
            server.wait(lambda: server.health[-1].extra.get("published", {}).get("detections", 0) >= 20, "the count in health")
            health = server.health[-1]
            assert agent.terminate()[0] == 0
    topics = {parse_topic(topic) for topic, _, _ in site.messages}
    assert topics == {DetectionsTopic("demo", "cam-01", "gate"), DetectionsTopic("demo", "cam-01", "yard")}
    messages = [from_json(payload) for _, payload, _ in site.messages]
    assert {message.model_digest for message in messages} == {health.model_digest}
    assert {(message.width, message.height) for message in messages} == {(320, 240)}
    assert any(box.score >= 0.25 for message in messages for box in message.detections)
    assert all(box.score >= 0.25 for message in messages for box in message.detections)
    for camera in ("gate", "yard"):
        sequences = [message.sequence for message in messages if message.camera == camera]
        assert sequences == sorted(set(sequences)), "in order, each once"
    assert outsider.messages == []
    assert health.bytes_sent > sum(len(payload) for _, payload, _ in site.messages[:20])


def test_without_bytes_to_spare_frames_go_first_and_detections_are_dropped(broker: Mosquitto, tmp_path: Path) -> None:
    overrides = {
        "publish": {"detections": True, "max_per_s": 20},
        "budget": {"bytes_per_s": 8_000.0, "burst_bytes": 60_000},
        "accounting": {"encode_everything": False},
    }
    config = write_config(tmp_path, port=broker.port, cameras=CAMERAS, overrides=overrides)
    with SiteServer(broker.host, broker.port) as server, AgentProcess(config):
        server.wait(lambda: bool(server.health) and "dropped" in server.health[-1].extra.get("published", {}), "health")
        server.wait(lambda: server.health[-1].extra["published"]["dropped"] > 50, "dropped detections")
        before = len(server.frames)
        server.wait(lambda: len(server.frames) >= before + 3, "frames in spite of them", 60)


def test_a_link_that_comes_back_brings_no_old_detections(tmp_path: Path, start_broker: Callable[..., Mosquitto]) -> None:
    broker = start_broker()
    config = write_config(
        tmp_path, port=broker.port, cameras=CAMERAS, overrides={"publish": {"detections": True, "max_per_s": 2}}
    )
    address = BrokerAddress(broker.host, broker.port)
    with AgentProcess(config):
        with MqttDevice(address, "barrier") as site:
            site.subscribe(DetectionsTopic.filter("demo"))
            wait_until(lambda: len(site.messages) >= 2, "detections")
            last = max(from_json(payload).sequence for _, payload, _ in site.messages)
        broker.stop()
        broker.start()
        with MqttDevice(address, "barrier") as site:
            site.subscribe(DetectionsTopic.filter("demo"))
            wait_until(lambda: len(site.messages) >= 4, "detections again")
            found = [from_json(payload) for _, payload, _ in site.messages]
            for camera in ("gate", "yard"):
                sequences = [message.sequence for message in found if message.camera == camera]
                assert all(sequence > last for sequence in sequences)
                assert sequences == sorted(set(sequences))
