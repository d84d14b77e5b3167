"""The audit log as a hash chain: each event carries a digest of itself and of the event before it. Pure.

In: events in their order. Out: digests, and what is wrong with a chain. A row that was edited, taken out or put in between breaks the
chain at its place; rows cut from the end are missed by whoever knows an anchor, a digest that was written down elsewhere. It reads
no table.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

FIRST = "0" * 64  # what the first event builds on
_COVERED = ("id", "at", "actor", "kind", "subject", "why", "origin")


@dataclass(frozen=True)
class Anchor:
    """The digest that the event at `position` had at some time."""

    position: int
    digest: str


def digest_of(before: str, position: int, event: Mapping[str, Any]) -> str:
    """The digest of an event.

    Args:
        before: the digest of the event before it, `FIRST` for the first.
        position: its place, from 1.
        event: at least `id at actor kind subject why origin`, as they are in the table.
    """
    text = json.dumps([before, position, *(str(event[name]) for name in _COVERED)], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def faults(events: Iterable[Mapping[str, Any]], anchors: Iterable[Anchor] = ()) -> Iterator[str]:
    """What is wrong, in words, at most one fault an event.

    Args:
        events: all of them by position, each with `position` and `digest` beside what `digest_of` covers.
        anchors: digests that were noted outside of the table.
    """
    noted = {anchor.position: anchor.digest for anchor in anchors}
    before, last = FIRST, 0
    for event in events:
        position, digest = int(event["position"]), str(event["digest"])
        if position != last + 1:
            yield f"events {last + 1} to {position - 1} are missing"
        if digest_of(before, position, event) != digest:
            yield f"event {position} ({event['id']}) is not what was written, or not after the event that was before it"
        elif noted.get(position, digest) != digest:
            yield f"event {position} ({event['id']}) has another digest than its anchor: the log was written anew up to there"
        before, last = digest, position
    beyond = sorted(position for position in noted if position > last)
    if beyond:
        yield f"the log ends at event {last}, and once reached event {beyond[-1]}: its end was cut off"
