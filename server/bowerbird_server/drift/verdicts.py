"""Whether what a camera shows has changed under its model: PSI and KS of an hour against a reference, and what that means. Pure.

In: hours of one camera with one model, as devices count them. Out: a verdict on an hour, when an episode begins and ends. It reads no
catalogue and asks nothing of a device (`drift/watch.py`).

Days have a rhythm, so an hour is held against the reference hour that is most like it. Frames of an hour are anything but independent,
so no p-value is taken from their number: an hour has drifted when it is farther from its like than reference hours are from theirs, and
far in absolute terms as well. What is normal at night is therefore not noticed at noon. A camera that is dark, blurred, moved or
frozen is said to be that, and nothing is said about its model.
Sources: Siddiqi, "Credit Risk Scorecards" (2006), for the population stability index and its customary limit of 0.25;
    Kolmogorov-Smirnov's largest distance between two distribution functions, on the bins that devices send.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bowerbird_wire.histograms import BINS, HOUR_MS

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLASSES = "classes"  # without an order: it has a PSI and no KS
STABLE, DRIFTED, LEARNING, TOO_FEW, CAMERA_FAULT = "stable", "drifted", "learning", "too_few", "camera_fault"
LIGHT, CONTENT = "light", "content"  # causes of a drift
_SMOOTHING = 0.5
_RARE = 0.01  # classes below this share in every hour are one bin
_OF_BOXES = frozenset({"scores", "sizes", CLASSES})


@dataclass(frozen=True)
class DriftSettings:
    """Limits and lengths.

    Args:
        least_frames: an hour with fewer frames of a well camera is not judged.
        least_boxes: nor are scores, sizes and classes of fewer boxes.
        psi, ks: an hour has to be at least so far from its like in the reference, whatever the reference's own spread.
        spread: and this many times as far as any reference hour is from its like.
        reference_hours: hours before anything is judged.
        reference_days: an hour joins the reference for so long after the model's first hour, unless it has drifted.
        after_hours: drifted hours in a row that begin an episode.
        over_hours: stable hours in a row that end it.
        fault_share: share of an hour's frames with something wrong with the camera from which on the camera is the cause.
        boost_hours: how long exploration and target rate are raised.
        boost_factor: by how much.
    """

    least_frames: int = 200
    least_boxes: int = 50
    psi: float = 0.25
    ks: float = 0.1
    spread: float = 1.5
    reference_hours: int = 24
    reference_days: float = 7.0
    after_hours: int = 2
    over_hours: int = 3
    fault_share: float = 0.5
    boost_hours: float = 24.0
    boost_factor: float = 2.0


@dataclass(frozen=True)
class Hour:
    """What a camera showed in an hour.

    Args:
        at_ms: begin of the hour, UTC since the epoch.
        frames: well and unwell.
        unwell: frames by what was wrong with the camera.
        counts: histogram -> count by bin, of every name in `BINS`.
        classes: class id -> visible boxes.
    """

    at_ms: int
    frames: int
    unwell: Mapping[str, int] = field(default_factory=dict)
    counts: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: {name: (0,) * bins for name, bins in BINS.items()})
    classes: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Distance:
    """How far an hour is from its like in the reference in one histogram, and from where on that is too far; no `ks` for classes."""

    psi: float
    ks: float | None
    psi_limit: float
    ks_limit: float | None

    @property
    def is_far(self) -> bool:
        """Whether every statistic that there is exceeds its limit."""
        return self.psi > self.psi_limit and (self.ks is None or self.ks_limit is None or self.ks > self.ks_limit)


@dataclass(frozen=True)
class Verdict:
    """What is said of an hour.

    Args:
        state: stable, drifted, learning, too_few or camera_fault.
        cause: of `drifted` light or content, of `camera_fault` what is wrong with the camera; else "".
        distances: histogram -> distance, of those that could be compared.
    """

    state: str
    cause: str = ""
    distances: Mapping[str, Distance] = field(default_factory=dict)


def psi_matrix(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Population stability index between each two of (n, bins) histograms: the symmetrised Kullback-Leibler divergence, in nats.

    Half a count is added to each bin that any of them uses, so that an empty one has a logarithm.
    """
    used = counts[:, counts.sum(axis=0) > 0] + _SMOOTHING
    shares = used / used.sum(axis=1, keepdims=True)
    logs = np.log(shares)
    cross = shares @ logs.T
    own = np.diag(cross)
    return np.asarray(np.maximum(0.0, own[:, None] + own[None, :] - cross - cross.T))


