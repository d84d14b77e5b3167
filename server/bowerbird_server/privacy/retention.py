"""How long frames are kept, by what became of them: the rule, pure, and the process that deletes what is due.

In: `[retention]` of the configuration, the age and state of frames, the time. Out: which frames are due and why; their deletion with a
tombstone and the reason. It deletes nothing that no limit is set for, and nothing of a frame somebody has open for labelling.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from bowerbird_server.catalogue import Row
from bowerbird_server.catalogue import frames as frame_rows
from bowerbird_server.catalogue.record_keeping import delete_frames, keep_records
from bowerbird_server.config import RetentionConfig
from bowerbird_server.site import Site

logger = logging.getLogger(__name__)

ACTOR = "retention"
_GROUP = 200
MAX_AT_ONCE = 10_000  # frames a call, so that the scheduler comes back to its other work


@dataclass(frozen=True)
class Aged:
    """What the rule needs of a frame.

    Args:
        frame: its id.
        state: of the catalogue.
        captured_at, received_at: UTC.
        clock_ok: whether the device knew the time when it captured it.
        judged_at: when it was last labelled or rejected; None for never.
        held_out: whether it belongs to the evaluation set.
    """

    frame: str
    state: str
    captured_at: datetime
    received_at: datetime
    clock_ok: bool = True
    judged_at: datetime | None = None
    held_out: bool = False


def born_at(frame: Aged) -> datetime:
    """From when a frame's age counts: its capture, as far as that can be believed, else its arrival.

    A clock that was not set, or that runs ahead of ours, must neither delete a frame at once nor keep it for ever.
    """
    if frame.clock_ok and frame.captured_at <= frame.received_at:
        return frame.captured_at
    return frame.received_at


def due(frame: Aged, limits: RetentionConfig, now: datetime) -> str | None:
    """Why a frame is to be deleted now, None when it stays.

    Unlabelled frames age from their capture; labelled and rejected ones from the moment at which somebody said so, since until then
    nobody could know which limit holds for them.
    """
    if frame.state in ("received", "queued"):
        kind, days, since = "unlabelled", limits.unlabelled_days, born_at(frame)
    elif frame.state == "rejected":
        kind, days, since = "rejected", limits.rejected_days, frame.judged_at or frame.received_at
    elif frame.state == "labelled":
        days = limits.held_out_days if frame.held_out else limits.labelled_days
        kind, since = "held out" if frame.held_out else "labelled", frame.judged_at or frame.received_at
    else:  # deleted already, or somebody has it open
        return None
    if days is None or now - since < timedelta(days=days):
        return None
    return f"retention: {kind} for {days:g} days"


def all_due(aged: Iterable[Aged], limits: RetentionConfig, now: datetime) -> Iterator[tuple[str, str]]:
    """(frame, reason) of those that are due."""
    for frame in aged:
        why = due(frame, limits, now)
        if why is not None:
            yield frame.frame, why


def find_due(site: Site, now: datetime | None = None, limit: int = MAX_AT_ONCE) -> list[tuple[str, str]]:
    """(frame, reason) of what is due on a site, the oldest first; deletes nothing."""
    limits = site.config.retention
    if limits.is_unlimited:
        return []
    aged = (_aged(row) for row in frame_rows.ages(site.catalogue))
    found = []
    for frame, why in all_due(aged, limits, now or datetime.now(UTC)):
        found.append((frame, why))
        if len(found) >= limit:
            break
    return found


def apply(site: Site, now: datetime | None = None) -> dict[str, int]:
    """Delete what is due; returns how many frames by reason.

    Raises:
        EnvironmentFault: the disk refuses; what is left stays due.
    """
    by_reason: dict[str, list[str]] = {}
    for frame, why in find_due(site, now):
        by_reason.setdefault(why, []).append(frame)
    counts: dict[str, int] = {}
    for why, ids in by_reason.items():
        for start in range(0, len(ids), _GROUP):
            group = ids[start : start + _GROUP]
            counts[why] = counts.get(why, 0) + delete_frames(site.catalogue, site.blobs, group, ACTOR, why).frames
    if counts:
        keep_records(site.catalogue, site.blobs)
        logger.info("deleted by retention: %s", counts)
    return counts


def _aged(row: Row) -> Aged:
    judged = row["judged_at"]
    return Aged(
        row["id"],
        row["state"],
        datetime.fromisoformat(row["captured_at"]),
        datetime.fromisoformat(row["received_at"]),
        bool(row["clock_ok"]),
        None if judged is None else datetime.fromisoformat(judged),
        bool(row["held_out"]),
    )
