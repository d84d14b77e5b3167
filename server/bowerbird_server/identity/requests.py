"""What a certificate request may say: almost nothing of it is taken, and what it should not say is refused with a reason.

In: PEM from a device that nobody knows yet. Out: its public key, or `RequestRefused` with a named reason. The name in a request is
never used, the server chooses it; one that is reserved, has wildcards or is not plain is refused all the same, since it shows a
wish for it.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID, NameOID

from bowerbird_server.errors import BadInput
from bowerbird_server.identity.authority import is_reserved, key_pin
from bowerbird_wire.claim import renewal_bytes

MAX_REQUEST_BYTES = 4096
PLACEHOLDER = "device"  # what our own agent writes as its name
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


class RequestRefused(BadInput):
    """`reason` is one of `REASONS`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        super().__init__(f"{reason}: {REASONS[reason]}{f' ({detail})' if detail else ''}")


REASONS = {
    "too-large": f"a request has at most {MAX_REQUEST_BYTES} bytes",
    "not-a-request": "it is no PKCS 10 request in PEM",
    "signature": "the request is not signed by the key that it names",
    "weak-key": "the key must be EC P-256 and the signature SHA-2",
    "reserved-name": "the name belongs to the server",
    "wildcard-name": "the name has wildcards of a topic",
    "unicode-name": "the name has other characters than letters, digits, '.', '_' and '-'",
    "long-name": "the name is longer than 63 characters",
    "many-names": "the request has more than one name",
    "authority": "a device is no certificate authority",
    "foreign-name": "the request asks for further names (subjectAltName)",
    "extension": "the request asks for an extension that devices have not",
    "proof": "the proof is not a signature by the old key",
}


@dataclass(frozen=True)
class DeviceRequest:
    """A request that may be answered."""

    public_key: ec.EllipticCurvePublicKey
    fingerprint: str  # SHA-256 of the public key
    der: bytes
    pem: bytes


def read_request(text: str) -> DeviceRequest:
    """The request in a PEM text.

    Raises:
        RequestRefused: anything but a plain request for a P-256 key.
    """
    pem = text.encode(errors="replace")
    if len(pem) > MAX_REQUEST_BYTES:
        raise RequestRefused("too-large", f"{len(pem)} bytes")
    try:
        request = x509.load_pem_x509_csr(pem)
        key = request.public_key()
        signed = request.is_signature_valid
        algorithm = request.signature_hash_algorithm
        subject, extensions = request.subject, request.extensions
    except UnsupportedAlgorithm as error:
        raise RequestRefused("weak-key") from error
    except (ValueError, TypeError, InvalidSignature, x509.DuplicateExtension, x509.InvalidVersion) as error:
        raise RequestRefused("not-a-request") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise RequestRefused("weak-key", type(key).__name__.strip("_"))
    if not isinstance(algorithm, _HASHES):
        raise RequestRefused("weak-key", getattr(algorithm, "name", "no hash"))
    if not signed:
        raise RequestRefused("signature")
    _check_names(subject)
    _check_extensions(extensions)
    return DeviceRequest(key, key_pin(key), _der(request), pem)


def check_proof(leaf: x509.Certificate, device: str, generation: int, request: DeviceRequest, proof: str) -> None:
    """Whether the old key signed this request.

    Raises:
        RequestRefused: it did not.
    """
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise RequestRefused("proof")
    try:
        key.verify(
            base64.b64decode(proof, validate=True), renewal_bytes(device, generation, request.der), ec.ECDSA(hashes.SHA256())
        )
    except (InvalidSignature, ValueError) as error:
        raise RequestRefused("proof") from error


def _check_names(subject: x509.Name) -> None:
    attributes = list(subject)
    if len(attributes) > 1 or any(attribute.oid != NameOID.COMMON_NAME for attribute in attributes):
        raise RequestRefused("many-names")
    for attribute in attributes:
        name = attribute.value if isinstance(attribute.value, str) else attribute.value.decode(errors="replace")
        if len(name) > 63:
            raise RequestRefused("long-name")
        if any(sign in name for sign in "+#*$/"):
            raise RequestRefused("wildcard-name")
        if _PLAIN_NAME.fullmatch(name) is None:
            raise RequestRefused("unicode-name")
        if is_reserved(name):
            raise RequestRefused("reserved-name")


def _check_extensions(extensions: x509.Extensions) -> None:
    for extension in extensions:
        if isinstance(extension.value, x509.BasicConstraints):
            if extension.value.ca:
                raise RequestRefused("authority")
        elif isinstance(extension.value, x509.KeyUsage):
            if extension.value.key_cert_sign or extension.value.crl_sign:
                raise RequestRefused("authority")
        elif extension.oid == ExtensionOID.SUBJECT_ALTERNATIVE_NAME:
            raise RequestRefused("foreign-name")
        else:
            raise RequestRefused("extension", extension.oid.dotted_string)


def _der(request: x509.CertificateSigningRequest) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return request.public_bytes(Encoding.DER)
