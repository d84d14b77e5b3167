"""Drift through a real broker: hours from devices to the catalogue, more exploration from there to the devices."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bowerbird_server.broker.address import BrokerAddress
from bowerbird_server.catalogue import Catalogue, config_changes, drift_rows, fleet
from bowerbird_server.drift.verdicts import Distance, Verdict
from bowerbird_server.fleet import delivery
from bowerbird_server.layout import DataFolder
from bowerbird_server.releases.repository import Repository
from bowerbird_testing.agent_process import AgentProcess, write_config
from bowerbird_testing.broker import Mosquitto
from bowerbird_testing.drifting_camera import DriftingCamera
from bowerbird_testing.mqtt_device import MqttDevice, wait_until
from bowerbird_wire.codec import decode, encode
from bowerbird_wire.histograms import Histograms
from bowerbird_wire.messages import Desired
from bowerbird_wire.topics import DesiredTopic, HistogramsTopic

pytestmark = pytest.mark.broker

# Frames five minutes apart, three hours of them, as fast as they can be looked at; and a camera that goes on.
FILM = '[[cameras]]\nname = "gate"\nsource = "synthetic:?seed=3&frames=36&fps=0.00333333"\npace = "fast"\n'


class Server:
    """Delivery of a real data folder, against the test's broker, and the test's own look at the catalogue."""

    def __init__(self, root: Path, broker: Mosquitto) -> None:
        self.folder = DataFolder(root).make()
        Repository(self.folder.repository, self.folder.keys).create("automatic")
        self.cat = Catalogue(self.folder.catalogue)
        for device in ("cam-01", "cam-02"):
            fleet.add_device(self.cat, device, "demo", "test")
        self.address = BrokerAddress(broker.host, broker.port)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=delivery.run, args=(self.folder, self.address, self.stop))
        self.thread.start()

    def close(self) -> None:
        self.stop.set()
        self.thread.join(20)
        self.cat.close()
        assert not self.thread.is_alive()


@pytest.fixture
def server(tmp_path: Path, broker: Mosquitto) -> Iterator[Server]:
    made = Server(tmp_path / "data", broker)
    yield made
    made.close()


def test_an_agents_hours_are_counted_whole_and_it_explores_more_while_it_is_told_to(
    server: Server, broker: Mosquitto, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "agent", port=broker.port, cameras=FILM)
    cat = server.cat

    def boost() -> object:
        return fleet.get(cat, "cam-01")["health"].get("extra", {}).get("boost")

    # A camera that is known: one that is new would be boosted for that.
    drift_rows.note_new_camera(cat, fleet.touch_camera(cat, "cam-01", "gate"), boost_until_ms=0, factor=1.0)
    with AgentProcess(config) as agent:
        wait_until(
            lambda: cat.value("SELECT sum(frames) FROM camera_hour WHERE camera = 'cam-01/gate'") == 36, "every frame", 180
        )
        wait_until(lambda: len(drift_rows.verdicts(cat, "cam-01/gate")) >= 3, "what is said of each hour", 30)
        assert boost() is None
        series = drift_rows.Series("cam-01/gate", "ab" * 8, 5)
        verdict = Verdict("drifted", "content", {"scores": Distance(1.0, 0.5, 0.25, 0.1)})
        until_ms = int(time.time() * 1000) + 3_600_000
        drift_rows.open_episode(cat, series, verdict, "2026-01-01", "2026-01-02", boost_until_ms=until_ms, factor=2.0)
        wait_until(lambda: boost() == {"factor": 2.0, "until_ms": until_ms, "cameras": ["gate"]}, "the boost", 90)
        assert drift_rows.stop_boost(cat, "cam-01", "anna") == 1
        wait_until(lambda: boost() is None, "the end of the boost", 90)
        agent.terminate()
        before = cat.value("SELECT sum(frames) FROM camera_hour")
        agent.start()  # the film runs again: its frames were counted before
        wait_until(lambda: agent.log.count("connected to the broker") == 2, "the second start", 30)
        time.sleep(1.0)
        assert cat.value("SELECT sum(frames) FROM camera_hour") == before
    assert "Traceback" not in agent.log


def test_a_drift_on_the_wire_becomes_a_retained_wish(server: Server) -> None:
    camera = DriftingCamera()
    topic, wish = str(HistogramsTopic("demo", "cam-02")), str(DesiredTopic("demo", "cam-02"))
    with MqttDevice(server.address, "cam-02") as device:
        for number in range(50):
            hour = camera.hour(number, score_shift=-0.35 if number >= 48 else 0.0)
            device.publish(topic, encode(Histograms((hour,))))
        device.publish(topic, b"\xa1\x00")

        def boosted() -> bool:
            wishes = [decode(Desired, payload) for at, payload, _ in device.messages if at == wish]
            return bool(wishes) and wishes[-1].boost is not None and wishes[-1].boost.factor == 2.0

        wait_until(boosted, "the wish for more exploration", 30)
        # A camera that was never heard of is explored more at once; the drift comes with its last hours.
        wait_until(lambda: bool(drift_rows.episodes(server.cat)), "the episode", 30)
    (episode,) = drift_rows.episodes(server.cat)
    assert (episode["camera"], episode["cause"]) == ("cam-02/gate", "content")


def test_a_policy_in_dry_run_is_set_from_afar_counted_beside_the_one_in_force_and_ended_again(
    server: Server, broker: Mosquitto, tmp_path: Path
) -> None:
    overrides = {"remote": {"probation_s": 5}, "selection": {"window_frames": 20, "frames_per_window": 3}}
    camera = '[[cameras]]\nname = "gate"\nsource = "synthetic:?seed=1&fps=5"\nfps = 30\n'
    config = write_config(tmp_path / "agent", port=broker.port, cameras=camera, overrides=overrides)
    cat = server.cat

    def tried() -> dict[str, int]:
        return dict(fleet.get(cat, "cam-01")["health"].get("extra", {}).get("dry_run", {}))

    with AgentProcess(config) as agent:
        wait_until(lambda: fleet.get(cat, "cam-01")["health"] != {}, "health", 60)
        assert tried() == {}
        document = {"dry_run": {"template": "random_audit", "window_frames": 20, "frames_per_window": 3}}
        config_changes.change(cat, ["cam-01"], {"set": document}, "anna")
        wait_until(lambda: tried().get("chosen", 0) >= 6 and tried().get("in_force", 0) >= 3, "two windows", 60)
        found = tried()
        assert found["explore"] == found["chosen"], "all by chance"
        assert found["bytes"] > 0
        wait_until((tmp_path / "agent" / "state" / "decisions-dry").is_dir, "the log of its decisions", 30)
        config_changes.change(cat, ["cam-01"], {"unset": ["dry_run"]}, "anna")
        wait_until(lambda: tried() == {}, "the end of the trial", 60)
    assert "Traceback" not in agent.log
