"""What devices kept and never sent: counts by reason, group and score bin, and the frames that estimates have to allow for, by name.

In: `Tombstones` messages. Out: rows. Counts are totals since the agent's first start, so a later message replaces an earlier one; names
are noted once, however often they are said.
"""

from __future__ import annotations

import json

from bowerbird_server.catalogue import fetches
from bowerbird_server.catalogue.core import Catalogue, Row, utc_now, utc_text
from bowerbird_wire.messages import Tombstones

_LATEST_MS = 253_370_764_800_000


def record(cat: Catalogue, device: str, message: Tombstones) -> int:
    """Note a message; returns the number up to which all names are noted, 0 when it names none."""
    now = utc_now()
    with cat.transaction():
        cat.execute(
            "INSERT INTO unsent (device, at, evicted, dropped) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (device) DO UPDATE SET at = excluded.at, evicted = excluded.evicted, dropped = excluded.dropped",
            device,
            now,
            json.dumps(dict(message.evicted), sort_keys=True),
            json.dumps(dict(message.dropped), sort_keys=True),
        )
        for stone in message.named:
            cat.insert(
                "tombstone",
                {
                    "device": device,
                    "frame": stone.frame.hex(),
                    "arm": stone.arm[:20],
                    "why": stone.why[:80],
                    "score": stone.score,
                    "inclusion_probability": stone.inclusion_probability,
                    "camera": stone.camera[:63],
                    "captured_at": utc_text(min(max(stone.captured_at_ms, 0), _LATEST_MS)),
                    "noted_at": now,
                },
                ignore=True,
            )
            if stone.arm == "fetched":
                fetches.lost(cat, stone.frame.hex())
    return max((stone.number for stone in message.named), default=0)


def of_device(cat: Catalogue, device: str) -> Row:
    """`at`, `evicted` and `dropped` (counts by `reason.group.score bin`), `named`: how many frames by arm are known by name."""
    row = cat.row("SELECT at, evicted, dropped FROM unsent WHERE device = ?", device)
    named = cat.rows("SELECT arm, count(*) AS n FROM tombstone WHERE device = ? GROUP BY arm ORDER BY arm", device)
    return {
        "at": None if row is None else row["at"],
        "evicted": {} if row is None else json.loads(row["evicted"]),
        "dropped": {} if row is None else json.loads(row["dropped"]),
        "named": {one["arm"]: one["n"] for one in named},
    }


def named(cat: Catalogue, device: str, *, arm: str | None = None, limit: int = 1000) -> list[Row]:
    """The frames of a device that are known by name to have left unsent, newest first."""
    return cat.rows(
        "SELECT * FROM tombstone WHERE device = ? AND (?2 IS NULL OR arm = ?2) ORDER BY captured_at DESC, frame LIMIT ?3",
        device,
        arm,
        limit,
    )
