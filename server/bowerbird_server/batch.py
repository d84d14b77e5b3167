"""Which received frames to label next, and why: explore arm first, then the best scores spread over cameras and time.

In: frames in state `received`. Out: a batch in the catalogue, each frame with its reason. Of exact copies (same image)
one is taken and the others are set aside as rejected.
`choose` is pure; `build_batch` reads and writes the catalogue. It neither scores frames nor looks at pixels.
"""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from bowerbird_server.catalogue import batches
from bowerbird_server.catalogue import frames as frame_rows
from bowerbird_server.catalogue.core import Catalogue, Row
from bowerbird_server.errors import BadInput


@dataclass(frozen=True)
class BatchPolicy:
    """How a batch is chosen.

    Args:
        min_gap_s: frames of one camera closer in time than this wait until nothing farther is left.
        camera_quota: no camera gets more than this many times its even share, while others have frames.
        pool: frames looked at, best scores first.
    """

    min_gap_s: float = 10.0
    camera_quota: float = 1.5
    pool: int = 20_000


@dataclass(frozen=True)
class Candidate:
    """A received frame as the choice sees it; `score` in [0, 1] is comparable within a camera, `captured_s` is UTC seconds."""

    frame_id: str
    blob: str
    camera: str
    captured_s: float
    arm: str
    reasons: str
    score: float
    inclusion_probability: float


@dataclass(frozen=True)
class Chosen:
    """A frame of the batch and the reason that is shown to the annotator."""

    frame_id: str
    why: str


def build_batch(
    cat: Catalogue, *, frames: int, policy: BatchPolicy | None = None, actor: str = "scheduler", among: Catalogue | None = None
) -> str | None:
    """Open a batch of up to `frames` received frames.

    Args:
        among: the catalogue as somebody sees it who is let into some sites only; their batch has their frames.

    Returns:
        The batch's id, or None when no received frame is worth queueing.

    Raises:
        BadInput: `frames` is less than 1.
    """
    if frames < 1:
        raise BadInput(f"a batch needs at least 1 frame, not {frames}")
    policy = policy or BatchPolicy()
    with cat.transaction():
        batches.set_copies_aside(cat, actor)
        received = batches.candidates(cat if among is None else among, policy.pool)
        # Another connection does not see yet which copies were set aside just now.
        aside = {} if among in (None, cat) else frame_rows.states_of(cat, [row["id"] for row in received])
        pool = [_candidate(row) for row in received if aside.get(row["id"], "received") == "received"]
        chosen = choose(pool, frames, policy)
        if not chosen:
            return None
        return batches.add_batch(
            cat,
            [(one.frame_id, one.why) for one in chosen],
            {**dataclasses.asdict(policy), "frames": frames, "candidates": len(pool)},
            actor,
        )


def choose(pool: Sequence[Candidate], frames: int, policy: BatchPolicy) -> list[Chosen]:
    """Up to `frames` of the pool, in the order to label them; the same pool gives the same choice.

    Explore frames come first, evenly over time if there are too many, since they are the only unbiased look at the stream. Then
    the rest by score: a frame within `min_gap_s` of a chosen one of its camera, or over its camera's quota, waits for a later
    pass with half the gap; the last pass takes what there is.
    """
    distinct = _without_copies(pool)
    explore = sorted((c for c in distinct if c.arm == "explore"), key=lambda c: (c.captured_s, c.frame_id))
    taken = _evenly(explore, frames)
    times: dict[str, list[float]] = {}
    chosen = []
    for candidate in taken:
        insort(times.setdefault(candidate.camera, []), candidate.captured_s)
        chosen.append(
            Chosen(candidate.frame_id, f"explore: random audit, taken with probability {candidate.inclusion_probability:.3g}")
        )
    rest = sorted((c for c in distinct if c.arm != "explore"), key=lambda c: (-c.score, c.captured_s, c.frame_id))
    cameras = len({c.camera for c in rest}) or 1
    quota = math.ceil(policy.camera_quota * (frames - len(chosen)) / cameras)
    from_camera: dict[str, int] = {}
    for gap_s in (*_halvings(policy.min_gap_s), None):
        waiting = []
        for candidate in rest:
            near_s = _nearest_s(times.get(candidate.camera, []), candidate.captured_s)
            full = from_camera.get(candidate.camera, 0) >= quota
            if len(chosen) >= frames or (gap_s is not None and (near_s < gap_s or full)):
                waiting.append(candidate)
                continue
            insort(times.setdefault(candidate.camera, []), candidate.captured_s)
            from_camera[candidate.camera] = from_camera.get(candidate.camera, 0) + 1
            chosen.append(Chosen(candidate.frame_id, _why(candidate, near_s)))
        rest = waiting
    return chosen


def _halvings(gap_s: float) -> list[float]:
    """The gap, halved until it is under a second."""
    gaps = [gap_s]
    while gaps[-1] >= 1.0:
        gaps.append(gaps[-1] / 2)
    return gaps


def _why(candidate: Candidate, near_s: float) -> str:
    said = f"score {candidate.score:.2f}"
    if candidate.reasons:
        said += f" ({candidate.reasons.replace(',', ', ')})"
    where = "first of its camera" if math.isinf(near_s) else f"{near_s:.0f} s from the nearest chosen of its camera"
    return f"{said}; {where}"


def _nearest_s(times: Sequence[float], at_s: float) -> float:
    """Distance in seconds to the nearest of sorted `times`; infinite when there is none."""
    position = bisect_left(times, at_s)
    around = times[max(position - 1, 0) : position + 1]
    return min((abs(at_s - other) for other in around), default=math.inf)


def _without_copies(pool: Sequence[Candidate]) -> list[Candidate]:
    """One candidate per image: the explore one if any, since it carries a probability, else the best score."""
    best: dict[str, Candidate] = {}
    for candidate in pool:
        other = best.get(candidate.blob)
        if other is None or _rank(candidate) < _rank(other):
            best[candidate.blob] = candidate
    return list(best.values())


def _rank(candidate: Candidate) -> tuple[bool, float, str]:
    return candidate.arm != "explore", -candidate.score, candidate.frame_id


def _evenly(sorted_by_time: Sequence[Candidate], n: int) -> list[Candidate]:
    if len(sorted_by_time) <= n:
        return list(sorted_by_time)
    return [sorted_by_time[(2 * i + 1) * len(sorted_by_time) // (2 * n)] for i in range(n)]


def _candidate(row: Row) -> Candidate:
    return Candidate(
        frame_id=row["id"],
        blob=row["blob"],
        camera=row["camera"] or "import",
        captured_s=datetime.fromisoformat(row["captured_at"]).timestamp(),
        arm=row["arm"],
        reasons=row["reason"],
        score=row["score"],
        inclusion_probability=row["inclusion_probability"],
    )
