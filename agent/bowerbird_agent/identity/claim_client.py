"""One HTTPS request to the claim listener, verified by the site's own CA; and what exactly is wrong when that fails.

In: an address, a body, the CA. Out: the listener's answer and its time, or `ClaimFault` whose `kind` says who must act. Public CAs
are never trusted. When a certificate is out of its time a second connection verifies everything but the time, to learn whether it
is the board's clock that is wrong: the server's time is a hint for people and is never set.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from hashlib import sha256
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from bowerbird_agent.errors import AgentError
from bowerbird_agent.identity.identity import leaf_of
from bowerbird_wire.claim import CA_PATH, MAX_ANSWER_BYTES, Answer, from_json
from bowerbird_wire.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TIMEOUT_S = 40.0
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME
_NOT_YET, _EXPIRED = 9, 10  # X509_V_ERR_CERT_...
_WRONG_HOST = frozenset({62, 64})  # host name, address
_CLOCK_OFF_S = 300.0


class ClaimFault(AgentError):
    """Why there is no answer.

    `kind`: "address" (nobody can be asked there), "unreachable", "clock", "ca", "host", "server".
    """

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


@dataclass(frozen=True)
class Heard:
    """An answer, and how far the server's clock is ahead of ours."""

    answer: Answer
    ahead_s: float | None


def post(url: str, path: str, body: bytes, ca_pem: str, *, timeout_s: float = TIMEOUT_S) -> Heard:
    """Send one request.

    Args:
        url: `https://host:port` of the listener.
        ca_pem: what it must be verified by.

    Raises:
        ClaimFault: there is no answer.
    """
    host, port = _where(url)
    try:
        return _reached(host, port, lambda: _exchange(host, port, path, body, _context(ca_pem), timeout_s))
    except ssl.SSLCertVerificationError as error:
        raise _certificate_fault(error, host, port, ca_pem, timeout_s) from error


def _reached(host: str, port: int, exchange: Callable[[], Heard]) -> Heard:
    """An exchange, with what keeps it from being one as a sentence; certificates are the caller's to judge."""
    try:
        return exchange()
    except ssl.SSLCertVerificationError:
        raise
    except ssl.SSLError as error:
        what = f"{host}:{port} does not speak TLS as the claim listener does ({error.reason}); check the port"
        raise ClaimFault("server", what) from error
    except socket.gaierror as error:
        what = f"the name {host} is not known here ({error.strerror}); check DNS, or use an address"
        raise ClaimFault("unreachable", what) from error
    except (OSError, http.client.HTTPException) as error:
        what = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ClaimFault(
            "unreachable", f"{host}:{port} cannot be reached ({what}); check network and firewall, and that the server runs"
        ) from error


def fetch_ca(url: str, pin: str, *, timeout_s: float = TIMEOUT_S) -> str:
    """The root certificate of whoever listens there, PEM; believed only if its key has the pin.

    Nothing is told to the listener, which is not verified yet: that comes with the first request that tells it something.

    Args:
        pin: SHA-256 of the root's public key, hex.

    Raises:
        ClaimFault: there is no answer, or it is the certificate of another CA.
    """
    host, port = _where(url)
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.minimum_version = ssl.TLSVersion.TLSv1_2
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    ca_pem = _reached(host, port, lambda: _exchange(host, port, CA_PATH, b"", unverified, timeout_s)).answer.ca
    if pin_of(ca_pem) != pin:
        raise ClaimFault(
            "ca",
            f"{host}:{port} is of another site than the one that the pin names: the text is mistyped, the server was set up anew, or "
            "somebody stands in between. Nothing was sent. Make a new invitation at the server: bowerbird devices invite",
        )
    return ca_pem


def pin_of(ca_pem: str) -> str:
    """SHA-256 of the public key of a CA certificate, hex; "" when it cannot be read."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        key = leaf_of(ca_pem.encode()).public_key()
    except ValueError:
        return ""
    return sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def post_to_any(urls: Sequence[str], path: str, body: bytes, ca_pem: str) -> tuple[str, Heard]:
    """The first address that answers, and what it says.

    Raises:
        ClaimFault: none does; the most telling of the faults.
    """
    faults: list[ClaimFault] = []
    for url in urls:
        try:
            return url, post(url, path, body, ca_pem)
        except ClaimFault as fault:
            faults.append(fault)
    order = ("clock", "ca", "host", "server", "unreachable", "address")
    raise min(faults, key=lambda fault: order.index(fault.kind))


def _where(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ClaimFault("address", f"{url[:80]} is no address: {error}") from error
    if parts.scheme != "https" or not parts.hostname or not port:
        raise ClaimFault("address", f"{url[:80]} is no https://host:port")
    return parts.hostname, port


def _context(ca_pem: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=ca_pem)
    except ssl.SSLError as error:
        raise ClaimFault("ca", "the bundle's CA certificate cannot be read; make the bundle again at the server") from error
    return context


def _exchange(host: str, port: int, path: str, body: bytes, context: ssl.SSLContext, timeout_s: float) -> Heard:
    connection = http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        said_at = response.getheader("date")
        content = response.read(MAX_ANSWER_BYTES + 1)
    finally:
        connection.close()
    try:
        answer = from_json(Answer, content)
    except WireError as error:
        raise ClaimFault(
            "server", f"{host}:{port} answers, but not as a claim listener ({error}); check host and port"
        ) from error
    return Heard(answer, _ahead_s(said_at))


def _ahead_s(said_at: str | None) -> float | None:
    if said_at is None:
        return None
    try:
        return parsedate_to_datetime(said_at).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None


def _certificate_fault(error: ssl.SSLCertVerificationError, host: str, port: int, ca_pem: str, timeout_s: float) -> ClaimFault:
    where = f"{host}:{port}"
    if error.verify_code in _WRONG_HOST:
        return ClaimFault(
            "host",
            f"{where} is the right site, but its certificate is for other names ({error.verify_message}); put {host} into "
            "broker.names at the server",
        )
    if error.verify_code in {_NOT_YET, _EXPIRED}:
        context = _context(ca_pem)
        context.verify_flags = ssl.VerifyFlags(context.verify_flags | _NO_CHECK_TIME)
        try:
            ahead_s = _exchange(host, port, "/", b"", context, timeout_s).ahead_s
        except (OSError, http.client.HTTPException, ClaimFault):
            ahead_s = None
        here = datetime.now(tz=timezone.utc)
        if ahead_s is not None and abs(ahead_s) > _CLOCK_OFF_S:
            there = datetime.fromtimestamp(here.timestamp() + ahead_s, tz=timezone.utc)
            return ClaimFault(
                "clock",
                f"this board's clock says {here:%Y-%m-%d %H:%M} UTC, the server's {there:%Y-%m-%d %H:%M} UTC; set the clock (NTP, or "
                f"`date -u -s '{there:%Y-%m-%d %H:%M:%S}'`) and try again. The token is still good.",
            )
        return ClaimFault(
            "server", f"the certificate of {where} is out of its time ({error.verify_message}); look at the server"
        )
    return ClaimFault(
        "ca",
        f"{where} is not verified by this site's CA ({error.verify_message}): it is another server, or somebody stands in between. "
        "Nothing was sent. Check the address; if the server was set up anew, make a new bundle there.",
    )
