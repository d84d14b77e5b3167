"""One identity copied, two live sessions that take the connection from each other: a real broker, two real links, delivery.

The two say the same boot and the same start of the agent, as a machine that was copied while it ran does: what gives them away is
only that each loses its live connection to the other, again and again.
"""

from __future__ import annotations

import queue
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bowerbird_agent.config import AgentConfig, read_config
from bowerbird_agent.identity.identity import FOLDER, load_identity, store_identity
from bowerbird_agent.identity.renewal import identity_facts
from bowerbird_agent.link.link_events import BrokerSettings, LinkEvent
from bowerbird_agent.link.mqtt_link import MqttLink
from bowerbird_server.broker.embedded import find_program
from bowerbird_server.catalogue import Catalogue, fleet
from bowerbird_server.catalogue import identity as rows
from bowerbird_server.fleet import delivery
from bowerbird_server.identity.authority import Authority, key_pem
from bowerbird_server.identity.claims import Claims
from bowerbird_server.identity.clones import TAKE_OVERS, TAKE_OVERS_WITHIN_S
from bowerbird_server.identity.issuer import OwnIssuer
from bowerbird_server.identity.tokens import new_token, token_hash
from bowerbird_server.layout import DataFolder
from bowerbird_testing.claimant import Claimant
from bowerbird_testing.free_client import FreeClient
from bowerbird_testing.mqtt_device import wait_until
from bowerbird_testing.tls_broker import WATCHER, TlsBroker
from bowerbird_wire.codec import encode
from bowerbird_wire.messages import Health, Status
from bowerbird_wire.topics import HealthTopic, StatusTopic

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_program("mosquitto") is None, reason="mosquitto is not installed: apt-get install mosquitto"),
]
NAME, HEALTH = "cam-01", HealthTopic("demo", "cam-01")


@dataclass
class Session:
    """One machine with the identity: the agent's link, and a health message whenever it is connected."""

    folder: Path
    port: int
    frames_seen: int
    link: MqttLink = field(init=False)

    def __post_init__(self) -> None:
        config: AgentConfig = read_config(self.folder / "agent.toml")
        identity = self.folder / "state" / FOLDER
        self.events: queue.Queue[LinkEvent] = queue.Queue()
        self.link = MqttLink(
            BrokerSettings("127.0.0.1", self.port, max_retry_s=0.3, tls=lambda: load_identity(identity).tls_context()),
            "demo",
            NAME,
            self.events,
            online=lambda: Status(
                "online", "boot", extra={"identity": identity_facts(config, self.link.take_overs, self.link.attempt)}
            ),
            offline=Status("offline"),
            seed=self.frames_seen,
        )
        self.link.start()

    def speak(self) -> None:
        """A word of its own, if it can."""
        self.link.publish(HEALTH, encode(Health("boot", 1, frames_seen=self.frames_seen)))


@pytest.fixture
def cat(tmp_path: Path) -> Iterator[Catalogue]:
    with Catalogue(DataFolder(tmp_path / "data").make().catalogue) as opened:
        yield opened


def enrolled_board(folder: Path, cat: Catalogue, authority: Authority) -> None:
    """A claimed identity, and an agent.toml beside it."""
    token, now, claimant = new_token(), datetime.now(tz=UTC), Claimant()
    invitation = {"site": "demo", "label": NAME, "serial": "", "device": NAME, "approved": True, "actor": "test"}
    rows.invite(cat, token_hash(token), now=now, expires=now + timedelta(hours=1), **invitation)  # type: ignore[arg-type]
    answer = Claims(cat, OwnIssuer(authority), authority.root_pem).claim(claimant.claim(token)).answer
    identity = folder / "state" / FOLDER
    identity.mkdir(parents=True, mode=0o700)
    store_identity(identity, answer.generation, key_pem(claimant.key), answer.certificate.encode(), answer.ca.encode())
    (folder / "agent.toml").write_text(
        f'[device]\nid = "{NAME}"\nsite = "demo"\nstate_dir = "state"\n[broker]\nhost = "127.0.0.1"\n'
        '[[cameras]]\nname = "gate"\nsource = "synthetic:?seed=1"\n'
    )


