"""The format of the agent's state folder, so that an older version refuses what it cannot read before it touches anything.

In: the state folder. Out: nothing, or an error that says what to do; a small file `format.json` that names the format and who
wrote it. A folder without the file is of format 1. It converts nothing.

A new format takes two releases, so that a version whose trial is lost never leaves something behind that the one before cannot
read: the first reads it (`READS_UP_TO`) and goes on writing the old one, the next one writes it (`WRITES`).
"""

from __future__ import annotations

import json
from pathlib import Path

from bowerbird_agent.errors import AgentError
from bowerbird_models.durable import write_durably

READS_UP_TO = 1
WRITES = 1
_FILE = "format.json"


class StateTooNew(AgentError):
    """A later version wrote the state folder in a form that this one does not know."""


def check_state(folder: Path) -> int:
    """The format of a state folder; writes nothing.

    Raises:
        StateTooNew: this version cannot read it.
    """
    try:
        plain = json.loads((folder / _FILE).read_bytes())
        found, by = int(plain["format"]), str(plain.get("version", ""))[:40]
    except FileNotFoundError:
        return 1
    except (OSError, ValueError, TypeError, KeyError):
        # Whatever is in it, the parts of the state check themselves when they are opened.
        return 1
    if found > READS_UP_TO:
        raise StateTooNew(
            f"the state folder {folder} is of format {found}, written by version {by or 'unknown'}; this version reads up to "
            f"{READS_UP_TO}. Install {by or 'that version'} or a later one; nothing was changed, and no frame is lost"
        )
    return found


def claim_state(folder: Path, *, version: str) -> None:
    """Note that this version writes the folder now.

    Raises:
        StateTooNew: it must not.
    """
    if check_state(folder) != WRITES or not (folder / _FILE).exists():
        write_durably(folder / _FILE, json.dumps({"format": WRITES, "version": version}).encode(), 0o600)
