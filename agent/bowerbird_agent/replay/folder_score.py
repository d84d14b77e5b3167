"""A folder of unlabelled pictures in, the ones worth labelling out: the device's scoring without a device.

In: a folder, a model, a limit in pictures or bytes. Out: one `ScoredPicture` for every file, the chosen ones first and in the order in
which to label them. Near-duplicates of a stronger picture are left out, broken files are told and skipped. It changes nothing in the
folder; copying and printing are the command line's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from bowerbird_agent.capture.capture import Frame
from bowerbird_agent.capture.folder import pictures_in, read_picture
from bowerbird_agent.errors import SourceError
from bowerbird_agent.selection.choose import Candidate, choose
from bowerbird_agent.selection.gate import changed_cells, thumbnail
from bowerbird_agent.selection.policy import Policy
from bowerbird_agent.selection.select import Selector
from bowerbird_models.errors import ModelOutputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from bowerbird_models.detector import Detector

# Two pictures can only be near-duplicates when at most this many of their 256 hash bits differ; then the cells are compared.
_NEAR_BITS = 48
_BITS = np.array([bin(value).count("1") for value in range(256)], np.uint8)
CHOSEN, BROKEN, DUPLICATE, NOTHING = "chosen", "broken", "near_duplicate", "nothing_to_learn"


@dataclass(frozen=True)
class ScoredPicture:
    """What became of one file.

    Args:
        path: of the file.
        outcome: "chosen", or why not: "broken", "near_duplicate", "nothing_to_learn", "not_among_best", "byte_budget".
        value: how much a label is worth, in [0, 1]; 0 for broken files.
        reasons: the strategies that spoke for it, the strongest first.
        detections: boxes at 0.25 or more.
        best_score: highest confidence, 0 without a box.
        like: for a near-duplicate, the stronger picture that stands for it.
        size_bytes: of the file.
    """

    path: Path
    outcome: str
    value: float = 0.0
    reasons: tuple[str, ...] = ()
    detections: int = 0
    best_score: float = 0.0
    like: Path | None = None
    size_bytes: int = 0


def folder_policy() -> Policy:
    """The scores that make sense for pictures without an order in time: no motion, no gap, no random share."""
    return Policy(
        strategies={"entropy": 1.0, "least_confidence": 0.2},
        epsilon=0.0,
        min_gap_s=0.0,
        spread=0.0,
        novelty_share=0.0,
        near_duplicates=False,
        window_frames=2**31,
    )


def score_folder(
    folder: Path,
    detector: Detector,
    *,
    top: int | None = None,
    budget_bytes: int | None = None,
    policy: Policy | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,  # noqa: ARG005 - the default looks at nothing
) -> list[ScoredPicture]:
    """Score every picture below a folder and choose among them.

    Args:
        top: most pictures chosen; None for no limit.
        budget_bytes: most bytes of files chosen; None for no limit.
        progress: called with (done, total) after each picture.

    Raises:
        SourceError: the folder is missing or holds no picture.
        ModelOutputError: the model fails on every picture.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder} is no folder; name a folder of pictures")
    paths = pictures_in(folder)
    if not paths:
        raise SourceError(f"{folder} holds no picture; name a folder of .jpg, .png or similar files")
    policy = policy or folder_policy()
    selector = Selector(policy, device="folder")
    judged: dict[str, ScoredPicture] = {}
    candidates: list[Candidate] = []
    thumbs: dict[str, NDArray[np.uint8]] = {}
    failed: ModelOutputError | None = None
    for index, path in enumerate(paths):
        scored = ScoredPicture(path, BROKEN)
        image = read_picture(path)
        if image is not None:
            size_bytes = path.stat().st_size
            frame = Frame(image, "folder", index, index * 1000, time.monotonic_ns())
            try:
                detections = detector.detect(image, confidence=policy.decode_confidence)
            except ModelOutputError as error:
                failed = error
            else:
                judgement = selector.judge(frame, detections)
                shown = detections.above(policy.visible_confidence)
                best = float(detections.scores[0]) if len(detections) else 0.0
                scored = ScoredPicture(path, NOTHING, judgement.value, judgement.reasons, len(shown), best, None, size_bytes)
                if judgement.value > 0:
                    candidates.append(Candidate(str(path), "folder", index * 1000, judgement, size_bytes))
                    thumbs[str(path)] = thumbnail(image)
        judged[str(path)] = scored
        progress(index + 1, len(paths))
    if failed is not None and all(scored.outcome == BROKEN for scored in judged.values()):
        raise failed
    distinct = _without_duplicates(candidates, thumbs, judged)
    limit = len(distinct) if top is None else top
    result = choose(distinct, policy, limit=limit, bytes_left=budget_bytes, epsilon=0.0, draw_key="folder")
    for key, reason in result.dropped.items():
        judged[key] = replace(judged[key], outcome="byte_budget" if reason == "byte_budget" else "not_among_best")
    chosen = [replace(judged.pop(key), outcome=CHOSEN) for key in result.chosen]
    return chosen + sorted(judged.values(), key=lambda scored: (-scored.value, scored.path))


def _without_duplicates(
    candidates: list[Candidate], thumbs: dict[str, NDArray[np.uint8]], judged: dict[str, ScoredPicture]
) -> list[Candidate]:
    """The candidates without those in which nothing differs from a stronger one; `judged` learns which stands for which."""
    ordered = sorted(candidates, key=lambda candidate: (-candidate.judgement.value, candidate.frame_id))
    if not ordered:
        return []
    hashes = np.stack([candidate.judgement.fingerprint.hash_bits for candidate in ordered])
    kept: list[int] = []
    for i, candidate in enumerate(ordered):
        bits = _BITS[hashes[kept] ^ hashes[i]].sum(axis=1, dtype=np.int32) if kept else np.zeros(0, np.int32)
        thumb = thumbs[candidate.frame_id]
        for place in np.flatnonzero(bits <= _NEAR_BITS):
            twin = ordered[kept[int(place)]].frame_id
            if not changed_cells(thumb, thumbs[twin]).any():
                judged[candidate.frame_id] = replace(judged[candidate.frame_id], outcome=DUPLICATE, like=judged[twin].path)
                break
        else:
            kept.append(i)
    return [ordered[i] for i in kept]
