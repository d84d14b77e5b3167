"""What labellers changed in the frames of batches, and what trained models gained: the rows that `yields.py` judges.

In: an open catalogue. Out: values; and the one setting that says whether the policy is out of force. It estimates nothing.
"""

from __future__ import annotations

import json
from typing import Any

from bowerbird_server.batches.yields import AccuracyGain, Judged, accuracy_gain
from bowerbird_server.catalogue.core import Catalogue, Row, utc_now

# The newest labels say how the policy does now; older models and policies say less.
NEWEST = 2000
CHANGES = ("moved", "added", "deleted", "reclassed")
_FALL_BACK = "selection.fall_back"
_JUDGED_FROM = "selection.judged_from"


def judged_frames(cat: Catalogue, limit: int = NEWEST) -> list[Judged]:
    """The newest labelled frames of batches, by the first label that each got: later ones correct people, not models.

    Labels from before the policy was last put in force again do not count, nor frames that no model has seen: all their boxes are new.
    """
    rows = cat.rows(
        "SELECT role, chosen_by, scene, reason, bytes, label.edits FROM batch_frame JOIN frame ON frame.id = batch_frame.frame "
        "JOIN label ON label.frame = frame.id AND label.revision = 1 WHERE label.verdict = 'labelled' AND label.edits <> '{}' "
        "AND NOT (frame.camera IS NOT NULL AND frame.model = '' "
        "AND NOT EXISTS (SELECT 1 FROM detection WHERE detection.frame = frame.id)) "
        "AND label.created_at >= ? ORDER BY label.created_at DESC, label.id LIMIT ?",
        cat.setting(_JUDGED_FROM, ""),
        limit,
    )
    found = []
    for row in rows:
        edits = {kind: int(count) for kind, count in json.loads(row["edits"]).items()}
        kept, moved, reclassed = (edits.get(kind, 0) for kind in ("kept", "moved", "reclassed"))
        counts = {
            "shown": kept + moved + reclassed + edits.get("deleted", 0),
            "drawn": kept + moved + reclassed + edits.get("added", 0),
            "right": kept + moved,
        }
        one = Judged(
            row["role"],
            row["chosen_by"],
            row["scene"],
            tuple(name for name in row["reason"].split(",") if name),
            row["bytes"],
            sum(count for kind, count in edits.items() if kind in CHANGES),
            **counts,
        )
        found.append(one)
    return found


def accuracy_gains(cat: Catalogue, limit: int = 10) -> list[AccuracyGain]:
    """Trained models with a verdict, newest first: what each gained over the model before it, for what its data set had more."""
    rows = cat.rows(
        "SELECT model.digest, model.verdict, model.dataset_version, before.dataset_version AS version_before FROM model "
        "JOIN model AS before ON before.digest = model.parent WHERE model.origin = 'trained' AND model.verdict <> '{}' "
        "AND model.dataset_version IS NOT NULL ORDER BY model.created_at DESC, model.digest LIMIT ?",
        limit,
    )
    return [gain for row in rows if (gain := _gain(cat, row)) is not None]


def _gain(cat: Catalogue, row: Row) -> AccuracyGain | None:
    verdict = json.loads(row["verdict"])
    if "difference" not in verdict:
        return None
    labels, size = _more(cat, row["dataset_version"], row["version_before"])
    interval = verdict.get("interval")
    return accuracy_gain(
        row["digest"],
        labels=labels,
        size_bytes=size,
        difference=float(verdict["difference"]),
        interval=None if interval is None else (float(interval[0]), float(interval[1])),
    )


def _more(cat: Catalogue, version: str, before: str | None) -> tuple[int, int]:
    """Training frames, and the bytes of their images, that a version has and the one before has not."""
    row = cat.row(
        "SELECT count(*) AS n, coalesce(sum(frame.bytes), 0) AS size FROM dataset_frame JOIN frame ON frame.id = dataset_frame.frame "
        "WHERE dataset_version = ?1 AND split = 'train' AND frame NOT IN "
        "(SELECT frame FROM dataset_frame WHERE dataset_version = ?2 AND split = 'train')",
        version,
        before or "",
    )
    return (0, 0) if row is None else (row["n"], row["size"])


def fallen_back(cat: Catalogue) -> dict[str, Any] | None:
    """Since when, under which champion and why batches are chosen by diversity alone; None while the policy is in force."""
    found: dict[str, Any] | None = cat.setting(_FALL_BACK)
    return found


def fall_back(cat: Catalogue, champion: str, why: str, actor: str) -> None:
    """Take the policy out of force, and say so in the event log."""
    with cat.transaction():
        cat.set_setting(_FALL_BACK, {"since": utc_now(), "champion": champion, "why": why})
        cat.log(actor, "selection fell back to diversity", champion or "no champion", {"why": why})


def restore(cat: Catalogue, why: str, actor: str) -> bool:
    """Put the policy in force again; whether it was not."""
    with cat.transaction():
        before = fallen_back(cat)
        if before is None:
            return False
        cat.set_setting(_FALL_BACK, None)
        cat.set_setting(_JUDGED_FROM, utc_now())
        cat.log(actor, "selection policy is in force again", before["champion"] or "no champion", {"why": why})
    return True
