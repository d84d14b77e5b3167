"""`bowerbird devices`: invitations, approval, states, as an operator types them; and what the broker is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomllib
from typer.testing import CliRunner

from bowerbird_agent.identity.enrolment import read_bundle
from bowerbird_server.broker.embedded import EmbeddedBroker, find_program
from bowerbird_server.catalogue import Catalogue, fleet
from bowerbird_server.catalogue import identity as rows
from bowerbird_server.cli.app import app
from bowerbird_server.errors import BadInput
from bowerbird_server.fleet.provision import BUNDLE_NAME
from bowerbird_server.identity.invitations import read_list
from bowerbird_testing.claimant import Claimant

pytestmark = pytest.mark.skipif(
    find_program("mosquitto") is None, reason="mosquitto is not installed: apt-get install mosquitto"
)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "bowerbird.toml").write_text('site = "demo"\n[signing]\nmode = "automatic"\n')
    return tmp_path / "data"


def rules(data: Path) -> str:
    return EmbeddedBroker(data / "broker").rules_path.read_text()


def test_an_invitation_is_a_bundle_that_only_its_owner_reads_and_a_token_that_is_shown_once(data: Path, tmp_path: Path) -> None:
    shown = json.loads(
        run("devices", "invite", "SN 7/b", "--data", data, "--out", tmp_path / "out", "--json", "--host", "192.0.2.1")
    )[0]
    path = Path(shown["bundle"])
    assert path.name == "SN-7-b.bundle.json"
    assert path.stat().st_mode & 0o777 == 0o600
    bundle = read_bundle(path)
    assert (bundle.token, bundle.pin) == (shown["token"], shown["pin"])
    assert len(bundle.token) == 32
    assert bundle.claim_urls[0].startswith("https://192.0.2.1:")
    assert bundle.tables["broker"]["host"] == "192.0.2.1"
    for path in data.rglob("*"):
        assert not path.is_file() or bundle.token.encode() not in path.read_bytes(), path


def test_the_qr_code_holds_address_token_and_pin(data: Path, tmp_path: Path) -> None:
    from bowerbird_server.identity.tokens import qr_text

    shown = json.loads(run("devices", "invite", "SN-1", "--data", data, "--out", tmp_path, "--json"))[0]
    assert shown["text"].startswith("bowerbird:https://")
    assert shown["text"].endswith(f"#{shown['token']}#{shown['pin']}")
    drawn = qr_text(shown["text"])
    assert drawn in run("devices", "invite", "SN-1", "--data", data, "--out", tmp_path, "--qr") or len(drawn.splitlines()) > 20


def test_a_list_invites_many_and_binds_each_to_its_serial_number(data: Path, tmp_path: Path) -> None:
    (tmp_path / "boards.csv").write_text("serial,label,camera\nA1,gate,north=rtsp://192.0.2.10/1;rtsp://192.0.2.11/1\nA2,,\n")
    made = json.loads(run("devices", "invite", "--csv", tmp_path / "boards.csv", "--data", data, "--out", tmp_path, "--json"))
    bundles = [read_bundle(Path(row["bundle"])) for row in made]
    assert [(bundle.label, bundle.serial) for bundle in bundles] == [("gate", "A1"), ("A2", "A2")]
    assert [camera["name"] for camera in bundles[0].cameras] == ["north", "camera-2"]


def test_a_list_with_faults_invites_nobody_and_tells_all_of_them() -> None:
    from bowerbird_server.errors import BadInput

    with pytest.raises(BadInput, match=r"(?s)line 3: A1 stands there twice.*line 4: no serial number"):
        read_list("serial,label\nA1,x\nA1,y\n,z\n")
    with pytest.raises(BadInput, match="the first line"):
        read_list("name\nx\n")


def test_a_token_is_good_for_72_hours_at_most(data: Path) -> None:
    assert CliRunner().invoke(app, ["devices", "invite", "x", "--hours", "73", "--data", str(data)]).exit_code == 2


def test_a_camera_of_a_device_that_is_added_may_have_a_name(data: Path) -> None:
    """As in an invitation: NAME=SOURCE, or SOURCE alone, also with an equals sign in it."""
    run(
        "devices",
        "add",
        "cam-01",
        "--camera",
        "gate=rtsp://192.0.2.10/?x=1",
        "--camera",
        "rtsp://192.0.2.11/?x=1",
        "--data",
        data,
    )
    cameras = tomllib.loads((data / "devices" / "cam-01" / "agent.toml").read_text())["cameras"]
    assert [(each["name"], each["source"]) for each in cameras] == [
        ("gate", "rtsp://192.0.2.10/?x=1"),
        ("camera-2", "rtsp://192.0.2.11/?x=1"),
    ]


def test_an_added_device_is_pending_until_it_enrols_and_its_folder_holds_no_key(data: Path) -> None:
    run("devices", "add", "cam-01", "--data", data)
    folder = data / "devices" / "cam-01"
    assert {path.name for path in folder.iterdir()} == {"agent.toml", "root.json", BUNDLE_NAME}
    assert all(b"PRIVATE" not in path.read_bytes() for path in folder.iterdir())
    with Catalogue(data / "catalogue.db") as cat:
        assert fleet.get(cat, "cam-01")["state"] == "pending"
    assert "user cam-01" not in rules(data)


def test_again_withdraws_the_invitation_before(data: Path) -> None:
    run("devices", "add", "cam-01", "--data", data)
    run("devices", "add", "cam-01", "--again", "--data", data)
    with Catalogue(data / "catalogue.db") as cat:
        assert len(rows.invitations(cat)) == 1


def test_suspending_takes_the_rules_away_and_resuming_gives_them_back(data: Path) -> None:
    from bowerbird_server.identity.states import Happening

    run("devices", "add", "cam-01", "--data", data)
    with Catalogue(data / "catalogue.db") as cat:
        rows.change_state(cat, "cam-01", Happening.APPROVED, "test")
    run("devices", "suspend", "cam-01", "--why", "stolen", "--data", data)
    assert "user cam-01" not in rules(data)
    assert EmbeddedBroker(data / "broker").denied() == {"cam-01"}
    run("devices", "resume", "cam-01", "--data", data)
    assert "user cam-01" in rules(data)
    run("devices", "retire", "cam-01", "--data", data)
    assert "user cam-01" not in rules(data)


@pytest.mark.parametrize("name", ["svc-web", "bowerbird-server", "admin"])
def test_no_device_is_called_like_the_server(data: Path, name: str) -> None:
    from bowerbird_server.errors import BadInput

    with pytest.raises(BadInput, match="reserved"):
        run("devices", "add", name, "--data", data)


def test_a_board_that_replaces_another_is_approved_by_a_person(data: Path, tmp_path: Path) -> None:
    from bowerbird_server.identity.authority import Authority
    from bowerbird_server.identity.claims import Claims
    from bowerbird_server.identity.issuer import OwnIssuer

    authority = Authority.open(data / "identity")
    tokens = [
        json.loads(run("devices", "invite", "SN-1", "--data", data, "--out", tmp_path, "--json"))[0]["token"] for _ in range(2)
    ]
    with Catalogue(data / "catalogue.db") as cat:
        claims = Claims(cat, OwnIssuer(authority), authority.root_pem)
        old = claims.claim(Claimant(serial="A1").claim(tokens[0])).answer.device
        new = claims.claim(Claimant(serial="A1").claim(tokens[1])).answer
    assert new.state == "pending"
    assert "two devices say the same serial number" in run("devices", "alarms", "--data", data)
    run("devices", "approve", new.device, "--replaces", old, "--data", data)
    states = {row["id"]: row["state"] for row in json.loads(run("devices", "list", "--json", "--data", data))}
    assert states == {old: "retired", new.device: "active"}
    assert f"user {new.device}" in rules(data)
    assert f"user {old}" not in rules(data)


def test_the_authority_says_its_pin_and_where_the_roots_key_is(data: Path, tmp_path: Path) -> None:
    run("devices", "invite", "x", "--data", data, "--out", tmp_path)
    shown = json.loads(run("identity", "show", "--json", "--data", data))
    Path(shown["root_key"]).rename(tmp_path / "root.key")
    assert json.loads(run("identity", "show", "--json", "--data", data))["root_key"] is None
    run("identity", "roll", "--root-key", tmp_path / "root.key", "--data", data)
    assert json.loads(run("identity", "show", "--json", "--data", data))["pin"] == shown["pin"]
    assert len(list((data / "identity").glob("issuing-*.pem"))) == 2


def test_a_list_with_a_field_without_end_is_refused_in_a_sentence(data: Path, tmp_path: Path) -> None:
    listed = tmp_path / "boards.csv"
    listed.write_text("serial\n" + "x" * 200_000)
    result = CliRunner().invoke(app, ["devices", "invite", "--csv", str(listed), "--data", str(data), "--out", str(tmp_path)])
    assert isinstance(result.exception, BadInput)


def test_what_to_write_into_the_configuration_holds_from_whatever_folder_the_server_starts(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = run("broker", "config", "--out", "broker", "--name", "mqtt.example.net", "--data", data)
    begin = shown.index("[broker]")
    told = tomllib.loads(shown[begin : shown.index("after a change")])["broker"]
    assert Path(told["ca_file"]) == tmp_path / "broker" / "ca.pem"
    assert Path(told["certificate"]) == tmp_path / "broker" / "services"
