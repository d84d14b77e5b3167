"""What a full spool gives up for a new frame. Pure: rows in, victims out.

In: the new frame, what waits (worst first), what each group holds. Out: the frames to evict. The lowest score per byte goes first, but
not below a group's floor: frames of a rare class, or of any strategy that was given one, do not make way for plain frames there. The
random audit sample never makes way for a frame that was chosen, since it is what tells whether choosing works. It deletes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

EXPLORE, PLAIN = "explore", "policy"

# Group -> the share of the spool's room that is its own. Above it the random sample gives way to itself only, others compete.
FLOORS: Mapping[str, float] = MappingProxyType({EXPLORE: 0.5, "rare_class": 0.2})


@dataclass(frozen=True)
class Row:
    """A frame that waits; `density` is its score per byte of its message."""

    frame_id: str
    group: str
    score: float
    density: float
    disk_bytes: int


@dataclass(frozen=True)
class Victim:
    """A frame to evict."""

    frame_id: str
    group: str
    score: float
    disk_bytes: int

    @property
    def score_bin(self) -> str:
        """See `score_bin`."""
        return score_bin(self.score)


def score_bin(score: float) -> str:
    """The lower end of a score's tenth of [0, 1], e.g. `0.3`."""
    return f"{min(max(int(score * 10), 0), 9) / 10:.1f}"


def group_of(arm: str, reasons: Sequence[str], floors: Mapping[str, float]) -> str:
    """The group of a frame: its arm when it was not chosen by score, else its first reason that has a floor, else `policy`."""
    if arm != PLAIN:
        return arm
    return next((reason for reason in reasons if reason in floors and reason != EXPLORE), PLAIN)


def choose(
    frame: Row,
    explore: Iterable[Row],
    others: Iterable[Row],
    *,
    used: Mapping[str, int],
    floors: Mapping[str, float],
    to_free: int,
) -> tuple[list[Victim], int]:
    """Frames to evict so that `frame` fits.

    Args:
        frame: the new one.
        explore: what waits of the random sample, those to give up first before.
        others: what else waits, the lowest density first.
        used: bytes on disk by group, of all frames in the spool.
        floors: bytes by group that are its own.
        to_free: bytes on disk that are needed.

    Returns:
        The victims and the bytes that they free. Fewer bytes than `to_free`: all else is worth more, evict nothing.
    """
    chosen: list[Victim] = []
    freed = 0
    for victim in _worth_less(frame, explore, others, used, floors):
        if freed >= to_free:
            break
        chosen.append(victim)
        freed += victim.disk_bytes
    return chosen, freed


def _worth_less(
    frame: Row, explore: Iterable[Row], others: Iterable[Row], used: Mapping[str, int], floors: Mapping[str, float]
) -> Iterator[Victim]:
    below_floor = used.get(frame.group, 0) < floors.get(frame.group, 0)
    surplus = {group: size - floors.get(group, 0) for group, size in used.items()}
    if frame.group != EXPLORE or below_floor:
        for row in others:
            same = row.group == frame.group
            if not (same or row.group == PLAIN) and surplus.get(row.group, 0) < row.disk_bytes:
                continue  # what is its group's own
            # Below its floor a group takes what is not its own whatever it is worth; among themselves value counts.
            if row.density >= frame.density and (same or not below_floor):
                if not below_floor:
                    return
                continue
            surplus[row.group] = surplus.get(row.group, 0) - row.disk_bytes
            yield _victim(row)
    if frame.group == EXPLORE:
        for row in explore:
            if row.frame_id > frame.frame_id:  # ids are hashes: giving up the smallest ones is a random choice
                return
            yield _victim(row)


def _victim(row: Row) -> Victim:
    return Victim(row.frame_id, row.group, row.score, row.disk_bytes)
