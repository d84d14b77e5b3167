"""Another CA behind a command: what it answers is used only if it is what was asked for."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from bowerbird_server.catalogue import Catalogue
from bowerbird_server.config import ConfigError, load_config
from bowerbird_server.errors import EnvironmentFault
from bowerbird_server.identity.authority import Authority, common_name, key_pin
from bowerbird_server.identity.claims import Claims
from bowerbird_server.identity.issuer import CommandIssuer
from bowerbird_server.identity.requests import read_request
from bowerbird_testing.claimant import Claimant, make_request
from bowerbird_testing.free_client import FreeClient
from bowerbird_testing.tls_broker import TlsBroker, device_certificate

# A CA of somebody else's: it signs what comes on its standard input, with what its arguments say.
SCRIPT = """
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from bowerbird_server.identity.authority import Authority

folder, name, mood = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
key = x509.load_pem_x509_csr(sys.stdin.buffer.read()).public_key()
authority = Authority.open(folder)
now = datetime.now(tz=UTC)
if mood == "broken":
    sys.exit("the CA is closed on Sundays")
if mood == "silent":
    sys.exit(0)
if mood == "other-key":
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
if mood == "server":
    pem = authority.server_certificate([name], now=now)
    sys.stdout.buffer.write(pem[pem.index(b"-----BEGIN CERT"):])
elif mood == "expired":
    sys.stdout.buffer.write(authority.device_certificate(name, key, generation=1, now=now, life=timedelta(hours=-1)))
else:
    generation = 0 if mood == "plain" else int(os.environ["BOWERBIRD_GENERATION"])
    sys.stdout.buffer.write(authority.device_certificate(name, key, generation=generation, now=now))
"""


@pytest.fixture
def foreign(tmp_path: Path) -> Authority:
    return Authority.open(tmp_path / "foreign")


def issuer(
    tmp_path: Path, foreign: Authority, mood: str = "good", name: str = "{device}", folder: Path | None = None
) -> CommandIssuer:
    script, trusted = tmp_path / "sign.py", tmp_path / "ca.pem"
    script.write_text(SCRIPT)
    trusted.write_bytes(foreign.chain_pem)
    return CommandIssuer((sys.executable, str(script), str(folder or foreign.folder), name, mood), trusted)


@pytest.mark.parametrize("mood", ["good", "plain"])
def test_a_certificate_of_another_ca_is_handed_out_and_renewed(tmp_path: Path, foreign: Authority, mood: str) -> None:
    from bowerbird_server.catalogue import identity as rows
    from bowerbird_server.identity.tokens import new_token, token_hash

    now, token, board = datetime.now(tz=UTC), new_token(), Claimant()
    with Catalogue(tmp_path / "catalogue.db") as cat:
        rows.invite(
            cat, token_hash(token), site="demo", label="", serial="", device="cam-01", approved=True,
            now=now, expires=now.replace(year=now.year + 1), actor="test",
        )  # fmt: skip
        claims = Claims(cat, issuer(tmp_path, foreign, mood), b"the site's own root")
        answer = claims.claim(board.claim(token)).answer
        leaf = x509.load_pem_x509_certificate(answer.certificate.encode())
        assert (answer.state, common_name(leaf), answer.ca) == ("active", "cam-01", "the site's own root")
        assert key_pin(leaf.public_key()) == key_pin(board.key.public_key())
        second, third = Claimant(), Claimant()
        renewed = claims.renew(board.renewal(answer, second, generation=1)).answer
        assert (renewed.state, renewed.generation) == ("active", 2)
        assert claims.renew(second.renewal(renewed, third, generation=2)).answer.generation == 3


@pytest.mark.parametrize(
    ("mood", "name", "why"),
    [
        ("broken", "{device}", "closed on Sundays"),
        ("silent", "{device}", "no PEM chain"),
        ("other-key", "{device}", "another key"),
        ("good", "svc-mine", "code 1"),
        ("good", "cam-02", "it is for 'cam-02'"),
        ("server", "{device}", "another key"),
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_is_never_handed_out(
    tmp_path: Path, foreign: Authority, mood: str, name: str, why: str
) -> None:
    request = read_request(make_request(Claimant().key))
    with pytest.raises(EnvironmentFault, match=why):
        issuer(tmp_path, foreign, mood, name).issue("cam-01", request, generation=1, now=datetime.now(tz=UTC))


def test_a_certificate_from_a_ca_that_the_configuration_does_not_name_is_refused(tmp_path: Path, foreign: Authority) -> None:
    other = Authority.open(tmp_path / "other")
    request = read_request(make_request(Claimant().key))
    with pytest.raises(EnvironmentFault, match="does not come from"):
        issuer(tmp_path, foreign, folder=other.folder).issue("cam-01", request, generation=1, now=datetime.now(tz=UTC))


def test_a_command_that_is_not_there_or_hangs_is_said_as_such(tmp_path: Path, foreign: Authority) -> None:
    request = read_request(make_request(Claimant().key))
    trusted = tmp_path / "ca.pem"
    trusted.write_bytes(foreign.chain_pem)
    for argv in (("/nowhere/sign",), (sys.executable, "-c", "import time; time.sleep(60)")):
        with pytest.raises(EnvironmentFault, match="cannot be run"):
            CommandIssuer(argv, trusted, timeout_s=0.5).issue("cam-01", request, generation=1, now=datetime.now(tz=UTC))


def test_a_command_without_its_ca_is_refused_by_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "bowerbird.toml").write_text('[identity]\nissuer_command = ["sign"]\n')
    with pytest.raises(ConfigError, match="go together"):
        load_config(tmp_path)


def test_the_embedded_broker_takes_devices_of_the_other_ca_and_no_third(tmp_path: Path, foreign: Authority) -> None:
    trusted = tmp_path / "device-ca.pem"
    trusted.write_bytes(foreign.chain_pem)
    stranger = Authority.open(tmp_path / "stranger")
    with TlsBroker(tmp_path / "broker", {"cam-01": "demo"}, device_ca=trusted) as broker:
        for authority, heard in ((broker.authority, True), (foreign.folder, True), (stranger.folder, False)):
            certificate = str(device_certificate(tmp_path, authority, "cam-01"))
            with FreeClient(replace(broker.server, certificate=certificate), "cam-01") as client:
                assert client.heard.accepted is heard, authority
