"""Readers' certificates end after a year, and nobody but a person renews them: how that person is told, and what they do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bowerbird_server.access import readers
from bowerbird_server.broker.certificates import read_leaf
from bowerbird_server.broker.embedded import find_program
from bowerbird_server.catalogue import fleet, identity
from bowerbird_server.cli.app import app
from bowerbird_server.fleet.provision import broker_of, server_address
from bowerbird_server.identity.authority import Authority, common_name
from bowerbird_server.site import Site

pytestmark = pytest.mark.skipif(
    find_program("mosquitto") is None, reason="mosquitto is not installed: apt-get install mosquitto"
)
NOW = datetime.now(tz=UTC)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """With a reader, `barrier`."""
    with Site.open(tmp_path / "data") as made:
        server_address(made)
        broker = broker_of(made)
        assert broker is not None
        broker.add_reader("barrier", made.config.site, fleet.active_devices(made.catalogue))
        readers.make_certificate(made.folder, "barrier", now=NOW - timedelta(days=340))
        yield made


def run(site: Site, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, [*arguments, "--data", str(site.folder.root)])
    return done.exit_code, done.output


def test_list_and_doctor_say_when_a_certificate_is_about_to_end_and_what_to_do(site: Site) -> None:
    until = (NOW + timedelta(days=25)).date().isoformat()
    rows = json.loads(run(site, "readers", "list", "--json")[1])
    assert rows[0]["certificate_until"] == until
    assert "bowerbird readers renew barrier" in rows[0]["trouble"]
    found = json.loads(run(site, "doctor", "--json")[1])
    assert [finding["state"] for finding in found if finding["what"] == "readers"] == ["note"]


def test_an_alarm_is_raised_once_for_each_certificate(site: Site) -> None:
    for _ in range(3):
        readers.warn(site.catalogue, site.folder, ["barrier", "unknown"], NOW)
    assert ["ends on" in alarm["why"]["why"] for alarm in identity.alarms(site.catalogue)] == [True]
    assert readers.warn(site.catalogue, site.folder, ["barrier"], NOW - timedelta(days=60)) == []
    readers.make_certificate(site.folder, "barrier", now=NOW - timedelta(days=364))
    assert "ended on" in readers.warn(site.catalogue, site.folder, ["barrier"], NOW + timedelta(days=2))[0]


def test_renew_makes_the_next_certificate_for_the_same_name_and_the_old_one_stays_good(site: Site) -> None:
    path = site.folder.devices / "barrier" / "reader.pem"
    before = read_leaf(path)
    code, told = run(site, "readers", "renew", "barrier")
    assert code == 0, told
    after, authority = read_leaf(path), Authority.open(site.folder.identity)
    assert before is not None
    assert after is not None
    assert common_name(after) == common_name(before) == "barrier"
    assert after.public_key() != before.public_key()
    assert authority.verifies(after)
    assert authority.verifies(before)
    assert after.not_valid_after_utc - NOW > timedelta(days=360)
    assert path.stat().st_mode & 0o077 == 0
    assert json.loads(run(site, "readers", "list", "--json")[1])[0]["trouble"] == ""


def test_nobody_is_renewed_who_is_no_reader(site: Site) -> None:
    code, _ = run(site, "readers", "renew", "stranger")
    assert code != 0
    assert not (site.folder.devices / "stranger").exists()


def test_who_let_a_reader_in_renewed_and_removed_it_is_in_the_audit_log(site: Site) -> None:
    for arguments in (("add", "gate"), ("renew", "gate"), ("remove", "gate")):
        code, told = run(site, "readers", *arguments)
        assert code == 0, told
    events = site.catalogue.rows("SELECT kind, actor FROM event WHERE subject = 'gate' ORDER BY position")
    assert [event["kind"] for event in events] == ["reader added", "reader renewed", "reader removed"]
    assert all(event["actor"].endswith("@cli") for event in events)


def test_a_new_issuing_authority_is_in_the_audit_log(site: Site) -> None:
    code, told = run(site, "identity", "roll")
    assert code == 0, told
    assert site.catalogue.value("SELECT count(*) FROM event WHERE kind = 'issuing authority rolled'") == 1
