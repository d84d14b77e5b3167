"""Where an MQTT broker is, who we are there, and whom we trust: one value, and the TLS context made from it.

In: a URL, or `broker.json`. Out: `BrokerAddress`, and a fresh `ssl.SSLContext` for each connection, so that a renewed
certificate is used from the next connection on. It opens no connection.
"""

from __future__ import annotations

import json
import os
import ssl
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bowerbird_server.errors import BadInput, EnvironmentFault


@dataclass(frozen=True)
class BrokerAddress:
    """Where the broker is and who we are there.

    Args:
        ca_file: what is trusted with TLS; empty for what the machine trusts.
        certificate: PEM file with key and chain; or a folder with a file `<client id>.pem` each, for a broker that takes the client id
            from the certificate. Empty to show none.
    """

    host: str
    port: int
    username: str = ""
    password: str = field(default="", repr=False)
    tls: bool = False
    ca_file: str = ""
    certificate: str = ""

    @classmethod
    def from_url(cls, url: str) -> BrokerAddress:
        """`mqtt://user:password@host:1883` or `mqtts://...:8883`; user and password may be percent-encoded.

        Raises:
            BadInput: another scheme, or no host.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise BadInput(f"broker URL: {error}; write mqtts://host:8883") from error
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
            raise BadInput("a broker URL is mqtts://host:8883 for TLS, or mqtt://user:password@host:1883 without")
        tls = parts.scheme == "mqtts"
        return cls(
            parts.hostname, port or (8883 if tls else 1883), unquote(parts.username or ""), unquote(parts.password or ""), tls
        )

    def save(self, path: Path) -> None:
        """Write as JSON, mode 0600."""
        write_private(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> BrokerAddress:
        """What `save` wrote; other keys of the file are left alone.

        Raises:
            EnvironmentFault: the file is missing or damaged.
        """
        try:
            plain = json.loads(path.read_text())
            known = {each.name: plain[each.name] for each in fields(cls) if each.name in plain}
            return cls(**{**known, "host": str(plain["host"]), "port": int(plain["port"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EnvironmentFault(
                f"no usable broker address in {path}: run `bowerbird serve` once, or name a broker by its URL"
            ) from error

    def certificate_for(self, client_id: str) -> Path | None:
        """The file that this client shows, None for none."""
        if not self.certificate:
            return None
        path = Path(self.certificate)
        return path / f"{client_id}.pem" if path.is_dir() else path

    def tls_context(self, client_id: str) -> ssl.SSLContext | None:
        """TLS 1.2 or newer, host name checked, with the certificate as it is on disk now; None for plain TCP.

        Raises:
            EnvironmentFault: a file is missing or is not what it should be.
        """
        if not self.tls:
            return None
        certificate = self.certificate_for(client_id)
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if certificate is not None:
                context.load_cert_chain(certificate)
        except (OSError, ssl.SSLError) as error:
            raise EnvironmentFault(
                f"cannot use {certificate or self.ca_file} with {self.ca_file or 'the CAs of this machine'} for the broker at "
                f"{self.host}:{self.port}: {error}"
            ) from error
        return context


def write_private(path: Path, content: str | bytes) -> None:
    """Write a file that only its owner may read, whole or not at all.

    Raises:
        EnvironmentFault: the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise EnvironmentFault(f"cannot write {path}: {error.strerror}. Check space and permissions.") from error
