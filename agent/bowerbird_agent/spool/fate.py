"""What became of a frame after it was chosen: it waits, was sent, has arrived, or was given up. For `explain`.

In: a spool's folder, which a running agent may be at work on, and a frame's id. Out: words. It only reads, and what cannot be read
is not told: an explanation without its end is better than none.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# State or outcome, as the index has it -> as a person says it.
_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "candidate": "waits for the end of its window",
        "new": "waits to be sent",
        "sent": "was sent; the server's receipt has not come yet",
        "in_doubt": "was sent, and nobody knows yet whether it arrived",
        "committed": "the server has it",
        "refused": "the server refused it for good",
        "evicted": "was given up unsent, for want of room or for its age",
        "dropped": "was given up unsent",
    }
)
_TIMEOUT_S = 2.0


def fate_of(folder: Path, frame_id: str) -> str:
    """What a spool's index knows of a frame, in words; "" for nothing."""
    path = folder / "index.db"
    if not path.is_file():
        return ""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_TIMEOUT_S)) as index:
            row = (
                index.execute("SELECT state FROM frame WHERE frame_id = ?", (frame_id,)).fetchone()
                or index.execute("SELECT outcome FROM settled WHERE frame_id = ?", (frame_id,)).fetchone()
            )
            stone = index.execute("SELECT why FROM tombstone WHERE frame_id = ?", (frame_id,)).fetchone()
    except sqlite3.Error:
        return ""
    if row is None:
        return ""
    why = "" if stone is None else f" ({str(stone[0]).partition(':')[2].replace('_', ' ')})"
    return _WORDS.get(str(row[0]), str(row[0])) + why
