"""The ways to choose frames that are compared. Ours and its ablations run the device's own `Selector`; the others are its rivals.

In: a stream with the current model's detections, what was taken before, a limit in frames or bytes. Out: places in the stream, and the
selector's state where there is one. Pure given the seed. It trains nothing.

`NAME@bytes` is the arm under the same bytes instead of the same number of frames. First come, first served means what it says: the
flagged frames in order of time until the limit is reached, as a device with the rule and a budget would send.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from bowerbird_agent.capture.capture import Frame
from bowerbird_agent.selection.novelty import Fingerprint, distances
from bowerbird_agent.selection.policy import Policy
from bowerbird_agent.selection.select import Candidate, Selector
from bowerbird_agent.selection.uncertainty import (
    binary_entropy,
    largest_of_overlapping,
    pairwise_iou,
    rule_max_below,
    rule_min_below,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from bowerbird_models.detections import Detections
    from efficiency.worlds import WorldFrame

VISIBLE = 0.25
_SHORTLIST = 4


@dataclass(frozen=True)
class Stream:
    """What an arm chooses from.

    Args:
        frames: in order of time.
        detections: of the current model, decoded at 0.05.
        sizes: encoded bytes of each.
        taken: places that were chosen in earlier rounds.
        frame_rate: of one camera.
    """

    frames: Sequence[WorldFrame]
    detections: Sequence[Detections]
    sizes: NDArray[np.int64]
    taken: frozenset[int]
    frame_rate: float | None

    @property
    def free(self) -> list[int]:
        """Places that may be chosen."""
        return [i for i in range(len(self.frames)) if i not in self.taken]


@dataclass(frozen=True)
class Limit:
    """The most frames, or the most bytes."""

    frames: int | None = None
    size_bytes: int | None = None

    def cut(self, order: Sequence[int], sizes: NDArray[np.int64]) -> list[int]:
        """The first of `order` that fit; a frame that does not fit ends it only in frames, a smaller one may still go."""
        kept: list[int] = []
        left = self.size_bytes
        for i in order:
            if self.frames is not None and len(kept) >= self.frames:
                break
            if left is not None:
                if sizes[i] > left:
                    continue
                left -= int(sizes[i])
            kept.append(i)
        return kept

    def about(self, stream: Stream) -> int:
        """How many frames that is."""
        if self.frames is not None:
            return self.frames
        return max(1, round((self.size_bytes or 0) / float(stream.sizes.mean())))


@dataclass(frozen=True)
class Choice:
    """Places in the stream, in the order of choice; `state` is the selector's for the next round."""

    places: list[int]
    state: bytes | None = None


# Ours, and ours without each part.
POLICIES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "ours": {},
        "ours-novelty": {"novelty_share": 0.0, "strategies": {"entropy": 0.5, "missed_object": 1.0}},
        "ours-diversity": {"shortlist": 1},
        "ours-spread": {"spread": 0.0},
        "ours-gap": {"spread": 0.0, "min_gap_s": 0.0, "near_duplicates": False},
        "ours-exploration": {"epsilon": 0.0},
        "ours-missed": {"strategies": {"entropy": 0.5, "novelty": 0.05}},
        "ours-entropy": {"strategies": {"missed_object": 1.0, "novelty": 0.05}},
        "ours-quiet": {"quiet_discount": 0.0},
        "ours+flicker": {"strategies": {"entropy": 1.0, "missed_object": 0.5, "flicker": 0.5, "novelty": 0.05}},
    }
)
# Of the device's selector, not of its numbers: raise it when the code chooses otherwise, and rows of ours are another's.
SELECTOR = 2
LABEL_AWARE = "oracle"
ALL = "all"


def choose(arm: str, stream: Stream, limit: Limit, *, seed: int, round_number: int, state: bytes | None = None) -> Choice:
    """Places that an arm chooses.

    Args:
        arm: a name in `names()`, without "@bytes".
        seed, round_number: of every draw.
        state: of the selector after the round before.

    Raises:
        ValueError: no such arm.
    """
    if arm in POLICIES:
        return _select(Policy.template("balanced", **POLICIES[arm]), stream, limit, seed, round_number, state)
    if arm not in _RIVALS:
        raise ValueError(f"no arm {arm!r}; choose among {', '.join(names())}")
    rng = np.random.default_rng((seed, round_number, 11))
    return Choice(_RIVALS[arm](stream, limit, rng))


