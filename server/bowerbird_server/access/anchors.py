"""Digests of the audit log, written down outside of the catalogue: whoever cuts the end off the log must find them too.

In: the log's end now and then. Out: a file of lines `position digest time`, only ever appended to. The same line goes to the process's
log (`logs/web.log`); either is worth something once it has left the machine. What is compared with them is in `event_chain.py`.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

from bowerbird_server.access.event_chain import Anchor
from bowerbird_server.catalogue import audit
from bowerbird_server.catalogue.core import Catalogue, utc_now
from bowerbird_server.errors import BadInput

log = logging.getLogger(__name__)

EVERY_S = 300.0


def read(path: Path) -> list[Anchor]:
    """The anchors of a file, none when it is not there. A last line that was cut short by a power cut is left out.

    Raises:
        BadInput: a line is no anchor.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    found = []
    for number, line in enumerate(lines, start=1):
        position, _, rest = line.partition(" ")
        digest = rest.split(" ")[0].strip()
        if not position.isdigit() or len(digest) != 64:
            if not line.endswith("\n"):
                break
            raise BadInput(f"line {number} of {path} is no anchor of the audit log; somebody has edited the file")
        found.append(Anchor(int(position), digest))
    return found


def note(cat: Catalogue, path: Path) -> Anchor | None:
    """Write down where the log ends, unless that stands there already."""
    head = audit.head(cat)
    if head is None or head in read(path)[-1:]:
        return head
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(handle, f"{head.position} {head.digest} {utc_now()}\n".encode())
        os.fsync(handle)
    finally:
        os.close(handle)
    log.info("audit log: event %s has digest %s", head.position, head.digest)
    return head


def keep_noting(catalogue: Path, path: Path, stop: threading.Event, every_s: float = EVERY_S) -> None:
    """`note` now and then until `stop` is set; for a thread of its own."""
    with Catalogue(catalogue) as cat:
        while True:
            try:
                note(cat, path)
            except (OSError, BadInput) as error:
                log.warning("the audit log's end cannot be written to %s: %s", path, error)
            if stop.wait(every_s):
                return
