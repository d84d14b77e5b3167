"""Fetches files of the update repository in blocks over the link, for python-tuf's client.

In: paths and `Block` messages, which may be lost, doubled, late, reordered or hostile. Out: `BlockRequest` messages and whole files.
`Transfer` holds the rules (which block to ask for, which to believe) and neither sends nor waits; `BlockFetcher` does, in the
runner's thread. A target's blocks are kept on the disk beside a journal of their digests: after a restart only blocks whose
digest is in the journal are used again. Whether the *file* is right is TUF's to say.
"""

from __future__ import annotations

import hashlib
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tuf.api.exceptions import DownloadError, DownloadHTTPError, DownloadLengthMismatchError
from tuf.ngclient.fetcher import FetcherInterface

from bowerbird_agent.updates.settings import QUIET_S
from bowerbird_wire.messages import Block, BlockRequest

logger = logging.getLogger(__name__)

BLOCK_BYTES = 32 * 1024
FIRST_WINDOW, MAX_WINDOW = 4, 16  # blocks in flight
REORDER = 4  # a block that was asked for this many blocks before one that came is lost
NOT_FOUND = "not_found"


class FetchStopped(DownloadError):
    """The runner is stopping, or the job was cancelled."""


class Transfer:
    """Which blocks of one file are here, in flight or missing. Time comes in as monotonic seconds.

    Args:
        path: as in `BlockRequest.path`.
        max_bytes: longest file that is believed.
        present: indices of blocks that are already here (they were verified by their digests).
        total_bytes: length of the file if `present` is known from before, else None.
        quiet_s: silence after which everything in flight counts as lost; doubles up to 10 times this while it lasts.
    """

    def __init__(
        self,
        path: str,
        max_bytes: int,
        *,
        present: frozenset[int] = frozenset(),
        total_bytes: int | None = None,
        quiet_s: float = QUIET_S,
    ) -> None:
        self.path = path
        self.total_bytes = total_bytes
        self.have: set[int] = set(present)
        self._max_bytes = max_bytes
        self._in_flight: dict[int, int] = {}  # block -> its place in the order of requests
        self._order = 0
        self._window = FIRST_WINDOW
        self._arrived_in_window = 0
        self._shortest_quiet_s = self._quiet_s = quiet_s
        self._last_s: float | None = None

    @property
    def block_count(self) -> int | None:
        """Blocks of the whole file, None while its length is not known; an empty file has one empty block."""
        return None if self.total_bytes is None else max(1, -(-self.total_bytes // BLOCK_BYTES))

    @property
    def is_done(self) -> bool:
        """Whether every block is here."""
        return self.block_count is not None and len(self.have) == self.block_count

    def wanted(self, now_s: float) -> list[BlockRequest]:
        """What to ask for now; runs of neighbouring blocks go into one request."""
        if self._last_s is None:
            self._last_s = now_s
        if self._in_flight and now_s - self._last_s > self._quiet_s:
            self._in_flight.clear()
            self._window = max(1, self._window // 2)
            self._quiet_s = min(10 * self._shortest_quiet_s, self._quiet_s * 2)
            self._last_s = now_s
        count = self.block_count
        if count is None:
            # The first request also asks for the length; most metadata is one block.
            missing = [0] if not self._in_flight else []
        else:
            room = self._window - len(self._in_flight)
            missing = []
            for index in range(count):
                if len(missing) >= room:
                    break
                if index not in self.have and index not in self._in_flight:
                    missing.append(index)
        if missing and not self._in_flight:
            self._last_s = now_s
        for index in missing:
            self._order += 1
            self._in_flight[index] = self._order
        return [BlockRequest(self.path, first, count, BLOCK_BYTES) for first, count in _runs(missing)]

    def take(self, block: Block, now_s: float) -> bool:
        """Whether a block is new, belongs here and has the length that its place demands.

        Raises:
            DownloadHTTPError: the server has no such file.
            DownloadLengthMismatchError: the file is longer than may be.
        """
        if block.path != self.path or block.block_bytes != BLOCK_BYTES:
            return False
        if block.error:
            if block.error == NOT_FOUND:
                raise DownloadHTTPError(f"the server has no {self.path}", 404)
            logger.debug("the server answered %s for %s; asking again", block.error, self.path)
            return False
        if block.total_bytes > self._max_bytes:
            raise DownloadLengthMismatchError(
                f"{self.path} has {block.total_bytes} bytes; at most {self._max_bytes} are expected"
            )
        if self.total_bytes is None:
            self.total_bytes = block.total_bytes
        if block.total_bytes != self.total_bytes or not self._fits(block):
            return False
        self._last_s = now_s
        self._quiet_s = max(self._shortest_quiet_s, self._quiet_s / 2)
        place = self._in_flight.pop(block.index, None)
        if place is not None:
            for index in [index for index, older in self._in_flight.items() if older + REORDER <= place]:
                del self._in_flight[index]
        if block.index in self.have:
            return False
        self.have.add(block.index)
        self._arrived_in_window += 1
        if self._arrived_in_window >= self._window:
            self._window, self._arrived_in_window = min(MAX_WINDOW, self._window + 1), 0
        return True

    def link_lost(self) -> None:
        """What was in flight will not come any more."""
        self._in_flight.clear()
        self._last_s = None

    def _fits(self, block: Block) -> bool:
        count = self.block_count
        if count is None or self.total_bytes is None or not 0 <= block.index < count:
            return False
        return len(block.data) == min(BLOCK_BYTES, self.total_bytes - block.index * BLOCK_BYTES)


def _runs(indices: list[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for index in indices:
        if runs and sum(runs[-1]) == index:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((index, 1))
    return runs


@dataclass
class _Part:
    """A file that is being fetched: its blocks, and a journal of their digests, one JSON line a block."""

    data: Path
    journal: Path
    present: frozenset[int] = field(default_factory=frozenset)
    total_bytes: int | None = None

    def load(self) -> None:
        """Find the blocks of an earlier try whose content has the digest that the journal gives."""
        try:
            lines = self.journal.read_text("utf-8").splitlines()
            content = self.data.open("rb")
        except (OSError, UnicodeDecodeError):
            self.drop()
            return
        present = set()
        with content:
            for line in lines:
                try:
                    index, total, digest = json.loads(line)
                    content.seek(index * BLOCK_BYTES)
                    block = content.read(min(BLOCK_BYTES, total - index * BLOCK_BYTES))
                except (ValueError, TypeError, OSError):
                    continue  # the last line may be torn
                if hashlib.sha256(block).hexdigest() == digest and self.total_bytes in {None, total}:
                    present.add(index)
                    self.total_bytes = total
        self.present = frozenset(present)

    def drop(self) -> None:
        """Forget everything; also after the whole file proved wrong."""
        self.data.unlink(missing_ok=True)
        self.journal.unlink(missing_ok=True)
        self.present, self.total_bytes = frozenset(), None


class BlockFetcher(FetcherInterface):
    """python-tuf's transport over the link. `deliver`, `link` and `interrupt` may be called from any thread.

    Args:
        send: hands a request to the link; must not block.
        folder: for files under way.
        patience_s: seconds without a new block, while the link is up, after which a download gives up.
        quiet_s: as in `Transfer`.
        should_stop: asked a few times a second; True ends the download.
        monotonic_s: the clock of all timeouts.
    """

    def __init__(
        self,
        send: Callable[[BlockRequest], None],
        folder: Path,
        *,
        patience_s: float = 120.0,
        quiet_s: float = QUIET_S,
        should_stop: Callable[[], bool] = lambda: False,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send = send
        self._folder = folder
        self._patience_s = patience_s
        self._quiet_s = quiet_s
        self._should_stop = should_stop
        self._monotonic_s = monotonic_s
        self._blocks: queue.Queue[Block] = queue.Queue(maxsize=4 * MAX_WINDOW)
        self._link_up = threading.Event()
        self.blocks_taken = 0

    def deliver(self, block: Block) -> None:
        """A block came; dropped where too many wait, since it will be asked for again."""
        try:
            self._blocks.put_nowait(block)
        except queue.Full:
            logger.debug("block %d of %s dropped: too many wait", block.index, block.path)

    def link(self, up: bool) -> None:
        """The link came or went. While it is down nothing is asked for and no patience is lost."""
        if up:
            self._link_up.set()
        else:
            self._link_up.clear()

    @property
    def is_link_up(self) -> bool:
        """Whether requests can be sent."""
        return self._link_up.is_set()

    def clear(self) -> None:
        """Forget files under way: what they would become was found wrong."""
        for path in self._folder.glob("*"):
            path.unlink(missing_ok=True)

    @contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
        """The whole file, open for reading; resumes a target where an earlier try stopped.

        Kept when the caller raises nothing, so that TUF's copy decides; a file that TUF refuses is dropped here.

        Raises:
            DownloadError: it did not come, is too long, or was stopped.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(url.encode()).hexdigest()[:32]
        part = _Part(self._folder / f"{name}.data", self._folder / f"{name}.blocks")
        # Only targets have content in their names; metadata of one name may change, so it is fetched anew.
        if url.startswith("targets/"):
            part.load()
        else:
            part.drop()
        self._collect(url, max_length, part)
        try:
            with part.data.open("rb") as file:
                yield file
        finally:
            part.drop()

    def _fetch(self, url: str) -> Iterator[bytes]:
        """Required by the interface; `download_file` above never comes here."""
        with self.download_file(url, 2**31) as file:
            yield file.read()

    def _collect(self, url: str, max_length: int, part: _Part) -> None:
        transfer = Transfer(url, max_length, present=part.present, total_bytes=part.total_bytes, quiet_s=self._quiet_s)
        mode = "r+b" if part.present else "wb"
        progress_s = self._monotonic_s()
        with part.data.open(mode) as data, part.journal.open("a", encoding="utf-8") as journal:
            while not transfer.is_done:
                if self._should_stop():
                    raise FetchStopped(f"stopped while fetching {url}")
                if not self._link_up.is_set():
                    transfer.link_lost()
                    self._link_up.wait(0.2)
                    progress_s = self._monotonic_s()
                    continue
                now_s = self._monotonic_s()
                if now_s - progress_s > self._patience_s:
                    raise DownloadError(f"no block of {url} came for {self._patience_s:.0f} s")
                for request in transfer.wanted(now_s):
                    self._send(request)
                try:
                    block = self._blocks.get(timeout=0.2)
                except queue.Empty:
                    continue
                if transfer.take(block, self._monotonic_s()):
                    progress_s = self._monotonic_s()
                    self.blocks_taken += 1
                    data.seek(block.index * BLOCK_BYTES)
                    data.write(block.data)
                    data.flush()
                    digest = hashlib.sha256(block.data).hexdigest()
                    journal.write(json.dumps([block.index, transfer.total_bytes, digest]) + "\n")
                    journal.flush()
