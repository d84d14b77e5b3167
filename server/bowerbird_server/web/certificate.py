"""The certificate of the web server: files that somebody else renews, or one of the site's own authority that is renewed here.

In: `[web]` of the configuration, the time. Out: where certificate and key lie, or an error that says what is wrong with them. It opens
no socket.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from bowerbird_server.access.private_files import check_private, write_private
from bowerbird_server.config import WebConfig
from bowerbird_server.errors import ConfigError, EnvironmentFault
from bowerbird_server.identity.authority import Authority
from bowerbird_server.layout import DataFolder

NAME = "web.pem"
_LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Certificate:
    """`chain` and `key` may be one file."""

    chain: Path
    key: Path

    def changed_at(self) -> tuple[int, int]:
        """When each was last written, nanoseconds."""
        return self.chain.stat().st_mtime_ns, self.key.stat().st_mtime_ns


def certificate_of(folder: DataFolder, web: WebConfig, *, now: datetime) -> Certificate | None:
    """The certificate to serve with, made or renewed when it is the site's own; None for plain HTTP.

    Args:
        now: aware time.

    Raises:
        EnvironmentFault: the key can be read by others, or the files do not fit together.
    """
    if web.tls == "off":
        return None
    given = Certificate(Path(web.certificate_file), Path(web.key_file))
    found = given if web.tls == "files" else _of_the_site(folder, web, now)
    check_private([found.key])
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(found.chain, found.key)
    except (OSError, ssl.SSLError) as error:
        raise EnvironmentFault(
            f"the pages cannot be served with {found.chain} and {found.key}: {error}; check that both are PEM, can be read by the "
            "server's user, and belong together"
        ) from error
    return found


def _of_the_site(folder: DataFolder, web: WebConfig, now: datetime) -> Certificate:
    path = folder.identity / NAME
    hosts = sorted({*_LOCAL, *web.names, *([] if web.host in {"0.0.0.0", "::"} else [web.host])})  # noqa: S104 - not bound here
    if not _is_good(path, hosts, now):
        write_private(path, Authority.open(folder.identity, now=now).server_certificate(hosts, now=now))
    return Certificate(path, path)


def _is_good(path: Path, hosts: list[str], now: datetime) -> bool:
    """Whether it is for these hosts and has a third of its life before it."""
    try:
        text = path.read_bytes()
        leaf = x509.load_pem_x509_certificate(text[text.index(b"-----BEGIN CERTIFICATE") :])
    except (OSError, ValueError):
        return False
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    held = {str(name.value) for name in names}
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    return leaf.not_valid_before_utc <= now < leaf.not_valid_after_utc - life / 3 and held == set(hosts)


def check_names(web: WebConfig) -> None:
    """Whether browsers elsewhere could reach a page under a name that the certificate has.

    Raises:
        ConfigError: the pages listen on all addresses and nobody said under which names.
    """
    if web.tls == "site" and web.host in {"0.0.0.0", "::"} and not web.names:  # noqa: S104 - not bound here
        raise ConfigError('web.names must say by which names and addresses browsers reach the pages, for example ["192.0.2.1"]')