def test_two_sessions_of_one_identity_that_take_over_from_each_other_are_both_suspended(tmp_path: Path, cat: Catalogue) -> None:
    """Within the rule's time, with an alarm; and from then on nothing of either is delivered to anybody or written down."""
    folder = DataFolder(tmp_path / "data")
    enrolled_board(tmp_path / "board", cat, Authority.open(folder.identity))
    shutil.copytree(tmp_path / "board", tmp_path / "twin")
    stop, began_s, is_out = threading.Event(), time.monotonic(), threading.Event()
    with TlsBroker(tmp_path, {NAME: "demo"}, authority=folder.identity) as broker:

        def shut_out(device: str) -> None:
            broker.broker.remove_device(device, {})
            is_out.set()

        serving = threading.Thread(
            target=delivery.run,
            args=(folder, broker.server, stop),
            kwargs={"on_suspended": shut_out},
        )
        serving.start()
        sessions = [Session(tmp_path / name, broker.server.port, frames) for name, frames in (("board", 11), ("twin", 22))]
        try:

            def is_suspended() -> bool:
                for session in sessions:
                    session.speak()
                return fleet.get(cat, NAME)["state"] == "suspended"

            wait_until(is_suspended, "the clone to be noticed", timeout_s=120)
            assert time.monotonic() - began_s < TAKE_OVERS_WITHIN_S
            assert all(session.link.attempt[0] >= TAKE_OVERS for session in sessions)
            assert "taken over" in fleet.get(cat, NAME)["state_why"]
            assert ["taken over" in alarm["why"]["why"] for alarm in rows.alarms(cat)] == [True]
            wait_until(is_out.is_set, "the broker to shut it out")
            before = fleet.get(cat, NAME)
            with FreeClient(broker.server, WATCHER) as watcher:
                watcher.subscribe("bowerbird/v1/demo/up/#")
                until_s = time.monotonic() + 3.0  # several attempts of each
                while time.monotonic() < until_s:
                    for session in sessions:
                        session.speak()
                    time.sleep(0.05)
                watcher.publish("bowerbird/v1/demo/up/other/health", b"sentinel")
                wait_until(lambda: b"sentinel" in watcher.payloads(), "what was sent last")
                heard = [topic for topic, payload in watcher.heard.messages if payload != b"sentinel"]
            assert [topic for topic in heard if topic != str(StatusTopic("demo", NAME))] == []  # the broker's last word of it
            assert fleet.get(cat, NAME) == before
            wait_until(lambda: all(session.link.denied or not session.link.connected for session in sessions), "both outside")
        finally:
            for session in sessions:
                session.link.stop()
            stop.set()
            serving.join(20)


def test_one_session_that_loses_its_connection_as_often_is_no_clone(tmp_path: Path, cat: Catalogue) -> None:
    """The counterpart: a bad link, not another machine."""
    folder = DataFolder(tmp_path / "data")
    enrolled_board(tmp_path / "board", cat, Authority.open(folder.identity))
    stop = threading.Event()
    with TlsBroker(tmp_path, {NAME: "demo"}, authority=folder.identity) as broker:
        serving = threading.Thread(target=delivery.run, args=(folder, broker.server, stop))
        serving.start()
        session = Session(tmp_path / "board", broker.server.port, 11)
        try:
            for _ in range(2 * TAKE_OVERS):
                wait_until(lambda: session.link.connected, "a connection")
                session.link.reconnect("the test")
            wait_until(lambda: session.link.connected, "the last connection")

            def is_heard() -> bool:
                session.speak()
                return fleet.get(cat, NAME)["health"].get("frames_seen") == 11

            wait_until(is_heard, "its word")
            assert fleet.get(cat, NAME)["state"] == "active"
            assert session.link.attempt[0] > 2 * TAKE_OVERS
        finally:
            session.link.stop()
            stop.set()
            serving.join(20)
