"""The compose file and what it mounts: the linters' word, agreement with what the server generates, and delivery at a real broker."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from bowerbird_server.broker.embedded import BrokerAddress, EmbeddedBroker, find_program
from bowerbird_server.broker.own import write_own_broker
from bowerbird_server.broker.rules import access_rules
from bowerbird_server.config import load_config
from bowerbird_server.supervisor import die_with_parent
from bowerbird_testing.broker import free_port
from bowerbird_testing.free_client import FreeClient
from bowerbird_testing.mqtt_device import MqttDevice, wait_until
from bowerbird_testing.tls_broker import device_certificate
from bowerbird_wire.topics import DOWN, LOCAL, UP, CreditTopic, FrameTopic

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE = DEPLOY / "compose"
BIN = Path(sys.executable).parent
FILE: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
MOSQUITTO = DEPLOY / "mosquitto"
# What depends on where the broker runs, and nothing else, may differ from the generated configuration.
PLACE = {"listener", "password_file", "acl_file", "pid_file", "user", "cafile", "certfile", "keyfile"}
CLIENTS = ("bowerbird-ingest", "bowerbird-delivery", "bowerbird-check")


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
            if source.startswith("./secrets/"):
                continue  # made by `bowerbird broker config`, see docs/deploy/compose.md
            assert (COMPOSE / source).exists() if source.startswith(".") else source in FILE["volumes"]
    assert (COMPOSE / SERVICES["server"]["build"]["context"]).resolve() == DEPLOY.parent


def test_the_server_reads_its_configuration_and_meets_the_broker_of_the_file(tmp_path: Path) -> None:
    config = load_config(tmp_path, COMPOSE / "bowerbird.toml")
    address = BrokerAddress.from_url(config.broker.url)
    assert (address.host in SERVICES, address.port, address.tls) == (True, 8883, True)
    assert f"127.0.0.1:{config.web.port}:{config.web.port}" in SERVICES["server"]["ports"]
    assert f"${{BIND:-127.0.0.1}}:{config.identity.port}:{config.identity.port}" in SERVICES["server"]["ports"]
    assert f"${{BIND:-127.0.0.1}}:{address.port}:{address.port}" in SERVICES["mosquitto"]["ports"]
    mounts = [volume.split(":") for volume in SERVICES["server"]["volumes"]]
    assert ["./secrets/broker/services", config.broker.certificate, "ro"] in mounts
    assert config.broker.ca_file == "/data/identity/root.pem"


def test_prometheus_asks_for_what_the_example_asks_for() -> None:
    here, example = (
        yaml.safe_load(path.read_text())["scrape_configs"]
        for path in (COMPOSE / "prometheus.yml", DEPLOY / "grafana/prometheus.yml")
    )
    for jobs in (here, example):
        jobs[0].pop("static_configs")
        jobs[0]["authorization"].pop("credentials_file")
    assert here == example


def own_broker(folder: Path, authority: Path, *shut_out: str, at: Path | None = None, port: int = 8883) -> Path:
    """What `bowerbird broker config` writes for the site of the examples."""
    return write_own_broker(
        folder,
        authority=authority,
        site="site",
        names=["mqtt.example.net"],
        clients=CLIENTS,
        shut_out=shut_out,
        at=at,
        port=port,
        now=datetime.now(tz=UTC),
    )


@pytest.mark.skipif(find_program("mosquitto") is None, reason="no mosquitto: apt-get install mosquitto")
def test_a_broker_of_ones_own_is_configured_as_the_servers_own(tmp_path: Path, authority: Path) -> None:
    """Line for line; only the socket that ends sessions is the embedded broker's alone."""
    embedded = EmbeddedBroker(tmp_path / "broker", program="mosquitto", authority=authority)
    embedded.prepare({})
    own = own_broker(tmp_path / "own", authority)
    assert directives(own / "mosquitto.conf") == directives(embedded.config_path)
    assert "require_certificate true" in directives(own / "mosquitto.conf")


