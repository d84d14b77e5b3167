"""Making the selection faster changes no decision: those of an earlier implementation are kept beside the tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bowerbird_agent.selection.uncertainty import entropy, hidden_objects, largest_of_overlapping, localisation
from bowerbird_models.detections import Detections
from bowerbird_testing.scene_decisions import POLICIES, decisions

_KEPT = json.loads((Path(__file__).parent / "golden" / "decisions.json").read_text("utf-8"))


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_decision_on_a_scene_is_the_one_that_was_recorded(name: str) -> None:
    found, kept = decisions(name), _KEPT[name]
    assert found["windows"] == kept["windows"]
    assert list(found["frames"]) == list(kept["frames"])
    for frame, line in found["frames"].items():
        assert line[:2] == kept["frames"][frame][:2], frame
        assert line[2:] == pytest.approx(kept["frames"][frame][2:], abs=2e-5), frame


def _crowd(seed: int, boxes: int) -> Detections:
    """Boxes that often overlap, of two classes, around the threshold for being shown."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 60, (boxes, 2))
    scores = np.sort(rng.choice([0.05, 0.1, 0.24, 0.25, 0.3, 0.5, 0.9], boxes))[::-1]
    return Detections(
        np.hstack([corners, corners + rng.uniform(20, 40, (boxes, 2))]).astype(np.float32),
        scores.astype(np.float32),
        rng.integers(0, 2, boxes).astype(np.int32),
        loc_entropy=rng.uniform(0, 1, boxes).astype(np.float32),
    )


@pytest.mark.parametrize("boxes", [0, 1, 2, 5, 12, 24])
def test_a_few_boxes_score_the_same_as_plain_numbers_and_as_arrays(boxes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    crowds = [_crowd(seed, boxes) for seed in range(60)]

    def scores() -> list[object]:
        single = [(localisation(c), hidden_objects(c), hidden_objects(c, floor_score=0.1, visible=0.3)) for c in crowds]
        kept = [largest_of_overlapping(c.scores.astype(np.float64), c.boxes_xyxy, c.class_ids).tolist() for c in crowds]
        return [single, kept]

    plain, entropies = scores(), [entropy(c) for c in crowds]
    monkeypatch.setattr("bowerbird_agent.selection.uncertainty._FEW_BOXES", -1)
    assert scores() == plain
    # The logarithms of NumPy and of the C library may differ in the last place.
    assert [entropy(c) for c in crowds] == pytest.approx(entropies, rel=1e-12, abs=1e-15)
