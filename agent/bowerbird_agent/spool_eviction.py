"""What a full spool gives up for a new frame. Pure: rows in, victims out.

In: the new frame and what waits, worst first. Out: the frames to evict. The lowest score per byte goes first; the random audit sample
never makes way for a frame that was chosen by score, since it is what tells whether choosing works. It does not delete anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bowerbird_agent.spool_index import SpooledFrame

EXPLORE = "explore"
EXPLORE_SHARE = 0.5  # above this part of the room the random sample gives way to itself only

Row = tuple[str, float, float, int]  # frame id, score, score per byte, bytes on disk


@dataclass(frozen=True)
class Victim:
    """A frame to evict."""

    frame_id: str
    arm: str
    score: float
    disk_bytes: int

    @property
    def score_bin(self) -> str:
        """The lower end of its tenth of the score range, e.g. `0.3`."""
        return f"{min(max(int(self.score * 10), 0), 9) / 10:.1f}"


def choose(
    frame: SpooledFrame, policy: Iterable[Row], explore: Iterable[Row], *, to_free: int, explore_may_grow: bool
) -> tuple[list[Victim], int]:
    """Frames to evict so that `frame` fits.

    Args:
        frame: the new one.
        policy, explore: what waits in each arm, worst first.
        to_free: bytes on disk that are needed.
        explore_may_grow: whether a frame of the random sample may take room from the others.

    Returns:
        The victims and the bytes that they free. Fewer bytes than `to_free`: all else is worth more, evict nothing.
    """
    chosen: list[Victim] = []
    freed = 0
    for victim in _worth_less(frame, policy, explore, explore_may_grow):
        if freed >= to_free:
            break
        chosen.append(victim)
        freed += victim.disk_bytes
    return chosen, freed


def _worth_less(frame: SpooledFrame, policy: Iterable[Row], explore: Iterable[Row], explore_may_grow: bool) -> Iterator[Victim]:
    if frame.arm != EXPLORE:
        density = frame.score / max(frame.message_bytes, 1)
        for frame_id, score, other_density, size in policy:
            if other_density >= density:
                return
            yield Victim(frame_id, "policy", score, size)
        return
    if explore_may_grow:
        for frame_id, score, _, size in policy:
            yield Victim(frame_id, "policy", score, size)
    for frame_id, score, _, size in explore:
        if frame_id > frame.frame_id:  # ids are hashes: giving up the smallest ones is a random choice
            return
        yield Victim(frame_id, EXPLORE, score, size)
