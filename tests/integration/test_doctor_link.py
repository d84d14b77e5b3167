"""What `bowerbird-agent doctor` says of the way to the broker: each fault of its own, at the step where it is."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bowerbird_agent.capture.camera_config import CameraConfig
from bowerbird_agent.config import AgentConfig, DeviceConfig, read_config
from bowerbird_agent.doctor.findings import FAIL, OK, Finding
from bowerbird_agent.doctor.link import examine_link
from bowerbird_agent.identity.enrolment import enrol
from bowerbird_agent.identity.identity import load_key
from bowerbird_agent.link.config import BrokerConfig
from bowerbird_agent.spool.spool import Spool
from bowerbird_server.broker.embedded import find_program
from bowerbird_server.catalogue import identity as rows
from bowerbird_server.fleet.provision import broker_of, refresh_access
from bowerbird_server.identity.authority import Authority
from bowerbird_server.identity.states import Happening
from bowerbird_server.supervisor import die_with_parent
from bowerbird_testing.claim_site import ClaimSite, claim_site

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_program("mosquitto") is None, reason="mosquitto is not installed: apt-get install mosquitto"),
]


@dataclass
class Board:
    place: ClaimSite
    config: AgentConfig

    @property
    def identity(self) -> Path:
        return self.config.device.state_dir / "identity"

    def examine(self, **broker: object) -> dict[str, Finding]:
        config = replace(self.config, broker=replace(self.config.broker, **broker))  # type: ignore[arg-type]
        return {finding.name: finding for finding in examine_link(config)}


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    """An enrolled board of a site whose broker runs."""
    made = datetime.now(tz=UTC) - timedelta(days=300)
    with claim_site(tmp_path / "server", made=made) as place:
        broker = broker_of(place.site)
        assert broker is not None
        broker.prepare({})
        process = subprocess.Popen(broker.argv(), stderr=subprocess.DEVNULL, preexec_fn=die_with_parent())  # noqa: PLW1509
        try:
            deadline_s = time.monotonic() + 20
            while not broker.ready() and time.monotonic() < deadline_s:
                time.sleep(0.05)
            (tmp_path / "board").mkdir()
            done = enrol(place.invite(device="cam-01").bundle, tmp_path / "board" / "agent.toml", version="0.1.0")
            yield Board(place, read_config(done.config))
        finally:
            process.kill()
            process.wait()


def test_all_is_well_to_the_echo(board: Board) -> None:
    found = board.examine()
    assert list(found) == ["identity", "chain", "broker name", "broker port", "broker TLS", "broker login", "broker echo"]
    assert {finding.state for finding in found.values()} == {OK}
    assert Authority.open(board.place.site.folder.identity).pin[:16] in found["chain"].found


def failed(found: dict[str, Finding]) -> Finding:
    last = list(found.values())[-1]
    assert last.state == FAIL, found
    assert [finding.state for finding in found.values()].count(FAIL) == 1
    return last


def test_a_board_that_was_never_enrolled_is_told_how(board: Board) -> None:
    shutil.rmtree(board.identity)
    assert "bowerbird-agent enrol" in failed(board.examine()).found


@pytest.mark.parametrize(("days", "words"), [(-60, "expired"), (60, "valid from")])
def test_a_certificate_out_of_its_time_is_the_first_thing_said(board: Board, days: int, words: str) -> None:
    content = (board.identity / "1.pem").read_bytes()
    key = content[: content.index(b"-----BEGIN CERTIFICATE")]
    authority = Authority.open(board.place.site.folder.identity)
    leaf = authority.device_certificate(
        "cam-01", load_key(key).public_key(), generation=1, now=datetime.now(tz=UTC) + timedelta(days=days)
    )
    (board.identity / "1.pem").write_bytes(key + leaf)
    finding = failed(board.examine())
    assert (finding.name, words in finding.found) == ("identity", True)


def test_a_chain_that_leads_elsewhere_is_found_before_any_connection(board: Board, tmp_path: Path) -> None:
    (board.identity / "ca.pem").write_bytes(Authority.open(tmp_path / "other").root_pem)
    assert failed(board.examine()).name == "chain"


def test_a_name_that_nobody_knows(board: Board) -> None:
    assert failed(board.examine(host="nowhere.invalid")).name == "broker name"


def test_a_port_where_nobody_listens(board: Board) -> None:
    assert failed(board.examine(port=1)).name == "broker port"


def test_a_port_that_speaks_no_tls(board: Board) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                connection.sendall(b"220 this is something else\r\n")
                connection.close()

        threading.Thread(target=greet, daemon=True).start()
        assert failed(board.examine(port=listener.getsockname()[1])).name == "broker TLS"


def test_a_suspended_device_connects_and_hears_no_echo(board: Board) -> None:
    rows.change_state(board.place.site.catalogue, "cam-01", Happening.SUSPENDED, "test")
    refresh_access(board.place.site)
    finding = failed(board.examine())
    assert (finding.name, "suspended" in finding.advice) == ("broker echo", True)


def test_a_running_agent_keeps_its_connection(board: Board) -> None:
    with closing(Spool(board.config.device.state_dir / "spool", max_bytes=3_000_000, min_free_bytes=0)):
        found = board.examine()
    assert "not disturbed" in found["broker login"].found
    assert "broker echo" not in found


def test_a_certificate_that_is_not_this_devices(board: Board) -> None:
    config = replace(board.config, device=replace(board.config.device, id="cam-02"))
    assert "device.id" in examine_link(config)[0].found


def test_a_broker_without_tls_is_looked_at_without_an_identity(tmp_path: Path) -> None:
    config = AgentConfig(
        DeviceConfig("cam-01", "demo", tmp_path),
        BrokerConfig("127.0.0.1", 1, tls=False),
        cameras=(CameraConfig("gate", "synthetic:?seed=1"),),
    )
    assert [finding.name for finding in examine_link(config)] == ["broker name", "broker port"]
