"""What a failed TLS handshake means, in a sentence that says what to do.

In: the `ssl.SSLError` of either side of a connection to the broker. Out: a code for tables and a sentence. With TLS 1.2 the
peer's refusal comes out of the handshake, with TLS 1.3 out of the first read after it. It looks at no file and no clock;
`refusal` alone touches a socket.
"""

from __future__ import annotations

import ssl

WRONG_CA, WRONG_HOST, EXPIRED, NOT_YET_VALID = "wrong-ca", "wrong-host", "expired", "not-yet-valid"
REFUSED, REFUSED_EXPIRED, REFUSED_CA, NO_CERTIFICATE, NOT_TLS, OTHER = (
    "refused",
    "refused-expired",
    "refused-ca",
    "no-certificate",
    "not-tls",
    "tls",
)

TEXTS = {
    WRONG_CA: "its certificate is not from the CA that is trusted here; is it another site's broker, or was the CA renewed?",
    WRONG_HOST: "its certificate is for another host name; use a name that it was made for, or have the server add this one",
    EXPIRED: "its certificate has expired by the clock here; check this clock first, then restart the server, which renews it",
    NOT_YET_VALID: "its certificate is not valid yet by the clock here; set this clock",
    REFUSED: "it does not accept the certificate shown (revoked, not valid yet by its clock, or not made for clients)",
    REFUSED_EXPIRED: "it says that the certificate shown has expired; renew it",
    REFUSED_CA: "it does not know the CA of the certificate shown; is it another site's broker?",
    NO_CERTIFICATE: "it wants a client certificate and none was shown; enrol this device",
    NOT_TLS: "it does not speak TLS there; check the port",
    OTHER: "TLS failed",
}
# OpenSSL's numbers of failed verification (x509_vfy.h) and names of alerts (RFC 8446, section 6.2).
_VERIFY = {9: NOT_YET_VALID, 10: EXPIRED, 62: WRONG_HOST, 64: WRONG_HOST}
_ALERTS = {
    "CERTIFICATE_EXPIRED": REFUSED_EXPIRED,
    "UNKNOWN_CA": REFUSED_CA,
    "CERTIFICATE_REQUIRED": NO_CERTIFICATE,
    "BAD_CERTIFICATE": REFUSED,
    "UNSUPPORTED_CERTIFICATE": REFUSED,
    "CERTIFICATE_REVOKED": REFUSED,
    "CERTIFICATE_UNKNOWN": REFUSED,
    "ACCESS_DENIED": REFUSED,
    "HANDSHAKE_FAILURE": NO_CERTIFICATE,
}


def tls_fault(error: ssl.SSLError) -> str:
    """Which fault it is, one of this module's codes."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _VERIFY.get(error.verify_code, WRONG_CA)
    reason = error.reason or ""
    for alert, code in _ALERTS.items():
        if reason.endswith(f"ALERT_{alert}"):
            return code
    return NOT_TLS if reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"} else OTHER


def explain_tls(error: ssl.SSLError) -> str:
    """A sentence without a full stop's worth of jargon: what it is, then OpenSSL's own word for it in brackets."""
    detail = getattr(error, "verify_message", "") or error.reason or str(error)
    return f"{TEXTS[tls_fault(error)]} ({detail})."


def refusal(error: OSError, sock: object) -> ssl.SSLError | None:
    """The peer's refusal behind a read or write that failed; None when there is none.

    It may wait unread behind a connection that broke while we wrote, so the socket is read once more.

    Args:
        sock: the socket that failed and will be closed; anything but a TLS socket says nothing.
    """
    if _is_alert(error):
        assert isinstance(error, ssl.SSLError)  # noqa: S101 - for the type checker
        return error
    if not isinstance(sock, ssl.SSLSocket):
        return None
    try:
        sock.recv(1)
    except ssl.SSLError as said:
        return said if _is_alert(said) else None
    except (OSError, ValueError):
        return None
    return None


def _is_alert(error: OSError) -> bool:
    return isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or "")
