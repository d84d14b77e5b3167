"""The compose file and what it mounts: the linters' word, agreement with what the server generates, and delivery at a real broker."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bowerbird_server.broker import SERVER_USER, BrokerAddress, EmbeddedBroker, access_rules
from bowerbird_server.config import load_config
from bowerbird_testing.broker import Mosquitto
from bowerbird_testing.mqtt_device import MqttDevice, wait_until
from bowerbird_wire.topics import DOWN, LOCAL, UP, CreditTopic

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE = DEPLOY / "compose"
BIN = Path(sys.executable).parent
FILE: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
# What depends on where the broker runs, and nothing else, may differ from the generated configuration.
PLACE = {"listener", "password_file", "acl_file", "pid_file", "user"}


def schema_check(file: Path) -> subprocess.CompletedProcess[str]:
    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", file]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def directives(path: Path) -> list[str]:
    lines = path.read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#") and line.split()[0] not in PLACE]


def test_the_compose_file_is_what_the_compose_specification_allows() -> None:
    done = schema_check(COMPOSE / "compose.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_misspelt_key_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text((COMPOSE / "compose.yaml").read_text("utf-8").replace("healthcheck:", "healthchek:"))
    assert schema_check(tmp_path / "compose.yaml").returncode != 0


@pytest.mark.skipif(not (BIN / "hadolint").exists(), reason="there is no hadolint wheel for this machine")
def test_the_dockerfile_has_no_fault_that_hadolint_knows() -> None:
    done = subprocess.run([BIN / "hadolint", COMPOSE / "Dockerfile"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_is_pinned_watched_bounded_and_on_loopback(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"[a-z/-]+:v?\d+\.\d+\.\d+", service["image"])
    assert service["healthcheck"]["test"]
    assert service["mem_limit"]
    assert service["cap_drop"] == ["ALL"]
    assert all(port.startswith(("127.0.0.1:", "${BIND:-127.0.0.1}:")) for port in service["ports"])


def test_no_secret_stands_in_the_file() -> None:
    for service in SERVICES.values():
        for key, value in service.get("environment", {}).items():
            assert key.endswith("__FILE") == value.startswith("/run/secrets/")
            assert key.endswith("__FILE") or not re.search("PASSWORD|TOKEN|SECRET|KEY", key)
    named = {
        item if isinstance(item, str) else item["source"]
        for service in SERVICES.values()
        for item in service.get("secrets", [])
    }
    assert named == FILE["secrets"].keys()
    assert all(secret["file"].startswith("./secrets/") for secret in FILE["secrets"].values())
    assert "/secrets/" in (COMPOSE / ".gitignore").read_text().splitlines()


def test_everything_that_is_mounted_is_there() -> None:
    for service in SERVICES.values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (COMPOSE / source).exists() if source.startswith(".") else source in FILE["volumes"]
    assert (COMPOSE / SERVICES["server"]["build"]["context"]).resolve() == DEPLOY.parent


def test_the_server_reads_its_configuration_and_meets_the_broker_of_the_file(tmp_path: Path) -> None:
    config = load_config(tmp_path, COMPOSE / "bowerbird.toml")
    address = BrokerAddress.from_url(config.broker.url)
    assert (address.host in SERVICES, address.port, address.username) == (True, 1883, SERVER_USER)
    assert f"127.0.0.1:{config.web.port}:{config.web.port}" in SERVICES["server"]["ports"]
    assert Path(config.broker.password_file).name in {secret["target"] for secret in SERVICES["server"]["secrets"]}


def test_prometheus_asks_for_what_the_example_asks_for() -> None:
    here, example = (
        yaml.safe_load(path.read_text())["scrape_configs"]
        for path in (COMPOSE / "prometheus.yml", DEPLOY / "grafana/prometheus.yml")
    )
    for jobs in (here, example):
        jobs[0].pop("static_configs")
        jobs[0]["authorization"].pop("credentials_file")
    assert here == example


@pytest.mark.skipif(
    shutil.which("mosquitto", path="/usr/sbin:/usr/bin") is None, reason="no mosquitto: apt-get install mosquitto"
)
def test_the_brokers_limits_are_those_that_the_server_generates(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path, program="mosquitto")
    broker.prepare({})
    assert directives(COMPOSE / "mosquitto/mosquitto.conf") == directives(broker.config_path)


def test_the_access_rules_are_those_that_the_server_generates() -> None:
    server, _, device = access_rules({"device": "site"}).partition("user device\n")
    patterns = device.replace("topic ", "pattern ").replace("/device", "/%u")
    written = (COMPOSE / "mosquitto/acl").read_text("utf-8").splitlines()
    assert [line for line in written if not line.startswith("#")] == (server + patterns).splitlines()


@pytest.mark.broker
def test_no_device_can_publish_or_read_anything_of_another(start_broker: Callable[..., Mosquitto]) -> None:
    users = {SERVER_USER: "s", "cam-01": "one", "cam-02": "two"}
    limits = [line for line in directives(COMPOSE / "mosquitto/mosquitto.conf") if line.startswith("max_")]
    broker = start_broker(users=users, acl=(COMPOSE / "mosquitto/acl").read_text("utf-8"), settings=limits)

    def connect(name: str) -> MqttDevice:
        return MqttDevice(BrokerAddress(broker.host, broker.port, name, users[name]), name, site="site")

    def topics(name: str) -> list[str]:
        leaves = [f"{kind.of_device('site', name).replace('+', 'gate')}" for kind in LOCAL]
        return [*(str(kind("site", name)) for kind in UP), *leaves]

    with connect(SERVER_USER) as server, connect("cam-01") as one, connect("cam-02") as two:
        server.subscribe("bowerbird/v1/site/up/#", "bowerbird/v1/site/local/#")
        one.subscribe("#", "bowerbird/v1/site/#", "bowerbird/v1/site/all/credit")
        for topic in (*topics("cam-02"), *(str(kind("site", "cam-02")) for kind in DOWN), str(CreditTopic("site"))):
            one.publish(topic, b"forged")
        for topic in topics("cam-01"):
            one.publish(topic, b"own")
        wait_until(lambda: len(server.messages) >= len(topics("cam-01")), "the device's own messages")
        assert {(topic, payload) for topic, payload, _ in server.messages} == {(topic, b"own") for topic in topics("cam-01")}

        for name in ("cam-02", "cam-01"):
            for kind in DOWN:
                server.publish(str(kind("site", name)), b"word")
        server.publish(str(CreditTopic("site")), b"credit")
        wait_until(lambda: {topic for topic, _, _ in one.messages} >= {str(CreditTopic("site"))}, "the credit")
        assert {topic for topic, _, _ in one.messages} == {
            *(str(kind("site", "cam-01")) for kind in DOWN),
            str(CreditTopic("site")),
        }
        assert {topic for topic, _, _ in two.messages} == {str(kind("site", "cam-02")) for kind in DOWN}
