"""Renewal over real HTTPS, with what may come between: lost answers, full disks, kills, clocks."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from bowerbird_agent.identity.enrolment import EnrolmentRefused, enrol
from bowerbird_agent.identity.identity import Identity, IdentityError, NoIdentity, load_identity, store_identity
from bowerbird_agent.identity.renewal import JITTER_SHARE, Renewals, due_at, renew
from bowerbird_server.catalogue import identity as rows
from bowerbird_server.identity.authority import Authority
from bowerbird_server.identity.states import Happening
from bowerbird_testing.claim_site import ClaimSite, claim_site


@pytest.fixture
def place(tmp_path: Path) -> Iterator[ClaimSite]:
    with claim_site(tmp_path / "server", made=datetime.now(tz=UTC) - timedelta(days=300)) as running:
        yield running


@pytest.fixture
def board(place: ClaimSite, tmp_path: Path) -> Path:
    """The identity's folder of an enrolled board."""
    (tmp_path / "board").mkdir()
    enrol(place.invite(device="cam-01").bundle, tmp_path / "board" / "agent.toml", version="0.1.0")
    return tmp_path / "board" / "state" / "identity"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def age(folder: Path, authority: Authority, *, expired_days: float) -> None:
    """Make the board's certificate one that ended so many days ago."""
    from bowerbird_agent.identity.identity import load_key

    path = folder / "1.pem"
    content = path.read_bytes()
    key = content[: content.index(b"-----BEGIN CERTIFICATE")]
    now = datetime.now(tz=UTC) - timedelta(days=expired_days + 45)
    path.write_bytes(key + authority.device_certificate("cam-01", load_key(key).public_key(), generation=1, now=now))


def test_a_renewal_puts_the_next_generation_beside_the_present_one(board: Path) -> None:
    before = load_identity(board)
    after = renew(board)
    assert (before.generation, after.generation, after.device) == (1, 2, before.device)
    assert names(board) == {"1.pem", "2.pem", "ca.pem", "claim-urls", "claimed"}
    assert load_identity(board).generation == 2
    assert (board / "2.pem").stat().st_mode & 0o777 == 0o600


def test_it_is_due_at_two_thirds_of_its_life_give_or_take_a_24th(board: Path) -> None:
    identity = load_identity(board)
    life = identity.not_after - identity.not_before
    shares = []
    for number in range(200):
        due = due_at(replace(identity, device=f"cam-{number}"))
        shares.append((due - identity.not_before) / life)
        assert due == due_at(replace(identity, device=f"cam-{number}"))
    assert 2 / 3 - JITTER_SHARE / 2 <= min(shares) < 2 / 3 - JITTER_SHARE / 3
    assert 2 / 3 + JITTER_SHARE / 3 < max(shares) <= 2 / 3 + JITTER_SHARE / 2


def test_the_agent_renews_when_it_is_time_and_not_before(board: Path) -> None:
    told: list[Identity] = []
    due = due_at(load_identity(board))
    now = [due - timedelta(seconds=1)]
    renewals = Renewals(board, told.append, now=lambda: now[0])
    renewals.look()
    assert told == []
    now[0] = due
    renewals.look()
    assert [identity.generation for identity in told] == [2]


def test_the_old_file_goes_two_days_after_the_new_one_came(board: Path) -> None:
    renew(board)
    renewals = Renewals(board, lambda _identity: None, now=lambda: datetime.now(tz=UTC) + timedelta(hours=47))
    renewals.look()
    assert "1.pem" in names(board)
    Renewals(board, lambda _identity: None, now=lambda: datetime.now(tz=UTC) + timedelta(hours=49)).look()
    assert "1.pem" not in names(board)


def test_a_server_that_is_away_costs_a_wait_that_grows_and_nothing_else(place: ClaimSite, board: Path) -> None:
    place.stop()
    renewals = Renewals(
        board, lambda _identity: None, now=lambda: datetime.now(tz=UTC) + timedelta(days=33), chance=lambda: 1.0
    )
    waits = [renewals.look() for _ in range(12)]
    assert waits[:3] == [60, 120, 240]
    assert waits[-1] == 6 * 3600
    assert "cannot be reached" in renewals.trouble
    assert load_identity(board).generation == 1
    place.start()
    renewals.look()
    assert load_identity(board).generation == 2


@pytest.mark.parametrize("days", [1, 60])
def test_an_expired_certificate_renews_by_proof_of_its_key(place: ClaimSite, board: Path, days: float) -> None:
    age(board, Authority.open(place.site.folder.identity, now=datetime.now(tz=UTC)), expired_days=days)
    assert load_identity(board).not_after < datetime.now(tz=UTC)
    assert renew(board).is_good_at(datetime.now(tz=UTC))


