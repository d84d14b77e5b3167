"""Messages that were refused, kept for a look: a ring of the newest, bounded in count and bytes.

In: topic, payload and why it was refused. Out: rows of `dead_letter` and payload files below a folder of their own (never among the
blobs: a hostile payload could be the bytes of a good image, and dropping it from the ring would drop the image).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from bowerbird_server.blobs import LocalBlobs
from bowerbird_server.catalogue.core import Catalogue, new_id, utc_now

RING = 200
MAX_PAYLOAD_BYTES = 1024 * 1024


class DeadLetters:
    """The ring.

    Args:
        folder: for payloads; made when missing.
    """

    def __init__(self, folder: Path) -> None:
        self._payloads = LocalBlobs(folder)

    def keep_payloads(self, payloads: Sequence[bytes]) -> None:
        """Store payloads, but for those too large to be worth it."""
        self._payloads.put_many([payload for payload in payloads if len(payload) <= MAX_PAYLOAD_BYTES])

    def add(self, cat: Catalogue, topic: str, payload: bytes, code: str, detail: str) -> None:
        """The row of a refused message; call it in the transaction of its group."""
        blob = hashlib.sha256(payload).hexdigest() if len(payload) <= MAX_PAYLOAD_BYTES else None
        cat.insert(
            "dead_letter",
            {"id": new_id(), "at": utc_now(), "topic": topic[:300], "code": code, "detail": detail[:1000], "blob": blob},
        )

    def prune(self, cat: Catalogue) -> int:
        """Drop all but the newest `RING` rows and the payloads that no row names; returns how many rows went."""
        with cat.transaction():
            old = cat.rows("SELECT id, blob FROM dead_letter ORDER BY rowid DESC LIMIT -1 OFFSET ?", RING)
            for row in old:
                cat.execute("DELETE FROM dead_letter WHERE id = ?", row["id"])
            blobs = {row["blob"] for row in old if row["blob"] is not None}
            unused = [b for b in blobs if cat.value("SELECT 1 FROM dead_letter WHERE blob = ?", b) is None]
        for blob in unused:
            self._payloads.delete(blob)
        return len(old)
