"""The newest decisions of a running device, on disk: a ring of small files for `bowerbird-agent explain` to read meanwhile.

In: decisions from the inference thread, the ends of windows from the spool thread. Out: files of compressed JSON lines. Handing over
never blocks: `note` only appends to a bounded queue. The spool thread writes, at most every ten seconds and without waiting for the
disk: some ten kilobytes at 30 frames a second. What a power cut takes back is missed by nobody but `explain`; a disk that refuses is
told once, and the device goes on. The newest file is written anew until it is full; each replaces its old self in one step.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from bowerbird_agent.selection.decisions import Decision

logger = logging.getLogger(__name__)

FOLDER = "decisions"  # in the state folder
WRITE_EVERY_S = 10.0
_LINES_PER_FILE = 500
_MOST_QUEUED = 5000  # a spool thread that hangs in the disk costs decisions, not memory
_SUFFIX = ".jsonl.z"
_LARGEST_FILE_BYTES = 16_000_000  # unpacked; what is larger is no file of ours


class DecisionLog:
    """Writes the ring. `note` may be called by any thread, everything else by the spool thread.

    Args:
        folder: made when the first file is written.
        keep: most decisions kept, to the nearest file; 0 keeps none and deletes what is there.
        now_s: monotonic seconds at the start.
    """

    def __init__(self, folder: Path, *, keep: int, now_s: float = 0.0) -> None:
        self.keep = keep
        self._folder = folder
        self._queue: deque[Decision | dict[str, Any]] = deque(maxlen=_MOST_QUEUED)
        self._lines: list[str] = []  # of the newest file
        self._written_s = now_s
        self._number: int | None = None
        self._is_failing = False

    def note(self, decision: Decision) -> None:
        """Remember a decision; does not block."""
        if self.keep:
            self._queue.append(decision)

    def window(
        self,
        chosen: tuple[str, ...],
        dropped: Mapping[str, str],
        *,
        closed: bool,
        frames_left: int | None = None,
        bytes_left: int | None = None,
        explore_share: float = 1.0,
    ) -> None:
        """What became of candidates: at a window's end (`closed`), or of those that gave way before."""
        if self.keep:
            budget = {"frames_left": frames_left, "bytes_left": bytes_left, "explore_share": round(explore_share, 4)}
            self._queue.append({"chosen": list(chosen), "dropped": dict(dropped), **(budget if closed else {})})

    def write_if_due(self, now_s: float) -> None:
        """Write what was noted when ten seconds have passed since the last time."""
        if now_s - self._written_s >= WRITE_EVERY_S:
            self.write(now_s)

    def write(self, now_s: float) -> None:
        """Write what was noted now. Never raises for the disk's sake."""
        self._written_s = now_s
        try:
            if self._number is None or not self.keep:
                self._number = self._newest_number() + 1
                self._trim()
            if not self.keep:
                self._queue.clear()
                self._lines.clear()
            if not self._queue:
                return
            while self._queue:
                entry = self._queue.popleft()
                plain = entry if isinstance(entry, dict) else entry.plain()
                self._lines.append(json.dumps(plain, separators=(",", ":")))
                if len(self._lines) >= _LINES_PER_FILE:
                    self._write_file()
                    self._lines.clear()
                    self._number += 1
                    self._trim()
            if self._lines:
                self._write_file()
            self._is_failing = False
        except OSError as error:
            self._lines.clear()
            level = logging.DEBUG if self._is_failing else logging.WARNING
            self._is_failing = True
            logger.log(level, "decisions cannot be written to %s (%s); `explain` will not know them", self._folder, error)

    def _write_file(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._number:09d}{_SUFFIX}"
        fresh = path.with_suffix(".new")
        fresh.write_bytes(zlib.compress("\n".join(self._lines).encode(), 6))
        fresh.replace(path)

    def _newest_number(self) -> int:
        files = _files(self._folder)
        return int(files[-1].name.partition(".")[0]) if files else 0

    def _trim(self) -> None:
        """Leave room for the file that is being filled."""
        files = _files(self._folder)
        most = max(1, -(-self.keep // _LINES_PER_FILE) - 1) if self.keep else 0
        for path in files[: max(0, len(files) - most)]:
            path.unlink(missing_ok=True)


def read_newest_first(folder: Path) -> Iterator[dict[str, Any]]:
    """What the ring holds, the newest first; files that are damaged or just being deleted are passed over."""
    for path in reversed(_files(folder)):
        try:
            unpacked = zlib.decompressobj().decompress(path.read_bytes(), _LARGEST_FILE_BYTES)
            entries = [json.loads(line) for line in unpacked.decode().splitlines()]
        except (OSError, zlib.error, ValueError):
            logger.debug("%s cannot be read; passed over", path)
            continue
        yield from (entry for entry in reversed(entries) if isinstance(entry, dict))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"*{_SUFFIX}") if path.name.partition(".")[0].isdecimal())
