"""The guard: which share of the frame rate a hot or crowded board can bear, in steps, with the reasons in words.

In: temperature, CPU pressure and what the inference itself takes, as of now. Out: a step of a ladder, a share in (0, 1], and the
reasons. Pure: `machine_sensors.py` reads the sensors, `guard_watch.py` has the thread, `inference.py` rests.

Hysteresis twice over: between "warm" and "cool" lies a band in which nothing moves, and each move waits a while after the one before
(ten seconds to bite, thirty to let go).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType

# Shares of the frame rate; the configuration's `min_share` is the floor.
STEPS = (1.0, 0.75, 0.5, 0.35, 0.2, 0.1, 0.05)
_BAND_C = 5.0  # this far below warm it is cool
_BAND_PRESSURE = 20.0
# Below this share of one core it is not us: slowing down would help nobody.
_OURS_FROM = 0.1


@dataclass(frozen=True)
class GuardConfig:
    """When the frame rate is lowered.

    Args:
        enabled: false never lowers it.
        warm_c: degrees Celsius of the hottest sensor from which the rate goes down step by step.
        hot_c: degrees Celsius from which it goes down fast; above warm_c.
        min_share: lowest share of the frame rate, in (0, 1].
        cpu_pressure: per cent of the last ten seconds in which some task waited for a CPU, above which the rate goes down; 100
            looks at temperature only.
    """

    enabled: bool = True
    warm_c: float = 80.0
    hot_c: float = 88.0
    min_share: float = 0.2
    cpu_pressure: float = 90.0

    def __post_init__(self) -> None:
        if not 30.0 <= self.warm_c < self.hot_c <= 120.0:
            raise ValueError(f"warm_c {self.warm_c} and hot_c {self.hot_c} must be 30 to 120 degrees, warm_c the lower one")
        if not 0.01 <= self.min_share <= 1.0:
            raise ValueError(f"min_share is {self.min_share}; it must be 0.01 to 1")
        if not 10.0 <= self.cpu_pressure <= 100.0:
            raise ValueError(f"cpu_pressure is {self.cpu_pressure}; it must be 10 to 100 per cent")


@dataclass(frozen=True)
class Reading:
    """The machine as of now.

    Args:
        temperature_c: of the hottest sensor; None where none can be read.
        sensor: its name.
        cpu_pressure: per cent of the time in which some task waited for a CPU; None where the system does not say.
        own_share: time in the model per second, in [0, 1].
    """

    temperature_c: float | None = None
    sensor: str = ""
    cpu_pressure: float | None = None
    own_share: float = 0.0


class Strain(IntEnum):
    """How the machine bears the load; the worst of its sensors counts."""

    COOL = 0
    STEADY = 1
    WARM = 2
    HOT = 3


@dataclass(frozen=True)
class Move:
    """Steps down the ladder (negative: up), not before `after_s` seconds on the present one."""

    steps: int
    after_s: float


TRANSITIONS: Mapping[Strain, Move] = MappingProxyType(
    {
        Strain.COOL: Move(-1, 30.0),
        Strain.STEADY: Move(0, 0.0),
        Strain.WARM: Move(1, 10.0),
        Strain.HOT: Move(2, 5.0),
    }
)


@dataclass(frozen=True)
class GuardState:
    """Where the guard stands.

    Args:
        step: place in STEPS.
        since_s: monotonic seconds of the last move.
        share: allowed share of the frame rate, in (0, 1].
        reasons: what lowered it, in words; () while the share is 1.
    """

    step: int = 0
    since_s: float = float("-inf")
    share: float = 1.0
    reasons: tuple[str, ...] = ()


def strain_of(reading: Reading, config: GuardConfig, *, share: float = 1.0) -> tuple[Strain, tuple[str, ...]]:
    """How strained the machine is, and what says so in words.

    Args:
        share: allowed at present: what we would take without the guard is what we take now divided by it.
    """
    found = [Strain.COOL]
    reasons = []
    degrees = reading.temperature_c
    if degrees is not None and degrees > config.warm_c - _BAND_C:
        found.append(Strain.HOT if degrees >= config.hot_c else Strain.WARM if degrees >= config.warm_c else Strain.STEADY)
        word = "hot" if degrees >= config.hot_c else "warm"
        reasons.append(f"{word}: {degrees:.0f} °C at {reading.sensor or 'a sensor'}")
    pressure = reading.cpu_pressure
    if (
        pressure is not None
        and config.cpu_pressure < 100.0
        and pressure > config.cpu_pressure - _BAND_PRESSURE
        and reading.own_share / share >= _OURS_FROM
    ):
        found.append(Strain.WARM if pressure >= config.cpu_pressure else Strain.STEADY)
        reasons.append(f"tasks wait for a CPU {pressure:.0f} % of the time")
    return max(found), tuple(reasons)


def advance(state: GuardState, reading: Reading, config: GuardConfig, now_s: float) -> GuardState:
    """The state after a reading.

    Args:
        now_s: monotonic seconds.
    """
    if not config.enabled:
        return GuardState()
    strain, reasons = strain_of(reading, config, share=state.share)
    move = TRANSITIONS[strain]
    lowest = next((step for step, share in enumerate(STEPS) if share <= config.min_share), len(STEPS) - 1)
    step = min(lowest, state.step)
    since_s = state.since_s
    if now_s - since_s >= move.after_s:
        step = min(lowest, max(0, step + move.steps))
    if step != state.step:
        since_s = now_s
    share = max(config.min_share, STEPS[step])
    if share >= 1.0:
        return GuardState(step, since_s)
    # Until it has climbed back, what brought it down is still the reason.
    return GuardState(step, since_s, share, reasons or state.reasons)


def rest_s(share: float, *, work_s: float, arrival_s: float | None) -> float:
    """How long to rest after a frame, so that frames are judged at `share` of their natural rate; 0 at a share of 1.

    Args:
        share: in (0, 1].
        work_s: seconds that the frame took.
        arrival_s: seconds between two frames of the live cameras together; None where sources wait for us.
    """
    if share >= 1.0:
        return 0.0
    natural_s = max(work_s, arrival_s or 0.0)
    return natural_s / share - work_s
