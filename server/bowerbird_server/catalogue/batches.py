"""Batches in the catalogue: groups of frames to be labelled, each frame with the reason why it is in it, and the queue they make.

In: chosen frames. Out: rows. Which frames are chosen is `batch.py`'s business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from bowerbird_server.catalogue import frames
from bowerbird_server.catalogue.core import Catalogue, Row, new_id, utc_now
from bowerbird_server.catalogue.references import REFERENCE
from bowerbird_server.errors import BadInput, Conflict, NotFound

RARE_BELOW_BOXES = 50
_WAITING = "('queued', 'in_review')"


@dataclass(frozen=True)
class Member:
    """A frame of a batch: why it is in it, in which role (`batch_choice.ROLES`), and with which probability chance took it."""

    frame: str
    why: str
    role: str = "policy"
    probability: float = 1.0


def add_batch(
    cat: Catalogue, members: Sequence[Member], policy: Mapping[str, object], actor: str, manifest: str | None = None
) -> str:
    """A new open batch; its frames become `queued`.

    Args:
        members: in the order in which they are to be labelled.
        policy: how they were chosen, kept as JSON; `by` says whether by score or diversity.
        manifest: blob that says all there is to say of the choice.

    Returns:
        The batch's id.

    Raises:
        BadInput: nothing is chosen.
        Conflict: a frame is no longer `received`; then there is no batch.
    """
    if not members:
        raise BadInput("a batch needs at least one frame")
    batch = new_id()
    ids = [member.frame for member in members]
    with cat.transaction():
        taken = [frame for frame, state in frames.states_of(cat, ids).items() if state != "received"]
        if taken:
            raise Conflict(f"frame {taken[0][:12]} is no longer received; somebody else has queued it. Choose again.")
        row = {"id": batch, "created_at": utc_now(), "state": "open", "policy": json.dumps(dict(policy))}
        cat.insert("batch", {**row, "manifest": manifest})
        for position, member in enumerate(members):
            cat.insert(
                "batch_frame",
                {"batch": batch, "position": position, **asdict(member), "chosen_by": str(policy.get("by", "score"))},
            )
        frames.change_state(cat, ids, "queued", actor, {"received"})
        cat.log(actor, "batch opened", batch, {"frames": len(members), "policy": dict(policy), "manifest": manifest})
    return batch


def candidates(cat: Catalogue, limit: int) -> list[Row]:
    """Received frames, explore arm first, then the best scores."""
    return cat.rows(
        "SELECT id, blob, bytes, device, camera, scene, captured_at, arm, reason, score, inclusion_probability, strategy_scores "
        "FROM frame "
        "WHERE state = 'received' AND arm <> 'fetched' ORDER BY arm = 'explore' DESC, score DESC, id LIMIT ?",
        limit,
    )


def candidate_count(cat: Catalogue) -> int:
    """How many received frames a batch could be made of."""
    return int(cat.value("SELECT count(*) FROM frame WHERE state = 'received' AND arm <> 'fetched'"))


def set_copies_aside(cat: Catalogue, actor: str) -> int:
    """Reject the received frames whose very image is already queued, labelled or rejected; the event names the twin.

    References, which are set aside from the beginning, set nothing else aside.

    Returns:
        How many frames were set aside.
    """
    with cat.transaction():
        copies = cat.rows(
            "SELECT frame.id, min(twin.id) AS twin FROM frame JOIN frame AS twin ON twin.blob = frame.blob AND twin.state "
            "IN ('queued', 'in_review', 'labelled', 'rejected') WHERE frame.state = 'received' AND frame.arm <> 'fetched' "
            "AND NOT EXISTS (SELECT 1 FROM linked_frame WHERE linked_frame.frame = twin.id AND kind = ?) GROUP BY frame.id",
            REFERENCE,
        )
        for row in copies:
            frames.change_state(cat, [row["id"]], "rejected", actor, {"received"})
            cat.log(actor, "frame is a copy", row["id"], {"of": row["twin"]})
    return len(copies)


def unrouted_scenes(cat: Catalogue) -> list[Row]:
    """Scenes of the random audit without a side: `camera`, `scene`, and whether `chosen` frames of it went to people already."""
    return cat.rows(
        "SELECT DISTINCT camera, scene, EXISTS (SELECT 1 FROM frame AS other WHERE other.scene = frame.scene AND other.arm <> "
        "'explore' AND other.state IN ('queued', 'in_review', 'labelled')) AS chosen FROM frame WHERE state = 'received' "
        "AND arm = 'explore' AND camera IS NOT NULL AND scene NOT IN (SELECT scene FROM scene_split)"
    )


def routed_scenes(cat: Catalogue) -> dict[str, int]:
    """Camera -> how many of its scenes have a side."""
    rows = cat.rows(
        "SELECT camera, count(DISTINCT scene) AS n FROM frame WHERE camera IS NOT NULL "
        "AND scene IN (SELECT scene FROM scene_split) GROUP BY camera"
    )
    return {row["camera"]: row["n"] for row in rows}


def set_held_out_aside(cat: Catalogue, actor: str) -> int:
    """Reject received frames of held-out scenes that something else than chance chose; returns how many.

    In the evaluation set they would make it biased, in training they would repeat its frames.
    """
    rows = cat.rows(
        "SELECT frame.id, frame.scene FROM frame JOIN scene_split USING (scene) WHERE state = 'received' AND split = 'holdout' "
        "AND arm NOT IN ('explore', 'import', 'fetched')"
    )
    with cat.transaction():
        for row in rows:
            frames.change_state(cat, [row["id"]], "rejected", actor, {"received"})
            cat.log(actor, "frame of a held-out scene", row["id"], {"scene": row["scene"]})
    return len(rows)


def set_twins_aside(cat: Catalogue, twins: Mapping[str, str], actor: str) -> int:
    """Reject received frames that look like one that is labelled or queued: frame -> the other. Returns how many."""
    with cat.transaction():
        still = [frame for frame, state in frames.states_of(cat, twins).items() if state == "received"]
        for frame in still:
            frames.change_state(cat, [frame], "rejected", actor, {"received"})
            cat.log(actor, "frame is nearly a copy", frame, {"like": twins[frame]})
    return len(still)


def drawn_classes(cat: Catalogue, ids: Sequence[str]) -> dict[str, set[str]]:
    """Which classes people drew in frames, by frame; those without a box are left out."""
    rows = cat.rows(
        "SELECT DISTINCT frame, box.value ->> 'class' AS name FROM label_newest, json_each(label_newest.boxes) AS box "
        "WHERE frame IN (SELECT value FROM json_each(?))",
        json.dumps(list(ids)),
    )
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row["frame"], set()).add(row["name"])
    return found


def rare_classes(cat: Catalogue, below: int = RARE_BELOW_BOXES) -> list[str]:
    """Classes of the class list with fewer labelled boxes than `below`."""
    rows = cat.rows(
        "SELECT class.name FROM class LEFT JOIN (SELECT value ->> 'class' AS name, count(*) AS n FROM label_newest, "
        "json_each(label_newest.boxes) WHERE verdict = 'labelled' GROUP BY 1) AS drawn USING (name) "
        "WHERE coalesce(drawn.n, 0) < ? ORDER BY class.id",
        below,
    )
    return [row["name"] for row in rows]


def timed_labels(cat: Catalogue, limit: int) -> list[tuple[int, float]]:
    """(boxes, seconds) of the newest labels that were timed."""
    rows = cat.rows(
        "SELECT json_array_length(boxes) AS n, seconds FROM label WHERE seconds > 0 ORDER BY created_at DESC LIMIT ?", limit
    )
    return [(row["n"], row["seconds"]) for row in rows]


def finish_batches(cat: Catalogue, frame: str) -> None:
    """Close the open batches of a frame in which nothing waits any more."""
    with cat.transaction():
        for row in cat.rows(
            "SELECT batch.id FROM batch JOIN batch_frame ON batch_frame.batch = batch.id "
            "WHERE batch_frame.frame = ? AND batch.state = 'open'",
            frame,
        ):
            if progress(cat, row["id"])["waiting"] == 0:
                cat.execute("UPDATE batch SET state = 'done' WHERE id = ?", row["id"])
                cat.log("labelling", "batch done", row["id"])


def progress(cat: Catalogue, batch: str) -> Row:
    """A batch's row with `frames`, `waiting`, `labelled` and `rejected` counts.

    Raises:
        NotFound: there is no such batch.
    """
    row = cat.row(
        f"SELECT batch.*, count(*) AS frames, coalesce(sum(frame.state IN {_WAITING}), 0) AS waiting, "  # noqa: S608 - a constant
        "coalesce(sum(frame.state = 'labelled'), 0) AS labelled, coalesce(sum(frame.state = 'rejected'), 0) AS rejected "
        "FROM batch JOIN batch_frame ON batch_frame.batch = batch.id JOIN frame ON frame.id = batch_frame.frame "
        "WHERE batch.id = ? GROUP BY batch.id",
        batch,
    )
    if row is None:
        raise NotFound(f"no batch {batch[:40]!r}; `bowerbird labels batches` shows what there is")
    return {**row, "policy": json.loads(row["policy"])}


def list_batches(cat: Catalogue, *, state: str | None = None, limit: int = 100) -> list[Row]:
    """Batches as `progress` gives them, newest first."""
    rows = cat.rows(
        "SELECT id FROM batch WHERE ?1 IS NULL OR state = ?1 ORDER BY created_at DESC, id DESC LIMIT ?2", state, limit
    )
    return [progress(cat, row["id"]) for row in rows]


def find(cat: Catalogue, end: str) -> Row:
    """As `progress`, for a batch's id or at least the last four characters of it.

    Raises:
        NotFound: there is no such batch, or more than one.
    """
    rows = cat.rows("SELECT id FROM batch WHERE id = ?1 OR (length(?1) >= 4 AND substr(id, -length(?1)) = ?1) LIMIT 2", end)
    return progress(cat, rows[0]["id"] if len(rows) == 1 else end)


def batch_frames(cat: Catalogue, batch: str) -> list[str]:
    """The ids of a batch's frames in order.

    Raises:
        NotFound: there is no such batch.
    """
    progress(cat, batch)
    return [row["frame"] for row in cat.rows("SELECT frame FROM batch_frame WHERE batch = ? ORDER BY position", batch)]


def queue(cat: Catalogue, limit: int, *, after: str | None = None) -> list[Row]:
    """Frames waiting for a label, oldest batch first, each with `batch`, `position` and `why`.

    Args:
        after: `queue_key` of the last row already seen.

    Raises:
        BadInput: `after` is not such a key.
    """
    opened, batch, position = "", "", -1
    if after is not None:
        try:
            opened, batch, text = after.split("~")
            position = int(text)
        except ValueError as error:
            raise BadInput(f"{after[:80]!r} is not a page key; use the `next` value of the previous page") from error
    return cat.rows(
        "SELECT frame.*, queue.batch, queue.position, queue.why, batch.created_at AS batch_created_at FROM queue "
        "JOIN frame ON frame.id = queue.id JOIN batch ON batch.id = queue.batch WHERE batch.state = 'open' "
        "AND (batch.created_at, queue.batch, queue.position) > (?, ?, ?) "
        "ORDER BY batch.created_at, queue.batch, queue.position LIMIT ?",
        opened,
        batch,
        position,
        limit,
    )


def queue_key(row: Row) -> str:
    """The key of a row of `queue`: where the next page starts."""
    return f"{row['batch_created_at']}~{row['batch']}~{row['position']}"


def queue_length(cat: Catalogue) -> int:
    """How many frames wait for a label."""
    return int(cat.value(f"SELECT count(*) FROM frame WHERE state IN {_WAITING}"))  # noqa: S608 - a constant


def why_of(cat: Catalogue, frame: str) -> list[Row]:
    """The batches a frame was put in: `batch`, `created_at`, `why`."""
    return cat.rows(
        "SELECT batch, batch.created_at, why FROM batch_frame JOIN batch ON batch.id = batch WHERE frame = ? ORDER BY created_at",
        frame,
    )
