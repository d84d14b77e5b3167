"""Which frames of the pool make a batch, in which role, and why: pure.

In: candidates with what is known of each, a `BatchPolicy`, embeddings of what is labelled. Out: `Chosen`, in the order to label
them. Four roles: `evaluation` (explore frames of scenes that are held out), `control` (explore frames of the other scenes, and frames
drawn by lot from the pool), `rare` and `policy` (chosen). The control is what the policy is measured against; see `yields.py`. Equal
inputs give equal choices whatever their order. No I/O; pixels are `looking.py`'s business, sides of scenes `evaluation_routing.py`'s.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

EVALUATION, CONTROL, RARE, POLICY = "evaluation", "control", "rare", "policy"
ROLES = (EVALUATION, CONTROL, RARE, POLICY)


@dataclass(frozen=True)
class BatchPolicy:
    """How a batch is chosen.

    Args:
        min_gap_s: frames of one camera closer in time than this wait until nothing farther is left.
        camera_quota: no camera gets more than this many times its even share, while others have frames.
        pool: frames looked at, best scores first.
        shortlist: so many times the wanted frames, best scores first, are compared by content.
        control_share: of the batch that chance takes; and at most as much again for the evaluation set, while others have frames.
        rare_share: of the chosen places that frames with a rare class may claim before all others.
        by: `score`, or `diversity`, which ignores scores: what is left when the policy is no better than its control.
        cost_unit: what a frame costs the people who label it is counted in; see `labelling_cost.py`.
        cost_limit: the batch ends before it costs more; None for no limit.
        seed: of every lot that is drawn.
    """

    min_gap_s: float = 10.0
    camera_quota: float = 1.5
    pool: int = 20_000
    shortlist: float = 4.0
    control_share: float = 0.2
    rare_share: float = 0.2
    by: Literal["score", "diversity"] = "score"
    cost_unit: Literal["frames", "boxes", "seconds"] = "frames"
    cost_limit: float | None = None
    seed: str = ""


@dataclass(frozen=True)
class Candidate:
    """A received frame as the choice sees it.

    Args:
        frame_id: 64 hex digits.
        blob: digest of its image; frames with one image are one frame.
        camera: the catalogue's name of its camera.
        captured_s: UTC seconds.
        arm: `explore`, or how else it came.
        reasons: the strategies that spoke for it, with commas.
        score: in [0, 1], comparable within a camera.
        inclusion_probability: with which an explore frame was taken.
        held_out: its scene is part of the evaluation set.
        cost: in the policy's `cost_unit`.
        rare: it seems to show a class of which little is labelled.
        embedding: (d,) of length 1, None when it was not looked at.
    """

    frame_id: str
    blob: str
    camera: str
    captured_s: float
    arm: str
    reasons: str
    score: float
    inclusion_probability: float
    held_out: bool = False
    cost: float = 1.0
    rare: bool = False
    embedding: NDArray[np.float32] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Chosen:
    """A frame of the batch, the reason that is shown to the annotator, its role, and with which probability chance took it from what
    was there (1 for what was chosen)."""

    frame_id: str
    why: str
    role: str = POLICY
    probability: float = 1.0


def choose(
    pool: Sequence[Candidate], frames: int, policy: BatchPolicy, labelled: NDArray[np.float32] | None = None
) -> list[Chosen]:
    """Up to `frames` of the pool, in the order to label them.

    Explore frames come first, evenly over time if there are too many, since they are the only unbiased look at the stream: up to the
    control's share for the evaluation set, as much for the control, more when nothing else is there. What the control lacks is drawn
    by lot from the rest. Then rare classes, then the shortlist: where embeddings are known the frame that is farthest from all
    that is labelled or chosen, else by score. A frame within `min_gap_s` of a chosen one of its camera, or over its camera's
    quota, waits for a later pass with half the gap; the last pass takes what there is.

    Args:
        pool: candidates; policy frames of held-out scenes are not among them.
        frames: at most so many, at least 0.
        policy: the rules.
        labelled: (n, d) embeddings of frames that are labelled or queued.
    """
    distinct = _without_copies(pool)
    held_out = [c for c in distinct if c.arm == "explore" and c.held_out]
    drawn = [c for c in distinct if c.arm == "explore" and not c.held_out]
    rest = [c for c in distinct if c.arm != "explore"]
    choice = _Choice(frames, policy)
    share, spare = math.ceil(policy.control_share * frames), max(0, frames - len(rest))
    evaluation = _evenly(held_out, min(frames, max(share, spare - len(drawn))))
    control = _evenly(drawn, min(frames - len(evaluation), max(share, spare - len(evaluation))))
    for candidate in evaluation:
        choice.take(
            candidate, EVALUATION, f"{_audit(candidate)}; held out, to measure models with", len(evaluation) / len(held_out)
        )
    for candidate in control:
        choice.take(candidate, CONTROL, _audit(candidate), len(control) / len(drawn))
    choice.share_out(rest)
    lots = min(max(0, int(policy.control_share * frames) - len(control)), frames - choice.count)
    by_lot = sorted(rest, key=lambda c: _lot(policy.seed, c.frame_id))[:lots]
    for candidate in by_lot:
        probability = len(by_lot) / len(rest)
        choice.take(candidate, CONTROL, f"control: drawn by lot, {len(by_lot)} of {len(rest)}", probability)
    rest = [c for c in rest if c.frame_id not in choice.taken]
    if policy.by == "diversity":
        ranked = sorted(rest, key=lambda c: _lot(policy.seed, c.frame_id))
    else:
        ranked = sorted(rest, key=lambda c: (-c.score, c.captured_s, c.frame_id))
    wanted = frames - choice.count
    rare = [c for c in ranked if c.rare]
    choice.fill(rare, math.ceil(policy.rare_share * wanted) if rare else 0, labelled, RARE, gaps_only=True)
    shortlist = ranked if policy.by == "diversity" else _shortlist(ranked, wanted, policy)
    choice.fill(shortlist, wanted, labelled, POLICY, gaps_only=len(shortlist) < len(ranked))
    choice.fill(ranked, wanted, labelled, POLICY)
    return choice.chosen


class _Choice:
    """A batch in the making: who is in, when and from which camera, and what it costs."""

    def __init__(self, frames: int, policy: BatchPolicy) -> None:
        self._frames, self._policy = frames, policy
        self.chosen: list[Chosen] = []
        self.taken: dict[str, Candidate] = {}
        self._times: dict[str, list[float]] = {}
        self._from_camera: dict[str, int] = {}
        self._quota = 0
        self._cost = 0.0

    @property
    def count(self) -> int:
        return len(self.chosen)

    def share_out(self, rest: Sequence[Candidate]) -> None:
        """From here on a camera has a quota of the places that are left."""
        cameras = len({c.camera for c in rest}) or 1
        self._quota = math.ceil(self._policy.camera_quota * (self._frames - self.count) / cameras)
        self._from_camera.clear()

    def take(self, candidate: Candidate, role: str, why: str, probability: float = 1.0) -> bool:
        """Put a frame in, unless there is no place for it or it costs too much; the first frame always has one."""
        limit = self._policy.cost_limit
        if self.count >= self._frames or (limit is not None and self.chosen and self._cost + candidate.cost > limit):
            return False
        insort(self._times.setdefault(candidate.camera, []), candidate.captured_s)
        self._from_camera[candidate.camera] = self._from_camera.get(candidate.camera, 0) + 1
        self._cost += candidate.cost
        self.taken[candidate.frame_id] = candidate
        self.chosen.append(Chosen(candidate.frame_id, why, role, probability))
        return True

    def fill(
        self,
        ranked: Sequence[Candidate],
        most: int,
        labelled: NDArray[np.float32] | None,
        role: str,
        *,
        gaps_only: bool = False,
    ) -> None:
        """Take up to `most` of the ranked; `gaps_only` leaves those that break gap or quota for later."""
        gaps: list[float | None] = [*_halvings(self._policy.min_gap_s)]
        for gap_s in gaps if gaps_only else [*gaps, None]:
            waiting = [c for c in ranked if c.frame_id not in self.taken]
            for candidate, far in _in_turn(waiting, labelled, self.taken.values()):
                if most <= 0 or self.count >= self._frames:
                    return
                near_s = _nearest_s(self._times.get(candidate.camera, []), candidate.captured_s)
                full = self._from_camera.get(candidate.camera, 0) >= self._quota
                if gap_s is not None and (near_s < gap_s or full):
                    far.refuse()
                elif self.take(candidate, role, _why(candidate, near_s, far.distance, role, self._policy)):
                    most -= 1
                else:
                    far.refuse()


class _Turn:
    """How far a frame is from all that is labelled or chosen, and whether it was left after all."""

    def __init__(self, distance: float | None) -> None:
        self.distance = distance
        self.refused = False

    def refuse(self) -> None:
        self.refused = True


def _in_turn(
    ranked: Sequence[Candidate], labelled: NDArray[np.float32] | None, chosen: Iterable[Candidate]
) -> Iterable[tuple[Candidate, _Turn]]:
    """Farthest first where embeddings are known, those without one last; in the order of their ranks where none is.

    Source: Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach" (2018), greedy k-center.
    """
    size = next((len(c.embedding) for c in ranked if c.embedding is not None), 0)
    embedded = [c for c in ranked if c.embedding is not None and len(c.embedding) == size]
    if embedded:
        points = np.stack([np.asarray(c.embedding, np.float32) for c in embedded])
        centres = [np.asarray(c.embedding, np.float32) for c in chosen if c.embedding is not None and len(c.embedding) == size]
        nearest = np.full(len(points), 2.0)
        if labelled is not None and labelled.shape[1:] == (size,) and len(labelled):
            nearest = np.minimum(nearest, 1.0 - (points @ labelled.T).max(axis=1))
        if centres:
            nearest = np.minimum(nearest, 1.0 - (points @ np.stack(centres).T).max(axis=1))
        for _ in range(len(points)):
            place = int(nearest.argmax())  # the first of equals: the better rank
            turn = _Turn(max(0.0, float(nearest[place])))
            yield embedded[place], turn
            if not turn.refused:
                nearest = np.minimum(nearest, 1.0 - points @ points[place])
            nearest[place] = -math.inf
    known = {c.frame_id for c in embedded}
    for candidate in ranked:
        if candidate.frame_id not in known:
            yield candidate, _Turn(None)


def _shortlist(ranked: Sequence[Candidate], wanted: int, policy: BatchPolicy) -> list[Candidate]:
    """The best, but for what is over a camera's quota of them."""
    size = math.ceil(policy.shortlist * wanted)
    quota = math.ceil(policy.camera_quota * size / (len({c.camera for c in ranked}) or 1))
    taken: dict[str, int] = {}
    listed: list[Candidate] = []
    for candidate in ranked:
        if len(listed) < size and taken.get(candidate.camera, 0) < quota:
            taken[candidate.camera] = taken.get(candidate.camera, 0) + 1
            listed.append(candidate)
    return listed


