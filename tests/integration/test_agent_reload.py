"""SIGHUP, with a real agent and a real broker: what may change does, without a restart and without losing a frame."""

from __future__ import annotations

from pathlib import Path

import pytest

from bowerbird_agent.spool.spool import Spool
from bowerbird_testing.agent_process import AgentProcess, write_config
from bowerbird_testing.broker import Mosquitto
from bowerbird_testing.site_server import SiteServer

pytestmark = pytest.mark.broker


def camera(name: str, seed: int, fps: int = 60) -> str:
    return f'[[cameras]]\nname = "{name}"\nsource = "synthetic:?seed={seed}&fps=5"\nfps = {fps}\n'


def test_a_changed_file_takes_effect_camera_by_camera_and_drops_no_frame(broker: Mosquitto, tmp_path: Path) -> None:
    config = write_config(tmp_path, port=broker.port, cameras=camera("gate", 1) + camera("yard", 2))
    with SiteServer(broker.host, broker.port) as server, AgentProcess(config) as agent:
        server.wait(lambda: bool(server.health) and len(server.frames) >= 5, "frames")
        model = server.health[-1].model_digest
        assert agent.process is not None
        pid = agent.process.pid
        opened = agent.log.count("camera gate: frames of")

        overrides = {"image": {"long_side": 160}, "selection": {"window_frames": 30}, "log": {"level": "warning"}}
        write_config(tmp_path, port=broker.port, cameras=camera("gate", 1) + camera("dock", 3), overrides=overrides)
        agent.hang_up()
        server.wait(lambda: set(server.health[-1].cameras) == {"gate", "dock"}, "the cameras of the new file")
        server.wait(lambda: server.health[-1].cameras["dock"] == "ok", "the new camera")
        server.wait(
            lambda: {"gate", "dock"} <= {f.header.camera for f in server.frames.values() if f.header.width == 160},
            "smaller pictures of both cameras",
        )
        assert server.health[-1].model_digest == model
        assert "config" in server.health[-1].extra
        assert "faults" not in server.health[-1].extra["config"]
        assert agent.log.count("camera gate: frames of") == opened, "a camera whose section is the same goes on"
        assert agent.log.count("runs now") == 1, "the model was not loaded again"
        assert agent.process.poll() is None
        assert agent.process.pid == pid
        assert agent.terminate()[0] == 0
    assert " INFO " not in agent.log.split("was read again")[1], "the new level counts from then on"
    spool = Spool(tmp_path / "state" / "spool", max_bytes=500_000_000)
    ledger = spool.ledger()
    spool.close()
    assert ledger.balanced
    assert not ledger.evicted
    assert "round_over" not in ledger.dropped, "the open window was closed, its candidates were not thrown away"
    assert "Traceback" not in agent.log


def test_a_file_with_faults_changes_nothing_and_says_so(broker: Mosquitto, tmp_path: Path) -> None:
    config = write_config(tmp_path, port=broker.port, cameras=camera("gate", 1))
    good = config.read_text()
    with SiteServer(broker.host, broker.port) as server, AgentProcess(config) as agent:
        server.wait(lambda: bool(server.health), "health")
        config.write_text(good.replace("cpu_pressure = 100", 'warm_c = "high"') + "[image]\nqualty = 50\n")
        agent.hang_up()
        server.wait(lambda: "faults" in server.health[-1].extra.get("config", {}), "the faults in health")
        faults = server.health[-1].extra["config"]["faults"]
        assert any("image.qualty" in fault and "did you mean 'quality'" in fault for fault in faults)
        assert any("guard.warm_c" in fault for fault in faults)
        assert "the configuration stays as it was" in agent.log
        seen = server.health[-1].frames_seen
        server.wait(lambda: server.health[-1].frames_seen > seen, "more frames")
        config.write_text(good)
        agent.hang_up()
        server.wait(lambda: "faults" not in server.health[-1].extra["config"], "the faults to be gone")


def test_what_needs_a_restart_is_named_and_the_rest_is_applied(broker: Mosquitto, tmp_path: Path) -> None:
    config = write_config(tmp_path, port=broker.port, cameras=camera("gate", 1))
    with SiteServer(broker.host, broker.port) as server, AgentProcess(config) as agent:
        server.wait(lambda: bool(server.health), "health")
        overrides = {"device": {"id": "cam-99"}, "broker": {"keepalive_s": 99}, "health": {"interval_s": 0.2}}
        write_config(tmp_path, port=broker.port, cameras=camera("gate", 1), overrides=overrides)
        agent.hang_up()
        server.wait(lambda: "restart_needed" in server.health[-1].extra.get("config", {}), "the refusals in health")
        text = " ".join(server.health[-1].extra["config"]["restart_needed"])
        assert "device.id" in text
        assert "broker.keepalive_s" in text
        assert "restart it" in agent.log
        assert "health" in agent.log.split("read again: ")[1].splitlines()[0]


def _is_over(server: SiteServer) -> bool:
    """The film has ended, and no frame of it waits for the model any more: two health messages say the same."""
    last = server.health[-2:]
    same = len(last) == 2 and last[0].frames_seen == last[1].frames_seen
    return same and all(health.cameras == {"gate": "finished"} for health in last)


def test_a_camera_that_is_changed_begins_anew_and_counts_no_frame_twice(broker: Mosquitto, tmp_path: Path) -> None:
    film = '[[cameras]]\nname = "gate"\nsource = "synthetic:?seed=1&frames=400&fps=5"\npace = "fast"\n'
    config = write_config(tmp_path, port=broker.port, cameras=camera("yard", 2, fps=5))
    with SiteServer(broker.host, broker.port) as server, AgentProcess(config) as agent:
        server.wait(lambda: bool(server.health) and server.health[-1].frames_seen > 0, "frames")
        write_config(tmp_path, port=broker.port, cameras=film)
        agent.hang_up()
        server.wait(lambda: _is_over(server), "the film to end", 60)
        seen = server.health[-1].frames_seen
        write_config(tmp_path, port=broker.port, cameras=film + "fps = 7\n")
        agent.hang_up()
        server.wait(lambda: server.health[-1].extra["config"]["reloaded_at_ms"] > 0 and "changed: gate" in agent.log, "reload")
        server.wait(lambda: _is_over(server), "the film to end again", 60)
        assert seen == server.health[-1].frames_seen, "frames of a second run count once"
