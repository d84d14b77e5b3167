"""Heartbeats: what each long thread was doing when it was last heard of, and which of them is late.

In: a beat from every thread at each turn of its loop. Out: the threads that have hung, with the limit that they broke. The decision is
a pure function over a table of limits per kind of thread; it ends nothing itself (`device.py` does) and talks to no supervisor
(`sd_notify.py` does).

A thread that waits for something which may take as long as it likes (a camera in back-off, a film held back, the next frame's time)
says so and is never late: only work has a limit.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


class Kind(str, Enum):
    """Which work a thread does; each has its own limit."""

    CAMERA = "camera"
    FILM = "film"
    INFERENCE = "inference"
    SPOOL = "spool"
    CONTROL = "control"
    UPDATE = "update"
    LOAD = "load"
    GUARD = "guard"
    METRICS = "metrics"


class Doing(str, Enum):
    """What a thread said last."""

    WORKING = "working"
    WAITING = "waiting"
    ENDED = "ended"


@dataclass(frozen=True)
class WatchdogConfig:
    """Seconds of work without a sign of life after which a thread counts as hung, and the process ends to be started again.

    Args:
        camera_s: the thread that watches over a live camera; the camera itself may hang, and is left (`stall_s`).
        film_s: the same for files, folders and scenes, where reading may have to skip an hour of film.
        inference_s: one frame through the model and the scores.
        spool_s: one task of the disk; memory cards may pause for half a minute.
        control_s: one turn of messages, which waits for the same disk.
        update_s: one step of a model update that shows no progress; its self-test is one step.
        load_s: loading a model.
    """

    camera_s: float = 60.0
    film_s: float = 600.0
    inference_s: float = 60.0
    spool_s: float = 120.0
    control_s: float = 120.0
    update_s: float = 900.0
    load_s: float = 900.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 1.0 <= value <= 86_400.0:
                raise ValueError(f"{name} is {value}; it must be 1 to 86400 seconds")

    def limits_s(self) -> Mapping[Kind, float]:
        """The table: kind of thread -> seconds of work without a beat. Total: every kind has a limit."""
        return {
            Kind.CAMERA: self.camera_s,
            Kind.FILM: self.film_s,
            Kind.INFERENCE: self.inference_s,
            Kind.SPOOL: self.spool_s,
            Kind.CONTROL: self.control_s,
            Kind.UPDATE: self.update_s,
            Kind.LOAD: self.load_s,
            Kind.GUARD: self.control_s,
            Kind.METRICS: self.control_s,
        }


@dataclass(frozen=True)
class Beat:
    """A sign of life. `at_s`: monotonic seconds."""

    thread: str
    kind: Kind
    doing: Doing
    at_s: float


@dataclass(frozen=True)
class Late:
    """A thread that has hung."""

    thread: str
    kind: Kind
    silent_s: float
    limit_s: float

    def __str__(self) -> str:
        return f"thread {self.thread} has hung: no sign of life for {self.silent_s:.0f} s (its limit is {self.limit_s:.0f} s)"


def late(
    beats: Iterable[Beat], limits_s: Mapping[Kind, float], now_s: float, *, since_s: float = float("-inf")
) -> tuple[Late, ...]:
    """The threads that are late, the latest first.

    Args:
        limits_s: kind -> seconds.
        now_s: monotonic seconds.
        since_s: no silence is counted from before this moment (the whole process stood still until then).
    """
    found = []
    for beat in beats:
        silent_s = now_s - max(beat.at_s, since_s)
        limit_s = limits_s[beat.kind]
        if beat.doing is Doing.WORKING and silent_s > limit_s:
            found.append(Late(beat.thread, beat.kind, silent_s, limit_s))
    return tuple(sorted(found, key=lambda each: each.limit_s - each.silent_s))


class Pulse:
    """One thread's way to say that it lives; each call is one assignment, cheap enough for every frame."""

    def __init__(self, thread: str, kind: Kind, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.thread, self.kind, self._clock_s = thread, kind, clock_s
        self.last = Beat(thread, kind, Doing.WAITING, clock_s())

    def beat(self) -> None:
        """At work, and from now on its limit counts."""
        self.last = Beat(self.thread, self.kind, Doing.WORKING, self._clock_s())

    def wait(self) -> None:
        """About to wait for something that may take as long as it likes; the next `beat` ends that."""
        self.last = Beat(self.thread, self.kind, Doing.WAITING, self._clock_s())

    def end(self) -> None:
        """The thread returns."""
        self.last = Beat(self.thread, self.kind, Doing.ENDED, self._clock_s())


class Heartbeats:
    """The pulses of one process. `add` from the thread that starts others; `late` from the one that watches.

    Args:
        limits_s: kind -> seconds.
        asleep_s: a watcher that was not scheduled for so long (suspended, stopped, swapped out) forgives everybody's silence: nobody
            else was scheduled either.
    """

    def __init__(
        self, limits_s: Mapping[Kind, float], *, asleep_s: float = 5.0, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits_s, self._asleep_s, self._clock_s = limits_s, asleep_s, clock_s
        self._lock = threading.Lock()
        self._pulses: list[Pulse] = []
        self._looked_s = self._awake_s = clock_s()

    def add(self, thread: str, kind: Kind) -> Pulse:
        """A pulse for a thread that is about to start. It is watched until it has ended."""
        pulse = Pulse(thread, kind, self._clock_s)
        with self._lock:
            self._pulses = [each for each in self._pulses if each.last.doing is not Doing.ENDED] + [pulse]
        return pulse

    def late(self) -> tuple[Late, ...]:
        """The threads that have hung as of now."""
        now_s = self._clock_s()
        if now_s - self._looked_s > self._asleep_s:
            self._awake_s = now_s
        self._looked_s = now_s
        with self._lock:
            beats = [pulse.last for pulse in self._pulses]
        return late(beats, self._limits_s, now_s, since_s=self._awake_s)


def no_pulse() -> Pulse:
    """A pulse that nobody watches, for parts that run outside a device."""
    return Pulse("unwatched", Kind.CONTROL)