def ks_matrix(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Largest distance between the distribution functions of each two of (n, bins) histograms, in [0, 1]; none may be empty."""
    below = np.cumsum(counts, axis=1) / counts.sum(axis=1, keepdims=True)
    return np.asarray(np.abs(below[:, None, :] - below[None, :, :]).max(axis=2))


def together(hours: Sequence[Hour]) -> Hour:
    """Several hours as one; of the first one's time."""
    unwell: dict[str, int] = {}
    classes: dict[int, int] = {}
    for hour in hours:
        for what, frames in hour.unwell.items():
            unwell[what] = unwell.get(what, 0) + frames
        for class_id, boxes in hour.classes.items():
            classes[class_id] = classes.get(class_id, 0) + boxes
    counts = {name: tuple(map(sum, zip(*(hour.counts[name] for hour in hours), strict=True))) for name in BINS}
    if not hours:
        return Hour(0, 0)
    return Hour(min(hour.at_ms for hour in hours), sum(hour.frames for hour in hours), unwell, counts, classes)


def judge(hour: Hour, reference: Sequence[Hour], settings: DriftSettings) -> Verdict:
    """What an hour says.

    Args:
        reference: the hours that count as normal for this camera and model, this one possibly among them.
    """
    wrong = sum(hour.unwell.values())
    if hour.frames and wrong >= settings.fault_share * hour.frames:
        return Verdict(CAMERA_FAULT, max(hour.unwell, key=lambda what: hour.unwell[what]))
    if hour.frames - wrong < settings.least_frames:
        return Verdict(TOO_FEW)
    normal = [one for one in reference if one.at_ms != hour.at_ms]
    if len(normal) < settings.reference_hours:
        return Verdict(LEARNING)
    distances = _distances(hour, normal, settings)
    far = {name for name, distance in distances.items() if distance.is_far}
    if not far:
        return Verdict(STABLE, "", distances)
    return Verdict(DRIFTED, LIGHT if "brightness" in far else CONTENT, distances)


def _distances(hour: Hour, normal: Sequence[Hour], settings: DriftSettings) -> dict[str, Distance]:
    """How far an hour is from the reference hour that is most like it, in each histogram that both have enough in."""
    found = {}
    for name in (*BINS, CLASSES):
        least = settings.least_boxes if name in _OF_BOXES else 1
        table = _table(name, [hour, *normal])
        full = [row for row in range(1, len(table)) if table[row].sum() >= least]
        table = table[[0, *full]]
        if table[0].sum() < least or len(table) < 2:
            continue
        indices, steps = psi_matrix(table), ks_matrix(table)
        nearest = 1 + int(indices[0, 1:].argmin())
        psi_limit = max(settings.psi, settings.spread * _widest_gap(indices[1:, 1:]))
        if name == CLASSES:
            found[name] = Distance(float(indices[0, nearest]), None, psi_limit, None)
            continue
        ks_limit = max(settings.ks, settings.spread * _widest_gap(steps[1:, 1:]))
        found[name] = Distance(float(indices[0, nearest]), float(steps[0, 1:].min()), psi_limit, ks_limit)
    return found


def _widest_gap(distances: NDArray[np.float64]) -> float:
    """The largest distance of a reference hour to the one most like it, (n, n) -> number; 0 for a single hour."""
    if len(distances) < 2:
        return 0.0
    return float((distances + np.diag(np.full(len(distances), np.inf))).min(axis=1).max())


def _table(name: str, hours: Sequence[Hour]) -> NDArray[np.float64]:
    """Counts of one histogram, (hours, bins); of classes over those that are common in any hour, the rest in the last bin."""
    if name != CLASSES:
        return np.array([hour.counts[name] for hour in hours], np.float64)
    ids = sorted({i for hour in hours for i, n in hour.classes.items() if n >= _RARE * sum(hour.classes.values())})
    rows = [[hour.classes.get(i, 0) for i in ids] for hour in hours]
    return np.array([[*row, sum(hour.classes.values()) - sum(row)] for row, hour in zip(rows, hours, strict=True)], np.float64)


def joins_reference(hour: Hour, verdict: Verdict, first_at_ms: int, settings: DriftSettings) -> bool:
    """Whether an hour becomes part of what counts as normal: in the model's first days, unless something was wrong."""
    is_early = hour.at_ms - first_at_ms < settings.reference_days * 24 * HOUR_MS
    return verdict.state in (LEARNING, STABLE) and is_early


def episode(states: Sequence[str], *, is_open: bool, settings: DriftSettings) -> str:
    """What the newest verdicts of a camera and model mean: "opens", "closes" or "".

    Args:
        states: oldest first. Hours that could not be judged neither confirm nor contradict.
        is_open: whether an episode is under way.
    """
    judged = [state for state in states if state in (STABLE, DRIFTED)]
    needed, wanted = (settings.over_hours, STABLE) if is_open else (settings.after_hours, DRIFTED)
    tail = judged[-needed:]
    if len(tail) == needed and all(state == wanted for state in tail):
        return "closes" if is_open else "opens"
    return ""
