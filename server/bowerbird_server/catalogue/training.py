"""Training runs and rounds of the loop, as rows that outlive the process which works on them.

In: requests and progress. Out: rows. A run that was `training` when its process died is found again and starts anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bowerbird_server.catalogue.core import Catalogue, Row, new_id, utc_now
from bowerbird_server.errors import Conflict, NotFound

OPEN_STATES = ("queued", "training", "evaluating")


def queue_run(
    catalogue: Catalogue, dataset_version: str, base_model: str | None, request: Mapping[str, Any], actor: str
) -> str:
    """A new run in state `queued`; returns its id."""
    run = new_id()
    with catalogue.transaction():
        catalogue.insert(
            "training_run",
            {
                "id": run,
                "created_at": utc_now(),
                "dataset_version": dataset_version,
                "base_model": base_model,
                "state": "queued",
                "request": json.dumps(request),
                "epochs": int(request.get("epochs", 0)),
            },
        )
        catalogue.log(actor, "training.queued", run, {"dataset_version": dataset_version})
    return run


def run(catalogue: Catalogue, run_id: str) -> Row:
    """A run by id or prefix.

    Raises:
        NotFound: none, or more than one.
    """
    rows = catalogue.starting_with("training_run", "id", run_id)
    if len(rows) != 1:
        raise NotFound(f"{len(rows) or 'no'} training runs start with {run_id!r}; `bowerbird train list` shows them")
    return rows[0]


def next_open_run(catalogue: Catalogue) -> Row | None:
    """The oldest run that is not finished."""
    return catalogue.row("SELECT * FROM training_run WHERE state IN ('queued', 'training', 'evaluating') ORDER BY id")


def set_run_state(catalogue: Catalogue, run_id: str, state: str, **columns: Any) -> bool:
    """Move an unfinished run to `state`; a run that somebody cancelled stays cancelled (returns False)."""
    values = {"state": state, **columns}
    if state == "training":
        values.setdefault("started_at", utc_now())
    if state not in OPEN_STATES:
        values.setdefault("finished_at", utc_now())
    assignments = ", ".join(f'"{name}" = ?' for name in values)
    with catalogue.transaction():
        changed = catalogue.execute(
            # Column names are our own keyword arguments.
            f"UPDATE training_run SET {assignments} WHERE id = ? AND state IN ('queued', 'training', 'evaluating')",  # noqa: S608
            *values.values(),
            run_id,
        )
        if changed:
            catalogue.log("scheduler", f"training.{state}", run_id, {"error": columns.get("error", "")})
    return changed > 0


def set_progress(catalogue: Catalogue, run_id: str, epoch: int, epochs: int) -> None:
    """How far a run is."""
    catalogue.execute("UPDATE training_run SET epoch = ?, epochs = ? WHERE id = ?", epoch, epochs, run_id)


def cancel_run(catalogue: Catalogue, run_id: str, actor: str) -> None:
    """Ask a run to stop; its process notices within a second.

    Raises:
        Conflict: it has finished already.
    """
    row = run(catalogue, run_id)
    with catalogue.transaction():
        if not catalogue.execute(
            "UPDATE training_run SET state = 'cancelled', finished_at = ? "
            "WHERE id = ? AND state IN ('queued', 'training', 'evaluating')",
            utc_now(),
            row["id"],
        ):
            raise Conflict(f"training run {row['id']} is {row['state']} already; there is nothing to cancel")
        catalogue.log(actor, "training.cancelled", row["id"])


def rounds(catalogue: Catalogue) -> list[Row]:
    """All rounds, oldest first."""
    return catalogue.rows("SELECT * FROM round ORDER BY number")


def open_round(catalogue: Catalogue, frames_wanted: int, actor: str) -> int:
    """Begin the next round; returns its number."""
    with catalogue.transaction():
        number = int(catalogue.value("SELECT coalesce(max(number), 0) + 1 FROM round"))
        catalogue.insert(
            "round", {"number": number, "opened_at": utc_now(), "state": "collecting", "frames_wanted": frames_wanted}
        )
        catalogue.log(actor, "round.opened", str(number), {"frames_wanted": frames_wanted})
    return number


def move_round(catalogue: Catalogue, number: int, state: str, actor: str, **columns: Any) -> None:
    """Move a round to its next state, with the batch, run or rollout that it now has."""
    values: dict[str, Any] = {"state": state, **columns}
    if state == "finished":
        values["closed_at"] = utc_now()
    assignments = ", ".join(f'"{name}" = ?' for name in values)
    with catalogue.transaction():
        # Column names are our own keyword arguments.
        catalogue.execute(f"UPDATE round SET {assignments} WHERE number = ?", *values.values(), number)  # noqa: S608
        catalogue.log(actor, f"round.{state}", str(number), {key: value for key, value in columns.items() if value})
