"""Certificates of readers: programs that nobody but a person renews, so a person is told in time.

In: the data folder, the names of readers at the broker, the time. Out: a certificate; when each ends; alarms, one a certificate. It
lets nobody in (`broker/embedded.py` does), and knows an end only while the file that it made lies in the data folder.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from bowerbird_server.broker.address import write_private
from bowerbird_server.broker.certificates import read_leaf
from bowerbird_server.catalogue import identity
from bowerbird_server.catalogue.core import Catalogue
from bowerbird_server.errors import EnvironmentFault
from bowerbird_server.identity.authority import Authority, key_pem
from bowerbird_server.layout import DataFolder

LIFE = timedelta(days=365)
WARN_BEFORE = timedelta(days=45)
_FILE = "reader.pem"


def make_certificate(folder: DataFolder, name: str, *, now: datetime | None = None) -> Path:
    """A new key and certificate of a reader, in a folder like a device's; the one before stays good until its own end."""
    place = folder.devices / name
    place.mkdir(mode=0o700, exist_ok=True)
    authority = Authority.open(folder.identity)
    key = ec.generate_private_key(ec.SECP256R1())
    now = now or datetime.now(tz=UTC)
    leaf = authority.device_certificate(name, key.public_key(), generation=1, now=now, life=LIFE)
    write_private(place / "ca.pem", authority.root_pem)
    write_private(place / _FILE, key_pem(key) + leaf)
    return place / _FILE


def ends(folder: DataFolder, names: Iterable[str]) -> dict[str, datetime | None]:
    """When the newest certificate of each reader ends, aware; None where its file is not here any more."""
    found: dict[str, datetime | None] = {}
    for name in names:
        try:
            leaf = read_leaf(folder.devices / name / _FILE)
        except EnvironmentFault:  # others can read it: `bowerbird doctor` has that, and the date is not known the less
            leaf = None
        found[name] = None if leaf is None else leaf.not_valid_after_utc
    return found


def trouble_of(name: str, ends_at: datetime | None, now: datetime) -> str:
    """What a person should do about a reader's certificate, "" while nothing is to be done."""
    if ends_at is None or ends_at - now > WARN_BEFORE:
        return ""
    verb = "ended" if ends_at <= now else "ends"
    return f"the certificate of reader {name} {verb} on {ends_at:%Y-%m-%d}; make the next: bowerbird readers renew {name}"


def warn(cat: Catalogue, folder: DataFolder, names: Iterable[str], now: datetime) -> list[str]:
    """Raise an alarm for each certificate that ends soon, once; returns what was said now."""
    said = []
    for name, ends_at in ends(folder, names).items():
        trouble = trouble_of(name, ends_at, now)
        if not trouble or ends_at is None:
            continue
        with cat.transaction():
            until = identity.text_of(ends_at)
            if any(row["why"].get("until") == until for row in identity.alarms(cat, subject=name)):
                continue
            identity.alarm(cat, name, trouble, {"until": until})
        said.append(trouble)
    return said
