"""A restore as an attack: a backup that is older than a revocation, used to let somebody in again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from bowerbird_server.access.roles import Role, Sites
from bowerbird_server.backup import back_up, restore
from bowerbird_server.catalogue import accounts, fleet, sessions
from bowerbird_server.catalogue import identity as rows
from bowerbird_server.catalogue.sessions import Ages
from bowerbird_server.cli.app import app
from bowerbird_server.errors import BadInput
from bowerbird_server.identity.authority import Authority
from bowerbird_server.identity.claims import Claims
from bowerbird_server.identity.issuer import OwnIssuer
from bowerbird_server.identity.states import Happening
from bowerbird_server.identity.tokens import new_token, token_hash
from bowerbird_server.site import Site
from bowerbird_testing.claimant import Claimant
from bowerbird_wire.claim import Answer


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "bowerbird.toml").write_text('site = "demo"\n[signing]\nmode = "automatic"\n')
    with Site.open(folder) as made:
        yield made


def claims_of(site: Site) -> Claims:
    authority = Authority.open(site.folder.identity)
    return Claims(site.catalogue, OwnIssuer(authority), authority.root_pem)


def enrol(site: Site, device: str) -> tuple[Claimant, Answer]:
    from datetime import UTC, datetime, timedelta

    now, token, board = datetime.now(tz=UTC), new_token(), Claimant()
    asked = {"site": "demo", "label": "", "serial": "", "device": device, "approved": True}
    rows.invite(site.catalogue, token_hash(token), **asked, now=now, expires=now + timedelta(hours=1), actor="test")  # type: ignore[arg-type]
    answer = claims_of(site).claim(board.claim(token)).answer
    assert answer.state == "active"
    return board, answer


def test_a_device_that_was_revoked_after_the_backup_is_not_let_in_by_a_restore(site: Site, tmp_path: Path) -> None:
    """The log of deletions of the lost folder is newer than any backup; who was shut out by it neither has rules nor renews."""
    board, answer = enrol(site, "cam-01")
    enrol(site, "cam-02")
    back_up(site, tmp_path / "backup", with_keys=True)
    rows.change_state(site.catalogue, "cam-01", Happening.SUSPENDED, "test", "stolen")
    restore(tmp_path / "backup", tmp_path / "new", "test", deletions=[site.folder.deletions])
    with Site.open(tmp_path / "new", make=False) as again:
        assert set(fleet.active_devices(again.catalogue)) == {"cam-02"}
        assert (
            claims_of(again).renew(board.renewal(answer, Claimant(key=ec.generate_private_key(ec.SECP256R1())))).answer.state
            == "suspended"
        )
        assert "cam-01" in fleet.shut_out(again.catalogue)


def test_without_the_log_that_was_named_nothing_is_restored(site: Site, tmp_path: Path) -> None:
    """A slip in the path must not look like nobody having been revoked."""
    back_up(site, tmp_path / "backup")
    with pytest.raises(BadInput, match="nothing was restored"):
        restore(tmp_path / "backup", tmp_path / "new", "test", deletions=[tmp_path / "absent"])
    assert not (tmp_path / "new").exists()


def test_the_command_takes_the_list(site: Site, tmp_path: Path) -> None:
    enrol(site, "cam-01")
    back_up(site, tmp_path / "backup")
    rows.change_state(site.catalogue, "cam-01", Happening.RETIRED, "test", "stolen")
    asked = ["restore", str(tmp_path / "backup"), "--data", str(tmp_path / "new"), "--deletions", str(site.folder.deletions)]
    assert CliRunner().invoke(app, asked).exit_code == 0
    with Site.open(tmp_path / "new", make=False) as again:
        assert fleet.active_devices(again.catalogue) == {}


def test_no_token_session_or_claim_of_before_is_good_in_a_restored_site(site: Site, tmp_path: Path) -> None:
    """One that was revoked after the backup would come back with it; people log in anew, with their passwords."""
    cat = site.catalogue
    _, token = accounts.add_token(cat, "tool", Role.ADMINISTRATOR, Sites(), "test")
    principal = accounts.principal_of_token(cat, token)
    assert principal is not None
    cookie = sessions.begin(cat, principal, 1000.0)
    board, claim = Claimant(), new_token()
    from datetime import UTC, datetime, timedelta

    now = datetime.now(tz=UTC)
    asked = {"site": "demo", "label": "", "serial": "", "device": None, "approved": True}
    rows.invite(cat, token_hash(claim), **asked, now=now, expires=now + timedelta(hours=1), actor="test")  # type: ignore[arg-type]
    back_up(site, tmp_path / "backup", with_keys=True)
    restore(tmp_path / "backup", tmp_path / "new", "test")
    with Site.open(tmp_path / "new", make=False) as again:
        assert accounts.principal_of_token(again.catalogue, token) is None
        assert sessions.session(again.catalogue, cookie, Ages(), 1001.0) is None
        assert claims_of(again).claim(board.claim(claim)).answer.state == "refused"
    assert claims_of(site).claim(board.claim(claim)).answer.state == "active", "it was good where it was made"
