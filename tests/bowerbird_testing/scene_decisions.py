"""Every decision of the selection over a rendered scene of two cameras: what `tests/unit/golden/decisions.json` holds.

In: nothing. Out: for each of two policies one line a frame, and what became of each window. Run as a program it writes the file
anew, which is right only after a deliberate change of what is chosen:

    python -m bowerbird_testing.scene_decisions tests/unit/golden/decisions.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from bowerbird_agent.capture.capture import Frame
from bowerbird_agent.selection.choose import Judgement
from bowerbird_agent.selection.policy import Policy
from bowerbird_agent.selection.select import Selector
from bowerbird_models.detections import Detections
from bowerbird_models.scenes import SceneStream, Truth
from bowerbird_testing.judged_frames import START_MS, PaperSpool

FRAMES, WINDOW, NIGHT_FROM, NEW_MODEL_AT, WANTED = 300, 75, 200, 240, 8
_EVERYTHING = {
    "entropy": 0.8,
    "least_confidence": 0.3,
    "margin": 0.3,
    "localisation": 0.4,
    "close_to_threshold": 0.2,
    "count": 0.1,
    "missed_object": 0.5,
    "rule_max": 0.1,
    "rule_min": 0.1,
    "novelty": 0.05,
    "random": 0.1,
}
POLICIES = {
    "balanced": Policy(window_frames=WINDOW),
    "everything": Policy(
        window_frames=WINDOW, strategies=_EVERYTHING, bank_size=12, rank_history=100, typicality=0.3, max_candidates=14
    ),
}


def decisions(name: str) -> dict[str, Any]:
    """Frames and windows under one of POLICIES, as plain values."""
    policy = POLICIES[name]
    streets = {"street": SceneStream(5, night_from=NIGHT_FROM), "yard": SceneStream(6, night_from=NIGHT_FROM)}
    rng = np.random.default_rng(7)
    spool = PaperSpool(Selector(policy, device="golden", cameras=2), size_bytes=1000, late=2)
    spool.selector.expect(WANTED)
    windows: list[Any] = []
    for i in range(FRAMES):
        for camera, street in streets.items():
            picture, truth = street.render(i // 2 if 60 <= i < 90 else i)  # a stretch in which every picture comes twice
            spool.show([(Frame(picture, camera, i, START_MS + 200 * i, 2 * 10**8 * i), _detections(picture, truth, i, rng))])
        if i == NEW_MODEL_AT:
            given_up = spool.selector.restart("new model", new_model=True)
            spool.waiting.clear()
            windows.append({"given_up": list(given_up)})
        if spool.selector.window_closed():
            result = spool.close(frames_left=WANTED, bytes_left=None if i < NIGHT_FROM else 5000)
            windows.append({"chosen": list(result.chosen), "dropped": dict(sorted(result.dropped.items()))})
            if i < NIGHT_FROM:  # the server keeps asking; by night what is left of the last wish must do
                spool.selector.expect(WANTED)
    return {"frames": {frame: _line(judged) for frame, judged in spool.judged.items()}, "windows": windows}


def _line(judged: Judgement) -> list[Any]:
    return [judged.refused or judged.arm, " ".join(judged.reasons), judged.value, judged.score, judged.inclusion_probability]


def _detections(picture: Any, truth: Truth, index: int, rng: np.random.Generator) -> Detections | None:
    """What a middling model says: most objects, junk boxes, doubles; nothing at all every fiftieth frame."""
    if index % 50 == 49:
        return None
    boxes, scores, classes = [], [], []
    for box, class_id in zip(truth.boxes_xyxy, truth.class_ids, strict=True):
        for _ in range(1 + int(rng.random() < 0.2)):
            boxes.append(box + rng.normal(0, 2.0, 4))
            scores.append(float(rng.beta(3, 2)))
            classes.append(int(class_id))
    for _ in range(int(rng.poisson(3.0))):
        x, y = rng.uniform(0, 300), rng.uniform(60, 220)
        boxes.append(np.array([x, y, x + 25, y + 20]))
        scores.append(float(0.05 + rng.exponential(0.08)))
        classes.append(int(rng.integers(0, 3)))
    kept = [k for k in np.argsort(-np.array(scores), kind="stable").astype(int).tolist() if scores[k] >= 0.05]
    top = np.clip(np.array(scores, np.float32)[kept], 0, 1)
    per_class = rng.uniform(0, 0.5, (len(kept), 6)).astype(np.float32) * top[:, None]
    per_class[np.arange(len(kept)), np.array(classes, np.int64)[kept]] = top
    small = cv2.resize(picture, (8, 6), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4)[kept],
        top,
        np.array(classes, np.int32)[kept],
        class_scores=per_class if index % 3 else None,
        loc_entropy=rng.uniform(0, 1, len(kept)).astype(np.float32) if index % 4 else None,
        embedding=None if index % 40 == 7 else small - 100.0,
    )


def rounded(found: dict[str, Any]) -> dict[str, Any]:
    """Numbers as the file holds them: five places, since sums run in another order on another machine."""
    frames = {name: [*line[:2], *(round(number, 5) for number in line[2:])] for name, line in found["frames"].items()}
    return {"frames": frames, "windows": found["windows"]}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(
        json.dumps({name: rounded(decisions(name)) for name in POLICIES}, separators=(",", ":")).replace("],", "],\n") + "\n"
    )
