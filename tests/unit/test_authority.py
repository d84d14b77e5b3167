"""The certificate authority: what its certificates say, whom they convince, and what it refuses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from bowerbird_server.errors import BadInput, EnvironmentFault
from bowerbird_server.identity.authority import (
    Authority,
    common_name,
    generation_of,
    is_reserved,
    key_pin,
    random_service_name,
)

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open(tmp_path / "identity", now=NOW)


def leaf_of(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificates(pem)[0]


def device(authority: Authority, name: str = "dev-1", now: datetime = NOW, generation: int = 1) -> bytes:
    return authority.device_certificate(
        name, ec.generate_private_key(ec.SECP256R1()).public_key(), generation=generation, now=now
    )


def test_a_device_certificate_says_name_generation_and_client_and_nothing_else(authority: Authority) -> None:
    leaf = leaf_of(device(authority, generation=3))
    assert common_name(leaf) == "dev-1"
    assert generation_of(leaf) == 3
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_it_lives_45_days_and_is_back_dated_a_day(authority: Authority) -> None:
    later = NOW + timedelta(days=30)
    leaf = leaf_of(device(authority, now=later))
    assert leaf.not_valid_before_utc == later - timedelta(hours=24)
    assert leaf.not_valid_after_utc == later + timedelta(days=45)


def test_opening_again_gives_the_same_authority(authority: Authority) -> None:
    again = Authority.open(authority.folder, now=NOW)
    assert (again.pin, again.chain_pem) == (authority.pin, authority.chain_pem)


def test_the_pin_is_that_of_the_roots_key(authority: Authority) -> None:
    assert authority.pin == key_pin(x509.load_pem_x509_certificate(authority.root_pem).public_key())


def test_a_leaf_convinces_who_trusts_this_root_and_nobody_else(authority: Authority, tmp_path: Path) -> None:
    other = Authority.open(tmp_path / "other", now=NOW)
    pem = authority.server_certificate(["broker.example", "192.0.2.1"], now=NOW)
    certificates = pem[pem.index(b"-----BEGIN CERTIFICATE") :]
    leaf, *chain = x509.load_pem_x509_certificates(certificates)
    for root, good in ((authority.root_pem, True), (other.root_pem, False)):
        verifier = PolicyBuilder().store(Store([x509.load_pem_x509_certificate(root)])).time(NOW)
        try:
            verifier.build_server_verifier(x509.DNSName("broker.example")).verify(leaf, chain)
        except VerificationError:
            assert not good
        else:
            assert good


@pytest.mark.parametrize("name", ["svc-ingest", "SVC-x", "bowerbird-server", "admin"])
def test_a_device_never_gets_a_reserved_name(authority: Authority, name: str) -> None:
    with pytest.raises(BadInput, match="reserved"):
        device(authority, name)


def test_a_service_has_a_name_that_no_device_can_have_and_nobody_can_guess(authority: Authority) -> None:
    names = {random_service_name("ingest") for _ in range(20)}
    assert len(names) == 20
    assert all(is_reserved(name) for name in names)
    with pytest.raises(BadInput, match="could be a device"):
        authority.service_certificate("cam-01", now=NOW)
    assert b"PRIVATE KEY" in authority.service_certificate(names.pop(), now=NOW)


def test_keys_that_others_can_read_are_refused(authority: Authority) -> None:
    (authority.folder / "issuing-0001.pem").chmod(0o640)
    with pytest.raises(EnvironmentFault, match="chmod 600"):
        Authority.open(authority.folder, now=NOW)


def test_keys_are_written_so_that_only_their_owner_reads_them(authority: Authority) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in authority.folder.iterdir()}
    assert modes["root.key"] == modes["issuing-0001.pem"] == 0o600


def test_everything_but_a_new_issuing_authority_goes_on_without_the_roots_key(authority: Authority, tmp_path: Path) -> None:
    (authority.folder / "root.key").rename(tmp_path / "carried-away.key")
    again = Authority.open(authority.folder, now=NOW + timedelta(days=700))
    assert leaf_of(device(again, now=NOW + timedelta(days=700)))
    rolled = again.roll(tmp_path / "carried-away.key", now=NOW + timedelta(days=700))
    assert rolled.issuing_ends > again.issuing_ends
    assert rolled.pin == authority.pin


def test_a_foreign_root_key_makes_no_issuing_authority(authority: Authority, tmp_path: Path) -> None:
    other = Authority.open(tmp_path / "other", now=NOW)
    with pytest.raises(BadInput, match="is not the key of"):
        authority.roll(other.folder / "root.key", now=NOW)


def test_leaves_of_both_issuing_authorities_are_good_while_they_overlap(authority: Authority) -> None:
    old = device(authority)
    rolled = authority.roll(authority.folder / "root.key", now=NOW)
    new = device(rolled)
    assert leaf_of(old).issuer != leaf_of(new).issuer
    assert rolled.verifies(leaf_of(old))
    assert rolled.verifies(leaf_of(new))
    assert not authority.verifies(leaf_of(new))  # opened before


def test_with_the_roots_key_at_hand_the_next_issuing_authority_comes_by_itself(authority: Authority) -> None:
    later = Authority.open(authority.folder, now=NOW + timedelta(days=731 - 60))
    assert later.issuing_ends > authority.issuing_ends


def test_no_leaf_outlives_its_issuing_authority(authority: Authority, tmp_path: Path) -> None:
    (authority.folder / "root.key").rename(tmp_path / "root.key")
    near = authority.issuing_ends - timedelta(days=10)
    assert leaf_of(device(authority, now=near)).not_valid_after_utc == authority.issuing_ends
    with pytest.raises(EnvironmentFault, match="identity roll"):
        device(authority, now=authority.issuing_ends)


def test_a_leaf_of_another_site_is_not_verified(authority: Authority, tmp_path: Path) -> None:
    assert not authority.verifies(leaf_of(device(Authority.open(tmp_path / "other", now=NOW))))
