"""Labels that somebody looks at again: which were asked for, who answered, and how far the two agree.

In: labels that `label_quality.py` finds odd, that chance draws, or that are older than a class; frames that an operator declares gold.
Out: rows; what is open for somebody, and how far each author agrees with others. A consensus or gold look is blind: who answers does
not see the label. What follows from a disagreement is a person's decision: nothing here changes a label but for gold frames, whose
reference is put back.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from bowerbird_server.batches.label_quality import (
    AGREES,
    CONSENSUS,
    GOLD,
    NEW_CLASS,
    SUSPICIOUS,
    agreement,
    is_drawn,
    suspicion,
)
from bowerbird_server.batches.rescoring import Seen
from bowerbird_server.batches.yields import wilson
from bowerbird_server.catalogue import classes, frames, labels
from bowerbird_server.catalogue.core import Catalogue, Row, new_id, utc_now
from bowerbird_server.catalogue.datasets import labelled_frames
from bowerbird_server.errors import BadInput
from bowerbird_server.labelling.boxes import Box

REFERENCE = "gold reference"
BLIND = (CONSENSUS, GOLD)
_AFTER, _SEED, _CLASSES = "quality.after", "quality.seed", "quality.classes"
_AT_ONCE = 500


def ask(cat: Catalogue, consensus_share: float, actor: str) -> int:
    """Go through labels that are new since the last call and ask for second looks; returns how many."""
    after = int(cat.setting(_AFTER, 0))
    seed = cat.setting(_SEED) or new_id()
    asked = 0
    with cat.transaction():
        cat.set_setting(_SEED, seed)
        # A correction ends the matter for the label before it, and is not drawn again itself.
        for row in cat.rows(
            "SELECT label.rowid AS place, label.* FROM label JOIN frame ON frame.id = label.frame WHERE label.rowid > ? "
            "AND revision = 1 AND verdict = 'labelled' AND frame.state = 'labelled' ORDER BY label.rowid LIMIT ?",
            after,
            _AT_ONCE,
        ):
            after = row["place"]
            if is_drawn(row["id"], consensus_share, seed):
                asked += _open(cat, row, CONSENSUS, "drawn by lot")
            seen = [
                Seen((one["left"], one["top"], one["right"], one["bottom"]), one["score"], one["class_name"])
                for one in frames.detections(cat, row["frame"])
            ]
            odd = suspicion(_boxes(row["boxes"]), seen, json.loads(row["classes_reviewed"]), classes.class_names(cat))
            if odd is not None:
                asked += _open(cat, row, SUSPICIOUS, odd.why)
        cat.set_setting(_AFTER, after)
        asked += _ask_for_new_classes(cat)
        if asked:
            cat.log(actor, "second looks asked for", seed, {"labels": asked})
    return asked


def _ask_for_new_classes(cat: Catalogue) -> int:
    """Once for each class list: every label whose author did not look for some class is asked about; returns how many were not yet."""
    stands = [classes.class_names(cat), classes.declared_looked_for(cat)]
    before = cat.setting(_CLASSES)
    if stands == before:
        return 0
    cat.set_setting(_CLASSES, stands)
    cat.execute("DELETE FROM second_look WHERE kind = ? AND state = 'open'", NEW_CLASS)  # some may have been answered by a word
    asked = 0
    for frame in labelled_frames(cat):
        if frame.unreviewed:
            asked += _open(cat, labels.get(cat, frame.label), NEW_CLASS, f"nobody looked for {', '.join(frame.unreviewed)}")
    return asked


def make_gold(cat: Catalogue, frame: str, actor: str) -> None:
    """From now on a frame's newest label is what everybody else's label of it is held against.

    Raises:
        NotFound: there is no such frame.
        BadInput: it is not labelled, or gold already.
    """
    label = labels.newest_label(cat, frames.get(cat, frame)["id"])
    if label is None or label["verdict"] != "labelled":
        raise BadInput(f"frame {frame[:12]} has no label to hold others against; label it first")
    with cat.transaction():
        if cat.value("SELECT 1 FROM second_look WHERE frame = ? AND kind = ? AND state = 'open'", frame, GOLD):
            raise BadInput(f"frame {frame[:12]} is gold already")
        _open(cat, label, GOLD, "gold: everybody labels it once")
        cat.log(actor, "frame is gold", frame, {"label": label["id"]})


def open_for(cat: Catalogue, author: str, limit: int = 100, *, frame: str | None = None) -> list[Row]:
    """Open second looks that this person can answer, odd labels first: no blind look at a label of their own, no gold frame twice.

    Args:
        frame: only those at this one.
    """
    return cat.rows(
        "SELECT second_look.*, frame.camera, frame.captured_at FROM second_look JOIN frame ON frame.id = second_look.frame "
        "WHERE second_look.state = 'open' AND frame.state = 'labelled' "
        "AND (kind IN ('suspicious', 'new_class') OR author <> ?1) AND NOT EXISTS "
        "(SELECT 1 FROM second_look AS done WHERE done.frame = second_look.frame AND done.kind = 'gold' AND done.answered_by = ?1) "
        "AND (?3 IS NULL OR second_look.frame = ?3) ORDER BY kind = 'suspicious' DESC, asked_at, second_look.id LIMIT ?2",
        author,
        limit,
        frame,
    )


def is_blind(cat: Catalogue, frame: str, author: str) -> bool:
    """Whether this person shall label the frame without seeing the label that it has."""
    return any(row["kind"] in BLIND for row in open_for(cat, author, frame=frame))


def answer(cat: Catalogue, frame: str, author: str, label_id: str) -> list[str]:
    """Hold a label that has just been taken against what is open about its frame.

    Returns:
        Ids of labels that are to be put back as the newest: the references of gold frames.
    """
    put_back = []
    for row in cat.rows("SELECT * FROM second_look WHERE frame = ? AND state = 'open'", frame):
        if author == REFERENCE or row["label"] == label_id or (row["kind"] in BLIND and author == row["author"]):
            continue
        if row["kind"] == GOLD:  # whoever labels it, and however often, the reference holds
            put_back.append(row["label"])
            if cat.value("SELECT 1 FROM second_look WHERE frame = ? AND kind = ? AND answered_by = ?", frame, GOLD, author):
                continue
        first, second = labels.get(cat, row["label"]), labels.get(cat, label_id)
        agree = agreement(_rows(first["boxes"]), _rows(second["boxes"])) if second["verdict"] == first["verdict"] else 0.0
        found: dict[str, Any] = {
            "state": "agreed" if agree >= AGREES else "differs",
            "answer": label_id,
            "answered_by": author,
            "agreement": agree,
        }
        if row["kind"] == GOLD:  # it stays open for the next person
            cat.insert("second_look", {**row, **found, "id": new_id()})
            continue
        cat.execute(
            "UPDATE second_look SET state = ?, answer = ?, answered_by = ?, agreement = ? WHERE id = ?",
            *found.values(),
            row["id"],
        )
        if row["kind"] == CONSENSUS and agree < AGREES and second["verdict"] == "labelled":
            _open(cat, second, SUSPICIOUS, f"{row['author']} and {author} do not agree ({agree:.2f})")
    return put_back


def report(cat: Catalogue) -> list[Row]:
    """For each author and kind: looks that were answered, mean agreement, and the share that agreed with its 95 % interval.

    A gold look is about who answered, every other about whose label was looked at; one for a new class is about nobody.
    """
    rows = cat.rows(
        "SELECT CASE kind WHEN 'gold' THEN answered_by ELSE author END AS name, kind, count(*) AS looks, avg(agreement) AS agreement, "
        "sum(state = 'agreed') AS agreed FROM second_look WHERE state <> 'open' AND kind <> 'new_class' GROUP BY 1, 2 ORDER BY 1, 2"
    )
    found = []
    for row in rows:
        share = wilson(row["agreed"], row["looks"])
        found.append(
            {
                "author": row["name"],
                "kind": row["kind"],
                "looks": row["looks"],
                "agreement": row["agreement"],
                "agreed": {"value": share.value, "low": share.low, "high": share.high},
            }
        )
    return found


def _open(cat: Catalogue, label: Row, kind: str, why: str) -> int:
    return int(
        cat.insert(
            "second_look",
            {
                "id": new_id(),
                "frame": label["frame"],
                "kind": kind,
                "why": why,
                "asked_at": utc_now(),
                "label": label["id"],
                "author": label["author"],
                "state": "open",
            },
        )
    )


def _boxes(text: str) -> list[Box]:
    return _rows(json.loads(text))


def _rows(boxes: Sequence[Row]) -> list[Box]:
    return [Box(box["class"], tuple(box["box_xyxy"])) for box in boxes]
