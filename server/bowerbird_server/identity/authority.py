"""The certificate authority of a site: a root that may lie offline, and issuing authorities that sign for devices and services.

In: the folder `identity/` of the data folder, public keys, names that the caller has chosen, the time. Out: certificates as PEM.
All keys are EC P-256. It decides nothing about who may have a certificate (`claims.py` does) and never sees a device's private key.

`root.key` is needed only to make an issuing authority; once it has been carried away, everything else goes on. Two issuing
authorities may overlap: the newest signs, and leaves of the older one stay good until they end.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bowerbird_models.durable import sync_folder, write_durably
from bowerbird_server.errors import BadInput, Conflict, EnvironmentFault

ROOT_LIFE = timedelta(days=3653)
ISSUING_LIFE = timedelta(days=731)
LEAF_LIFE = timedelta(days=45)
BACK_DATED = timedelta(hours=24)  # a device without a clock may be a day behind
ROLL_BEFORE = timedelta(days=120)  # an issuing authority with less life than this is followed by the next
RESERVED_PREFIX = "svc-"
_ISSUING = re.compile(r"issuing-(\d{4})\.pem")


@dataclass(frozen=True)
class _Issuer:
    number: int
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


@dataclass(frozen=True)
class Authority:
    """An opened authority; values only, so that threads may share it.

    Attributes:
        folder: where its files lie.
        root_pem: what devices and the broker trust.
        chain_pem: the issuing authorities, newest first, and the root.
        pin: SHA-256 of the root's SubjectPublicKeyInfo, hex.
    """

    folder: Path
    root_pem: bytes
    chain_pem: bytes
    pin: str
    _issuer: _Issuer

    @classmethod
    def open(cls, folder: Path, *, now: datetime | None = None) -> Authority:
        """The authority in `folder`; makes root and issuing authority at first use, and the next issuing one when it is time.

        Args:
            now: aware time, for the dates of what is made here; the clock's when left out.

        Raises:
            EnvironmentFault: a key is readable by others, a file is damaged, or the folder cannot be written.
        """
        now = now or datetime.now(tz=UTC)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _changing(folder):
                if not (folder / "root.pem").exists():
                    _make_root(folder, now)
                issuers = _load_issuers(folder)
                root_key = folder / "root.key"
                if root_key.exists() and (not issuers or issuers[0].certificate.not_valid_after_utc - now < ROLL_BEFORE):
                    _make_issuing(folder, _load_key(root_key), len(issuers) + 1 if not issuers else issuers[0].number + 1, now)
                    issuers = _load_issuers(folder)
        except OSError as error:
            raise EnvironmentFault(f"cannot use {folder}: {error.strerror}. Check space and permissions.") from error
        if not issuers:
            raise EnvironmentFault(
                f"{folder} holds no issuing authority; bring root.key and run `bowerbird identity roll --root-key FILE`"
            )
        return cls._of(folder, issuers)

    @classmethod
    def _of(cls, folder: Path, issuers: Sequence[_Issuer]) -> Authority:
        root_pem = (folder / "root.pem").read_bytes()
        root = x509.load_pem_x509_certificate(root_pem)
        chain = b"".join(_pem(issuer.certificate) for issuer in issuers) + root_pem
        return cls(folder, root_pem, chain, key_pin(root.public_key()), issuers[0])

    def roll(self, root_key: Path, *, now: datetime) -> Authority:
        """A new issuing authority beside the one there is; the root's key is read from wherever it was carried.

        Raises:
            BadInput: the key is not this root's.
            EnvironmentFault: the key is readable by others or cannot be read.
        """
        key = _load_key(root_key)
        if key_pin(key.public_key()) != self.pin:
            raise BadInput(f"{root_key} is not the key of {self.folder / 'root.pem'}")
        with _changing(self.folder):
            _make_issuing(self.folder, key, _load_issuers(self.folder)[0].number + 1, now)
            return self._of(self.folder, _load_issuers(self.folder))

    def device_certificate(
        self, device: str, public_key: ec.EllipticCurvePublicKey, *, generation: int, now: datetime, life: timedelta = LEAF_LIFE
    ) -> bytes:
        """A device's leaf and the issuing certificate, PEM.

        Args:
            device: its id in topics, the common name; the caller has chosen and checked it.
            public_key: P-256; nothing else of a request is ever taken.
            generation: counts the device's certificates from 1; in the subject's serialNumber.
            now: aware time.

        Raises:
            BadInput: a reserved name.
            EnvironmentFault: the issuing authority has expired.
        """
        if is_reserved(device):
            raise BadInput(f"{device} is reserved for services of the server; a device cannot have it")
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, device), x509.NameAttribute(NameOID.SERIAL_NUMBER, str(generation))]
        return self._leaf(subject, public_key, ExtendedKeyUsageOID.CLIENT_AUTH, now=now, life=life)

    def server_certificate(self, hosts: Sequence[str], *, now: datetime, life: timedelta = LEAF_LIFE) -> bytes:
        """Key, leaf and issuing certificate in one PEM text, for a server that is reached under `hosts` (names or addresses).

        Raises:
            BadInput: no host.
        """
        if not hosts:
            raise BadInput("a server certificate needs at least one host name or address")
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])]
        leaf = self._leaf(names, key.public_key(), ExtendedKeyUsageOID.SERVER_AUTH, now=now, life=life, hosts=hosts)
        return key_pem(key) + leaf

    def service_certificate(self, name: str, *, now: datetime, life: timedelta = LEAF_LIFE) -> bytes:
        """Key, leaf and issuing certificate in one PEM text, for a process of the server as a client.

        Args:
            name: from `random_service_name`: whoever has the name has its rights at the broker.

        Raises:
            BadInput: a name that a device could have.
        """
        if not is_reserved(name):
            raise BadInput(f"{name} could be a device; services are called {RESERVED_PREFIX}…")
        key = ec.generate_private_key(ec.SECP256R1())
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
        return key_pem(key) + self._leaf(subject, key.public_key(), ExtendedKeyUsageOID.CLIENT_AUTH, now=now, life=life)

    def verifies(self, leaf: x509.Certificate) -> bool:
        """Whether one of this folder's issuing authorities signed the certificate; dates are the caller's to judge."""
        for certificate in x509.load_pem_x509_certificates(self.chain_pem)[:-1]:
            try:
                leaf.verify_directly_issued_by(certificate)
            except Exception:  # noqa: S112 - ValueError, TypeError or InvalidSignature: not by this one
                continue
            return True
        return False

    @property
    def issuing_ends(self) -> datetime:
        """When the newest issuing authority expires, aware."""
        return self._issuer.certificate.not_valid_after_utc

    def _leaf(
        self,
        subject: list[x509.NameAttribute[str]],
        public_key: ec.EllipticCurvePublicKey,
        usage: x509.ObjectIdentifier,
        *,
        now: datetime,
        life: timedelta,
        hosts: Sequence[str] = (),
    ) -> bytes:
        issuer = self._issuer
        if now >= issuer.certificate.not_valid_after_utc:
            raise EnvironmentFault(
                f"the issuing authority expired on {issuer.certificate.not_valid_after_utc:%Y-%m-%d}; bring the root's key and run "
                "`bowerbird identity roll --root-key FILE`"
            )
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(subject))
            .issuer_name(issuer.certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(now - BACK_DATED, issuer.certificate.not_valid_before_utc))
            .not_valid_after(min(now + life, issuer.certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
        )
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False
            )
        return _pem(builder.sign(issuer.key, hashes.SHA256())) + _pem(issuer.certificate)


def random_service_name(process: str) -> str:
    """A name nobody can guess, for a process of the server: `svc-<process>-<128 random bits>`."""
    return f"{RESERVED_PREFIX}{process}-{secrets.token_hex(16)}"


def is_reserved(name: str) -> bool:
    """Whether a name belongs to services of the server, in whatever case it is written."""
    folded = name.casefold()
    return folded.startswith(RESERVED_PREFIX) or folded in {"bowerbird-server", "admin", "root", "server", "broker"}


def key_pin(key: object) -> str:
    """SHA-256 of a public key's SubjectPublicKeyInfo, hex."""
    assert hasattr(key, "public_bytes")  # noqa: S101 - every public key of `cryptography` has it
    return sha256(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as unencrypted PKCS 8."""
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def generation_of(leaf: x509.Certificate) -> int:
    """The generation in a device certificate; 0 when it has none."""
    for attribute in leaf.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER):
        if str(attribute.value).isdecimal():
            return int(attribute.value)
    return 0


def common_name(leaf: x509.Certificate) -> str:
    """The one common name of a certificate, empty when there is none or more than one."""
    names = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def _make_root(folder: Path, now: datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Bowerbird root {secrets.token_hex(4)}")])
    certificate = _authority_certificate(name, name, key.public_key(), key, now=now, life=ROOT_LIFE, path_length=1)
    # The key first: a root without its key could sign no issuing authority, a key without a root is replaced.
    write_durably(folder / "root.key", key_pem(key), mode=0o600)
    write_durably(folder / "root.pem", _pem(certificate), mode=0o644)
    sync_folder(folder)


def _make_issuing(folder: Path, root_key: ec.EllipticCurvePrivateKey, number: int, now: datetime) -> None:
    root = x509.load_pem_x509_certificate((folder / "root.pem").read_bytes())
    if now >= root.not_valid_after_utc:
        raise EnvironmentFault(
            f"the root in {folder} expired on {root.not_valid_after_utc:%Y-%m-%d}; every device must claim anew"
        )
    if number > 9999:
        raise Conflict(f"{folder} has had 9999 issuing authorities; move the oldest away")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Bowerbird issuing {number} {secrets.token_hex(4)}")])
    life = min(ISSUING_LIFE, root.not_valid_after_utc - now)
    certificate = _authority_certificate(name, root.subject, key.public_key(), root_key, now=now, life=life, path_length=0)
    write_durably(folder / f"issuing-{number:04d}.pem", key_pem(key) + _pem(certificate), mode=0o600)


def _authority_certificate(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePrivateKey,
    *,
    now: datetime,
    life: timedelta,
    path_length: int,
) -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACK_DATED)
        .not_valid_after(now + life)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _load_issuers(folder: Path) -> list[_Issuer]:
    """Newest first."""
    found: list[_Issuer] = []
    for path in folder.iterdir():
        match = _ISSUING.fullmatch(path.name)
        if match is None:
            continue
        key = _load_key(path)
        found.append(_Issuer(int(match[1]), key, x509.load_pem_x509_certificate(path.read_bytes())))
    return sorted(found, key=lambda issuer: -issuer.number)


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        others = path.stat().st_mode & 0o077
        content = path.read_bytes()
    except OSError as error:
        raise EnvironmentFault(f"cannot read {path}: {error.strerror}") from error
    if others:
        raise EnvironmentFault(f"{path} holds a private key and others can read it: chmod 600 {path}")
    try:
        key = serialization.load_pem_private_key(content, None)
    except (ValueError, TypeError) as error:
        raise EnvironmentFault(f"{path} holds no private key that can be read; restore it from a backup") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise EnvironmentFault(f"{path} holds a key that is not EC P-256; restore it from a backup")
    return key


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


@contextmanager
def _changing(folder: Path) -> Iterator[None]:
    """Only one process at a time makes authorities here."""
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
