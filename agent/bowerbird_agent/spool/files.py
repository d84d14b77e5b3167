"""The frame files of the spool: one whole frame message per file, there completely or not at all.

In: payloads. Out: files named `<frame id>.candidate` or `<frame id>.frame`, and their bytes. A name tells enough to rebuild a lost
index without promoting what was never chosen. It keeps no state and takes no decision.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

CANDIDATE_SUFFIX = ".candidate"
FRAME_SUFFIX = ".frame"
_PART_SUFFIX = ".part"
_BLOCK_BYTES = 4096  # what a file system rounds a file up to


def on_disk_bytes(size_bytes: int) -> int:
    """What a file of this size takes on the disk."""
    return -(-size_bytes // _BLOCK_BYTES) * _BLOCK_BYTES


class FrameFiles:
    """The folder of frame files. Safe for threads that work on different frames.

    Raises:
        OSError: from every method, when the disk refuses.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, frame_id: str, payload: bytes, *, candidate: bool) -> None:
        """Write, fsync, rename, fsync the folder: after the return a power cut cannot take the file away."""
        part = self._folder / f"{frame_id}{_PART_SUFFIX}"
        try:
            with part.open("wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._path(frame_id, candidate=candidate))
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        self._sync_folder()

    def rename(self, frame_id: str, *, candidate: bool) -> None:
        """Give the file the name of its state; does nothing when it has it."""
        wanted = self._path(frame_id, candidate=candidate)
        other = self._path(frame_id, candidate=not candidate)
        with contextlib.suppress(FileNotFoundError):
            other.replace(wanted)

    def read(self, frame_id: str) -> bytes | None:
        """The payload; None when there is no such file."""
        for candidate in (False, True):
            with contextlib.suppress(FileNotFoundError):
                return self._path(frame_id, candidate=candidate).read_bytes()
        return None

    def delete(self, frame_id: str) -> None:
        """Remove the file under either name; a missing one is fine."""
        for candidate in (False, True):
            self._path(frame_id, candidate=candidate).unlink(missing_ok=True)

    def scan(self) -> Iterator[tuple[str, bool]]:
        """(frame id, is a candidate) of every whole file; half-written ones are removed on the way."""
        with os.scandir(self._folder) as entries:
            for entry in entries:
                stem, _, suffix = entry.name.rpartition(".")
                if f".{suffix}" == _PART_SUFFIX:
                    with contextlib.suppress(OSError):
                        Path(entry.path).unlink()
                elif f".{suffix}" in (CANDIDATE_SUFFIX, FRAME_SUFFIX):
                    yield stem, f".{suffix}" == CANDIDATE_SUFFIX

    def _path(self, frame_id: str, *, candidate: bool) -> Path:
        return self._folder / f"{frame_id}{CANDIDATE_SUFFIX if candidate else FRAME_SUFFIX}"

    def _sync_folder(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
