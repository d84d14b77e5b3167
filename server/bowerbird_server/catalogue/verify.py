"""Proves that every row has its blob and every blob its digest.

In: catalogue and blob store. Out: `Verified`: what was looked at and every fault, each with what to do. It repairs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bowerbird_server.blobs import LocalBlobs
from bowerbird_server.catalogue import kept
from bowerbird_server.catalogue.core import Catalogue

_WHAT_TO_DO = {
    "frame": "put the blob back from a backup, or delete the frame with `bowerbird frames delete`",
    "model": "put the blob back from a backup; without it the model cannot be evaluated or published again",
    "weights": "put the blob back from a backup; without it nothing can be trained from this model",
    "manifest": "put the blob back from a backup; without it this version cannot be trained on again",
    "batch": "put the blob back from a backup; without it nobody can say how this batch was chosen",
    "rows": "build the catalogue again with `bowerbird catalogue rebuild`, or restore a backup",
}


@dataclass(frozen=True)
class Fault:
    """`kind` is `missing` or `damaged` (a blob) or `rows` (the catalogue itself); `key` names the row."""

    kind: str
    what: str
    key: str
    blob: str
    text: str
    what_to_do: str


@dataclass(frozen=True)
class Verified:
    """`rows` needed a blob, `blobs` were looked at (and read, unless only their names were asked for), `bytes` of them."""

    rows: int
    blobs: int
    bytes: int
    faults: tuple[Fault, ...]


def verify(cat: Catalogue, blobs: LocalBlobs, on_progress: Callable[[int, int], None] = lambda *_: None) -> Verified:
    """Read every blob that a row names, and check the catalogue itself.

    Args:
        on_progress: (blobs done, blobs in all).
    """
    found = verify_rows(cat, blobs, read=True, on_progress=on_progress)
    own = tuple(Fault("rows", "rows", "", "", text, _WHAT_TO_DO["rows"]) for text in kept.faults(cat))
    return Verified(found.rows, found.blobs, found.bytes, (*own, *found.faults))


def verify_rows(
    cat: Catalogue, blobs: LocalBlobs, *, read: bool, on_progress: Callable[[int, int], None] = lambda *_: None
) -> Verified:
    """As `verify`, without the catalogue itself; with `read` false a blob only has to be there."""
    named = kept.named_blobs(cat)
    wanted = sorted({row["blob"] for row in named})
    state: dict[str, str] = {}
    size = 0
    for done, blob in enumerate(wanted, start=1):
        if not blobs.exists(blob):
            state[blob] = "missing"
        else:
            size += blobs.path(blob).stat().st_size
            if read and not blobs.verify(blob):
                state[blob] = "damaged"
        on_progress(done, len(wanted))
    faults = tuple(
        Fault(
            state[row["blob"]],
            row["what"],
            row["key"],
            row["blob"],
            f"{row['what']} {row['key'][:12]}: blob {row['blob'][:12]} is {state[row['blob']]}",
            _WHAT_TO_DO[row["what"]],
        )
        for row in named
        if row["blob"] in state
    )
    return Verified(len(named), len(wanted), size, faults)
