"""What a device and the claim listener say to each other over HTTPS, before there is MQTT: JSON with few keys and hard limits.

In: text from the peer. Out: frozen requests and answers, or an error that names the key at fault. A request carries a certificate
request (PKCS 10) of which the server takes the public key only; the token stands in the body, never in an address. It opens no
connection and knows no cryptography but the bytes that a renewal signs.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from bowerbird_wire.errors import WireError

CLAIM_PATH = "/v1/claim"
CA_PATH = "/v1/ca"  # the root certificate, for a board that knows its pin only; public, and believed by nobody who does not
RENEW_PATH = "/v1/renew"
MAX_BODY_BYTES = 16 * 1024
MAX_ANSWER_BYTES = 64 * 1024
MAX_TEXT = 200  # labels, serial numbers, reasons

SETUP = "setup"  # claim_urls, trusted_root, tables and cameras as in a bundle

# Why an answer is not a certificate. REFUSED is the same for a token that never was, is too late, or is used up.
REFUSED = "refused"
TOO_MANY = "too-many"
UNUSABLE = "unusable"  # not a request at all
BUSY = "busy"
SUSPENDED = "suspended"
CLAIM_AGAIN = "claim-again"  # expired too long ago, or unknown here

R = TypeVar("R", "ClaimRequest", "RenewRequest", "Answer")


SCHEME = "bowerbird:"
_PIN = re.compile(r"[0-9a-f]{64}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{8,200}")


class ClaimError(WireError):
    """A body that is not what it should be; the message names the key."""


@dataclass(frozen=True)
class ClaimRequest:
    """A token for a certificate.

    Args:
        token: as printed by the invitation.
        request: certificate request, PEM.
        serial: the board's serial number, "" when it has none.
        agent_version: for the operator's list.
    """

    token: str
    request: str
    serial: str = ""
    agent_version: str = ""


@dataclass(frozen=True)
class RenewRequest:
    """A certificate for its successor.

    Args:
        certificate: the leaf that the device has, PEM.
        request: certificate request for the new key, PEM.
        proof: signature of `renewal_bytes` by the old key, base64.
    """

    certificate: str
    request: str
    proof: str


@dataclass(frozen=True)
class Answer:
    """What the listener says to both.

    Args:
        state: "active" with a certificate, "pending" while a person has not approved, or one of the reasons above.
        detail: what to do, for people.
        device, site: names in topics.
        generation: of the certificate.
        certificate: leaf and issuing certificates, PEM.
        ca: what the device trusts from now on, PEM.
        server_time: UTC ISO text; a hint for people, never set.
        retry_after_s: when to ask again.
        extra: under `SETUP` what else a bundle holds, in the answer to a claim.
    """

    state: str
    detail: str = ""
    device: str = ""
    site: str = ""
    generation: int = 0
    certificate: str = ""
    ca: str = ""
    server_time: str = ""
    retry_after_s: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)


def claim_text(url: str, token: str, pin: str) -> str:
    """Address, token and pin in one line: enough to enrol with, short enough for a QR code."""
    return f"{SCHEME}{url}#{token}#{pin}"


def read_claim_text(text: str) -> tuple[str, str, str]:
    """Address, token and pin out of such a line.

    Raises:
        ClaimError: it is none; the message says what is missing, and never what the token is.
    """
    parts = text.strip().removeprefix(SCHEME).split("#")
    if not text.strip().startswith(SCHEME) or len(parts) != 3:
        raise ClaimError(f"this is no claim text; it reads {SCHEME}https://host:port#token#pin")
    url, token, pin = parts[0], parts[1], parts[2].lower()
    if not url.startswith("https://") or not _is_text(url) or len(url) > MAX_TEXT:
        raise ClaimError("the claim text names no https://host:port")
    if not _TOKEN.fullmatch(token):
        raise ClaimError("the token in the claim text is cut short or mistyped")
    if not _PIN.fullmatch(pin):
        raise ClaimError("the pin in the claim text is cut short or mistyped; it has 64 digits of 0-9 and a-f")
    return url, token, pin


def renewal_bytes(device: str, generation: int, request_der: bytes) -> bytes:
    """What the old key signs: the new request, for this device and generation and nothing else."""
    return b"\x00".join((b"bowerbird renewal 1", device.encode(), str(generation).encode(), request_der))


def to_json(message: ClaimRequest | RenewRequest | Answer) -> bytes:
    """The message as JSON."""
    return json.dumps(asdict(message), separators=(",", ":"), sort_keys=True).encode()


def from_json(kind: type[R], body: bytes) -> R:
    """The message in a JSON text; unknown keys are ignored, a newer peer may know more.

    Raises:
        ClaimError: too long, not JSON, or a key is missing, of another type or too long.
    """
    if len(body) > (MAX_ANSWER_BYTES if kind is Answer else MAX_BODY_BYTES):
        raise ClaimError(f"{len(body)} bytes are more than is ever sent")
    try:
        plain = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ClaimError("not JSON") from error
    if not isinstance(plain, dict):
        raise ClaimError("not a JSON object")
    values: dict[str, Any] = {}
    for each in fields(kind):
        if each.name not in plain:
            continue
        value = plain[each.name]
        default = _DEFAULTS[each.name]
        if isinstance(value, bool) or not isinstance(value, int | float if isinstance(default, float) else type(default)):
            raise ClaimError(f"{each.name}: must be {type(default).__name__}")
        if isinstance(value, str) and each.name not in _LONG and len(value) > MAX_TEXT:
            raise ClaimError(f"{each.name}: longer than {MAX_TEXT} characters")
        if isinstance(value, str) and not _is_text(value):
            raise ClaimError(f"{each.name}: half a character, which no file and no database takes")
        values[each.name] = value
    try:
        return kind(**values)
    except TypeError as error:
        raise ClaimError(f"a key is missing: {error}") from error


def _is_text(value: str) -> bool:
    """JSON can spell halves of characters (`\\ud800`), which are text nowhere else."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


_LONG = frozenset({"request", "certificate", "ca"})
_DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(("token", "request", "serial", "agent_version", "certificate", "proof"), ""),
    **dict.fromkeys(("state", "detail", "device", "site", "ca", "server_time"), ""),
    "generation": 0,
    "retry_after_s": 0.0,
    "extra": {},
}
