"""Weeks of a device in minutes: cameras whose frames get harder and easier, a link that fails, and the production code between them.

In: a seed, limits, a policy. Out: a `Month`: every frame's value and size, every byte that left and when. Frames go through
`Selector.judge`, windows through `pace.close_window`, bytes through `TokenBucket`; what is made up is the world: tiny pictures,
detections with a doubt that follows the hour, bursts and a drift, encoded sizes, outages, resends, restarts. Time is a number; nothing
waits. It measures nothing (`byte_budget.py` and `regret.py` do).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bowerbird_agent.budget.budget import DAY_S, ByteLimits, TokenBucket
from bowerbird_agent.budget.uplink_budget import UplinkBudget, ahead_bytes
from bowerbird_agent.capture.capture import Frame
from bowerbird_agent.selection.pace import Pace, close_window, room_bytes
from bowerbird_agent.selection.select import Candidate, Selector
from bowerbird_models.detections import Detections

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bowerbird_agent.selection.policy import Policy

CAMERAS = 2
EPOCH_MS = 1_772_323_200_000  # 1 March 2026, 00:00 UTC: a month of 31 days in which European clocks change
EMBEDDING = 16
_LINK_BYTES_PER_S = 12_000.0
_HEALTH_EVERY_S = 600.0
_HEALTH_BYTES = 600  # with keep-alives and receipts
_MOST_AHEAD_BYTES = 256 * 1024


@dataclass(frozen=True)
class SimulatedFrame:
    """One frame of a camera as the world has it; `at_s` since the simulation began."""

    at_s: float
    camera: int
    detections: Detections
    size_bytes: int


@dataclass(frozen=True)
class Outages:
    """Times in seconds at which the link is down and at which the device restarts."""

    down: tuple[tuple[float, float], ...]
    restarts: tuple[float, ...]

    def is_up(self, at_s: float) -> bool:
        """Whether bytes can pass."""
        return not any(begin <= at_s < end for begin, end in self.down)

    @classmethod
    def draw(cls, seed: int, days: float) -> Outages:
        """A few hours' outage every third day or so, one of three days, and a power failure a week."""
        rng = np.random.default_rng((seed, 7))
        begins = np.sort(rng.uniform(0, days * DAY_S, int(days / 3)))
        down = [(float(begin), float(begin + rng.exponential(4 * 3600.0))) for begin in begins]
        long_from = float(rng.uniform(0.3, 0.6) * days * DAY_S)
        return cls((*down, (long_from, long_from + 3 * DAY_S)), tuple(rng.uniform(0, days * DAY_S, int(days / 7)).tolist()))


@dataclass
class Month:
    """What happened.

    Args:
        spent: (second, bytes) of everything that passed the link, in order.
        admitted: (second, bytes) of each frame that became a candidate.
        values: (frames, 4): second, camera, value at judging, encoded bytes of every frame judged in the policy's eyes.
        sent: rows of `values` that were sent.
        explored: those among them that chance took.
        control_bytes: of `spent`, what was no frame.
    """

    spent: list[tuple[float, int]] = field(default_factory=list)
    admitted: list[tuple[float, int]] = field(default_factory=list)
    values: list[tuple[float, int, float, int]] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    explored: set[int] = field(default_factory=set)
    control_bytes: int = 0


def frames(seed: int, days: float, step_s: float) -> Iterator[SimulatedFrame]:
    """All cameras' frames in order of time: doubt by the hour, bursts of some tens of minutes, and a drift at half time."""
    rng = np.random.default_rng((seed, 1))
    steps = int(days * DAY_S / step_s)
    slow = np.zeros(CAMERAS)
    burst_until = np.zeros(CAMERAS)
    places = rng.normal(size=(CAMERAS, 12, EMBEDDING))
    for step in range(steps):
        for camera in range(CAMERAS):
            at_s = step * step_s + camera * step_s / CAMERAS
            slow[camera] = 0.97 * slow[camera] + 0.12 * rng.normal()
            if rng.random() < step_s / (16 * 3600.0):
                burst_until[camera] = at_s + rng.uniform(600.0, 5400.0)
            hour = at_s / 3600.0 % 24.0
            busy = math.exp(-(((hour - 8.0 - 9.0 * camera) % 24.0 - 12.0) ** 2) / 18.0)
            level = -1.6 + 1.5 * busy + slow[camera] + 1.6 * (at_s < burst_until[camera])
            if at_s > days * DAY_S / 2:
                level += 0.5 + 0.5 * camera
            doubt = 1.0 / (1.0 + math.exp(-2.0 * level))
            yield SimulatedFrame(at_s, camera, *_content(rng, doubt, busy, places[camera]))


def _content(rng: np.random.Generator, doubt: float, busy: float, places: np.ndarray) -> tuple[Detections, int]:
    count = int(rng.poisson(0.5 + 3.0 * busy))
    unsure = rng.random(count) < doubt
    scores = np.where(unsure, rng.uniform(0.15, 0.7, count), rng.uniform(0.85, 0.98, count)).astype(np.float32)
    corners = rng.uniform(0, 40, (count, 2))
    boxes = np.hstack([corners, corners + rng.uniform(4, 16, (count, 2))]).astype(np.float32)
    order = np.argsort(-scores)
    embedding = places[int(rng.integers(len(places)))] + 0.3 * rng.normal(size=EMBEDDING)
    size = int(np.clip(rng.lognormal(math.log(28_000 + 5_000 * count), 0.25), 6_000, 200_000))
    found = Detections(boxes[order], scores[order], np.zeros(count, np.int32), embedding=embedding.astype(np.float32))
    return found, size


