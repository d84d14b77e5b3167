"""Who this device is: private key and certificate in one file per generation, and which of them is used.

In: the folder `identity/` of the state folder, key and certificate as PEM. Out: `Identity`; files that are there whole or not at
all, mode 0600, the older beside the newer one until that has been in use for two days. It asks nobody for anything: `enrolment.py`
and `renewal.py` do.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from bowerbird_agent.errors import AgentError
from bowerbird_models.durable import make_durable_folder, sync_folder, write_durably

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

logger = logging.getLogger(__name__)

FOLDER = "identity"
CA_NAME = "ca.pem"
CLAIM_KEY, RENEWAL_KEY = "claim.key", "renewal.key"
OLD_STAYS = timedelta(hours=48)
_GENERATION = re.compile(r"([1-9][0-9]{0,8})\.pem")
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})
_UTC = timezone.utc


class IdentityError(AgentError):
    """The identity cannot be used or kept; the message says what to do."""


class NoIdentity(IdentityError):
    """This device was never enrolled."""


@dataclass(frozen=True)
class Identity:
    """What the device shows at a connection.

    Args:
        certificate_file: private key, leaf and issuing certificate.
        ca_file: what it trusts.
        device: its id in topics, from the certificate.
        generation: counts its certificates.
        not_before, not_after: when the certificate is good; aware.
    """

    certificate_file: Path
    ca_file: Path
    device: str
    generation: int
    not_before: datetime
    not_after: datetime

    def is_good_at(self, now: datetime) -> bool:
        """Whether its time has come and has not passed."""
        return self.not_before <= now < self.not_after

    def tls_context(self) -> ssl.SSLContext:
        """TLS 1.2 or newer that shows this certificate and trusts only the site's CA.

        Raises:
            IdentityError: a file cannot be used.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_verify_locations(self.ca_file)
            context.load_cert_chain(self.certificate_file)
        except (OSError, ssl.SSLError) as error:
            files = f"{self.certificate_file} or {self.ca_file}"
            raise IdentityError(f"{files} cannot be used ({error}); enrol the device again") from error
        return context


def load_identity(folder: Path, *, now: datetime | None = None) -> Identity:
    """The newest identity that works: whole, of its own key, and in its time if any is.

    Args:
        now: aware; the clock's time when left out. With a clock that is wrong for all of them the newest whole one is taken.

    Raises:
        NoIdentity: there is none.
        IdentityError: others can read a key, or no file is whole.
    """
    check_modes(folder)
    now = now or datetime.now(tz=_UTC)
    whole: list[Identity] = []
    damaged: list[str] = []
    for path in _generations(folder):
        try:
            whole.append(_read(path, folder / CA_NAME))
        except (ValueError, OSError) as error:
            damaged.append(path.name)
            logger.warning("identity %s is damaged (%s); an older one is used", path, error)
    for identity in whole:
        if identity.is_good_at(now):
            return identity
    if whole:
        return whole[0]
    if damaged:
        raise IdentityError(f"{', '.join(damaged)} in {folder} is damaged; invite the device again and enrol it")
    raise NoIdentity(f"there is no identity in {folder}; run `bowerbird-agent enrol BUNDLE`")


def store_identity(folder: Path, generation: int, key_pem: bytes, certificate_pem: bytes, ca_pem: bytes) -> Identity:
    """Keep a new generation, durably; older ones stay.

    Raises:
        IdentityError: key and certificate do not belong together.
        OSError: the disk refused; what was there before is untouched.
    """
    path = folder / f"{generation}.pem"
    key = key_pem.rstrip() + b"\n"
    # The CA first: a certificate without it could not be used, a CA without a certificate is only early.
    if not (folder / CA_NAME).exists() or (folder / CA_NAME).read_bytes() != ca_pem:
        write_durably(folder / CA_NAME, ca_pem, mode=0o600)
    part = folder / f".{generation}.new"
    write_durably(part, key + certificate_pem, mode=0o600)
    try:
        identity = _read(part, folder / CA_NAME)
    except ValueError as error:
        part.unlink()
        raise IdentityError(f"the server sent a certificate that cannot be used: {error}") from error
    part.replace(path)
    sync_folder(folder)
    return Identity(path, folder / CA_NAME, identity.device, generation, identity.not_before, identity.not_after)


