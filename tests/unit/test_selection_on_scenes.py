"""On a rendered street with a detector that is good by day and weak by night, the choice beats chance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from bowerbird_agent.capture.capture import Frame
from bowerbird_agent.selection.policy import Policy
from bowerbird_agent.selection.select import Selector
from bowerbird_models.detections import Detections
from bowerbird_models.scenes import NIGHT, SceneStream, Truth
from bowerbird_testing.judged_frames import START_MS, PaperSpool

FRAMES, NIGHT_FROM, WANTED = 400, 200, 12
FOX = 4


def _detect(truth: Truth, rng: np.random.Generator) -> Detections:
    """A stand-in for a model trained by day: sure and complete there; by night it misses half, and imagines boxes everywhere."""
    night = truth.condition == NIGHT
    boxes, scores, classes = [], [], []
    for box, class_id in zip(truth.boxes_xyxy, truth.class_ids, strict=True):
        found = rng.random() < ((0.1 if class_id == FOX else 0.5) if night else 0.95)
        score = float(rng.beta(4, 3) if night else rng.beta(20, 2)) if found else float(rng.uniform(0.0, 0.2))
        if score >= 0.05:
            boxes.append(box + rng.normal(0, 1.5, 4))
            scores.append(score)
            classes.append(int(class_id))
    for _ in range(int(rng.poisson(4.0 if night else 0.2))):
        x, y = rng.uniform(0, 300), rng.uniform(60, 220)
        boxes.append(np.array([x, y, x + 15, y + 20]))
        scores.append(float(0.05 + rng.exponential(0.08)))
        classes.append(0)
    order = np.argsort(-np.array(scores), kind="stable").astype(int)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4)[order],
        np.clip(np.array(scores, np.float32)[order], 0, 1),
        np.array(classes, np.int32)[order],
    )


@dataclass(frozen=True)
class _Chosen:
    truths: list[Truth]
    scenes: int

    @property
    def night(self) -> int:
        return sum(truth.condition == NIGHT for truth in self.truths)

    @property
    def empty(self) -> int:
        return sum(len(truth) == 0 for truth in self.truths)

    @property
    def night_objects(self) -> int:
        return sum(len(truth) for truth in self.truths if truth.condition == NIGHT)


@lru_cache(maxsize=4)
def _choose(template: str, seed: int) -> _Chosen:
    street = SceneStream(seed, night_from=NIGHT_FROM)
    rng = np.random.default_rng(seed)
    policy = Policy.template(template, window_frames=FRAMES)
    spool = PaperSpool(Selector(policy, device="cam-01"))
    spool.selector.expect(WANTED)
    for i in range(FRAMES):
        picture, truth = street.render(i)
        shown = Frame(picture, "street", i, START_MS + 100 * i, 10**8 * i)
        spool.show([(shown, _detect(truth, rng))])
    chosen = [int(i.split("/")[1]) for i in spool.close(frames_left=WANTED).chosen]
    return _Chosen([street.truth(i) for i in chosen], len({street.scene(i) for i in chosen}))


def test_frames_where_the_detector_is_weak_are_preferred() -> None:
    ours = [_choose("balanced", seed) for seed in (1, 2)]
    chance = [_choose("random_audit", seed) for seed in (1, 2)]
    assert sum(c.night for c in ours) > sum(c.night for c in chance)
    assert sum(c.night_objects for c in ours) >= 1.3 * sum(c.night_objects for c in chance)


def test_empty_frames_are_chosen_less_often_than_chance_would() -> None:
    ours = [_choose("balanced", seed) for seed in (1, 2)]
    chance = [_choose("random_audit", seed) for seed in (1, 2)]
    assert sum(c.empty for c in ours) < sum(c.empty for c in chance)


def test_the_budget_is_used_and_hardly_a_scene_is_sent_twice() -> None:
    chosen = _choose("balanced", 1)
    assert len(chosen.truths) == WANTED
    assert chosen.scenes >= WANTED - 2
