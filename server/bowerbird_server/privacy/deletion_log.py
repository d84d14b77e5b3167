"""The log of deletions: one line of JSON for every frame that was deleted, every request to forget frames, every device shut out.

In: facts, before they are carried out. Out: a file that only grows, durable when `append` returns, and its entries back. It lies beside
the catalogue and is copied on its own (`bowerbird backup` adds what is new to the copy beside the backups): whatever older backup a
site is made from again, the log is replayed on it, so that no erased frame and no revoked device comes back. It holds ids, digests and
reasons, no picture.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bowerbird_models.durable import sync_folder
from bowerbird_server.errors import BadInput, EnvironmentFault

NAME = "deletions.jsonl"
# What an entry of each kind must say, for `erase.replay` and `catalogue.identity.shut_out_again`; more may stand there.
_TEXT, _TEXT_OR_NONE, _NUMBER_OR_NONE = (str,), (str, type(None)), (int, type(None))
_FIELDS: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "frame": dict.fromkeys(("frame", "blob", "at", "actor", "why", "erasure"), _TEXT),
    "erasure": {
        **dict.fromkeys(("id", "at", "actor", "why", "frames"), _TEXT),
        **dict.fromkeys(("device", "camera"), _TEXT_OR_NONE),
        **dict.fromkeys(("from_ms", "to_ms"), _NUMBER_OR_NONE),
    },
    "device": dict.fromkeys(("id", "device", "state", "site", "at"), _TEXT),
}
_STATES = frozenset({"active", "pending", "suspended", "retired"})


class DeletionLog:
    """The file; made when the first entry is written.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def beside(cls, neighbour: Path) -> DeletionLog:
        """The log in the folder of another file."""
        return cls(neighbour.parent / NAME)

    def append(self, entries: Iterable[Mapping[str, Any]]) -> int:
        """Add entries; on return they survive a power cut. Returns how many.

        Raises:
            EnvironmentFault: the disk refuses; then nothing must be deleted, since nobody could prove or repeat it.
        """
        lines = [json.dumps(dict(entry), sort_keys=True, separators=(",", ":")) for entry in entries]
        if not lines:
            return 0
        is_new = not self.path.exists()
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                size = os.fstat(handle).st_size
                # A power cut may have left half a line; a line of its own begins after it.
                torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
                data = (("\n" if torn else "") + "\n".join(lines) + "\n").encode()
                while data:
                    data = data[os.write(handle, data) :]
                os.fsync(handle)
            finally:
                os.close(handle)
            if is_new:
                sync_folder(self.path.parent)
        except OSError as error:
            raise EnvironmentFault(
                f"the log of deletions {self.path} cannot be written: {error.strerror}; nothing was deleted. Free space and try again."
            ) from error
        return len(lines)

    def read(self) -> list[dict[str, Any]]:
        """All entries in order; half a line that a power cut left is passed over.

        Raises:
            BadInput: the file cannot be read, or an entry that is whole does not say what it must.
        """
        try:
            text = self.path.read_bytes().decode("utf-8", "replace")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise BadInput(f"cannot read the log of deletions {self.path}: {error.strerror}") from error
        found = []
        for number, line in enumerate(text.split("\n"), start=1):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            kind = entry.get("kind") if isinstance(entry, dict) else None
            if not isinstance(kind, str) or kind not in _FIELDS:
                continue
            if not _is_whole(entry, kind):
                raise BadInput(
                    f"line {number} of the log of deletions {self.path} is damaged: an entry of the kind {kind!r} that does not say "
                    "what is deleted. Take the line from another copy of the log; without it something erased could come back."
                )
            found.append(entry)
        return found

    def add_missing(self, other: DeletionLog) -> int:
        """Add what another log has and this one has not; returns how many entries."""
        here = {_key(entry) for entry in self.read()}
        return self.append(entry for entry in other.read() if _key(entry) not in here)


def _is_whole(entry: Mapping[str, Any], kind: str) -> bool:
    if not all(isinstance(entry.get(name, ...), types) for name, types in _FIELDS[kind].items()):
        return False
    if kind == "device":
        return entry["state"] in _STATES
    return kind == "frame" or _is_list_of_text(entry["frames"])


def _is_list_of_text(text: str) -> bool:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, list) and all(isinstance(one, str) for one in found)


def _key(entry: Mapping[str, Any]) -> tuple[str, str]:
    return str(entry["kind"]), str(entry.get("frame") or entry.get("id"))