def test_the_example_is_what_the_command_writes(tmp_path: Path, authority: Path) -> None:
    own = own_broker(tmp_path, authority, at=Path("/etc/mosquitto/bowerbird"))
    for name in ("mosquitto.conf", "acl"):
        written = re.sub(r"-[0-9a-f]{32}$", "-RANDOM", (own / name).read_text(), flags=re.MULTILINE)
        example = (MOSQUITTO / name).read_text().splitlines()
        assert [line for line in example if not line.startswith("#")] == written.splitlines()
    compose = own_broker(tmp_path, authority, at=Path("/mosquitto/config"))
    assert "acl_file /mosquitto/config/acl" in (compose / "mosquitto.conf").read_text().splitlines()
    assert "./secrets/broker:/mosquitto/config:ro" in SERVICES["mosquitto"]["volumes"]


def test_the_access_rules_are_those_that_the_server_generates() -> None:
    _, _, device = access_rules({"device": "site"}).partition("user device\n")
    patterns = device.replace("topic ", "pattern ").replace("/device", "/%u")
    assert (MOSQUITTO / "acl").read_text("utf-8").endswith("\n\n" + patterns)


@pytest.mark.broker
@pytest.mark.skipif(find_program("mosquitto") is None, reason="no mosquitto: apt-get install mosquitto")
def test_no_device_can_publish_or_read_anything_of_another(tmp_path: Path, authority: Path) -> None:
    port = free_port()
    own = own_broker(tmp_path / "own", authority, "cam-03", port=port)
    if os.geteuid() == 0:  # otherwise it becomes `mosquitto`, which may not read this folder
        (own / "mosquitto.conf").write_text("user root\n" + (own / "mosquitto.conf").read_text())
    argv = [find_program("mosquitto") or "", "-c", str(own / "mosquitto.conf")]
    process = subprocess.Popen(argv, preexec_fn=die_with_parent())  # noqa: PLW1509 - see supervisor.py
    try:
        _nothing_of_another(tmp_path, authority, own, port)
    finally:
        process.kill()
        process.wait()


def _nothing_of_another(tmp_path: Path, authority: Path, own: Path, port: int) -> None:
    server_address = BrokerAddress("127.0.0.1", port, tls=True, ca_file=str(own / "ca.pem"), certificate=str(own / "services"))
    wait_until(lambda: _listens(port), "the broker")

    def connect(name: str) -> MqttDevice:
        return MqttDevice(device_address(name), name, site="site")

    def device_address(name: str) -> BrokerAddress:
        return replace(server_address, certificate=str(device_certificate(tmp_path, authority, name)))

    def topics(name: str) -> list[str]:
        leaves = [f"{kind.of_device('site', name).replace('+', 'gate')}" for kind in LOCAL]
        return [*(str(kind("site", name)) for kind in UP), *leaves]

    with (
        MqttDevice(server_address, "bowerbird-ingest", site="site") as server,
        connect("cam-01") as one,
        connect("cam-02") as two,
    ):
        server.subscribe("bowerbird/v1/site/up/#", "bowerbird/v1/site/local/#")
        one.subscribe("#", "bowerbird/v1/site/#", "bowerbird/v1/site/all/credit")
        with FreeClient(device_address("cam-03"), "cam-03") as shut_out:
            shut_out.subscribe("#")
            assert shut_out.publish(str(FrameTopic("site", "cam-03"))) == 135
            server.publish(str(CreditTopic("site")), b"credit", retain=True)
            for kind in DOWN:
                server.publish(str(kind("site", "cam-03")), b"word")
            assert shut_out.heard.messages == []
        for topic in (*topics("cam-02"), *(str(kind("site", "cam-02")) for kind in DOWN), str(CreditTopic("site"))):
            one.publish(topic, b"forged")
        for topic in topics("cam-01"):
            one.publish(topic, b"own")
        wait_until(lambda: len(server.messages) >= len(topics("cam-01")), "the device's own messages")
        assert {(topic, payload) for topic, payload, _ in server.messages} == {(topic, b"own") for topic in topics("cam-01")}

        for name in ("cam-02", "cam-01"):
            for kind in DOWN:
                server.publish(str(kind("site", name)), b"word")
        server.publish(str(CreditTopic("site")), b"last")
        wait_until(lambda: b"last" in {payload for _, payload, _ in one.messages}, "the last credit")
        wait_until(lambda: len(two.messages) >= len(DOWN), "the other's own messages")
        assert {topic for topic, _, _ in one.messages} == {
            *(str(kind("site", "cam-01")) for kind in DOWN),
            str(CreditTopic("site")),
        }
        assert {topic for topic, _, _ in two.messages} == {str(kind("site", "cam-02")) for kind in DOWN}


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
