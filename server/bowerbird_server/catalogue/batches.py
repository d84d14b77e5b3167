"""Batches in the catalogue: groups of frames to be labelled, each frame with the reason why it is in it, and the queue they make.

In: chosen frames. Out: rows. Which frames are chosen is `batch.py`'s business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from bowerbird_server.catalogue import frames
from bowerbird_server.catalogue.core import Catalogue, Row, new_id, utc_now
from bowerbird_server.errors import BadInput, NotFound

_WAITING = "('queued', 'in_review')"


def add_batch(cat: Catalogue, chosen: Sequence[tuple[str, str]], policy: Mapping[str, object], actor: str) -> str:
    """A new open batch; its frames become `queued`.

    Args:
        chosen: (frame id, why), in the order in which they are to be labelled.
        policy: how they were chosen, kept as JSON.

    Returns:
        The batch's id.

    Raises:
        BadInput: nothing is chosen.
        Conflict: a frame is no longer `received`; then there is no batch.
    """
    if not chosen:
        raise BadInput("a batch needs at least one frame")
    batch = new_id()
    with cat.transaction():
        cat.insert("batch", {"id": batch, "created_at": utc_now(), "state": "open", "policy": json.dumps(dict(policy))})
        for position, (frame, why) in enumerate(chosen):
            cat.insert("batch_frame", {"batch": batch, "frame": frame, "position": position, "why": why})
        frames.change_state(cat, [frame for frame, _ in chosen], "queued", actor, {"received"})
        cat.log(actor, "batch opened", batch, {"frames": len(chosen), "policy": dict(policy)})
    return batch


def candidates(cat: Catalogue, limit: int) -> list[Row]:
    """Received frames, explore arm first, then the best scores."""
    return cat.rows(
        "SELECT id, blob, device, camera, captured_at, arm, reason, score, inclusion_probability FROM frame "
        "WHERE state = 'received' AND arm <> 'fetched' ORDER BY arm = 'explore' DESC, score DESC, id LIMIT ?",
        limit,
    )


def set_copies_aside(cat: Catalogue, actor: str) -> int:
    """Reject the received frames whose very image is already queued, labelled or rejected; the event names the twin.

    Returns:
        How many frames were set aside.
    """
    with cat.transaction():
        copies = cat.rows(
            "SELECT frame.id, min(twin.id) AS twin FROM frame JOIN frame AS twin ON twin.blob = frame.blob AND twin.state "
            "IN ('queued', 'in_review', 'labelled', 'rejected') WHERE frame.state = 'received' AND frame.arm <> 'fetched' "
            "GROUP BY frame.id"
        )
        for row in copies:
            frames.change_state(cat, [row["id"]], "rejected", actor, {"received"})
            cat.log(actor, "frame is a copy", row["id"], {"of": row["twin"]})
    return len(copies)


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
