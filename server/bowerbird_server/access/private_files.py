"""Files that hold secrets: made for their owner only, and refused when somebody else could read them.

In: paths. Out: their text, or an error that says how to put it right. It knows no secret.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from bowerbird_server.errors import BadInput, EnvironmentFault

_TOO_MUCH = 0o037  # all for others, and more than reading for the group, which may be that of a secret's readers


def check_private(paths: Iterable[Path]) -> None:
    """Each file that is there belongs to this user, to root or to its container, and nobody else can read it.

    Raises:
        EnvironmentFault: one can be read by others; all of them are named.
    """
    open_to = []
    for path in paths:
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            continue
        if stat.S_ISREG(mode) and mode & _TOO_MUCH:
            open_to.append(f"{path} (mode {stat.S_IMODE(mode):04o})")
    if open_to:
        raise EnvironmentFault(
            f"others can read or change what should be secret: {', '.join(open_to[:5])}. Run `chmod 600` on each, and think of "
            "what was in it as known to others: make it anew"
        )


def read_private(path: Path) -> str:
    """The text of a secret file.

    Raises:
        BadInput: it cannot be read.
        EnvironmentFault: others can read it.
    """
    check_private([path])
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path}: {error}") from error


def write_private(path: Path, content: bytes) -> None:
    """Write a secret, readable by this user only from its first byte on; what was there is replaced whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
