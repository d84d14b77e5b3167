"""Configuration and campaigns from afar, with a real agent, a real broker and, for campaigns, the real server's processes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bowerbird_server.broker.embedded import BrokerAddress
from bowerbird_server.catalogue import Catalogue, campaigns, config_changes, device_config, fleet
from bowerbird_server.catalogue.campaigns import Condition
from bowerbird_server.fleet import delivery
from bowerbird_server.ingest import ingest
from bowerbird_server.layout import DataFolder
from bowerbird_server.releases.repository import Repository
from bowerbird_testing.agent_process import AgentProcess, write_config
from bowerbird_testing.broker import Mosquitto, free_port
from bowerbird_testing.mqtt_device import wait_until
from bowerbird_testing.site_server import SiteServer
from bowerbird_wire.messages import Campaign, Desired, Reported

pytestmark = pytest.mark.broker


def camera(name: str, seed: int = 1, fps: int = 30) -> str:
    return f'[[cameras]]\nname = "{name}"\nsource = "synthetic:?seed={seed}&fps=5"\nfps = {fps}\n'


DEAD = f'[[cameras]]\nname = "dead"\nsource = "rtsp://127.0.0.1:{free_port()}/x"\n'


def said(server: SiteServer, **wanted: Any) -> bool:
    return any(all(getattr(each, key) == value for key, value in wanted.items()) for each in server.reported[-1:])


def test_a_wish_is_applied_without_a_restart_and_one_with_faults_is_refused_with_all_its_reasons(
    broker: Mosquitto, tmp_path: Path
) -> None:
    overrides = {"budget": {"bytes_per_day": 50_000_000}, "remote": {"probation_s": 5}}
    config = write_config(tmp_path, port=broker.port, cameras=camera("gate") + camera("yard", 2), overrides=overrides)
    with SiteServer(broker.host, broker.port) as server, AgentProcess(config) as agent:
        server.wait(lambda: bool(server.health) and server.health[-1].frames_seen > 0, "frames")
        assert agent.process is not None
        pid = agent.process.pid
        document = {
            "selection": {"frames_per_window": 0, "epsilon": 0.0},
            "budget": {"bytes_per_day": 10_000_000},
            "cameras": {"yard": {"enabled": False}, "gate": {"fps": 10}},
            "log": {"level": "warning"},
        }
        server.wish("cam-01", Desired(0, config_version=1, config=document))
        server.wait(lambda: said(server, config_version=1, in_force=1, state="trial"), "the trial")
        server.wait(lambda: set(server.health[-1].cameras) == {"gate"}, "the camera that was switched off to be gone")
        server.wait(lambda: server.health[-1].extra.get("uplink", {}).get("total", [0, 0])[1] == 10_000_000, "the new cap")
        server.wait(lambda: said(server, config_version=1, in_force=1, state="in_force"), "the end of the trial")
        assert "in force for good" not in agent.log, "that is told at level info"

        bad = {"budget": {"bytes_per_day": 60_000_000}, "log": {"level": "loud"}, "broker": {"host": "evil.example"}}
        server.wish("cam-01", Desired(0, config_version=2, config=bad))
        server.wait(lambda: said(server, config_version=2, in_force=1, state="refused"), "the refusal")
        faults = "\n".join(server.reported[-1].faults)
        for part in (
            "budget.bytes_per_day: is 60000000; agent.toml allows at most 50000000",
            "log: level is",
            "broker: cannot",
        ):
            assert part in faults
        assert server.health[-1].extra["uplink"]["total"][1] == 10_000_000
        assert agent.process.pid == pid
        assert agent.process.poll() is None
        assert agent.log.count("runs now") == 1
    assert "Traceback" not in agent.log


def test_a_wish_survives_a_kill_and_one_that_came_while_the_device_was_off_is_taken_up(
    broker: Mosquitto, tmp_path: Path
) -> None:
    config = write_config(tmp_path, port=broker.port, cameras=camera("gate"), overrides={"remote": {"probation_s": 5}})
    with SiteServer(broker.host, broker.port) as server, AgentProcess(config) as agent:
        server.wait(lambda: bool(server.health), "health")
        server.wish("cam-01", Desired(0, config_version=1, config={"health": {"interval_s": 0.4}}))
        server.wait(lambda: said(server, config_version=1, state="in_force"), "the first wish")
        agent.kill()
        # Two changes in a row while it is off: the retained message is the newest, and the older one never comes.
        server.wish("cam-01", Desired(0, config_version=2, config={"log": {"level": "error"}}))
        server.wish("cam-01", Desired(0, config_version=3, config={"log": {"level": "debug"}}))
        agent.start()
        server.wait(lambda: said(server, config_version=3, in_force=3, state="in_force"), "the newest wish")
        agent.kill()
        agent.start()
        # One that is older than what the device has is ignored, as after a restored server.
        server.wish("cam-01", Desired(0, config_version=2, config={"log": {"level": "error"}}))
        count = len(server.reported)
        server.wait(lambda: len(server.reported) > count, "the report after the new start")
        assert server.reported[-1].config_version == 3
        assert server.reported[-1].state == "in_force"
        assert agent.log.count("configuration 3 of the server is on trial") == 1
    assert "configuration 2 of the server" not in agent.log


def test_a_wish_that_leaves_no_camera_is_taken_back_by_the_device_itself(broker: Mosquitto, tmp_path: Path) -> None:
    overrides = {"remote": {"probation_s": 6}}
    config = write_config(tmp_path, port=broker.port, cameras=camera("gate") + DEAD, overrides=overrides)
    with SiteServer(broker.host, broker.port) as server, AgentProcess(config) as agent:
        server.wait(lambda: bool(server.health) and server.health[-1].cameras.get("gate") == "ok", "the good camera")
        server.wish("cam-01", Desired(0, config_version=1, config={"log": {"level": "debug"}}))
        server.wait(lambda: said(server, config_version=1, state="in_force"), "a good wish")
        server.wish("cam-01", Desired(0, config_version=2, config={"cameras": {"gate": {"enabled": False}}}))
        server.wait(lambda: "gate" not in server.health[-1].cameras, "the camera to go")
        server.wait(lambda: said(server, config_version=2, in_force=1, state="fell_back"), "the way back")
        assert "no camera gives pictures" in server.reported[-1].faults[0]
        server.wait(lambda: server.health[-1].cameras.get("gate") == "ok", "the camera to be back")
        assert agent.terminate()[0] == 0
        agent.start()
        count = len(server.reported)
        server.wait(lambda: len(server.reported) > count, "the report after a restart")
        assert (server.reported[-1].state, server.reported[-1].in_force) == ("fell_back", 1)


def test_a_process_that_ends_again_and_again_on_trial_goes_back_to_the_configuration_before(
    broker: Mosquitto, tmp_path: Path
) -> None:
    config = write_config(tmp_path, port=broker.port, cameras=camera("gate"), overrides={"remote": {"probation_s": 600}})
    with SiteServer(broker.host, broker.port) as server, AgentProcess(config) as agent:
        server.wait(lambda: bool(server.health), "health")
        server.wish("cam-01", Desired(0, config_version=1, config={"log": {"level": "debug"}}))
        server.wait(lambda: said(server, config_version=1, state="trial"), "the trial")
        for _ in range(2):
            agent.kill()
            agent.start()
            count = len(server.reported)
            server.wait(lambda n=count: len(server.reported) > n, "a report")  # type: ignore[misc]
        server.wait(lambda: said(server, config_version=1, in_force=0, state="fell_back"), "the way back")
        assert "ended 2 times" in server.reported[-1].faults[0]


class Servers:
    """Delivery and ingest of a real data folder, against the test's broker."""

    def __init__(self, root: Path, broker: Mosquitto, devices: tuple[str, ...]) -> None:
        self.folder = DataFolder(root).make()
        Repository(self.folder.repository, self.folder.keys).create("automatic")
        self.cat = Catalogue(self.folder.catalogue)
        for device in devices:
            fleet.add_device(self.cat, device, "demo", "test")
        self.stop = threading.Event()
        address = BrokerAddress(broker.host, broker.port)
        self.threads = [
            threading.Thread(target=run, args=(self.folder, address, self.stop)) for run in (delivery.run, ingest.run)
        ]

    def count(self, campaign: str) -> int:
        return int(campaigns.get(self.cat, campaign)["frames_received"])