def _halvings(gap_s: float) -> list[float]:
    """The gap, halved until it is under a second."""
    gaps = [gap_s]
    while gaps[-1] >= 1.0:
        gaps.append(gaps[-1] / 2)
    return gaps


def _audit(candidate: Candidate) -> str:
    return f"explore: random audit, taken with probability {candidate.inclusion_probability:.3g}"


def _why(candidate: Candidate, near_s: float, far: float | None, role: str, policy: BatchPolicy) -> str:
    said = f"score {candidate.score:.2f}"
    if policy.by == "diversity":
        said = "diversity, whatever its score"
    elif candidate.reasons:
        said += f" ({candidate.reasons.replace(',', ', ')})"
    if role == RARE:
        said = f"a class of which little is labelled; {said}"
    where = "first of its camera" if math.isinf(near_s) else f"{near_s:.0f} s from the nearest chosen of its camera"
    looks = "" if far is None or far >= 2.0 else f"; differs by {far:.2f} from all that is labelled or chosen"
    return f"{said}; {where}{looks}"


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
    return sorted(best.values(), key=lambda c: c.frame_id)


def _rank(candidate: Candidate) -> tuple[bool, float, str]:
    return candidate.arm != "explore", -candidate.score, candidate.frame_id


def _evenly(candidates: Sequence[Candidate], n: int) -> list[Candidate]:
    """`n` of them, evenly spread over time."""
    by_time = sorted(candidates, key=lambda c: (c.captured_s, c.frame_id))
    if len(by_time) <= n:
        return by_time
    return [by_time[(2 * i + 1) * len(by_time) // (2 * n)] for i in range(n)]


def _lot(seed: str, frame_id: str) -> bytes:
    return hashlib.sha256(f"lot/{seed}/{frame_id}".encode()).digest()
