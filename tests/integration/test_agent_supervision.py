"""What a supervisor sees of the agent: it says how it is, it ends when a thread hangs, and it ends fast when it is told to."""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from bowerbird_agent.config import read_config
from bowerbird_agent.device import Device
from bowerbird_agent.health.sd_notify import Notifier, NotifyAddress
from bowerbird_agent.health.shutdown import LastResort
from bowerbird_agent.inference.machine_sensors import MachineSensors
from bowerbird_testing.agent_process import UNSURE_BOXES, AgentProcess, write_config
from bowerbird_testing.broker import Mosquitto, free_port
from bowerbird_testing.site_server import SiteServer
from bowerbird_testing.supervisor_socket import SupervisorSocket
from bowerbird_testing.tiny_yolo import write_tiny_yolo
from bowerbird_testing.update_server import UpdateServer

ENDLESS = '[[cameras]]\nname = "gate"\nsource = "synthetic:?seed=1&fps=5"\nfps = 30'
# Two seconds are promised, and the parts are budgeted for that (`test_heartbeat.py`); the rest is for a loaded test machine.
DEADLINE_S = 5.0
EXIT_HUNG = 3


def wait_for(agent: AgentProcess, text: str, timeout_s: float = 40.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while text not in agent.log:
        assert time.monotonic() < deadline_s, f"{text!r} never came: {agent.log[-2000:]}"
        assert agent.process is not None
        assert agent.process.poll() is None, agent.log
        time.sleep(0.05)


# -- the protocol itself


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_a_service_is_ready_then_alive_then_stopping(tmp_path: Path, kind: str) -> None:
    address = str(tmp_path / "notify") if kind == "path" else f"@bowerbird-{uuid.uuid4()}"
    with SupervisorSocket(address) as systemd:
        notifier = Notifier(NotifyAddress(address, watchdog_s=6.0))
        notifier.ready("model abc\nand more")
        for now_s in (0.0, 0.5, 1.9, 2.0, 2.1):
            notifier.alive(now_s, f"{min(now_s, 0.5)} frames/s")
        notifier.reloading()
        notifier.stopping()
        systemd.wait(lambda: "STOPPING" in systemd.said(), "the end")
        heard = systemd.hear()
    assert heard[0] == {"READY": "1", "STATUS": "model abc and more"}
    assert [message for message in heard if "WATCHDOG" in message] == [
        {"WATCHDOG": "1", "STATUS": "0.0 frames/s"},
        {"WATCHDOG": "1", "STATUS": "0.5 frames/s"},
    ], "a beat every third of the interval; the status only when it has changed, and not too often"
    assert heard[-2]["RELOADING"] == "1"
    assert abs(int(heard[-2]["MONOTONIC_USEC"]) / 1e6 - time.monotonic()) < 60
    assert heard[-1] == {"STOPPING": "1"}
    assert notifier.poll_s == 1.0


def test_a_supervisor_that_is_gone_or_full_disturbs_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier(NotifyAddress(str(tmp_path / "nobody")))
    for _ in range(3):
        notifier.ready()
    assert sum(record.levelname == "WARNING" for record in caplog.records) == 1
    with SupervisorSocket(str(tmp_path / "deaf"), deaf=True) as systemd:
        notifier = Notifier(NotifyAddress(systemd.address))
        for n in range(1000):  # the socket's queue holds far fewer, and nobody reads
            notifier.ready(f"{n}")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, NotifyAddress()),
        ({"NOTIFY_SOCKET": "/run/n"}, NotifyAddress("/run/n")),
        ({"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "20000000"}, NotifyAddress("@n", 20.0)),
        ({"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "7"}, NotifyAddress("@n", 20.0)),
        ({"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "8"}, NotifyAddress("@n")),
        ({"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "0"}, NotifyAddress("@n")),
        ({"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "soon"}, NotifyAddress("@n")),
        ({"NOTIFY_SOCKET": "vsock:2:1"}, NotifyAddress()),
        ({"WATCHDOG_USEC": "20000000"}, NotifyAddress()),
    ],
)
def test_the_environment_says_where_and_how_often(environment: dict[str, str], expected: NotifyAddress) -> None:
    assert NotifyAddress.from_environment(environment, pid=7) == expected


# -- a real agent


def test_an_agent_says_ready_beats_reloads_and_stops(tmp_path: Path) -> None:
    config = write_config(tmp_path, port=free_port(), cameras=ENDLESS)
    with SupervisorSocket(f"@bowerbird-{uuid.uuid4()}") as systemd:
        environment = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "1500000"}
        with AgentProcess(config, environment=environment) as agent:
            systemd.wait(lambda: "READY" in systemd.said(), "ready")
            systemd.wait(lambda: systemd.said().count("WATCHDOG") >= 4, "the watchdog's beats")
            systemd.wait(lambda: any("1 of 1 cameras ok" in m.get("STATUS", "") for m in systemd.hear()), "a status")
            agent.hang_up()
            systemd.wait(lambda: "RELOADING" in systemd.said(), "reloading")
            systemd.wait(lambda: systemd.said().count("READY") == 2, "ready again")
            code, _ = agent.terminate()
            assert code == 0, agent.log
            systemd.wait(lambda: systemd.said()[-1] == "STOPPING", "the end")


def test_an_agent_that_waits_for_its_first_model_is_ready(tmp_path: Path) -> None:
    (tmp_path / "root.json").write_bytes(UpdateServer().root)
    overrides = {"update": {"trusted_root": "root.json"}, "model": {"factory": None}}
    config = write_config(tmp_path, port=free_port(), cameras=ENDLESS, overrides=overrides)
    address = str(tmp_path / "notify")
    with SupervisorSocket(address) as systemd, AgentProcess(config, environment={"NOTIFY_SOCKET": address}):
        systemd.wait(lambda: any("waiting for a model" in m.get("STATUS", "") for m in systemd.hear()), "ready, waiting")


def hanging_detector(folder: Path, overrides: Mapping[str, Mapping[str, Any]]) -> Path:
    """A device whose camera shows darkness, which its model looks at for ever."""
    (folder / "night").mkdir()
    cv2.imwrite(str(folder / "night" / "0.png"), np.zeros((64, 64, 3), np.uint8))
    cameras = f'[[cameras]]\nname = "gate"\nsource = "{folder / "night"}"\nloop = true\nfps = 5'
    config = write_config(folder, port=free_port(), cameras=cameras, overrides=overrides)
    write_tiny_yolo(folder / "model.onnx", boxes=UNSURE_BOXES, hangs_on_black=True)
    return config


def test_a_detector_that_never_answers_takes_the_process_down_and_is_named(tmp_path: Path) -> None:
    config = hanging_detector(tmp_path, {"watchdog": {"inference_s": 3}})
    with SupervisorSocket(str(tmp_path / "notify")) as systemd:
        environment = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "600000"}
        with AgentProcess(config, environment=environment) as agent:
            assert agent.wait(timeout_s=40) == EXIT_HUNG, agent.log
            assert "thread inference has hung: no sign of life for" in agent.log
            assert "detector.detect" in agent.log, "the log shows where it hangs"
            systemd.wait(lambda: systemd.said()[-1] == "STOPPING", "no beat after the thread was found hanging")
            assert 2 <= systemd.said().count("WATCHDOG") < 60


@contextmanager
def silent_camera() -> Iterator[str]:
    """A recorder that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"rtsp://127.0.0.1:{server.getsockname()[1]}/stream"


def test_a_camera_that_blocks_for_ever_is_no_hang_of_the_agent(tmp_path: Path) -> None:
    with silent_camera() as url:
        cameras = f'{ENDLESS}\n[[cameras]]\nname = "yard"\nsource = "{url}"'
        config = write_config(tmp_path, port=free_port(), cameras=cameras, overrides={"watchdog": {"camera_s": 2}})
        with AgentProcess(config) as agent:
            wait_for(agent, "frames of")
            time.sleep(6)  # three times the limit of the thread that watches the silent camera
            assert agent.process is not None
            assert agent.process.poll() is None, agent.log
            assert "has hung" not in agent.log


def test_a_camera_in_back_off_is_no_hang(tmp_path: Path) -> None:
    cameras = f'{ENDLESS}\n[[cameras]]\nname = "yard"\nsource = "rtsp://127.0.0.1:{free_port()}/stream"'
    config = write_config(tmp_path, port=free_port(), cameras=cameras, overrides={"watchdog": {"camera_s": 1}})
    with AgentProcess(config) as agent:
        wait_for(agent, "trying again in")
        time.sleep(6)  # back-offs of one and two seconds are over, the one of four has begun
        assert agent.process is not None
        assert agent.process.poll() is None, agent.log
        assert agent.terminate()[0] == 0


# -- the end, in every state


def test_sigterm_ends_an_agent_that_reaches_no_broker(tmp_path: Path) -> None:
    config = write_config(tmp_path, port=free_port(), cameras=ENDLESS)
    with AgentProcess(config) as agent:
        wait_for(agent, "cannot be reached")
        code, took_s = agent.terminate()
        assert code == 0, agent.log
        assert took_s < DEADLINE_S


def test_sigterm_ends_an_agent_whose_broker_answers_nothing(tmp_path: Path) -> None:
    with silent_camera() as url:
        config = write_config(tmp_path, port=int(url.split(":")[2].split("/")[0]), cameras=ENDLESS)
        with AgentProcess(config) as agent:
            wait_for(agent, "frames of 320x240")
            code, took_s = agent.terminate()
            assert code == 0, agent.log
            assert took_s < DEADLINE_S


def test_sigterm_ends_an_agent_whose_camera_hangs(tmp_path: Path) -> None:
    with silent_camera() as url:
        config = write_config(tmp_path, port=free_port(), cameras=f'[[cameras]]\nname = "yard"\nsource = "{url}"')
        with AgentProcess(config) as agent:
            wait_for(agent, "cannot be reached")
            code, took_s = agent.terminate()
            assert code == 0, agent.log
            assert took_s < DEADLINE_S


def test_sigterm_ends_an_agent_whose_detector_hangs(tmp_path: Path) -> None:
    config = hanging_detector(tmp_path, {})
    with AgentProcess(config) as agent:
        wait_for(agent, "frames of 64x64")
        code, took_s = agent.terminate()
        assert code == 0, agent.log
        assert "not waiting for inference" in agent.log
        assert took_s < DEADLINE_S


def test_sigterm_ends_an_agent_while_it_loads_a_model(tmp_path: Path) -> None:
    config = write_config(tmp_path, port=free_port(), cameras=ENDLESS)
    write_tiny_yolo(tmp_path / "model.onnx", boxes=UNSURE_BOXES, load_products=600)
    address = str(tmp_path / "notify")
    with SupervisorSocket(address) as systemd, AgentProcess(config, environment={"NOTIFY_SOCKET": address}) as agent:
        systemd.wait(lambda: "EXTEND_TIMEOUT_USEC" in systemd.said(), "the wish for more time")
        code, took_s = agent.terminate()
        assert code == 0, agent.log
        assert took_s < DEADLINE_S
        assert "READY" not in systemd.said()
        assert "runs now" not in agent.log


def test_a_model_that_takes_too_long_to_load_is_a_hang(tmp_path: Path) -> None:
    config = write_config(tmp_path, port=free_port(), cameras=ENDLESS, overrides={"watchdog": {"load_s": 2}})
    write_tiny_yolo(tmp_path / "model.onnx", boxes=UNSURE_BOXES, load_products=600)
    with AgentProcess(config) as agent:
        assert agent.wait(timeout_s=40) == EXIT_HUNG, agent.log
        assert "thread model has hung" in agent.log


def test_an_end_that_hangs_is_cut_short_and_one_that_does_not_is_left_alone() -> None:
    given_up = threading.Event()
    codes: list[int] = []

    def give_up(code: int) -> None:
        codes.append(code)
        given_up.set()

    through = LastResort(give_up)
    through.arm(0, timeout_s=0.2)
    through.disarm()
    LastResort(give_up).arm(1, timeout_s=0.4)
    assert given_up.wait(10)
    assert codes == [1]


# -- heat


def test_a_hot_board_judges_fewer_frames_and_says_why_in_log_and_health(
    broker: Mosquitto, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    zone = tmp_path / "sys" / "thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "type").write_text("cpu-thermal\n")
    (zone / "temp").write_text("95000\n")
    config = read_config(write_config(tmp_path, port=broker.port, cameras=ENDLESS))
    nowhere = tmp_path / "nothing"
    device = Device(config, version="test", sensors=MachineSensors(tmp_path / "sys", nowhere, nowhere, nowhere))
    thread = threading.Thread(target=device.run)
    with caplog.at_level("INFO"), SiteServer(broker.host, broker.port) as server:
        thread.start()
        try:
            server.wait(
                lambda: bool(server.health) and server.health[-1].extra.get("guard", {}).get("share") == 0.2, "the guard"
            )
            server.wait(lambda: server.health[-1].extra["guard"]["frames_skipped"] > 10, "skipped frames")
            guard = server.health[-1].extra["guard"]
            assert guard["why"] == ["hot: 95 °C at cpu-thermal"]
            first, seen = server.health[-1], len(server.health)
            server.wait(lambda: len(server.health) > seen + 10, "more health")
            last = server.health[-1]
            judged = last.frames_seen - first.frames_seen
            skipped = last.extra["guard"]["frames_skipped"] - first.extra["guard"]["frames_skipped"]
            assert 0 < judged < skipped, "a fifth of the frames is judged"
        finally:
            device.stop()
            thread.join(20)
    lowered = [record.getMessage() for record in caplog.records if "lowers the frame rate" in record.getMessage()]
    assert len(lowered) == 2, f"one line for each change: {lowered}"
