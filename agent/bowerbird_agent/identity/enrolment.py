"""A bare board becomes a device: its key is made here, its certificate is claimed, and both are kept as one file.

In: a bundle or the text of a QR code, the identity's folder. Out: `Identity` and agent.toml, or an error that says what to do; whenever
it is interrupted, doing it again goes on from there with the same key. It starts no agent.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from bowerbird_agent.errors import AgentError
from bowerbird_agent.identity.claim_client import fetch_ca, pin_of, post_to_any
from bowerbird_agent.identity.identity import (
    CLAIM_KEY,
    Identity,
    NoIdentity,
    drop_pending_key,
    load_identity,
    load_key,
    make_folder,
    only_one,
    pending_key,
    store_identity,
)
from bowerbird_models.durable import write_durably
from bowerbird_wire.bundle import Bundle, BundleError, agent_toml
from bowerbird_wire.claim import BUSY, CLAIM_PATH, REFUSED, SETUP, TOO_MANY, Answer, ClaimRequest, read_claim_text, to_json
from bowerbird_wire.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.hazmat.primitives.asymmetric import ec

logger = logging.getLogger(__name__)

_SERIALS = (Path("/proc/device-tree/serial-number"), Path("/sys/class/dmi/id/product_serial"))
_NO_SERIALS = frozenset({"", "none", "not specified", "default string", "to be filled by o.e.m.", "system serial number", "0"})
_MAX_SERIAL = 64
_CLAIMED = "claimed"  # hash of the token that gave this identity


class EnrolmentRefused(AgentError):
    """The server says no; `state` is its word for it."""

    def __init__(self, state: str, message: str) -> None:
        self.state = state
        super().__init__(message)


class ApprovalPending(AgentError):
    """The claim is taken, and a person has not approved it yet."""


@dataclass(frozen=True)
class Enrolled:
    """What came of it."""

    identity: Identity
    config: Path
    wrote_config: bool


def read_bundle(path: Path) -> Bundle:
    """The bundle in a file.

    Raises:
        AgentError: it cannot be read or is none, or its CA is not the one that its pin names.
    """
    try:
        bundle = Bundle.from_text(path.read_text("utf-8"))
    except OSError as error:
        raise AgentError(f"cannot read the bundle {path}: {error.strerror}") from error
    except (BundleError, UnicodeDecodeError) as error:
        raise AgentError(f"{path}: {error}") from error
    if pin_of(bundle.ca) != bundle.pin:
        raise AgentError(
            f"{path}: the CA in it is not the one that its pin names; it was changed on the way. Make a new bundle"
        )
    return bundle


def bundle_of_text(text: str, *, serial: str = "") -> Bundle:
    """The beginning of a bundle from the text of a QR code: the CA is fetched and held against the pin, the rest comes with the answer.

    Args:
        serial: to claim with, "" for the board's own.

    Raises:
        AgentError: it is no such text, nobody answers, or it is another CA.
    """
    try:
        url, token, pin = read_claim_text(text)
    except WireError as error:
        raise AgentError(f"{error}; copy the text anew from `bowerbird devices invite`") from error
    return Bundle("", token, [url], fetch_ca(url, pin), pin, "", serial=serial)


def completed(bundle: Bundle, answer: Answer) -> Bundle:
    """A bundle that was only a text, with what the server told beside the certificate; any other as it is.

    Raises:
        AgentError: the server does not say enough, or what no agent.toml can hold.
    """
    if bundle.tables:
        return bundle
    told = answer.extra.get(SETUP) or {}
    try:
        known = {key: told[key] for key in ("claim_urls", "trusted_root", "tables", "cameras")}
        whole = Bundle.from_text(replace(bundle, site=answer.site, device=answer.device, **known).to_text())
        if not whole.tables.get("broker"):
            raise BundleError("no broker")
    except (WireError, TypeError, KeyError, ValueError) as error:
        raise AgentError(
            "the server gave a certificate and does not say where its broker is, as servers before 0.2.0 do; enrol with the bundle "
            "file of a new invitation instead"
        ) from error
    return whole


def make_request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A certificate request of which only the public key matters: the server chooses the name. DER."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "device")])
    return x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def request_pem(der: bytes) -> str:
    """The same as PEM."""
    import base64

    text = base64.encodebytes(der).decode().replace("\n", "")
    lines = "\n".join(text[i : i + 64] for i in range(0, len(text), 64))
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{lines}\n-----END CERTIFICATE REQUEST-----\n"


def board_serial(places: tuple[Path, ...] = _SERIALS) -> str:
    """The board's serial number as its firmware tells it, "" when it has none."""
    for place in places:
        with contextlib.suppress(OSError):
            text = place.read_bytes().rstrip(b"\0\n ").decode("ascii", "ignore").strip()
            if text.casefold() not in _NO_SERIALS:
                return text[:_MAX_SERIAL]
    return ""