@contextmanager
def servers(root: Path, broker: Mosquitto, devices: tuple[str, ...]) -> Iterator[Servers]:
    made = Servers(root, broker, devices)
    for thread in made.threads:
        thread.start()
    try:
        yield made
    finally:
        made.stop.set()
        for thread in made.threads:
            thread.join(20)
        made.cat.close()


def test_a_change_goes_from_the_catalogue_to_the_device_and_its_answer_comes_back(broker: Mosquitto, tmp_path: Path) -> None:
    overrides = {"remote": {"probation_s": 5}}
    config = write_config(tmp_path / "a", port=broker.port, cameras=camera("gate"), overrides=overrides)
    with servers(tmp_path / "data", broker, ("cam-01",)) as server, AgentProcess(config) as agent:
        change = config_changes.change(server.cat, ["cam-01"], {"set": {"log": {"level": "debug"}}}, "anna")
        wait_until(lambda: device_config.show(server.cat, "cam-01")["state"] == "in_force", "the change", 60)
        wait_until(lambda: config_changes.get_change(server.cat, change)["state"] == "completed", "the change to be over", 20)
        bad = config_changes.change(server.cat, ["cam-01"], {"set": {"log": {"level": "loud"}}}, "anna")
        wait_until(
            lambda: config_changes.get_change(server.cat, bad)["state"] == "paused", "the refusal to pause the change", 20
        )
        shown = device_config.show(server.cat, "cam-01")
        assert (shown["state"], shown["version"], shown["in_force"]) == ("refused", 2, 1)
        assert device_config.document_in_force(server.cat, "cam-01") == {"log": {"level": "debug"}}
        events = [(row["actor"], row["kind"]) for row in server.cat.rows("SELECT * FROM event ORDER BY id")]
        for event in (
            ("anna", "configuration wished"),
            ("cam-01", "configuration in force"),
            ("cam-01", "configuration refused"),
        ):
            assert event in events
    assert "Traceback" not in agent.log


