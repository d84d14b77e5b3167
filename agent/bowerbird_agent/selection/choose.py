"""Which of the frames that waited for a window's end are sent: best first, apart in time, unlike each other.

In: candidates with their judgements. Out: the chosen in send order, and for each of the others why not. Pure: equal candidates
in any order give the same choice. It does not judge frames (`select.py` does).

Explore frames come first and are picked among each other by chance; no score, gap or likeness drops one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from bowerbird_agent.selection.explore import keyed_unit
from bowerbird_agent.selection.novelty import Fingerprint, distances

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from bowerbird_agent.selection.policy import Policy

Arm = Literal["policy", "explore", "campaign"]

# What the value of a frame that looks just like a chosen one is multiplied by. Picking by distance alone collects oddities.
_LIKE_ANOTHER = 0.5


@dataclass(frozen=True)
class Judgement:
    """What the selector thinks of one frame.

    Args:
        admit: keep it as a candidate until the window's end.
        arm: "explore" when it was picked before looking; "campaign" when a campaign sends it; "policy" otherwise.
        score: rank in [0, 1] of its value among the frames judged lately; comparable between cameras and models.
        value: its combined score in [0, 1]; comparable within one model only.
        reasons: the strategies that spoke for it, the strongest first; "random_audit" first in the explore arm.
        strategy_scores: each strategy's score in [0, 1].
        inclusion_probability: chance in [0, 1] that the explore arm took this frame, whichever arm it is in.
        fingerprint: for telling it from other frames.
        refused: why it is not admitted; "" when it is.
        bar: the value that it had to exceed to be admitted, in [0, 1]; None when it was not measured against one.
        twin: id of the frame of the audit in which nothing was different (`twins.py`); "" for none, and outside the audit.
    """

    admit: bool
    arm: Arm
    score: float
    value: float
    reasons: tuple[str, ...]
    strategy_scores: Mapping[str, float]
    inclusion_probability: float
    fingerprint: Fingerprint
    refused: str = ""
    bar: float | None = None
    twin: str = ""


@dataclass(frozen=True)
class Candidate:
    """An admitted frame as it lies in the spool.

    Args:
        frame_id: 64 hex digits.
        camera, captured_at_ms: of the frame.
        judgement: from `Selector.judge`.
        size_bytes: of the encoded frame.
    """

    frame_id: str
    camera: str
    captured_at_ms: int
    judgement: Judgement
    size_bytes: int


@dataclass(frozen=True)
class WindowResult:
    """What becomes of a window's candidates.

    Args:
        chosen: frame ids in the order in which to send them.
        dropped: frame id -> why not.
        explore_share: share in [0, 1] of the explore candidates that were chosen; below 1 only when the limits fell during the
            window. An explore frame's final probability is its `inclusion_probability` times this.
        chosen_bytes: encoded bytes of the chosen.
    """

    chosen: tuple[str, ...]
    dropped: Mapping[str, str]
    explore_share: float = 1.0
    chosen_bytes: int = 0


def choose(
    candidates: Sequence[Candidate],
    policy: Policy,
    *,
    limit: int,
    bytes_left: int | None,
    epsilon: float,
    draw_key: str,
    typicality: Mapping[str, float] | None = None,
    saved_bytes: float | None = None,
    extra_for: frozenset[str] | None = None,
    usual_limit: int | None = None,
) -> WindowResult:
    """Choose at most `limit` candidates.

    Args:
        candidates: all that waited; ids are distinct.
        policy: gap, spread and shortlist are used.
        limit: most frames, at least 0.
        bytes_left: most bytes together; None for no limit.
        epsilon: share of `limit` that explore frames may take.
        draw_key: settles ties and the pick among explore frames.
        typicality: frame id -> [0, 1], how typical it is; used with the policy's weight.
        saved_bytes: choose until they are spent, the last frame may cost more than is left (`pace.py`); None for no such limit.
        extra_for, usual_limit: what `limit` has beyond the second is for these cameras only; None for all.
    """
    state = _Choice(policy, limit, bytes_left, saved_bytes)
    if extra_for is not None and usual_limit is not None:
        state.extra_for, state.usual_left = extra_for, usual_limit
    explore = [c for c in candidates if c.judgement.arm == "explore"]
    explore.sort(key=lambda c: (keyed_unit(draw_key, "explore", c.frame_id), c.frame_id))
    slots = min(limit, math.ceil(epsilon * limit - 1e-9))
    for candidate in explore:
        if len(state.chosen) >= slots:
            state.dropped[candidate.frame_id] = "explore_share" if limit else "no_frames_left"
        elif state.is_spent:
            state.dropped[candidate.frame_id] = "byte_pace"
        else:
            state.take(candidate)
    taken = len(state.chosen)

    ranked = [(c, _value(c, policy, typicality)) for c in candidates if c.judgement.arm == "policy"]
    if saved_bytes is not None:  # bytes are what is short: value per byte, relative to the dearest frame
        dearest = max((c.size_bytes for c, _ in ranked), default=1)
        ranked = [(c, value * dearest / max(1, c.size_bytes)) for c, value in ranked]
    ranked.sort(key=lambda pair: (-pair[1], keyed_unit(draw_key, "tie", pair[0].frame_id), pair[0].frame_id))
    _farthest_first(state, ranked)
    return WindowResult(
        tuple(c.frame_id for c in state.chosen),
        state.dropped,
        explore_share=taken / len(explore) if explore else 1.0,
        chosen_bytes=sum(c.size_bytes for c in state.chosen),
    )


class _Choice:
    """Chosen and dropped so far."""

    def __init__(self, policy: Policy, limit: int, bytes_left: int | None, saved_bytes: float | None) -> None:
        self.policy, self.limit, self.bytes_left, self.saved_bytes = policy, limit, bytes_left, saved_bytes
        self.extra_for: frozenset[str] = frozenset()
        self.usual_left: int | None = None  # frames that other cameras may still take; None for no limit of their own
        self.chosen: list[Candidate] = []
        self.dropped: dict[str, str] = {}

    @property
    def is_spent(self) -> bool:
        """Whether the window's part of the bytes is used up."""
        return self.saved_bytes is not None and self.saved_bytes <= 0

    def wanted(self, sizes: Sequence[int]) -> int:
        """How many more frames of these sizes there may be, about."""
        frames = self.limit - len(self.chosen)
        if self.saved_bytes is not None and sizes:
            frames = min(frames, math.ceil(max(0.0, self.saved_bytes) * len(sizes) / max(1, sum(sizes))))
        return max(1, frames)

    def take(self, candidate: Candidate) -> bool:
        """Choose it, unless its bytes do not fit any more."""
        if self.bytes_left is not None and candidate.size_bytes > self.bytes_left:
            self.dropped[candidate.frame_id] = "byte_budget"
            return False
        is_usual = self.usual_left is not None and candidate.camera not in self.extra_for
        if self.usual_left == 0 and is_usual:
            self.dropped[candidate.frame_id] = "explore_share" if candidate.judgement.arm == "explore" else "weaker"
            return False
        if self.usual_left is not None and is_usual:
            self.usual_left -= 1
        if self.bytes_left is not None:
            self.bytes_left -= candidate.size_bytes
        if self.saved_bytes is not None:
            self.saved_bytes -= candidate.size_bytes
        self.chosen.append(candidate)
        return True

    def is_apart(self, candidate: Candidate, gap_ms: float) -> bool:
        """Whether it keeps the gap to every chosen frame of its camera."""
        return all(
            c.camera != candidate.camera or abs(c.captured_at_ms - candidate.captured_at_ms) >= gap_ms for c in self.chosen
        )


