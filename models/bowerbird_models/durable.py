"""Files that survive a power cut: content first, then its name, then the folder that holds the name.

In: paths and bytes. Out: nothing; after a return the change is on the disk. It keeps no journal: what must change together
belongs in one file or one database transaction.
"""

from __future__ import annotations

import os
from pathlib import Path


def sync_file(path: Path) -> None:
    """Make a file's content durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable; a rename is not safe before this."""
    sync_file(path)


def make_durable_folder(path: Path, mode: int = 0o777) -> None:
    """A folder whose name, and those of the folders above that are new, are durable; one that is there is left as it is."""
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(mode=mode, parents=True, exist_ok=True)
    for folder in reversed(new):
        sync_folder(folder.parent)


def write_durably(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Replace a file in one step: a reader sees the old or the new content, and after the return power may fail."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