def test_two_devices_bring_exactly_the_campaigns_quota_beside_their_policy(broker: Mosquitto, tmp_path: Path) -> None:
    """Both have a policy that sends nothing of its own here; a kill in between loses and doubles nothing."""
    quiet = {"selection": {"window_frames": 100_000, "epsilon": 0.0, "cold_epsilon": 0.0}}
    names = ("cam-01", "cam-02")
    with servers(tmp_path / "data", broker, names) as server:
        campaign = campaigns.start(
            server.cat,
            frames=21,
            size_bytes=20_000_000,
            until=datetime.now(UTC) + timedelta(hours=1),
            condition=Condition(at_least=0.1, gap_s=0.2),
            actor="anna",
            everyone=True,
        )
        agents = []
        for number, name in enumerate(names):
            overrides = {**quiet, "device": {"id": name}}
            config = write_config(tmp_path / name, port=broker.port, cameras=camera("gate", number), overrides=overrides)
            agents.append(AgentProcess(config).start())
        try:
            wait_until(lambda: server.count(campaign) >= 5, "the first frames", 60)
            agents[0].kill()
            agents[0].start()
            wait_until(lambda: campaigns.get(server.cat, campaign)["state"] == "finished", "the quota", 90)
            wait_until(
                lambda: all(
                    device_config.standing(server.cat, name)["campaigns_version"]
                    == device_config.reported_of(server.cat, name).get("campaigns_version")
                    for name in names
                ),
                "both devices to know that it is over",
                20,
            )
            row = campaigns.get(server.cat, campaign)
            found = server.cat.rows("SELECT device, arm, reason FROM frame")
            lost = sum(share["frames_taken"] for share in row["shares"]) - row["frames_received"]
            assert row["frames_received"] == 21 == len(found)
            assert lost == 0
            assert {frame["arm"] for frame in found} == {"campaign"}
            assert all(frame["reason"].split(",")[0] == f"campaign:{campaign}" for frame in found)
            by_device = Counter(frame["device"] for frame in found)
            assert set(by_device) == set(names)
            assert row["bytes_received"] <= 20_000_000
        finally:
            for agent in agents:
                agent.kill()
        assert all("Traceback" not in agent.log for agent in agents)


def test_a_campaign_ends_by_itself_on_a_device_whose_server_is_gone(broker: Mosquitto, tmp_path: Path) -> None:
    quiet = {"selection": {"window_frames": 100_000, "epsilon": 0.0, "cold_epsilon": 0.0}}
    config = write_config(tmp_path, port=broker.port, cameras=camera("gate"), overrides=quiet)
    with SiteServer(broker.host, broker.port) as server, AgentProcess(config) as agent:
        server.wait(lambda: bool(server.health) and server.health[-1].frames_seen > 0, "frames")
        until_ms = int((datetime.now(UTC) + timedelta(seconds=8)).timestamp() * 1000)
        wished = (Campaign("c1", 1000, 100_000_000, until_ms, at_least=0.1, gap_s=0.5), Campaign("../x", 1, 1, until_ms))
        server.wish("cam-01", Desired(0, campaigns_version=1, campaigns=wished))
        server.wait(lambda: bool(server.frames), "a frame of the campaign")
        server.wait(lambda: any("../x" in each.campaign_faults for each in server.reported), "the refusal of the other")
        server.wait(lambda: datetime.now(UTC).timestamp() * 1000 > until_ms + 1000, "the end")
        server.wait(lambda: server.health[-1].frames_committed == server.health[-1].frames_selected, "every receipt")
        count, seen = len(server.frames), server.health[-1].frames_seen
        server.wait(lambda: server.health[-1].frames_seen > seen + 30, "more frames")
        assert len(server.frames) == count
        assert count < 1000
        assert all(frame.header.arm == "campaign" for frame in server.frames.values())
        assert isinstance(server.reported[-1], Reported)
    assert "Traceback" not in agent.log
