"""A server's side of chunked transfers in memory: takes chunks and questions, gives whole messages and answers.

In: payloads of the chunk and offer topics. Out: a frame message once its parts are whole; a receipt for a question. It checks what
arrives as the real server does, and has room for everything.
"""

from __future__ import annotations

from bowerbird_wire.codec import decode
from bowerbird_wire.messages import Chunk, Offer, Receipt, Want
from bowerbird_wire.transfer import BLOCK_BYTES, Receiving, block_count, check_chunk, transfer_id


class Parts:
    """What has arrived of each transfer."""

    def __init__(self) -> None:
        self.chunks = 0
        self.offers: list[Offer] = []
        self._parts: dict[bytes, tuple[bytearray, Receiving]] = {}

    def take(self, payload: bytes) -> bytes | None:
        """Keep a chunk; the whole message when nothing of it is missing any more."""
        chunk = decode(Chunk, payload)
        check_chunk(chunk)
        self.chunks += 1
        whole, receiving = self._parts.setdefault(chunk.transfer, (bytearray(chunk.total_bytes), Receiving(chunk.total_bytes)))
        at = chunk.first_block * BLOCK_BYTES
        whole[at : at + len(chunk.data)] = chunk.data
        receiving.add(chunk.first_block, block_count(len(chunk.data)))
        if not receiving.complete:
            return None
        del self._parts[chunk.transfer]
        assert transfer_id(bytes(whole)) == chunk.transfer, "parts of different messages under one name"
        return bytes(whole)

    def answer(self, payload: bytes, *, committed: bool) -> Receipt:
        """The receipt for a question about a frame."""
        offer = decode(Offer, payload)
        self.offers.append(offer)
        if committed:
            return Receipt(committed=(offer.frame.hex(),))
        known = self._parts.get(offer.transfer)
        return Receipt(wanted=(Want(offer.frame, have=known[1].bitmap() if known is not None else b""),))
