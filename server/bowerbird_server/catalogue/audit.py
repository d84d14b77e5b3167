"""Reading the event log as evidence, and who was shown which frame.

In: an open catalogue. Out: events in their order, faults of the chain, rows of sights. Events are written by `Catalogue.log`; the
chain's rules are in `event_chain.py`, anchors outside of the catalogue in `anchors.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from bowerbird_server.access.event_chain import Anchor, faults
from bowerbird_server.catalogue.core import ORIGIN, Catalogue, Row, utc_now


def events(
    cat: Catalogue, *, actor: str | None = None, subject: str | None = None, since: str | None = None, limit: int = 100
) -> list[Row]:
    """The newest events first, each with `position`, `origin` and `why` as a dictionary; `since` is UTC ISO text."""
    rows = cat.rows(
        "SELECT * FROM event WHERE (?1 IS NULL OR actor = ?1) AND (?2 IS NULL OR subject = ?2) AND (?3 IS NULL OR at >= ?3) "
        "ORDER BY position DESC LIMIT ?4",
        *(actor, subject, since, limit),
    )
    return [{**row, "why": json.loads(row["why"])} for row in rows]


def head(cat: Catalogue) -> Anchor | None:
    """Where the log ends now."""
    row = cat.row("SELECT position, digest FROM event ORDER BY position DESC LIMIT 1")
    return None if row is None else Anchor(row["position"], row["digest"])


def verify(cat: Catalogue, anchors: Iterable[Anchor] = ()) -> Iterator[str]:
    """What is wrong with the log, in words; nothing when it is whole."""
    return faults(cat.db.query("SELECT * FROM event ORDER BY position IS NULL, position"), anchors)


def note_sight(cat: Catalogue, person: str, frame: str) -> None:
    """Somebody is shown a frame: one row a person, frame and day, so that looking often costs nothing. It is not flushed to the disk,
    since it comes with each picture of a page; a power cut may take the last seconds of it."""
    now = utc_now()
    with cat.transaction(durable=False):
        row = {"day": now[:10], "person": person, "frame": frame, "at": now, "origin": ORIGIN.get()}
        cat.insert("sight", row, ignore=True)


def sights(cat: Catalogue, *, person: str | None = None, frame: str | None = None, limit: int = 100) -> list[Row]:
    """Who was shown what, newest first: `at person frame origin`, the first time of each day."""
    return cat.rows(
        "SELECT at, person, frame, origin FROM sight WHERE (?1 IS NULL OR person = ?1) AND (?2 IS NULL OR frame = ?2) "
        "ORDER BY at DESC LIMIT ?3",
        *(person, frame, limit),
    )