def test_one_that_expired_120_days_ago_must_claim_again_and_can(place: ClaimSite, board: Path) -> None:
    age(board, Authority.open(place.site.folder.identity), expired_days=120)
    with pytest.raises(EnrolmentRefused, match="invite the device again"):
        renew(board)
    again = enrol(place.invite(device="cam-01").bundle, board.parent.parent / "agent.toml", version="0.1.0").identity
    assert (again.device, load_identity(board).generation) == ("cam-01", again.generation)


def test_a_suspended_device_is_told_so(place: ClaimSite, board: Path) -> None:
    rows.change_state(place.site.catalogue, "cam-01", Happening.SUSPENDED, "test")
    with pytest.raises(EnrolmentRefused, match="suspended at the server"):
        renew(board)
    assert load_identity(board).generation == 1


def test_a_copied_identity_that_renews_after_the_original_suspends_both(place: ClaimSite, board: Path, tmp_path: Path) -> None:
    subprocess.run(["cp", "-a", str(board), str(tmp_path / "stolen")], check=True)
    renew(board)
    rows.note_seen(place.site.catalogue, "cam-01", 2)
    with pytest.raises(EnrolmentRefused, match="suspended"):
        renew(tmp_path / "stolen")
    with pytest.raises(EnrolmentRefused, match="suspended"):
        renew(board)


def test_a_ca_that_rolled_is_followed(place: ClaimSite, board: Path) -> None:
    authority = Authority.open(place.site.folder.identity)
    authority.roll(authority.folder / "root.key", now=datetime.now(tz=UTC))
    issuers = [x509.load_pem_x509_certificates(path.read_bytes())[0].issuer for path in (board / "1.pem",)]
    renewed = renew(board)
    assert x509.load_pem_x509_certificates(renewed.certificate_file.read_bytes())[0].issuer not in issuers


# --- what is on disk -------------------------------------------------------------------------------------------------------


def test_a_damaged_newest_file_falls_back_to_the_one_before(board: Path) -> None:
    renew(board)
    for rest in (b"", (board / "2.pem").read_bytes()[:-200], b"\x00" * 500):
        (board / "2.pem").write_bytes(rest)
        assert load_identity(board).generation == 1


def test_a_key_beside_another_keys_certificate_is_no_identity(board: Path) -> None:
    renew(board)
    one, two = (board / "1.pem").read_bytes(), (board / "2.pem").read_bytes()
    marker = b"-----BEGIN CERTIFICATE"
    (board / "2.pem").write_bytes(one[: one.index(marker)] + two[two.index(marker) :])
    assert load_identity(board).generation == 1


@pytest.mark.parametrize("when", [datetime(1970, 1, 1, tzinfo=UTC), datetime.now(tz=UTC) + timedelta(days=3653)])
def test_with_a_clock_that_is_wrong_for_all_the_newest_is_taken(board: Path, when: datetime) -> None:
    renew(board)
    assert load_identity(board, now=when).generation == 2


def test_a_newer_one_that_is_not_valid_yet_waits_behind_one_that_is(board: Path, place: ClaimSite) -> None:
    from bowerbird_agent.identity.identity import load_key

    content = (board / "1.pem").read_bytes()
    key = content[: content.index(b"-----BEGIN CERTIFICATE")]
    ahead = Authority.open(place.site.folder.identity).device_certificate(
        "cam-01", load_key(key).public_key(), generation=2, now=datetime.now(tz=UTC) + timedelta(days=10)
    )
    store_identity(board, 2, key, ahead, (board / "ca.pem").read_bytes())
    assert load_identity(board).generation == 1


@pytest.mark.parametrize(("name", "mode"), [("1.pem", 0o640), ("1.pem", 0o604), ("claim-urls", 0o644)])
def test_wrong_modes_are_refused_with_the_command_that_puts_them_right(board: Path, name: str, mode: int) -> None:
    (board / name).chmod(mode)
    with pytest.raises(IdentityError, match=f"chmod 600 {board / name}"):
        load_identity(board)


def test_no_identity_at_all_says_to_enrol(tmp_path: Path) -> None:
    with pytest.raises(NoIdentity, match="bowerbird-agent enrol"):
        load_identity(tmp_path)


def test_what_is_not_the_servers_word_changes_nothing(board: Path, place: ClaimSite) -> None:
    other = Authority.open(board.parent / "other")
    key = (board / "1.pem").read_bytes()
    foreign = other.server_certificate(["x"], now=datetime.now(tz=UTC))
    with pytest.raises(IdentityError, match="cannot be used"):
        store_identity(
            board, 2, key[: key.index(b"-----BEGIN CERTIFICATE")], foreign[foreign.index(b"-----BEGIN CERT") :], b"ca"
        )
    assert load_identity(board).generation == 1
