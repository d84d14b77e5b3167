"""The device's endpoint for Prometheus, over real sockets, alone and in a real agent."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bowerbird_agent.health.heartbeat import Doing, Kind, Pulse
from bowerbird_agent.health.metrics_endpoint import MetricsEndpoint
from bowerbird_testing.agent_process import AgentProcess, write_config
from bowerbird_testing.broker import Mosquitto, free_port
from bowerbird_testing.mqtt_device import wait_until
from bowerbird_testing.site_server import SiteServer

HOST = "127.0.0.1"
CAMERAS = '[[cameras]]\nname = "gate"\nsource = "synthetic:?seed=1&fps=5"\nfps = 30\n'


@contextmanager
def serving(endpoint: MetricsEndpoint) -> Iterator[int]:
    thread = threading.Thread(target=endpoint.run)
    thread.start()
    try:
        wait_until(lambda: endpoint.port is not None, "the endpoint to listen")
        assert endpoint.port is not None
        yield endpoint.port
    finally:
        endpoint.stop()
        thread.join(10)
        assert not thread.is_alive()


def get(port: int, path: str = "/metrics", method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    connection.request(method, path)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_it_answers_one_path_and_one_method() -> None:
    with serving(MetricsEndpoint(HOST, 0, lambda: "up 1\n")) as port:
        assert get(port) == (200, "up 1\n")
        assert get(port, "/metrics?x=1")[0] == 200
        assert get(port, "/")[0] == 404
        assert get(port, method="POST")[0] == 405
        with socket.create_connection((HOST, port)) as raw:
            raw.sendall(b"\x16\x03\x01 nonsense\n\n")
            assert raw.recv(100).startswith(b"HTTP/1.1 400")


def test_slow_silent_and_talkative_clients_are_hung_up_on_and_the_next_is_served() -> None:
    pulse = Pulse("metrics", Kind.METRICS)
    with serving(MetricsEndpoint(HOST, 0, lambda: "up 1\n", pulse=pulse)) as port:
        with socket.create_connection((HOST, port), timeout=10) as silent:
            silent.sendall(b"GET /metrics HTTP/1.1\r\n")
            assert silent.recv(10) == b""
        with socket.create_connection((HOST, port), timeout=10) as talkative:
            talkative.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
            with pytest.raises((ConnectionError, TimeoutError)):  # noqa: PT012 - the hang-up shows at some later write
                for _ in range(10_000):
                    talkative.sendall(b"x" * 4096)
        assert get(port) == (200, "up 1\n")
        assert pulse.last.doing is Doing.WAITING, "waiting for clients is no work"


def test_numbers_that_cannot_be_written_are_an_answer_and_not_an_end() -> None:
    with serving(MetricsEndpoint(HOST, 0, lambda: str(1 // 0))) as port:
        assert get(port)[0] == 500
        assert get(port)[0] == 500


def test_an_address_that_is_taken_is_said_and_does_not_end_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server((HOST, 0)) as taken:
        endpoint = MetricsEndpoint(HOST, taken.getsockname()[1], lambda: "")
        thread = threading.Thread(target=endpoint.run)
        thread.start()
        wait_until(lambda: "cannot listen" in caplog.text, "the warning")
        assert thread.is_alive()
        endpoint.stop()
        thread.join(10)
    assert not thread.is_alive()


@pytest.mark.broker
def test_an_agent_tells_prometheus_about_itself_without_its_server_and_with_it(broker: Mosquitto, tmp_path: Path) -> None:
    port = free_port()
    config = write_config(tmp_path, port=broker.port, cameras=CAMERAS, overrides={"metrics": {"listen": f"{HOST}:{port}"}})

    def numbers() -> dict[str, float]:
        status, text = get(port)
        assert status == 200
        return {s.name + "".join(s.labels.values()): s.value for f in text_string_to_metric_families(text) for s in f.samples}

    with AgentProcess(config) as agent:
        wait_until(lambda: "metrics for Prometheus on" in agent.log, "the endpoint")
        wait_until(lambda: numbers().get("bowerbird_agent_frames_scored_total", 0) > 20, "frames scored")
        assert numbers()["bowerbird_agent_frames_committed_total"] == 0
        with SiteServer(broker.host, broker.port) as server:
            server.wait(lambda: len(server.frames) >= 3, "frames")
            wait_until(lambda: numbers()["bowerbird_agent_frames_committed_total"] > 0, "the committed frames")
            now = numbers()
        assert now["bowerbird_agent_connected"] == 1
        assert now["bowerbird_agent_camera_upgate"] == 1
        assert now["bowerbird_agent_bytes_totalcontrol"] > 0
        assert agent.terminate()[0] == 0
