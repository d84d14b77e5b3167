"""A device as the claim listener sees it: a key, requests of every kind, and the proofs of renewals.

In: names and what shall be wrong. Out: `ClaimRequest` and `RenewRequest` values, signed with real keys.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from bowerbird_server.identity.authority import common_name, generation_of
from bowerbird_wire.claim import Answer, ClaimRequest, RenewRequest, renewal_bytes


def make_request(
    key: object,
    *,
    name: str | None = "device",
    names: Sequence[x509.NameAttribute] = (),
    extensions: Sequence[x509.ExtensionType] = (),
) -> str:
    """A certificate request, PEM."""
    subject = list(names) if names or name is None else [x509.NameAttribute(NameOID.COMMON_NAME, name, _validate=False)]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()  # type: ignore[arg-type]


@dataclass
class Claimant:
    """One board with a key."""

    serial: str = ""
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def claim(self, token: str, request: str | None = None) -> ClaimRequest:
        """A claim with this board's key."""
        return ClaimRequest(token, request or make_request(self.key), self.serial, "0.1.0")

    def renewal(
        self, answer: Answer, new: Claimant, *, signer: ec.EllipticCurvePrivateKey | None = None, generation: int | None = None
    ) -> RenewRequest:
        """The successor of the certificate in `answer`, for the key of `new`; signed by this board's key unless told otherwise."""
        leaf = x509.load_pem_x509_certificate(answer.certificate.encode())
        request = make_request(new.key)
        der = x509.load_pem_x509_csr(request.encode()).public_bytes(Encoding.DER)
        signed = (signer or self.key).sign(
            renewal_bytes(common_name(leaf), generation or generation_of(leaf), der), ec.ECDSA(hashes.SHA256())
        )
        return RenewRequest(leaf.public_bytes(Encoding.PEM).decode(), request, base64.b64encode(signed).decode())
