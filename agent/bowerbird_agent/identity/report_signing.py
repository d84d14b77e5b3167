"""The device signs what it reports of updates, with the key that it shows at its connections.

In: a report, the identity's folder. Out: the report with signature and certificate; as it is where this device has no identity, as with
a broker that knows passwords only. It decides nothing: what an unsigned report is worth the server knows.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from bowerbird_agent.identity.identity import IdentityError, NoIdentity, leaf_of, load_identity, load_key
from bowerbird_wire.messages import Report
from bowerbird_wire.report_proof import report_bytes

logger = logging.getLogger(__name__)


class ReportSigner:
    """Signs with the newest identity that works, looked up each time since it is renewed beside this.

    Args:
        folder: of the identity.
        device: this device's id in topics.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self._folder, self._device = folder, device
        self._complained = False

    def signed(self, report: Report) -> Report:
        """The report as it is sent."""
        try:
            return self._signed(report)
        except NoIdentity:
            return report
        except (IdentityError, OSError, ValueError) as error:
            logger.log(logging.DEBUG if self._complained else logging.WARNING, "reports go unsigned: %s", error)
            self._complained = True
            return report

    def _signed(self, report: Report) -> Report:
        identity = load_identity(self._folder)
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding

        content = identity.certificate_file.read_bytes()
        shown = replace(report, certificate=leaf_of(content).public_bytes(Encoding.DER))
        return replace(shown, signature=load_key(content).sign(report_bytes(self._device, shown), ec.ECDSA(hashes.SHA256())))
