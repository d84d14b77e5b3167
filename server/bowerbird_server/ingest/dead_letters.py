"""Messages that were refused, kept for a look: a ring of the newest, bounded in count and bytes.

In: topic, payload and why it was refused. Out: rows of `dead_letter` and payload files below a folder of their own (never among the
blobs: a hostile payload could be the bytes of a good image, and dropping it from the ring would drop the image).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from bowerbird_server.blobs import LocalBlobs
from bowerbird_server.catalogue.core import Catalogue, new_id, utc_now
from bowerbird_server.errors import NotFound
from bowerbird_wire.codec import decode_frame_header
from bowerbird_wire.errors import WireError
from bowerbird_wire.messages import FrameHeader

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

    def erase(self, cat: Catalogue, device: str | None, covers: Callable[[FrameHeader], bool]) -> int:
        """Drop the refused messages of a device (None: of all) whose frame somebody wants forgotten; returns how many.

        What has no readable header cannot be told from those, and goes as well.
        """
        dropped = []
        for row in cat.rows("SELECT id, topic, blob FROM dead_letter WHERE blob IS NOT NULL"):
            if device is not None and f"/{device}/" not in row["topic"]:
                continue
            try:
                if not covers(decode_frame_header(self._payloads.read(row["blob"]))[0]):
                    continue
            except (WireError, NotFound):
                pass
            dropped.append(row)
        with cat.transaction():
            for row in dropped:
                cat.execute("UPDATE dead_letter SET blob = NULL WHERE id = ?", row["id"])
            used = {row["blob"] for row in cat.rows("SELECT blob FROM dead_letter WHERE blob IS NOT NULL")}
        for blob in {row["blob"] for row in dropped} - used:
            self._payloads.delete(blob)
        return len(dropped)

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