class Device:
    """The device that lives through it.

    Args:
        policy, limits: as configured.
        paced: spread the bytes over the day, as the agent does; False for what it did before it could.
        outages: of the link, and restarts.
    """

    def __init__(self, policy: Policy, limits: ByteLimits, outages: Outages, *, paced: bool = True) -> None:
        self.month = Month()
        self._policy, self._limits, self._outages, self._paced = policy, limits, outages, paced
        self._selector = Selector(policy, device="simulated", cameras=CAMERAS)
        self._pace = Pace()
        self._bucket = TokenBucket(limits, 0.0)
        self._queue: deque[int] = deque()
        self._queued_bytes = 0
        self._boots_s = sorted(outages.restarts, reverse=True)
        self._health_due_s = 0.0
        self._ahead = ahead_bytes(UplinkBudget(self._bucket), _MOST_AHEAD_BYTES)
        self._saved = self._bucket.to_state(ahead_bytes=self._ahead)
        self._link_free_s = 0.0
        rng = np.random.default_rng(5)
        self._pictures = [rng.integers(0, 255, (48, 64, 3)).astype(np.uint8) for _ in range(16)]
        self._luck = np.random.default_rng(6)

    def live(self, stream: Iterator[SimulatedFrame]) -> Month:
        """Through all of the stream."""
        for number, frame in enumerate(stream):
            while self._boots_s and self._boots_s[-1] <= frame.at_s:
                self._boot(self._boots_s.pop())
            self._look(number, frame)
            self._send(frame.at_s)
        return self.month

    def _look(self, number: int, seen: SimulatedFrame) -> None:
        at_ms = round(seen.at_s * 1000)
        name = f"camera-{seen.camera}"
        picture = self._pictures[number % len(self._pictures)]
        frame = Frame(picture, name, number, EPOCH_MS + at_ms, at_ms * 1_000_000)
        judgement = self._selector.judge(frame, seen.detections)
        self.month.values.append((seen.at_s, seen.camera, judgement.value, seen.size_bytes))
        if judgement.admit:
            if judgement.arm == "explore":
                self.month.explored.add(number)
            self.month.admitted.append((seen.at_s, seen.size_bytes))
            self._pace.note_size(seen.size_bytes)
            self._selector.add(Candidate(str(number), name, frame.captured_at_ms, judgement, seen.size_bytes))
        if self._selector.window_closed():
            left = self._bucket.left_today_bytes(seen.at_s)
            rate = self._limits.even_bytes_per_s if self._paced else None
            # Unpaced, what waits is not taken off: so it was before.
            left = left if rate is None else room_bytes(left, self._queued_bytes, rate)
            result = close_window(self._selector, self._pace, frames_left=None, bytes_left=left, even_bytes_per_s=rate)
            self._queue.extend(int(frame_id) for frame_id in result.chosen)
            self._queued_bytes += result.chosen_bytes

    def _send(self, now_s: float) -> None:
        """Control first, then what waits, as fast as link and budget let it."""
        if self._bucket.left_bytes(now_s) is not None and self._bucket.needs_save:
            self._saved = self._bucket.to_state(ahead_bytes=self._ahead)
        if not self._outages.is_up(now_s):
            return
        if now_s >= self._health_due_s and self._bucket.cap_wait_s(now_s, _HEALTH_BYTES, is_control=True) == 0.0:
            self._health_due_s = now_s + _HEALTH_EVERY_S
            self._pass(now_s, _HEALTH_BYTES, is_control=True)
        while self._queue and self._link_free_s <= now_s:
            number = self._queue[0]
            size = self.month.values[number][3]
            if not self._bucket.allow(now_s, size):
                break
            self._pass(now_s, size)
            self._link_free_s = max(self._link_free_s, now_s - 60.0) + size / _LINK_BYTES_PER_S
            if self._luck.random() < 0.01:  # lost on the way: the same bytes again
                continue
            self._queue.popleft()
            self._queued_bytes -= size
            self.month.sent.append(number)

    def _pass(self, now_s: float, size: int, *, is_control: bool = False) -> None:
        if is_control:
            self._bucket.charge(now_s, size)
            self.month.control_bytes += size
        else:
            self._bucket.spend(now_s, size)
        if self._bucket.needs_save:
            self._saved = self._bucket.to_state(ahead_bytes=self._ahead)
        self.month.spent.append((now_s, size))

    def _boot(self, now_s: float) -> None:
        """Power fails: budget and bank come back as they were written down, candidates and pace do not."""
        self._bucket = TokenBucket.from_state(self._limits, self._saved, now_s)
        self._saved = self._bucket.to_state(ahead_bytes=self._ahead)
        self._selector = Selector(self._policy, device="simulated", cameras=CAMERAS, state=self._selector.to_state())
        self._pace = Pace()