def enrol(
    bundle: Bundle,
    config: Path,
    *,
    version: str,
    state_dir: Path | None = None,
    in_memory_ok: bool = False,
    wait_s: float = 0.0,
    tell: Callable[[str], None] = lambda _text: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Enrolled:
    """Claim a certificate and keep it.

    Args:
        bundle: from `read_bundle` or `bundle_of_text`.
        config: agent.toml; written from the bundle if there is none.
        version: of this agent.
        state_dir: where state is kept; by default `state` beside agent.toml.
        in_memory_ok: an identity that a power cut takes is wanted (a demo).
        wait_s: how long to wait for a person's approval.
        tell: told what is going on, for a terminal.

    Raises:
        ClaimFault: nobody answered, see there.
        EnrolmentRefused: the server says no.
        ApprovalPending: not yet; do the same again later.
        IdentityError: the identity cannot be kept here.
        OSError: the disk refused; doing it again goes on.
    """
    folder = (state_dir or config.parent / "state") / "identity"
    make_folder(folder, in_memory_ok=in_memory_ok)
    with only_one(folder):
        clear_rests(folder)
        done = _enrolled_before(folder, bundle)
        if done is not None:
            drop_pending_key(folder, CLAIM_KEY)
            return Enrolled(done, config, _write_config(bundle, done.device, config))
        key_pem = pending_key(folder, CLAIM_KEY)
        request = request_pem(make_request(load_key(key_pem)))
        asked = ClaimRequest(bundle.token, request, bundle.serial or board_serial(), version)
        answer = _claim(bundle, to_json(asked), wait_s, tell, sleep)
        bundle = completed(bundle, answer)
        ca_pem = (answer.ca or bundle.ca).encode()
        identity = store_identity(folder, answer.generation, key_pem, answer.certificate.encode(), ca_pem)
        wrote = _write_config(bundle, identity.device, config)
        write_claim_urls(folder, list(bundle.claim_urls))
        write_durably(folder / _CLAIMED, _token_hash(bundle), mode=0o600)
        drop_pending_key(folder, CLAIM_KEY)
    return Enrolled(identity, config, wrote)


def _enrolled_before(folder: Path, bundle: Bundle) -> Identity | None:
    """The identity that this very bundle gave: its token is used up, and doing it again is no fault."""
    try:
        if (folder / _CLAIMED).read_bytes() != _token_hash(bundle):
            return None
        return load_identity(folder)
    except (OSError, NoIdentity):
        return None


def _token_hash(bundle: Bundle) -> bytes:
    return sha256(bundle.token.encode()).hexdigest().encode() + b"\n"


def write_claim_urls(folder: Path, urls: list[str]) -> None:
    """Keep where renewals go."""
    write_durably(folder / "claim-urls", ("\n".join(urls) + "\n").encode(), mode=0o600)


def read_claim_urls(folder: Path) -> list[str]:
    """Where renewals go; none when that is not known."""
    try:
        return (folder / "claim-urls").read_text("utf-8").split()
    except (OSError, UnicodeDecodeError):
        return []


def clear_rests(folder: Path) -> None:
    """Remove what a process that was killed left half-written; call it under `only_one`."""
    for path in folder.iterdir():
        if path.name.startswith(".") and path.suffix in {".part", ".new"}:
            path.unlink(missing_ok=True)


def _claim(bundle: Bundle, body: bytes, wait_s: float, tell: Callable[[str], None], sleep: Callable[[float], None]) -> Answer:
    waited_s, told = 0.0, False
    while True:
        _, heard = post_to_any(bundle.claim_urls, CLAIM_PATH, body, bundle.ca)
        answer = heard.answer
        if answer.state == "active":
            return answer
        if answer.state not in {"pending", BUSY, TOO_MANY}:
            raise _refusal(answer)
        if waited_s >= wait_s:
            break
        if not told and answer.state == "pending":
            tell(f"{answer.device} {answer.detail}; waiting")
            told = True
        pause_s = max(0.2, min(answer.retry_after_s, 30.0, wait_s - waited_s))
        sleep(pause_s)
        waited_s += pause_s
    if answer.state == "pending":
        raise ApprovalPending(
            f"{answer.device} {answer.detail}. Then do the same again here; the token stays good for this board."
        )
    raise EnrolmentRefused(answer.state, "the server is busy or asked too often; try again in a minute")


def _refusal(answer: Answer) -> EnrolmentRefused:
    if answer.state == REFUSED:
        return EnrolmentRefused(
            REFUSED,
            "the server refuses the token: it is mistyped, older than its time, used by another board, or for another one. Make a new "
            "bundle at the server with `bowerbird devices invite`",
        )
    return EnrolmentRefused(answer.state, f"the server refuses this board ({answer.state}): {answer.detail}")


def _write_config(bundle: Bundle, device: str, config: Path) -> bool:
    if bundle.trusted_root and not (config.parent / "root.json").exists():
        write_durably(config.parent / "root.json", bundle.trusted_root.encode(), mode=0o644)
    if config.exists():
        return False
    if not bundle.tables:
        raise AgentError(
            f"this text was used to enrol {device} already, and {config} is gone since; write it anew, or at the server: bowerbird "
            f"devices add {device} --again"
        )
    write_durably(config, agent_toml(bundle, device).encode(), mode=0o600)
    return True
