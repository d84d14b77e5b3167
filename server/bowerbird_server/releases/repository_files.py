"""Answers a device's block requests out of the update repository.

In: a `BlockRequest`, whose path comes from the network. Out: the blocks, or one block with an error. The path must have the form
that the repository writes, so it cannot leave the folder; nothing is signed or decided here, since devices verify what they get.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from bowerbird_wire.messages import Block, BlockRequest

_PATH = re.compile(
    r"metadata/timestamp\.json|metadata/[1-9][0-9]{0,8}\.(?:root|targets|snapshot|models|agents)\.json"
    r"|targets/models/[0-9a-f]{64}/[0-9a-f]{64}\.[a-z0-9][a-z0-9_-]{0,63}\.(?:onnx|json|npz)"
    r"|targets/agents/[0-9a-f]{64}/[0-9a-f]{64}\.[A-Za-z0-9][A-Za-z0-9._+-]{0,199}\.(?:whl|json|txt)"
)
MIN_BLOCK_BYTES, MAX_BLOCK_BYTES = 1024, 128 * 1024
MAX_BLOCKS = 64
NOT_FOUND = "not_found"
BAD_REQUEST = "bad_request"


def file_of(repository_dir: Path, path: str) -> Path | None:
    """The file that a request's path means, or None where the path has another form or the file is not there."""
    if _PATH.fullmatch(path) is None:
        return None
    file = repository_dir / path
    return file if file.is_file() else None


def answer(repository_dir: Path, request: BlockRequest) -> Iterator[Block]:
    """The blocks that were asked for, as far as the file has them; one block with `error` set otherwise."""
    in_range = MIN_BLOCK_BYTES <= request.block_bytes <= MAX_BLOCK_BYTES and request.first_block >= 0 and request.blocks > 0
    file = file_of(repository_dir, request.path)
    if not in_range or file is None:
        error = BAD_REQUEST if not in_range else NOT_FOUND
        yield Block(request.path[:300], max(request.first_block, 0), request.block_bytes, error=error)
        return
    with file.open("rb") as content:
        total = content.seek(0, 2)
        for index in range(request.first_block, request.first_block + min(request.blocks, MAX_BLOCKS)):
            offset = index * request.block_bytes
            if offset >= total and index > 0:
                return
            content.seek(offset)
            yield Block(request.path, index, request.block_bytes, total, content.read(request.block_bytes))
