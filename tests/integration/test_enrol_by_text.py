"""Enrolling by the text of a QR code alone: the server tells what a bundle would have held, once the pin has shown which it is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bowerbird_agent.config import read_config
from bowerbird_agent.errors import AgentError
from bowerbird_agent.identity.claim_client import ClaimFault, post
from bowerbird_agent.identity.enrolment import EnrolmentRefused, bundle_of_text, enrol
from bowerbird_server.catalogue import fleet
from bowerbird_server.identity.authority import Authority
from bowerbird_server.identity.listener import REQUESTS_OF_ONE
from bowerbird_testing.claim_site import ClaimSite, claim_site
from bowerbird_wire.bundle import Bundle
from bowerbird_wire.claim import CA_PATH, claim_text

BIN = Path(sys.executable).parent


@pytest.fixture
def place(tmp_path: Path) -> Iterator[ClaimSite]:
    with claim_site(tmp_path / "server") as running:
        yield running


def enrolled(text: str, board: Path):  # type: ignore[no-untyped-def]
    board.mkdir(exist_ok=True)
    return enrol(bundle_of_text(text), board / "agent.toml", version="0.2.0")


def test_the_text_makes_the_same_device_as_the_bundle(place: ClaimSite, tmp_path: Path) -> None:
    by_bundle, by_text = place.invite("SN-1"), place.invite("SN-2")
    (tmp_path / "one").mkdir()
    one = enrol(Bundle.from_text(by_bundle.bundle.to_text()), tmp_path / "one" / "agent.toml", version="0.2.0")
    two = enrolled(by_text.text, tmp_path / "two")
    first, second = (done.config.read_text().replace(done.identity.device, "ID") for done in (one, two))
    assert first == second
    assert [camera.name for camera in read_config(two.config).cameras] == ["gate"]
    assert (tmp_path / "one" / "root.json").read_text() == (tmp_path / "two" / "root.json").read_text()
    folders = [tmp_path / name / "state" / "identity" for name in ("one", "two")]
    assert {(folder / "ca.pem").read_bytes() for folder in folders} == {by_bundle.bundle.ca.encode()}
    assert {(folder / "claim-urls").read_text() for folder in folders} == {"\n".join(by_bundle.bundle.claim_urls) + "\n"}
    assert two.identity.device in fleet.active_devices(place.site.catalogue)


def test_doing_it_again_changes_nothing_and_a_second_board_gets_nothing(place: ClaimSite, tmp_path: Path) -> None:
    text = place.invite().text
    first = enrolled(text, tmp_path / "board")
    content = first.identity.certificate_file.read_bytes()
    again = enrolled(text, tmp_path / "board")
    assert (again.wrote_config, again.identity.certificate_file.read_bytes()) == (False, content)
    with pytest.raises(EnrolmentRefused, match="devices invite"):
        enrolled(text, tmp_path / "other")
    first.config.unlink()
    with pytest.raises(AgentError, match="--again"):
        enrolled(text, tmp_path / "board")


def test_an_interrupted_enrolment_goes_on_and_is_told_the_rest_again(place: ClaimSite, tmp_path: Path) -> None:
    text = place.invite().text
    done = enrolled(text, tmp_path / "board")
    done.identity.certificate_file.rename(done.identity.certificate_file.with_name("claim.key"))  # as if killed before
    (tmp_path / "board" / "state" / "identity" / "claimed").unlink()
    kept = done.config.read_text()
    done.config.unlink()
    assert enrolled(text, tmp_path / "board").config.read_text() == kept


@pytest.mark.parametrize("way", ["argument", "input"])
def test_the_command_takes_the_text_as_argument_or_from_standard_input(place: ClaimSite, tmp_path: Path, way: str) -> None:
    text = place.invite().text
    (tmp_path / "board").mkdir()
    done = subprocess.run(
        [BIN / "bowerbird-agent", "enrol", text if way == "argument" else "-", "--config", "board/agent.toml", "--json"],
        input=text + "\n",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    device = json.loads(done.stdout)["device"]
    assert read_config(tmp_path / "board" / "agent.toml").device.id == device
    token = text.split("#")[1]
    assert all(token.encode() not in path.read_bytes() for path in (tmp_path / "board").rglob("*") if path.is_file())


def test_a_pin_that_is_another_sites_is_refused_before_anything_is_told(place: ClaimSite, tmp_path: Path) -> None:
    other = Authority.open(tmp_path / "other")
    url, token, _ = place.invite().text.removeprefix("bowerbird:").split("#")
    with pytest.raises(ClaimFault, match="the pin names") as fault:
        enrolled(claim_text(url, token, other.pin), tmp_path / "board")
    assert fault.value.kind == "ca"
    assert fleet.list_devices(place.site.catalogue) == []
    assert not (tmp_path / "board" / "state").exists()


def test_nobody_at_the_address_is_said_as_such(place: ClaimSite, tmp_path: Path) -> None:
    text = place.invite().text
    place.stop()
    with pytest.raises(ClaimFault, match="cannot be reached") as fault:
        enrolled(text, tmp_path / "board")
    assert fault.value.kind == "unreachable"


def test_the_listener_says_its_ca_to_whoever_asks_and_not_without_end(place: ClaimSite) -> None:
    ca = Authority.open(place.site.folder.identity).root_pem.decode()
    answer = post(place.url, CA_PATH, b"", ca).answer
    assert (answer.state, answer.ca, answer.device, answer.certificate, answer.extra) == ("ca", ca, "", "", {})
    states = {post(place.url, CA_PATH, b"", ca).answer.state for _ in range(int(REQUESTS_OF_ONE.burst / 60))}
    assert states == {"ca"}


def test_what_a_board_was_to_be_told_is_forgotten_with_its_token(place: ClaimSite) -> None:
    place.invite("late", now=datetime.now(tz=UTC) - timedelta(hours=73))
    place.invite("new")
    kept = place.site.catalogue.rows("SELECT label, setup FROM invitation ORDER BY label")
    assert [(row["label"], bool(row["setup"])) for row in kept] == [("late", False), ("new", True)]


def test_a_server_that_does_not_say_the_rest_is_told_by_what_to_do(place: ClaimSite, tmp_path: Path) -> None:
    """One of before 0.2.0."""
    invited = place.invite()
    place.site.catalogue.execute("UPDATE invitation SET setup = ''")
    with pytest.raises(AgentError, match="bundle file of a new invitation"):
        enrolled(invited.text, tmp_path / "board")
    assert not (tmp_path / "board" / "agent.toml").exists()


def test_a_text_claims_with_the_serial_number_that_it_is_told(place: ClaimSite, tmp_path: Path) -> None:
    text = place.invite("SN-9", serial="SN-9").text
    (tmp_path / "board").mkdir()
    with pytest.raises(EnrolmentRefused):
        enrol(replace(bundle_of_text(text), serial="SN-8"), tmp_path / "board" / "agent.toml", version="0.2.0")
    done = enrol(bundle_of_text(text, serial="SN-9"), tmp_path / "board" / "agent.toml", version="0.2.0")
    assert fleet.get(place.site.catalogue, done.identity.device)["serial"] == "SN-9"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("bowerbird:https://h:1#tokentoken", "no claim text"),
        ("https://h:1#tokentoken#" + "a" * 64, "no claim text"),
        ("bowerbird:http://h:1#tokentoken#" + "a" * 64, "https"),
        ("bowerbird:https://h:1##" + "a" * 64, "token"),
        ("bowerbird:https://h:1#tokentoken#" + "a" * 63, "pin"),
        ("bowerbird:https://h:1#tokentoken#" + "g" * 64, "pin"),
        ("bowerbird:https://h#tokentoken#" + "a" * 64, "https://host:port"),
        ("", "no claim text"),
    ],
)
def test_a_text_that_was_cut_or_mistyped_is_told_by_its_part(text: str, what: str) -> None:
    with pytest.raises(AgentError, match=what) as error:
        bundle_of_text(text)
    assert "tokentoken" not in str(error.value)
