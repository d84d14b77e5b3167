"""How new a frame is: fingerprints, and the bank of those already kept.

In: fingerprints of frames (an embedding from the model when it has one, and always a difference hash). Out: distances in
[0, 1] to what was kept, and ranks of them. Pure; the bank goes to and from bytes so that it survives restarts. It decides
nothing.

Embeddings of different models cannot be compared: `forget_embeddings` drops them when the model changes, the hashes stay.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right, insort
from collections import deque
from typing import TYPE_CHECKING, Any

import cbor2
import numpy as np

from bowerbird_agent.selection.gate import HASH_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

_BITS = np.array([bin(value).count("1") for value in range(256)], np.uint8)
# Half of the bits of two unrelated pictures differ: a Hamming distance of half the bits is as far as it gets.
_FARTHEST_BITS = HASH_BYTES * 8 / 2


class Fingerprint:
    """What a frame looks like, for comparison with others. Never changed once made.

    Args:
        hash_bits: (32,) uint8, packed difference hash, or what makes it when it is first asked for: of a frame with an embedding
            that is only when the frame is kept.
        embedding: (d,) float32 of length 1, or None.
    """

    __slots__ = ("_hash_bits", "embedding")

    def __init__(
        self, hash_bits: NDArray[np.uint8] | Callable[[], NDArray[np.uint8]], embedding: NDArray[np.float32] | None = None
    ) -> None:
        self._hash_bits = hash_bits
        self.embedding = embedding

    @property
    def hash_bits(self) -> NDArray[np.uint8]:
        """(32,) uint8, packed difference hash."""
        if callable(self._hash_bits):
            self._hash_bits = self._hash_bits()
        return self._hash_bits

    @classmethod
    def of(
        cls, hash_bits: NDArray[np.uint8] | Callable[[], NDArray[np.uint8]], embedding: NDArray[np.float32] | None = None
    ) -> Fingerprint:
        """With the embedding brought to length 1; one that is all zero or not finite counts as absent."""
        if embedding is None:
            return cls(hash_bits)
        length = math.sqrt(embedding.dot(embedding))
        if not 1e-12 <= length < math.inf:
            return cls(hash_bits)
        return cls(hash_bits, embedding / length)


def distances(fingerprint: Fingerprint, others: Sequence[Fingerprint]) -> NDArray[np.float64]:
    """Distance to each of the others, (n,) in [0, 1]: 1 - cosine where both have embeddings of one length, else of the hashes."""
    result = np.empty(len(others), np.float64)
    for i, other in enumerate(others):
        a, b = fingerprint.embedding, other.embedding
        if a is not None and b is not None and len(a) == len(b):
            result[i] = 1.0 - float(a @ b)
        else:
            result[i] = float(_BITS[fingerprint.hash_bits ^ other.hash_bits].sum()) / _FARTHEST_BITS
    return np.clip(result, 0.0, 1.0)


class Bank:
    """Fingerprints of the frames kept so far, the newest `size` of them. Not thread-safe.

    Args:
        size: most fingerprints remembered, at least 1.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._hashes = np.zeros((0, HASH_BYTES), np.uint8)
        # Rows of entries without an embedding are zero: their cosine is 0, so they never look near.
        self._embeddings: NDArray[np.float32] | None = None
        self._embedded = 0  # the newest so many have been added since embeddings came

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, fingerprint: Fingerprint) -> None:
        """Remember a kept frame; the oldest is forgotten when the bank is full."""
        embedding = fingerprint.embedding
        if embedding is not None and (self._embeddings is None or self._embeddings.shape[1] != len(embedding)):
            # Made when the first embedding comes, so that it always holds one that says something.
            self._embeddings = np.zeros((len(self._hashes), len(embedding)), np.float32)
            self._embedded = 0
        if self._embeddings is not None:
            row = np.zeros((1, self._embeddings.shape[1]), np.float32) if embedding is None else embedding[None, :]
            self._embeddings = np.concatenate([self._embeddings, row])[-self._size :]
            self._embedded = min(self._size, self._embedded + 1)
        self._hashes = np.concatenate([self._hashes, fingerprint.hash_bits[None, :]])[-self._size :]

    def distance(self, fingerprint: Fingerprint) -> float:
        """Distance in [0, 1] to the nearest kept frame; 1 when nothing was kept.

        Source: the distance by which Sener and Savarese's k-center greedy (ICLR 2018) picks, against a bank that forgets its oldest.
        """
        if not len(self._hashes):
            return 1.0
        embedding = fingerprint.embedding
        known = self._embeddings
        if embedding is not None and known is not None and known.shape[1] == len(embedding):
            cosines = known.dot(embedding)
            nearest = 1.0 - float(cosines[cosines.argmax()])
            without = len(self._hashes) - self._embedded
            if without:  # kept before this model: the oldest, since the model changed once
                nearest = min(nearest, self._nearest_hash(fingerprint, self._hashes[:without]))
            return min(1.0, max(0.0, nearest))
        return self._nearest_hash(fingerprint, self._hashes)

    @staticmethod
    def _nearest_hash(fingerprint: Fingerprint, hashes: NDArray[np.uint8]) -> float:
        nearest_bits = int(_BITS[hashes ^ fingerprint.hash_bits].sum(axis=1, dtype=np.int64).min())
        return float(min(1.0, nearest_bits / _FARTHEST_BITS))

    def forget_embeddings(self) -> None:
        """The model changed: its embeddings mean something else now."""
        self._embeddings = None
        self._embedded = 0

    def to_state(self) -> bytes:
        """For `from_state`; about 1 kB per kept frame with an embedding of 448 numbers (half precision), 32 bytes without."""
        embeddings = self._embeddings
        state: dict[str, Any] = {"v": 1, "h": self._hashes.tobytes()}
        if embeddings is not None:
            state |= {"n": self._embedded, "d": embeddings.shape[1], "e": embeddings.astype("<f2").tobytes()}
        return bytes(cbor2.dumps(state))

    @classmethod
    def from_state(cls, state: bytes, size: int) -> Bank:
        """The bank as it was saved, cut to `size`.

        Raises:
            ValueError: the bytes are not a saved bank; start with an empty one then.
        """
        bank = cls(size)
        try:
            fields = cbor2.loads(state)
            bank._hashes = np.frombuffer(fields["h"], np.uint8).reshape(-1, HASH_BYTES)[-size:].copy()
            if "e" in fields:
                rows = np.frombuffer(fields["e"], "<f2").reshape(-1, int(fields["d"]))[-size:]
                if len(rows) != len(bank._hashes) or not np.isfinite(rows).all():
                    raise ValueError("embeddings and hashes disagree")
                bank._embeddings = rows.astype(np.float32)
                bank._embedded = min(len(rows), max(0, int(fields["n"])))
        except (cbor2.CBORDecodeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError("the saved bank of kept frames is damaged; delete it to start with an empty one") from error
        return bank


class Ranks:
    """Rank of a value among the last `history` values: 0 lowest, 1 highest, ties in the middle.

    Args:
        history: how many values are remembered, at least 1.
    """

    def __init__(self, history: int) -> None:
        self._history = history
        self._in_time: deque[float] = deque()
        # Numbers side by side, not each an object of its own somewhere in memory: a search touches a dozen of them.
        self._sorted = array("d")

    def rank(self, value: float) -> float:
        """Rank in [0, 1] of `value` among the remembered; 0.5 when there is nothing to compare with."""
        n = len(self._sorted)
        if not n:
            return 0.5
        below = bisect_left(self._sorted, value)
        return (below + bisect_right(self._sorted, value, below)) / (2 * n)

    def add(self, value: float) -> None:
        """Remember a value."""
        if len(self._in_time) == self._history:
            oldest = self._in_time.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]
        self._in_time.append(value)
        insort(self._sorted, value)

    def rank_and_add(self, value: float) -> float:
        """`rank`, and then `add`, with half as many searches."""
        known = self._sorted
        n = len(known)
        place = bisect_left(known, value)
        rank = 0.5
        if n:
            up_to = place if place == n or known[place] != value else bisect_right(known, value, place)
            rank = (place + up_to) / (2 * n)
        known.insert(place, value)
        if n == self._history:
            del known[bisect_left(known, self._in_time.popleft())]
        self._in_time.append(value)
        return rank
