"""What delivery does with a device's word at a connection: remembers it, or suspends the device and has it shut out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bowerbird_server.catalogue import Catalogue, fleet
from bowerbird_server.catalogue import identity as rows
from bowerbird_server.fleet.delivery import Delivery
from bowerbird_server.fleet.offers import BlockQueue
from bowerbird_server.identity.states import Happening
from bowerbird_wire.codec import encode
from bowerbird_wire.messages import Health, Status
from bowerbird_wire.topics import HealthTopic, StatusTopic


class Nowhere:
    """A broker that takes everything."""

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        return True


@dataclass
class Server:
    cat: Catalogue
    delivery: Delivery = field(init=False)
    shut_out: list[str] = field(default_factory=list)

    def says(self, boot: str, *, start: str = "s", generation: int = 1, take_overs: int = 0, state: str = "online") -> None:
        facts = {"identity": {"generation": generation, "start": start, "take_overs": take_overs}}
        status = Status(state, boot, "0.1.0", "", 0, facts if state == "online" else {})
        self.delivery.received(str(StatusTopic("demo", "cam-01")), encode(status))

    def state(self) -> str:
        return str(fleet.get(self.cat, "cam-01")["state"])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Catalogue(tmp_path / "catalogue.db") as cat:
        fleet.add_device(cat, "cam-01", "demo", "test")
        made = Server(cat)
        made.delivery = Delivery(cat, BlockQueue(tmp_path), Nowhere(), lambda job, _device: job, made.shut_out.append)
        yield made


def issued(server: Server, generation: int, hours_ago: float) -> None:
    now = datetime.now(tz=UTC) - timedelta(hours=hours_ago)
    rows.put_certificate(
        server.cat, "cam-01", generation, key_sha256=f"{generation}", pem="", now=now, not_after=now + timedelta(days=45)
    )


def test_restarts_reboots_and_lost_connections_are_no_clone(server: Server) -> None:
    for boot, start in (("a", "1"), ("a", "1"), ("a", "2"), ("b", "3"), ("b", "3")):
        server.says(boot, start=start)
        server.says(boot, state="offline")
    assert (server.state(), server.shut_out) == ("active", [])


def test_two_boards_by_turns_are_suspended_and_shut_out_with_an_alarm(server: Server) -> None:
    server.says("a")
    server.says("b")
    server.says("a")
    assert (server.state(), server.shut_out) == ("suspended", ["cam-01"])
    assert "two agents" in rows.alarms(server.cat)[0]["why"]["why"]


def test_two_agents_on_one_board_are_told_apart_by_their_starts(server: Server) -> None:
    for start in "xyx":
        server.says("a", start=start)
    assert server.state() == "suspended"


def test_a_status_that_is_as_old_as_the_connection_it_ends_proves_nothing(server: Server) -> None:
    server.says("a")
    server.says("b")
    server.says("a", state="offline")
    assert server.state() == "active"


def test_what_was_remembered_outlives_the_server(server: Server, tmp_path: Path) -> None:
    server.says("a")
    server.says("b")
    with Catalogue(tmp_path / "catalogue.db") as cat:
        again = Server(cat)
        again.delivery = Delivery(cat, BlockQueue(tmp_path), Nowhere(), lambda job, _device: job, again.shut_out.append)
        again.says("a")
        assert again.shut_out == ["cam-01"]


def test_nothing_of_a_suspended_device_is_taken(server: Server) -> None:
    for boot in "aba":
        server.says(boot)
    server.delivery.received(str(HealthTopic("demo", "cam-01")), encode(Health("a", 1, frames_seen=77)))
    assert fleet.get(server.cat, "cam-01")["health"] == {}


def test_a_resumed_device_starts_with_nothing_remembered(server: Server) -> None:
    for boot in "aba":
        server.says(boot, take_overs=9)
    rows.change_state(server.cat, "cam-01", Happening.RESUMED, "test")
    server.says("b", take_overs=9)
    server.says("b", take_overs=9)
    assert server.state() == "active"


def test_an_old_certificate_is_a_clone_two_days_after_the_next_was_issued(server: Server) -> None:
    issued(server, 1, 1000)
    issued(server, 2, 47)
    server.says("a", generation=1)
    assert server.state() == "active"
    issued(server, 2, 49)
    server.says("a", generation=1)
    assert server.state() == "suspended"


def test_the_first_word_with_a_certificate_marks_it_as_used(server: Server) -> None:
    issued(server, 1, 1)
    server.says("a", generation=1)
    newest = rows.newest_certificate(server.cat, "cam-01")
    assert newest is not None
    assert newest["seen_at"]


@pytest.mark.parametrize("facts", [{}, {"identity": 7}, {"identity": {"generation": "x", "start": 5, "take_overs": -1}}])
def test_what_a_device_says_oddly_harms_nothing(server: Server, facts: dict[str, object]) -> None:
    server.delivery.received(str(StatusTopic("demo", "cam-01")), encode(Status("online", "a", "", "", 0, facts)))
    assert fleet.get(server.cat, "cam-01")["online"] == 1
