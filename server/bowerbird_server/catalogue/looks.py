"""What a model of the server's saw in frames that are here: thumbnails, embeddings, doubt. They can be thrown away and made again.

In: looks that `looking.py` had made. Out: rows, and which frames still lack one. A model's embeddings are comparable only with each
other, so every row names what looked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bowerbird_server.catalogue import frames
from bowerbird_server.catalogue.core import Catalogue, Row

# Frames whose looks a batch compares its candidates with.
NEWEST_LABELLED = 2000
_SEEN = "('queued', 'in_review', 'labelled')"


@dataclass(frozen=True)
class Look:
    """What was seen in a frame.

    Args:
        frame: its id.
        luma: thumbnail as in `bowerbird_wire.thumbnail`; empty for a picture that cannot be read.
        embedding: (d,) of length 1, or None.
        doubt: in [0, 1], None without a model.
        boxes: expected number of boxes to label.
        class_names: what it seems to show.
    """

    frame: str
    luma: bytes
    embedding: NDArray[np.float32] | None = field(default=None, compare=False)
    doubt: float | None = None
    boxes: float = 0.0
    class_names: tuple[str, ...] = ()


def add(cat: Catalogue, model: str, looks: Iterable[Look]) -> int:
    """Keep looks; a second look of the same model takes the first one's place. Returns how many."""
    count = 0
    with cat.transaction():
        found = list(looks)
        states = frames.states_of(cat, [look.frame for look in found])
        for look in found:
            if states.get(look.frame, "deleted") == "deleted":  # meanwhile: what it looked like goes with it
                continue
            cat.execute("DELETE FROM look WHERE frame = ? AND model = ?", look.frame, model)
            cat.insert(
                "look",
                {
                    "frame": look.frame,
                    "model": model,
                    "luma": look.luma,
                    "embedding": None if look.embedding is None else look.embedding.astype("<f2").tobytes(),
                    "doubt": look.doubt,
                    "boxes": look.boxes,
                    "class_names": json.dumps(list(look.class_names)),
                },
            )
            count += 1
    return count


def forget_others(cat: Catalogue, models: Sequence[str]) -> int:
    """Let go of the looks of every model but these; returns how many."""
    return cat.execute("DELETE FROM look WHERE model NOT IN (SELECT value FROM json_each(?))", json.dumps(list(models)))


def lacking(cat: Catalogue, model: str, limit: int) -> list[Row]:
    """Frames that the model has not seen: `id`, `blob`; received ones first, then the newest that are labelled or queued."""
    wanted = cat.rows(
        "SELECT id, blob FROM frame WHERE state = 'received' AND arm <> 'fetched' AND NOT EXISTS "
        "(SELECT 1 FROM look WHERE look.frame = frame.id AND look.model = ?1) "
        "ORDER BY arm = 'explore' DESC, score DESC, id LIMIT ?2",
        model,
        limit,
    )
    if len(wanted) < limit:
        wanted += cat.rows(
            f"SELECT id, blob FROM (SELECT id, blob FROM frame WHERE state IN {_SEEN} "  # noqa: S608 - a constant
            "ORDER BY received_at DESC, id LIMIT ?1) AS newest "
            "WHERE NOT EXISTS (SELECT 1 FROM look WHERE look.frame = newest.id AND look.model = ?2) LIMIT ?3",
            NEWEST_LABELLED,
            model,
            limit - len(wanted),
        )
    return wanted


def of_received(cat: Catalogue, model: str) -> dict[str, Look]:
    """What the model saw in received frames, by frame."""
    rows = cat.rows(
        "SELECT look.* FROM look JOIN frame ON frame.id = look.frame WHERE frame.state = 'received' AND look.model = ?", model
    )
    return {row["frame"]: _look(row) for row in rows}


def of_labelled(cat: Catalogue, model: str) -> list[tuple[str, Look]]:
    """(camera, look) of the newest frames that are labelled or queued."""
    rows = cat.rows(
        f"SELECT look.*, coalesce(frame.camera, '') AS camera FROM look JOIN frame ON frame.id = look.frame "  # noqa: S608 - a constant
        f"WHERE frame.state IN {_SEEN} AND look.model = ? ORDER BY frame.received_at DESC, frame.id LIMIT ?",
        model,
        NEWEST_LABELLED,
    )
    return [(row["camera"], _look(row)) for row in rows]


def _look(row: Row) -> Look:
    embedding = None if row["embedding"] is None else np.frombuffer(row["embedding"], "<f2").astype(np.float32)
    return Look(
        row["frame"],
        row["luma"],
        embedding,
        row["doubt"],
        row["boxes"],
        tuple(str(name) for name in json.loads(row["class_names"])),
    )
