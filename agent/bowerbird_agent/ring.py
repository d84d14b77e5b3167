"""Candidates that a window's bytes were too few for, and that wait for later windows: the best of them, for as long as it takes.

In: what a window left. Out: candidates for the next choice, and the ids of those that made way. Pure. While bytes are spread over the
day, a busy hour has more good frames than bytes and a calm one more bytes than good frames; waiting brings the two together.
The files lie in the spool as candidates all the while.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bowerbird_agent.choose import Candidate


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
        self._waiting = tuple(kept)
        self._places = frozenset((candidate.camera, candidate.captured_at_ms) for candidate in kept)
        bar = max((_density(c) for c in gone if c.judgement.arm == "policy"), default=0.0) if kept else 0.0
        # A frame's size is not known before it is encoded: it is given the benefit of being as small as any here.
        self.floor = bar * min((c.size_bytes for c in order), default=0)
        return tuple(candidate.frame_id for candidate in gone)


def _density(candidate: Candidate) -> float:
    """Value per byte."""
    return candidate.judgement.value / max(1, candidate.size_bytes)
