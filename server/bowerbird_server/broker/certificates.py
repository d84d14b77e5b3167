"""The certificates around a broker of our own: the broker's, and one for each process of the server.

In: the site's authority, host names, client ids, the time. Out: `server.pem`, `ca.pem` and `services/<client id>.pem` below the
broker's folder, made anew when two thirds of their life are over. A process keeps its name for ever, since its session at the
broker hangs on it; the name is random, since whoever has a certificate with that name has the server's rights.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from cryptography import x509

from bowerbird_server.broker.address import write_private
from bowerbird_server.errors import BadInput, EnvironmentFault
from bowerbird_server.identity.authority import Authority, common_name, random_service_name

USED_SHARE = 2 / 3  # of a certificate's life, after which the next one is made
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound to


class BrokerCertificates:
    """The files.

    Args:
        folder: of the broker.
        authority: the folder of the site's authority; opened only when something must be signed.
        device_ca: PEM file of another CA that signs for devices, up to its root; None where the site's own does.
    """

    def __init__(self, folder: Path, authority: Path, device_ca: Path | None = None) -> None:
        self._folder = folder
        self._authority, self._device_ca = authority, device_ca

    @property
    def server_file(self) -> Path:
        """Key and chain of the broker."""
        return self._folder / "server.pem"

    @property
    def ca_file(self) -> Path:
        """The root that clients trust."""
        return self._folder / "ca.pem"

    @property
    def clients_ca_file(self) -> Path:
        """The roots that the broker takes clients from: the site's own, and that of another CA for devices."""
        return self.ca_file if self._device_ca is None else self._folder / "clients-ca.pem"

    @property
    def services(self) -> Path:
        """A file for each client id."""
        return self._folder / "services"

    def keep_server(self, hosts: Iterable[str], now: datetime) -> bool:
        """Have a certificate for the broker under these names; whether it was made now.

        Raises:
            EnvironmentFault: the authority cannot sign, or the folder not be written.
        """
        wanted = sorted(set(hosts))
        authority = Authority.open(self._authority, now=now)
        if not self.ca_file.exists() or self.ca_file.read_bytes() != authority.root_pem:
            write_private(self.ca_file, authority.root_pem)
        self._keep_clients_ca(authority)
        leaf = read_leaf(self.server_file)
        if leaf is not None and authority.verifies(leaf) and hosts_of(leaf) == set(wanted) and not is_due(leaf, now):
            return False
        write_private(self.server_file, authority.server_certificate(wanted, now=now))
        return True

    def _keep_clients_ca(self, authority: Authority) -> None:
        if self._device_ca is None:
            return
        try:
            theirs = self._device_ca.read_bytes()
        except OSError as error:
            raise EnvironmentFault(f"identity.issuer_ca {self._device_ca} cannot be read: {error.strerror}") from error
        content = authority.root_pem.rstrip(b"\n") + b"\n" + theirs
        if not self.clients_ca_file.exists() or self.clients_ca_file.read_bytes() != content:
            write_private(self.clients_ca_file, content)

    def keep_services(self, client_ids: Iterable[str], now: datetime, *, afresh: bool = False) -> bool:
        """Have a certificate for each of these processes; whether a name is new, which the broker must be told.

        Args:
            afresh: make a new one in any case, as a process does when it starts.
        """
        self.services.mkdir(mode=0o700, exist_ok=True)
        is_new = False
        for client_id in client_ids:
            path = self.services / f"{client_id}.pem"
            leaf = read_leaf(path)
            name = common_name(leaf) if leaf is not None else ""
            if leaf is not None and name and not afresh and not is_due(leaf, now):
                continue
            is_new = is_new or not name
            name = name or random_service_name(client_id.removeprefix("bowerbird-"))
            write_private(path, Authority.open(self._authority, now=now).service_certificate(name, now=now))
        return is_new

    def names(self) -> list[str]:
        """The names of the server's processes at the broker."""
        leaves = [read_leaf(path) for path in sorted(self.services.glob("*.pem"))]
        return [common_name(leaf) for leaf in leaves if leaf is not None and common_name(leaf)]

    def client_ids(self) -> list[str]:
        """The processes that have a certificate."""
        return sorted(path.stem for path in self.services.glob("*.pem"))


def hosts_for(host: str, more: Iterable[str]) -> list[str]:
    """The names under which a broker that binds `host` is reached from here, and those that others know it by.

    Raises:
        BadInput: one of `more` is neither a name nor an address.
    """
    names = {"127.0.0.1", "localhost"}
    if host in EVERYWHERE:
        names |= {socket.gethostname()}
    else:
        names.add(host)
    for name in more:
        if not name or (any(character.isspace() or character in "/:@" for character in name) and not _is_address(name)):
            raise BadInput(f"{name!r} is neither a host name nor an address")
        names.add(name)
    return sorted(names)


def read_leaf(path: Path) -> x509.Certificate | None:
    """The first certificate in a PEM file, None when there is none.

    Raises:
        EnvironmentFault: others can read the file, which holds a private key.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise EnvironmentFault(f"{path} holds a private key and others can read it: chmod 600 {path}")
        content = path.read_bytes()
        return x509.load_pem_x509_certificate(content[content.index(b"-----BEGIN CERTIFICATE") :])
    except (FileNotFoundError, ValueError):
        return None


def is_due(leaf: x509.Certificate, now: datetime) -> bool:
    """Whether so much of a certificate's life is over that the next should be made."""
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    return now >= leaf.not_valid_before_utc + life * USED_SHARE or now < leaf.not_valid_before_utc


def hosts_of(leaf: x509.Certificate) -> set[str]:
    """The names and addresses that a certificate is good for."""
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))}


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
