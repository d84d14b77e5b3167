"""What a device signs of a report: the bytes that say who reports what, so that nobody else's words and no older words count.

In: a device's id, a report. Out: bytes, the same at both ends whatever further keys a newer release has put into the report. Device
and job stand in them, and a job's id is given once: a copy is worth nothing under another name, for another job or for the same
job again. It knows no key; `report_signing.py` of the agent and `identity/report_check.py` of the server do.
"""

from __future__ import annotations

from dataclasses import replace

import cbor2

from bowerbird_wire.codec import to_map
from bowerbird_wire.messages import Report

_DOMAIN = b"bowerbird report v1\x00"


def report_bytes(device: str, report: Report) -> bytes:
    """What the signature is over: everything but itself."""
    bare = replace(report, signature=b"")
    return _DOMAIN + cbor2.dumps([device, {"v": Report.VERSION, **to_map(bare)}], canonical=True)