def names() -> tuple[str, ...]:
    """All arms; each also as NAME@bytes but "all"."""
    return (*_RIVALS, *POLICIES)


def _select(policy: Policy, stream: Stream, limit: Limit, seed: int, round_number: int, state: bytes | None) -> Choice:
    """The device's selector over the whole stream as one window."""
    cameras = sorted({frame.camera for frame in stream.frames})
    policy = Policy(**{**_fields(policy), "window_frames": max(1, len(stream.frames) // len(cameras)), "seed": seed})
    selector = Selector(
        policy, device=f"benchmark-{round_number}", cameras=len(cameras), frame_rate=stream.frame_rate, state=state
    )
    if state is not None:
        selector.restart("new_model", new_model=True)
    wanted = limit.about(stream)
    selector.expect(wanted)
    sizes: dict[str, int] = {}
    for i, frame in enumerate(stream.frames):
        image = Frame(frame.render(), frame.camera, frame.sequence, frame.at_ms, frame.at_ms * 1_000_000)
        judgement = selector.judge(image, stream.detections[i])
        if judgement.admit and i not in stream.taken:
            sizes[str(i)] = int(stream.sizes[i])
            selector.add(Candidate(str(i), frame.camera, frame.at_ms, judgement, sizes[str(i)]))
    # Under bytes the number is left open: as many as fit.
    result = selector.close_window(frames_left=limit.frames, bytes_left=limit.size_bytes)
    return Choice([int(frame_id) for frame_id in result.chosen], selector.to_state())


def _fields(policy: Policy) -> dict[str, Any]:
    return {name: getattr(policy, name) for name in policy.__dataclass_fields__}


def _random(stream: Stream, limit: Limit, rng: np.random.Generator) -> list[int]:
    return limit.cut(rng.permutation(stream.free).tolist(), stream.sizes)


def _periodic(stream: Stream, limit: Limit, rng: np.random.Generator) -> list[int]:
    """One frame in each equal stretch, at the same random place of all stretches."""
    free, wanted = stream.free, limit.about(stream)
    at = (np.arange(wanted) + rng.random()) * len(free) / wanted
    return limit.cut([free[int(i)] for i in at if i < len(free)], stream.sizes)


def _rule(rule: Callable[[Detections], bool], *, first_come: bool) -> Callable[[Stream, Limit, np.random.Generator], list[int]]:
    def pick(stream: Stream, limit: Limit, rng: np.random.Generator) -> list[int]:
        flagged = [i for i in stream.free if rule(stream.detections[i])]
        return limit.cut(flagged if first_come else rng.permutation(flagged).astype(int).tolist(), stream.sizes)

    return pick


def _entropies(detections: Detections) -> NDArray[np.float64]:
    return largest_of_overlapping(binary_entropy(detections.scores), detections.boxes_xyxy, detections.class_ids)


def _entropy(reduce: Callable[[NDArray[np.float64]], float]) -> Callable[[Stream, Limit, np.random.Generator], list[int]]:
    """Best first; frames without a box come last, in random order as all ties."""

    def pick(stream: Stream, limit: Limit, rng: np.random.Generator) -> list[int]:
        free = stream.free
        scores = {i: reduce(values) if len(values := _entropies(stream.detections[i])) else 0.0 for i in free}
        ties = rng.random(len(stream.frames))
        return limit.cut(sorted(free, key=lambda i: (-scores[i], ties[i])), stream.sizes)

    return pick


def _fingerprints(stream: Stream, places: Sequence[int]) -> list[Fingerprint]:
    blank = np.zeros(32, np.uint8)
    return [Fingerprint.of(blank, stream.detections[i].embedding) for i in places]


def _k_center(stream: Stream, limit: Limit, rng: np.random.Generator) -> list[int]:
    """Farthest first on embeddings, begun at what is labelled already.

    Source: Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach" (ICLR 2018).
    """
    return _farthest(stream, stream.free, limit, rng)


def _farthest(stream: Stream, pool: list[int], limit: Limit, rng: np.random.Generator) -> list[int]:
    if not pool:
        return []
    prints = _fingerprints(stream, pool)
    nearest = np.full(len(pool), np.inf)
    for seen in _fingerprints(stream, sorted(stream.taken)):
        nearest = np.minimum(nearest, distances(seen, prints))
    order: list[int] = []
    for _ in range(min(len(pool), 2 * limit.about(stream))):
        at = int(rng.integers(len(pool))) if not np.isfinite(nearest).all() else int(np.argmax(nearest))
        order.append(pool[at])
        nearest = np.minimum(nearest, distances(prints[at], prints))
        nearest[at] = -1.0
    return limit.cut(order, stream.sizes)


def _ppal_like(stream: Stream, limit: Limit, rng: np.random.Generator) -> list[int]:
    """Entropy summed over objects with difficult classes weighing more, then diversity among the best four times as many.

    Difficulty of a class is its boxes' mean entropy under the current model, which stands for the training loss that PPAL uses; the
    distance is that of whole frames. Source: after Yang, Huang and Crowley, "Plug and Play Active Learning" (CVPR 2024).
    """
    by_class: dict[int, list[float]] = {}
    for i in stream.free:
        found = stream.detections[i]
        for class_id, value in zip(found.class_ids.tolist(), binary_entropy(found.scores).tolist(), strict=True):
            by_class.setdefault(class_id, []).append(value)
    weight = {class_id: 1.0 + 0.2 * float(np.mean(values)) for class_id, values in by_class.items()}
    scores = {}
    for i in stream.free:
        found = stream.detections[i]
        weights = np.array([weight[c] for c in found.class_ids.tolist()])
        values = binary_entropy(found.scores) * weights if len(weights) else np.zeros(0)
        scores[i] = float(largest_of_overlapping(values, found.boxes_xyxy, found.class_ids).sum())
    best = sorted(stream.free, key=lambda i: (-scores[i], i))[: _SHORTLIST * limit.about(stream)]
    return _farthest(stream, best, limit, rng)


def _oracle(stream: Stream, limit: Limit, rng: np.random.Generator) -> list[int]:
    """Knows the labels: each time the frame with the most missed objects that no chosen frame shows; then random frames."""
    missed = {i: missed_objects(stream.frames[i], stream.detections[i]) for i in stream.free}
    order: list[int] = []
    found: set[tuple[str, int]] = set()
    waiting = set(stream.free)
    ties = rng.random(len(stream.frames))
    while waiting and len(order) < 2 * limit.about(stream):
        best = max(waiting, key=lambda i: (len(missed[i] - found), ties[i]))
        waiting.discard(best)
        order.append(best)
        found |= missed[best]
    return limit.cut(order, stream.sizes)


def _all(stream: Stream, limit: Limit, rng: np.random.Generator) -> list[int]:
    del limit, rng
    return stream.free


_RIVALS: Mapping[str, Callable[[Stream, Limit, np.random.Generator], list[int]]] = MappingProxyType(
    {
        "random": _random,
        "periodic": _periodic,
        "rule-max-first": _rule(rule_max_below, first_come=True),
        "rule-max-random": _rule(rule_max_below, first_come=False),
        "rule-min-first": _rule(rule_min_below, first_come=True),
        "rule-min-random": _rule(rule_min_below, first_come=False),
        "entropy-max": _entropy(lambda values: float(values.max())),
        "entropy-mean": _entropy(lambda values: float(values.mean())),
        "entropy-sum": _entropy(lambda values: float(values.sum())),
        "k-center": _k_center,
        "ppal-like": _ppal_like,
        LABEL_AWARE: _oracle,
        ALL: _all,
    }
)


def missed_objects(frame: WorldFrame, detections: Detections) -> set[tuple[str, int]]:
    """(scene, object) that the model does not show in this frame: no visible box of its class with an IoU of a half."""
    shown = detections.scores >= VISIBLE
    boxes, classes = detections.boxes_xyxy[shown].astype(np.float64), detections.class_ids[shown]
    missed = set()
    iou = pairwise_iou(frame.boxes_xyxy.astype(np.float64).reshape(-1, 4), boxes.reshape(-1, 4))
    for n, number in enumerate(frame.objects):
        if not ((iou[n] >= 0.5) & (classes == frame.class_ids[n])).any():
            missed.add((frame.scene, number))
    return missed
