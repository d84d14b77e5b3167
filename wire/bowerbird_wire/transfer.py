"""A frame message in parts: which blocks to send, which have arrived, which are missing. Machines without I/O for both sides.

In: the size of a message, what was handed to the link, answers of the server (sender); runs of blocks (receiver). Out: the next run to
send; a bitmap. The grid of 4 KiB blocks never changes, whatever the chunk size: it may follow the link's rate and the broker's packet
limit in mid-transfer, and a bitmap of blocks lets both sides go on after a restart. It keeps no bytes, and does not know of time;
`chunk_bytes` and `window_bytes` are the rules for how much may be on its way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from enum import Enum

from bowerbird_wire.codec import MAX_FRAME_BYTES
from bowerbird_wire.errors import BlockError, LengthError
from bowerbird_wire.messages import Chunk

BLOCK_BYTES = 4096
MAX_CHUNK_BYTES = 128 * 1024
MAX_WINDOW_BYTES = 512 * 1024
CHUNK_S = 2.0  # a chunk is what the link carries in this time
TRANSFER_ID_BYTES = 16
CHUNK_HEADER_BYTES = 64  # what an encoded `Chunk` has beside its data, at most


def transfer_id(message: bytes) -> bytes:
    """The name of a transfer: the first 16 bytes of the message's SHA-256. It counts together with the device's name only."""
    return hashlib.sha256(message).digest()[:TRANSFER_ID_BYTES]


def block_count(total_bytes: int) -> int:
    """How many blocks a message has; the last one may be short."""
    return -(-total_bytes // BLOCK_BYTES)


def run_bytes(total_bytes: int, first_block: int, blocks: int) -> int:
    """The size of a run of blocks, which is shorter at the end of the message."""
    return min(total_bytes, (first_block + blocks) * BLOCK_BYTES) - first_block * BLOCK_BYTES


def chunk_bytes(rate_bytes_per_s: float, *, keepalive_s: float, max_payload_bytes: int | None = None) -> int:
    """The size of a chunk's data: rate x 2 s in 4..128 KiB, at most rate x keepalive / 4, below the broker's limit, in whole blocks.

    Args:
        rate_bytes_per_s: measured, of the link.
        keepalive_s: of the MQTT connection: a chunk must not take so long that the other side gives us up.
        max_payload_bytes: largest payload that the broker takes; None for no limit.

    Returns:
        At least one block, however slow the link; 0 when the broker does not even take one block.
    """
    wanted = min(rate_bytes_per_s * CHUNK_S, rate_bytes_per_s * keepalive_s / 4, float(MAX_CHUNK_BYTES))
    blocks = max(1, int(wanted) // BLOCK_BYTES)
    if max_payload_bytes is not None:
        blocks = min(blocks, max(0, max_payload_bytes - CHUNK_HEADER_BYTES) // BLOCK_BYTES)
    return blocks * BLOCK_BYTES


def window_bytes(rate_bytes_per_s: float, rtt_s: float, chunk: int) -> int:
    """Bytes that may be on the link without the broker's acknowledgement: clamp(2 x rate x RTT + chunk, chunk, 512 KiB)."""
    return max(chunk, min(int(2 * rate_bytes_per_s * rtt_s) + chunk, MAX_WINDOW_BYTES))


def check_chunk(chunk: Chunk) -> None:
    """The rules that the codec's types do not express.

    Raises:
        LengthError: a transfer id, a message or a run of a size that cannot be.
        BlockError: outside the message, or off the grid.
    """
    size = len(chunk.data)
    if len(chunk.transfer) != TRANSFER_ID_BYTES:
        raise LengthError(f"a transfer id has {TRANSFER_ID_BYTES} bytes, not {len(chunk.transfer)}")
    if not 0 < chunk.total_bytes <= MAX_FRAME_BYTES:
        raise LengthError(f"a frame message of {chunk.total_bytes} bytes; 1 to {MAX_FRAME_BYTES} are allowed")
    if not 0 < size <= MAX_CHUNK_BYTES:
        raise LengthError(f"a chunk of {size} bytes; 1 to {MAX_CHUNK_BYTES} are allowed")
    end = chunk.first_block * BLOCK_BYTES + size
    if chunk.first_block < 0 or end > chunk.total_bytes:
        raise BlockError(f"blocks from {chunk.first_block} on, {size} bytes, in a message of {chunk.total_bytes}")
    if end != chunk.total_bytes and size % BLOCK_BYTES:
        raise BlockError(f"{size} bytes are not whole blocks of {BLOCK_BYTES}, and it is not the message's end")


# -- bitmaps: bit i of byte i // 8, lowest first, is block i


