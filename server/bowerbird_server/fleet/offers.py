"""Which block goes to which device next: requests queue per device, devices take turns, and a rate bounds all of it.

In: block requests, the time in monotonic seconds. Out: blocks to publish now. Files come from `repository_files.py`, which reads no
path but those that the repository writes. It publishes nothing itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bowerbird_server.releases.repository_files import MAX_BLOCKS, answer
from bowerbird_wire.messages import Block, BlockRequest

MAX_WAITING_PER_DEVICE = 8  # requests; a device that asks for more loses its oldest and asks again
RATE_BYTES_S = 8_000_000.0
BURST_BYTES = 4_000_000.0


@dataclass(frozen=True)
class Addressed:
    """A block and the device that asked for it."""

    site: str
    device: str
    block: Block


class BlockQueue:
    """Waiting requests.

    Args:
        repository_dir: the update repository.
        rate_bytes_s: blocks of all devices together, bytes a second; QoS 0 has no back-pressure of its own.
        burst_bytes: what may go at once after a pause.
    """

    def __init__(self, repository_dir: Path, *, rate_bytes_s: float = RATE_BYTES_S, burst_bytes: float = BURST_BYTES) -> None:
        self._dir = repository_dir
        self._rate = rate_bytes_s
        self._burst = burst_bytes
        self._allowance = burst_bytes
        self._at_s: float | None = None
        self._waiting: dict[tuple[str, str], deque[tuple[BlockRequest, Iterator[Block]]]] = {}

    def __len__(self) -> int:
        return sum(len(requests) for requests in self._waiting.values())

    def ask(self, site: str, device: str, request: BlockRequest) -> None:
        """Queue a request; the same one again does not queue twice."""
        requests = self._waiting.setdefault((site, device), deque(maxlen=MAX_WAITING_PER_DEVICE))
        if all(waiting != request for waiting, _ in requests):
            requests.append((request, answer(self._dir, request)))

    def forget(self, site: str, device: str) -> None:
        """Drop what a device asked for; it went away."""
        self._waiting.pop((site, device), None)

    def due(self, now_s: float) -> Iterator[Addressed]:
        """Blocks that may be published now, one device after the other; at most `MAX_BLOCKS`, so that the caller can look up."""
        elapsed_s = 0.0 if self._at_s is None else max(0.0, now_s - self._at_s)
        self._at_s = now_s
        self._allowance = min(self._burst, self._allowance + elapsed_s * self._rate)
        sent = 0
        while self._waiting and self._allowance > 0 and sent < MAX_BLOCKS:
            key = next(iter(self._waiting))
            requests = self._waiting.pop(key)  # to the end of the line
            block = _next_block(requests)
            if block is not None:
                self._waiting[key] = requests
                self._allowance -= len(block.data) + 100
                sent += 1
                yield Addressed(*key, block)


def _next_block(requests: deque[tuple[BlockRequest, Iterator[Block]]]) -> Block | None:
    while requests:
        try:
            block = next(requests[0][1], None)
        except OSError:  # the file went away between request and read; the device asks again and is told
            block = None
        if block is not None:
            return block
        requests.popleft()
    return None
