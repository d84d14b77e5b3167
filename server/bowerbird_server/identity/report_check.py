"""Whether a report is the word of the device in whose name it came: signed with the key of a certificate that was issued to it.

In: reports, the catalogue, an issuer. Out: "" or why a report changes nothing. A broker that was broken into can forge everything that
passes it; what became of an update it cannot. The rules:

1. A device to which no certificate was ever issued (a broker that knows passwords only) has nothing to sign with, and is believed.
2. One that was enrolled by an agent that signs, or has signed once, signs always. Before, it may be an agent of before 0.2.0.
3. The key is that of its newest certificate, or of the one before while both are good; or of a newer one that this site's CA signed,
   which a catalogue that was restored from a backup does not know.

It judges nobody's rights and no report's content.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from bowerbird_server.catalogue import identity as rows
from bowerbird_server.catalogue.core import Catalogue
from bowerbird_server.identity.authority import common_name, generation_of, key_pin
from bowerbird_server.identity.clones import GRACE_S
from bowerbird_wire.messages import Report
from bowerbird_wire.report_proof import report_bytes

SIGNING_SINCE = (0, 2, 0)  # the first agent that signs
_VERSION = re.compile(r"(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?")
_MAX_CERTIFICATE = 8 * 1024


def signs_reports(agent_version: str) -> bool:
    """Whether an agent of this version signs; one that does not say a number is not known to."""
    found = _VERSION.match(agent_version)
    return found is not None and tuple(int(part or 0) for part in found.groups()) >= SIGNING_SINCE


class ReportCheck:
    """Judges reports.

    Args:
        cat: the catalogue, of the calling thread.
        verifies: whether this site's CA, or the one that signs for it, signed a certificate.
        clock: aware time now.
    """

    def __init__(
        self,
        cat: Catalogue,
        verifies: Callable[[x509.Certificate], bool],
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(tz=UTC),
    ) -> None:
        self._cat, self._verifies, self._clock = cat, verifies, clock

    def fault_of(self, device: str, report: Report) -> str:
        """Why a report is not believed, "" if it is."""
        issued = rows.certificates(self._cat, device)[:2]
        if not issued:
            return ""
        if not report.signature:
            return "a report without a signature" if rows.has_signed(self._cat, device) else ""
        leaf = _leaf(report.certificate)
        if leaf is None or not _is_signed(leaf, device, report):
            return "a report whose signature does not hold"
        key, newest = key_pin(leaf.public_key()), issued[0]
        since = self._clock() - rows.time_of(newest["issued_at"])
        good = {newest["key_sha256"]} | {row["key_sha256"] for row in issued[1:] if since <= timedelta(seconds=GRACE_S)}
        is_later = generation_of(leaf) > newest["generation"] and common_name(leaf) == device
        if key not in good and not (is_later and self._verifies(leaf)):
            return "a report signed with a key that is not the device's, or not any more"
        rows.note_signs(self._cat, device, signs=True)
        return ""


def _leaf(der: bytes) -> x509.Certificate | None:
    if len(der) > _MAX_CERTIFICATE:
        return None
    try:
        return x509.load_der_x509_certificate(der)
    except (ValueError, x509.InvalidVersion):
        return None


def _is_signed(leaf: x509.Certificate, device: str, report: Report) -> bool:
    try:
        key = leaf.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return False
        key.verify(report.signature, report_bytes(device, report), ec.ECDSA(hashes.SHA256()))
    except Exception:  # whatever the bytes of somebody else make of the libraries below: the signature does not hold
        return False
    return True