def to_bitmap(blocks: Iterable[int], count: int) -> bytes:
    """The bitmap of `count` blocks in which these are set; trailing zero bytes are left out."""
    bits = bytearray(-(-count // 8))
    for block in blocks:
        bits[block // 8] |= 1 << (block % 8)
    return bytes(bits.rstrip(b"\0"))


def from_bitmap(bitmap: bytes, count: int) -> set[int]:
    """The blocks below `count` that are set; a bitmap that is too short or too long is read as far as it goes."""
    return {block for block in range(min(count, len(bitmap) * 8)) if bitmap[block // 8] >> (block % 8) & 1}


# -- sender


class Block(Enum):
    """Where a block stands for the sender."""

    UNSENT = "unsent"
    SENT = "sent"  # handed to the link, and nothing has gone wrong since
    DOUBTFUL = "doubtful"  # sent, and then the link broke, the receipt was overdue, or the server was asked
    HELD = "held"  # the server has it


class BlockEvent(Enum):
    """What happens to a block."""

    TAKEN = "taken"  # the link has taken it
    DOUBT = "doubt"
    HAS = "has"  # the server's bitmap has it
    LACKS = "lacks"  # the server's bitmap does not


# A pair that is not listed changes nothing. What was sent after the server was asked is not known to be lost when its answer lacks it.
TRANSITIONS: Mapping[tuple[Block, BlockEvent], Block] = {
    (Block.UNSENT, BlockEvent.TAKEN): Block.SENT,
    (Block.UNSENT, BlockEvent.HAS): Block.HELD,
    (Block.SENT, BlockEvent.DOUBT): Block.DOUBTFUL,
    (Block.SENT, BlockEvent.HAS): Block.HELD,
    (Block.DOUBTFUL, BlockEvent.HAS): Block.HELD,
    (Block.DOUBTFUL, BlockEvent.LACKS): Block.UNSENT,
    (Block.HELD, BlockEvent.LACKS): Block.UNSENT,  # the server's room for parts is bounded: it may have given them up
}


class Sending:
    """The sender's half of one transfer.

    Args:
        total_bytes: size of the message.
    """

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self._blocks = [Block.UNSENT] * block_count(total_bytes)

    def next_run(self, max_bytes: int) -> tuple[int, int] | None:
        """The first run of unsent blocks, (first, count), of at most `max_bytes` and at least one block; None when all are sent."""
        first = next((i for i, block in enumerate(self._blocks) if block is Block.UNSENT), None)
        if first is None:
            return None
        count = 1
        while (
            count < max(1, max_bytes // BLOCK_BYTES)
            and first + count < len(self._blocks)
            and self._blocks[first + count] is Block.UNSENT
        ):
            count += 1
        return first, count

    def taken(self, first: int, count: int) -> None:
        """The link has taken this run."""
        for index in range(first, min(first + count, len(self._blocks))):
            self._change(index, BlockEvent.TAKEN)

    def doubt(self) -> None:
        """Whether what was sent has arrived is not known any more: only the server can tell."""
        for index in range(len(self._blocks)):
            self._change(index, BlockEvent.DOUBT)

    def answer(self, have: bytes) -> None:
        """The server's bitmap."""
        held = from_bitmap(have, len(self._blocks))
        for index in range(len(self._blocks)):
            self._change(index, BlockEvent.HAS if index in held else BlockEvent.LACKS)

    def count(self, state: Block) -> int:
        """How many blocks are in a state."""
        return self._blocks.count(state)

    def _change(self, index: int, event: BlockEvent) -> None:
        self._blocks[index] = TRANSITIONS.get((self._blocks[index], event), self._blocks[index])


# -- receiver


class Receiving:
    """The receiver's half of one transfer: which blocks it has, in whatever order, size and number they came.

    Args:
        total_bytes: size of the message.
        runs: (first, count) of what is there already, e.g. found on the disk.
    """

    def __init__(self, total_bytes: int, runs: Iterable[tuple[int, int]] = ()) -> None:
        self.total_bytes = total_bytes
        self._have: set[int] = set()
        for first, count in runs:
            self.add(first, count)

    def add(self, first: int, count: int) -> bool:
        """Take a run; False when all of it was here already."""
        before = len(self._have)
        self._have.update(range(max(0, first), min(first + count, block_count(self.total_bytes))))
        return len(self._have) > before

    @property
    def complete(self) -> bool:
        """Whether no block is missing."""
        return len(self._have) == block_count(self.total_bytes)

    def bitmap(self) -> bytes:
        """What the sender need not send again."""
        return to_bitmap(self._have, block_count(self.total_bytes))