def forget_old(folder: Path, used: Identity, *, now: datetime) -> list[str]:
    """Remove generations before `used` once that is two days old; returns their names."""
    gone: list[str] = []
    if _age(used.certificate_file, now) < OLD_STAYS:
        return gone
    for path in _generations(folder):
        if int(path.stem) < used.generation:
            path.unlink(missing_ok=True)
            gone.append(path.name)
    return gone


def pending_key(folder: Path, name: str) -> bytes:
    """The private key for a request that is under way, PEM; made and stored before the first request, so that a retry has the same.

    Raises:
        OSError: the disk refused.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    path = folder / name
    with contextlib.suppress(FileNotFoundError):
        stored = path.read_bytes()
        with contextlib.suppress(ValueError):
            load_key(stored)
            return stored
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_durably(path, pem, mode=0o600)
    return pem


def drop_pending_key(folder: Path, name: str) -> None:
    """The request is answered and its answer stored."""
    (folder / name).unlink(missing_ok=True)
    sync_folder(folder)


def load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """An EC key from a PEM text that may hold certificates as well.

    Raises:
        ValueError: there is none.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_private_key(pem, None)
    except TypeError as error:
        raise ValueError("the key is encrypted") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the key is not EC")
    return key


def leaf_of(pem: bytes) -> x509.Certificate:
    """The first certificate in a PEM text.

    Raises:
        ValueError: there is none.
    """
    from cryptography import x509

    start = pem.find(b"-----BEGIN CERTIFICATE")
    if start < 0:
        raise ValueError("there is no certificate in it")
    return x509.load_pem_x509_certificate(pem[start:])


def make_folder(folder: Path, *, in_memory_ok: bool = False) -> None:
    """The identity's folder, mode 0700.

    Raises:
        IdentityError: it lies in memory and would be gone after a power cut, or others can read it.
        OSError: it cannot be made.
    """
    make_durable_folder(folder, mode=0o700)
    if not in_memory_ok and filesystem_of(folder) in _IN_MEMORY:
        raise IdentityError(
            f"{folder} lies in memory (tmpfs): a power cut would take the identity. Set device.state_dir to a folder on a disk, or "
            "say --in-memory for a demo"
        )
    check_modes(folder)


def check_modes(folder: Path) -> None:
    """Refuse keys that others can read.

    Raises:
        IdentityError: says which chmod puts it right.
    """
    if not folder.is_dir():
        return
    for path in (folder, *sorted(folder.iterdir())):
        if path.name == CA_NAME:
            continue
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            tight = "700" if path.is_dir() else "600"
            raise IdentityError(f"others can read {path} (mode {mode:o}): chmod {tight} {path}")


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """One enrolment or renewal at a time in a folder; the lock goes with the process.

    Raises:
        IdentityError: another process is at it.
    """
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise IdentityError(f"another process is enrolling or renewing in {folder}; wait for it") from error
        yield
    finally:
        os.close(handle)


def filesystem_of(folder: Path) -> str:
    """The type of the file system that holds a folder, "" when it cannot be told."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text("utf-8").splitlines()]
    except OSError:
        return ""
    path = str(folder.resolve())
    holding = [fields for fields in mounts if path == fields[1] or path.startswith(fields[1].rstrip("/") + "/")]
    return max(holding, key=lambda fields: len(fields[1]))[2] if holding else ""


def _generations(folder: Path) -> Sequence[Path]:
    """Newest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _GENERATION.fullmatch(path.name)), key=lambda path: -int(path.stem))


def _read(path: Path, ca_file: Path) -> Identity:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    from cryptography.x509.oid import NameOID

    content = path.read_bytes()
    if content.count(b"-----BEGIN ") != content.count(b"-----END "):
        raise ValueError("it is cut short")
    leaf, key = leaf_of(content), load_key(content)
    names = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise ValueError("the certificate has no name")
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if leaf.public_key().public_bytes(*form) != key.public_key().public_bytes(*form):
        raise ValueError("the certificate is for another key")
    numbers = [str(each.value) for each in leaf.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)]
    generation = int(path.stem) if path.stem.isdecimal() else int(next(filter(str.isdecimal, numbers), 0))
    return Identity(path, ca_file, str(names[0].value), generation, leaf.not_valid_before_utc, leaf.not_valid_after_utc)


def _age(path: Path, now: datetime) -> timedelta:
    written = datetime.fromtimestamp(path.stat().st_mtime, tz=_UTC)
    return now - written
