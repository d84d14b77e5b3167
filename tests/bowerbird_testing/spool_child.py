"""A process that works a spool until it is killed, saying on stdout what it has been promised.

In: `python -m bowerbird_testing.spool_child FOLDER SEED KILL_AT`. Out: lines `put ID` after a put has returned, `receipt ID` and
`drop ID` before the call, `done ID` after a receipt was recorded. KILL_AT names a place in the table below where the process kills
itself with SIGKILL, or is `random`: then somebody else does it.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bowerbird_agent.spool import recovery as spool_recovery
from bowerbird_agent.spool.files import FrameFiles
from bowerbird_agent.spool.index import SpoolIndex
from bowerbird_agent.spool.spool import FrameState, Spool
from bowerbird_testing.frames import make_frame
from bowerbird_wire.messages import Receipt

# Name -> what is replaced by death, and at which call of it.
KILL_AT: dict[str, tuple[Any, str, int]] = {
    "with_half_a_file": (os, "fsync", 8),
    "after_the_rename": (FrameFiles, "_sync_folder", 4),
    "before_the_row": (SpoolIndex, "insert", 4),
    "inside_the_rows_transaction": (SpoolIndex, "count", 6),
    "inside_the_receipts_transaction": (SpoolIndex, "remember", 2),
    "between_promotion_and_rename": (FrameFiles, "rename", 2),
    "between_receipt_and_unlink": (FrameFiles, "delete", 2),
    "in_the_middle_of_a_rebuild": (spool_recovery, "_adopt", 3),
}


def die_at(place: str) -> None:
    """Arrange the death."""
    owner, name, call = KILL_AT[place]
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def deadly(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls >= call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **options)

    setattr(owner, name, deadly)


def say(*words: str) -> None:
    """One line, out of this process before anything else happens."""
    os.write(1, (" ".join(words) + "\n").encode())


def work(folder: Path, seed: int) -> None:
    """Put, promote, send, receive receipts, drop, for ever."""
    chance = random.Random(seed)
    spool = Spool(folder, max_bytes=50_000_000)
    say("open")
    number = seed * 1_000_000
    while True:
        number += 1
        header, image = make_frame(number, image_bytes=chance.choice([200, 6000]))
        if spool.put(header, image):
            say("put", header.frame_id)
        if number % 5 == 0:
            spool.promote([frame.frame_id for frame in spool.frames(FrameState.CANDIDATE)][:4])
        if number % 7 == 0 and (frame := spool.next_new()) is not None:
            spool.mark_sent(frame.frame_id)
            say("receipt", frame.frame_id)
            spool.receipt(Receipt(committed=(frame.frame_id,)))
            say("done", frame.frame_id)
        if number % 11 == 0:
            for candidate in spool.frames(FrameState.CANDIDATE)[:1]:
                say("drop", candidate.frame_id)
                spool.drop([candidate.frame_id], "test")


if __name__ == "__main__":
    if sys.argv[3] != "random":
        die_at(sys.argv[3])
    work(Path(sys.argv[1]), int(sys.argv[2]))
