"""How far labels can be trusted: agreement of two people, labels that a model finds odd, and which frames are looked at twice. Pure.

In: boxes of labels, detections. Out: numbers and sentences. Agreement is F1 of boxes matched by class and IoU 0.5; two empty labels
agree wholly. A suspicion is no verdict: somebody looks again, and the model may well be the one that is wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from bowerbird_server.batches.rescoring import SAME_IOU, Seen, pairs
from bowerbird_server.labelling.boxes import Box, iou

CONSENSUS, GOLD, SUSPICIOUS = "consensus", "gold", "suspicious"
NEW_CLASS = "new_class"  # labelled before anybody looked for a class
# Labels that agree less than this differ.
AGREES = 0.8
# A detection that nobody drew is odd from here on; below it models often see what is not there.
SURE = 0.7


@dataclass(frozen=True)
class Suspicion:
    """Why a label is odd: how odd, in (0, 1], and in words."""

    score: float
    why: str


def agreement(one: Sequence[Box], other: Sequence[Box]) -> float:
    """F1 of two labels of one frame, in [0, 1]; the same either way round."""
    if not one and not other:
        return 1.0
    return 2 * len(pairs(one, other)) / (len(one) + len(other))


def suspicion(drawn: Sequence[Box], seen: Sequence[Seen], reviewed: Sequence[str], known: Sequence[str]) -> Suspicion | None:
    """The oddest thing about a label, None when there is none.

    Odd is what a model is sure of and nobody drew, and a box that a model is sure is of another class. A box where a model sees
    nothing is not odd: that is what labels are for.

    Args:
        drawn: boxes of the label.
        seen: the model's detections.
        reviewed: classes that the author looked for; others may be there undrawn.
        known: classes of the model; about others it says nothing.
    """
    odd: list[Suspicion] = []
    for detection in seen:
        if detection.score < SURE or detection.class_name not in reviewed:
            continue
        over = [box for box in drawn if iou(box.box_xyxy, detection.box_xyxy) >= SAME_IOU]
        if not over:
            odd.append(Suspicion(detection.score, f"a {detection.class_name} seen with {detection.score:.2f} is not drawn"))
        elif all(box.class_name != detection.class_name for box in over) and over[0].class_name in known:
            words = f"drawn as {over[0].class_name}, seen as {detection.class_name} with {detection.score:.2f}"
            odd.append(Suspicion(detection.score, words))
    return max(odd, key=lambda one: (one.score, one.why), default=None)


def is_drawn(label: str, share: float, seed: str) -> bool:
    """Whether a label is one of those that a second person makes as well: by lot, the same whenever it is asked."""
    lot = int.from_bytes(hashlib.sha256(f"consensus/{seed}/{label}".encode()).digest()[:8], "big") / 2**64
    return lot < share
