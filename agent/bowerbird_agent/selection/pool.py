"""The frames that wait for a window's end: at most one in each short stretch, and no more than are worth writing to disk.

In: admitted frames as they are judged, and again once they are stored. Out: the candidates, and the ids of those that gave way.
A frame takes its place when it is judged, not when the disk is done with it, so that the outcome does not hang on how fast the
disk is. It judges nothing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from bowerbird_agent.selection.choose import Candidate, Judgement

# A frame must be better than its neighbour by this much to take its place: less is not worth another encode and write.
WORTH_REPLACING = 0.02

_Key = tuple[str, int]  # camera and capture time, ms


@dataclass
class _Place:
    key: _Key
    judgement: Judgement
    stored: Candidate | None = field(default=None)


class Pool:
    """One window's candidates. Not thread-safe.

    Args:
        gap_ms: least distance in capture time between policy frames of one camera, milliseconds.
        capacity: the most frames that may wait now.
    """

    def __init__(self, gap_ms: float, capacity: Callable[[], int]) -> None:
        self._gap_ms, self._capacity = gap_ms, capacity
        self._places: dict[_Key, _Place] = {}
        self._policy_times: dict[str, list[int]] = {}  # camera -> sorted capture times of its policy frames
        self._weakest: float | None = None  # value of the weakest policy frame; None when it must be looked for again
        self._displaced: dict[_Key, str] = {}  # judged, gave way, perhaps not yet stored
        self._given_up: dict[str, str] = {}  # stored frames that gave way, not yet told to the spool

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The stored frames that wait; those still on their way to the disk are not among them."""
        return tuple(place.stored for place in self._places.values() if place.stored is not None)

    @property
    def frame_ids(self) -> tuple[str, ...]:
        """Ids of all stored frames that the spool was not yet told to drop."""
        return (*(candidate.frame_id for candidate in self.candidates), *self._given_up)

    def has(self, camera: str, at_ms: int) -> bool:
        """Whether exactly this frame waits."""
        return (camera, at_ms) in self._places

    def __len__(self) -> int:
        """Frames with a place, stored or not."""
        return len(self._places)

    def why_not(self, camera: str, at_ms: int, value: float) -> tuple[str, float | None]:
        """Why a policy frame of this value would not get a place, "" when it would; and the value it must exceed, if any."""
        neighbours = self._neighbours((camera, at_ms))
        bar: float | None = None
        if neighbours:
            bar = max(place.judgement.value for place in neighbours) + WORTH_REPLACING
            if bar > value:
                return "weaker_than_neighbour", bar
        if len(self._places) >= self._capacity() and not neighbours:
            if self._weakest is None:
                values = (p.judgement.value for p in self._places.values() if p.judgement.arm == "policy")
                self._weakest = min(values, default=1.0)
            if value <= self._weakest:
                return "pool_full", self._weakest
            bar = self._weakest
        return "", bar

    def enter(self, camera: str, at_ms: int, judgement: Judgement) -> None:
        """Give an admitted frame its place; weaker neighbours, and the weakest of a full pool, give way."""
        key = (camera, at_ms)
        if judgement.arm == "policy":
            for place in self._neighbours(key):
                self._give_way(place, "weaker_than_neighbour")
            insort(self._policy_times.setdefault(camera, []), at_ms)
        self._displaced.pop(key, None)
        self._places[key] = _Place(key, judgement)
        self._weakest = None
        while len(self._places) > max(1, self._capacity()):
            weakest = min(self._places.values(), key=lambda p: (p.judgement.arm == "explore", p.judgement.value, p.key))
            self._give_way(weakest, "pool_full")

    def stored(self, candidate: Candidate) -> dict[str, str]:
        """The frame is on disk now.

        Returns:
            Frame ids to drop, each with the reason: those that gave way since the last call, possibly this one.
        """
        key = (candidate.camera, candidate.captured_at_ms)
        if key in self._displaced:
            self._given_up[candidate.frame_id] = self._displaced.pop(key)
        else:
            if key not in self._places:  # judged in the window before
                refused = self._late(key, candidate)
                if refused:
                    self._given_up[candidate.frame_id] = refused
                    return self.take_given_up()
                self.enter(*key, candidate.judgement)
            if key in self._places:
                self._places[key].stored = candidate
            else:
                self._given_up[candidate.frame_id] = self._displaced.pop(key)
        return self.take_given_up()

    def withdraw(self, camera: str, at_ms: int) -> None:
        """The frame, judged and not yet stored, goes another way: its place is free again."""
        place = self._places.get((camera, at_ms))
        if place is not None and place.stored is None:
            self._give_way(place, "")
            del self._displaced[place.key]

    def take_given_up(self) -> dict[str, str]:
        """Stored frames that gave way and were not told of yet; told once."""
        given_up, self._given_up = self._given_up, {}
        return given_up

    def _late(self, key: _Key, candidate: Candidate) -> str:
        return self.why_not(*key, candidate.judgement.value)[0] if candidate.judgement.arm == "policy" else ""

    def _give_way(self, place: _Place, why: str) -> None:
        del self._places[place.key]
        self._weakest = None
        if place.judgement.arm == "policy":
            camera, at_ms = place.key
            times = self._policy_times[camera]
            del times[bisect_left(times, at_ms)]
        if place.stored is None:
            self._displaced[place.key] = why
        else:
            self._given_up[place.stored.frame_id] = why

    def _neighbours(self, key: _Key) -> list[_Place]:
        """Policy frames of the same camera within the gap."""
        camera, at_ms = key
        times = self._policy_times.get(camera)
        if not times:
            return []
        first, end = bisect_right(times, at_ms - self._gap_ms), bisect_left(times, at_ms + self._gap_ms)
        return [self._places[camera, time_ms] for time_ms in times[first:end]]