def _value(candidate: Candidate, policy: Policy, typicality: Mapping[str, float] | None) -> float:
    value = candidate.judgement.value
    if typicality is None:
        return value
    return value * (1.0 - policy.typicality + policy.typicality * typicality.get(candidate.frame_id, 0.5))


def _farthest_first(state: _Choice, ranked: list[tuple[Candidate, float]]) -> None:
    """Take the strongest that are far from those taken, until the limit; the wanted gap gives way when none is left.

    Source: weighted k-center greedy, after Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set
        Approach" (ICLR 2018); the value as a weight and the gap are ours.
    """
    policy = state.policy
    wanted = state.wanted([candidate.size_bytes for candidate, _ in ranked])
    least_gap_ms = policy.min_gap_s * 1000.0
    gap_ms = max(least_gap_ms, policy.spread * _span_ms(ranked) / wanted)
    nearest: NDArray[np.float64] = np.ones(len(ranked))
    for chosen in state.chosen:
        nearest = np.minimum(nearest, _distances_to(chosen, ranked))
    waiting = list(range(len(ranked)))
    while waiting and len(state.chosen) < state.limit and not state.is_spent:
        apart = [i for i in waiting if state.is_apart(ranked[i][0], gap_ms)] if gap_ms > 0 else waiting
        if not apart:
            if gap_ms <= least_gap_ms:
                break
            gap_ms = max(least_gap_ms, gap_ms / 2.0) if gap_ms > 1.0 else least_gap_ms
            continue
        best = apart[0]
        if policy.shortlist > 1:
            short = apart[: policy.shortlist * wanted]
            far = nearest[short]
            weight = _LIKE_ANOTHER + (1.0 - _LIKE_ANOTHER) * far / max(float(far.max()), 1e-12)
            best = short[int(np.argmax(np.array([ranked[i][1] for i in short]) * weight))]
        waiting.remove(best)
        if state.take(ranked[best][0]) and policy.shortlist > 1:
            nearest = np.minimum(nearest, _distances_to(ranked[best][0], ranked))
    for i in waiting:
        full = len(state.chosen) >= state.limit
        if state.is_spent and not full:
            state.dropped[ranked[i][0].frame_id] = "byte_pace"
            continue
        state.dropped[ranked[i][0].frame_id] = ("weaker" if state.limit else "no_frames_left") if full else "too_close"


def _distances_to(candidate: Candidate, ranked: list[tuple[Candidate, float]]) -> NDArray[np.float64]:
    return distances(candidate.judgement.fingerprint, [other.judgement.fingerprint for other, _ in ranked])


def _span_ms(ranked: list[tuple[Candidate, float]]) -> float:
    """Time covered by the candidates, added up over the cameras."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for candidate, _ in ranked:
        at_ms = candidate.captured_at_ms
        first[candidate.camera] = min(at_ms, first.get(candidate.camera, at_ms))
        last[candidate.camera] = max(at_ms, last.get(candidate.camera, at_ms))
    return float(sum(last[camera] - first[camera] for camera in first))
