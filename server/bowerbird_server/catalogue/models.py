"""Models: which there are, where they came from, how they did, and which one is the champion.

In: digests, metrics and verdicts. Out: rows. It compares nothing (see `evaluate.py`) and sends nothing (see `rollout.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bowerbird_models.manifest import DETECT
from bowerbird_server.catalogue.core import Catalogue, Row, utc_now
from bowerbird_server.errors import NotFound


def add_model(catalogue: Catalogue, row: Mapping[str, Any], actor: str) -> None:
    """A new model row; a digest that is known changes nothing."""
    with catalogue.transaction():
        if catalogue.insert("model", {"created_at": utc_now(), **row}, ignore=True):
            catalogue.log(actor, "model.added", str(row["digest"]), {"origin": row["origin"]})


def model(catalogue: Catalogue, which: str) -> Row:
    """A model by digest or a prefix of it, or `champion`.

    Raises:
        NotFound: none, or more than one.
    """
    if which == "champion":
        found = champion(catalogue)
        if found is None:
            raise NotFound(
                "there is no champion yet; `bowerbird train` makes a first model, `bowerbird models import` brings one"
            )
        return found
    rows = catalogue.starting_with("model", "digest", which)
    if len(rows) != 1:
        raise NotFound(f"{len(rows) or 'no'} models start with {which!r}; `bowerbird models list` shows them")
    return rows[0]


def champion(catalogue: Catalogue) -> Row | None:
    """The model that the fleet should run, or None before the first."""
    return catalogue.row("SELECT * FROM model WHERE state = 'champion'")


def set_metrics(catalogue: Catalogue, digest: str, metrics: Mapping[str, Any], verdict: Mapping[str, Any]) -> None:
    """Keep what the gate measured and said."""
    catalogue.execute(
        "UPDATE model SET metrics = ?, verdict = ? WHERE digest = ?", json.dumps(metrics), json.dumps(verdict), digest
    )


def promote(catalogue: Catalogue, digest: str, actor: str, why: Mapping[str, Any]) -> None:
    """Make a model the champion; the one before it retires."""
    with catalogue.transaction():
        catalogue.execute("UPDATE model SET state = 'retired' WHERE state = 'champion' AND digest <> ?", digest)
        catalogue.execute("UPDATE model SET state = 'champion' WHERE digest = ?", digest)
        catalogue.log(actor, "model.promoted", digest, why)


def reject(catalogue: Catalogue, digest: str, actor: str, why: Mapping[str, Any]) -> None:
    """Keep a candidate that did not win, with the reasons."""
    with catalogue.transaction():
        catalogue.execute("UPDATE model SET state = 'rejected' WHERE digest = ? AND state = 'candidate'", digest)
        catalogue.log(actor, "model.rejected", digest, why)


def set_release(catalogue: Catalogue, digest: str, release: int, actor: str) -> None:
    """The release counter under which the model's package was published."""
    with catalogue.transaction():
        catalogue.execute("UPDATE model SET release = ? WHERE digest = ?", release, digest)
        catalogue.log(actor, "model.published", digest, {"release": release})


def task_of(row: Row) -> str:
    """What a model was trained for: "detect", "segment", "pose", "obb" or "classify"."""
    return str(json.loads(row["manifest"]).get("task", DETECT))
