"""Candidates that a window's bytes were too few for, and that wait for later windows: the best of them, for as long as it takes.

In: what a window left. Out: candidates for the next choice, and the ids of those that made way; all of it as plain values, and back,
for a restart of the agent. Pure. While bytes are spread over the day, a busy hour has more good frames than bytes and a calm one more
bytes than good frames; waiting brings the two together. The files lie in the spool as candidates all the while.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bowerbird_agent.selection.choose import Candidate, Judgement
from bowerbird_agent.selection.gate import HASH_BYTES
from bowerbird_agent.selection.novelty import Fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterable


class Ring:
    """What waits. Not thread-safe.

    Args:
        most_frames: capacity, whatever their size.
    """

    def __init__(self, most_frames: int) -> None:
        self._most_frames = most_frames
        self._waiting: tuple[Candidate, ...] = ()
        self._places: frozenset[tuple[str, int]] = frozenset()
        self.floor = 0.0  # value that a frame must exceed to get in; 0 while there is room

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """All that wait."""
        return self._waiting

    @property
    def frame_ids(self) -> tuple[str, ...]:
        """Their ids."""
        return tuple(candidate.frame_id for candidate in self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    def has(self, camera: str, at_ms: int) -> bool:
        """Whether exactly this frame waits."""
        return (camera, at_ms) in self._places

    def refill(self, left_over: Iterable[Candidate], most_bytes: int) -> tuple[str, ...]:
        """Replace what waits by the best of `left_over`: the random audit first, then the highest value per byte.

        Returns:
            Ids of those for which there is no room.
        """
        order = sorted(left_over, key=lambda c: (c.judgement.arm != "explore", -_density(c), c.frame_id))
        kept: list[Candidate] = []
        bytes_kept = 0
        for candidate in order:
            if len(kept) >= self._most_frames or bytes_kept + candidate.size_bytes > most_bytes:
                break
            kept.append(candidate)
            bytes_kept += candidate.size_bytes
        gone = order[len(kept) :]
        self._hold(tuple(kept))
        bar = max((_density(c) for c in gone if c.judgement.arm == "policy"), default=0.0) if kept else 0.0
        # A frame's size is not known before it is encoded: it is given the benefit of being as small as any here.
        self.floor = bar * min((c.size_bytes for c in order), default=0)
        return tuple(candidate.frame_id for candidate in gone)

    def keep(self, frame_ids: Collection[str]) -> None:
        """Of what waits, only these are still wanted."""
        self._hold(tuple(candidate for candidate in self._waiting if candidate.frame_id in frame_ids))

    def restore(self, candidates: Iterable[Candidate]) -> None:
        """Take up what waited before a restart, the first so many; what a newcomer must exceed is learnt anew."""
        self._hold(tuple(candidates)[: self._most_frames])
        self.floor = 0.0

    def _hold(self, candidates: tuple[Candidate, ...]) -> None:
        self._waiting = candidates
        self._places = frozenset((candidate.camera, candidate.captured_at_ms) for candidate in candidates)


def to_plain(candidate: Candidate) -> dict[str, Any]:
    """A candidate for `of_plain`: some 200 bytes as CBOR, and 900 more with an embedding of 448 numbers (half precision)."""
    judged = candidate.judgement
    embedding = judged.fingerprint.embedding
    plain = {
        "id": candidate.frame_id,
        "camera": candidate.camera,
        "at": candidate.captured_at_ms,
        "bytes": candidate.size_bytes,
        "arm": judged.arm,
        "score": judged.score,
        "value": judged.value,
        "reasons": list(judged.reasons),
        "scores": {name: round(float(score), 4) for name, score in judged.strategy_scores.items()},
        "p": judged.inclusion_probability,
        "hash": judged.fingerprint.hash_bits.tobytes(),
    }
    return plain if embedding is None else {**plain, "embedding": embedding.astype("<f2").tobytes()}


def of_plain(plain: Mapping[str, Any]) -> Candidate:
    """A candidate as it was saved.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    hash_bits = np.frombuffer(plain["hash"], np.uint8)
    if len(hash_bits) != HASH_BYTES or plain["arm"] not in ("policy", "explore"):
        raise ValueError("no saved candidate")
    embedding = np.frombuffer(plain["embedding"], "<f2").astype(np.float32) if "embedding" in plain else None
    judgement = Judgement(
        True,
        plain["arm"],
        float(plain["score"]),
        float(plain["value"]),
        tuple(map(str, plain["reasons"])),
        {str(name): float(score) for name, score in plain["scores"].items()},
        float(plain["p"]),
        Fingerprint.of(hash_bits, embedding),
    )
    return Candidate(str(plain["id"]), str(plain["camera"]), int(plain["at"]), judgement, int(plain["bytes"]))


def _density(candidate: Candidate) -> float:
    """Value per byte."""
    return candidate.judgement.value / max(1, candidate.size_bytes)
