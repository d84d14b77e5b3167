"""The gate promotes on evidence, refuses with reasons, and says when it cannot know."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bowerbird_server.errors import BadInput, Conflict
from bowerbird_server.training.average_precision import FrameBoxes, MatchTable, match_frames
from bowerbird_server.training.evaluate import Evaluation, EvaluationFrame, EvaluationRun, calibration_error, summarise
from bowerbird_server.training.promotion_gate import POINT_ESTIMATE, PROFILES, SIGNIFICANT, compare

CLASSES = ("person", "car")
QUICK = replace(SIGNIFICANT, resamples=200)


def run_of(
    *,
    recall: dict[str, float],
    scenes: int = 12,
    frames_a_scene: int = 3,
    seed: int = 0,
    night_recall: float | None = None,
    latency_ms: float = 10.0,
    boxes_a_frame: int = 2,
) -> EvaluationRun:
    """What a model that finds each class with this probability would score; every second scene is at night.

    The same seed gives the same frames and the same luck, so that a model with a higher recall finds what the other finds and more.
    """
    world, luck = np.random.default_rng(99), np.random.default_rng(seed)
    frames: list[EvaluationFrame] = []
    found: list[FrameBoxes] = []
    for scene in range(scenes):
        night = scene % 2 == 1
        for number in range(frames_a_scene):
            count = boxes_a_frame * len(CLASSES)
            corner = np.arange(count)[:, None] * 100.0 + world.uniform(0, 30, (count, 2))
            boxes = np.concatenate([corner, corner + 50], axis=1)
            class_ids = np.arange(count) % len(CLASSES)
            frames.append(
                EvaluationFrame(
                    Path(f"{scene}-{number}.jpg"),
                    f"scene-{scene}",
                    ("condition:night" if night else "condition:day",),
                    boxes.astype(np.float32),
                    class_ids.astype(np.int32),
                )
            )
            chance = np.array([recall[CLASSES[class_id]] for class_id in class_ids])
            if night and night_recall is not None:
                chance[:] = night_recall
            seen = luck.random(count) < chance
            scores = luck.uniform(0.3, 0.9, count)
            found.append(FrameBoxes(boxes[seen], class_ids[seen], scores[seen]))
    drawn = [FrameBoxes(frame.boxes_xyxy.astype(float), frame.class_ids.astype(np.int64)) for frame in frames]
    matches = match_frames(found, drawn, len(CLASSES))
    evaluation = summarise(
        matches,
        frames,
        CLASSES,
        file_digest="0" * 64,
        missing_classes=(),
        latency_ms_p50=latency_ms,
        seconds=1.0,
    )
    return EvaluationRun(
        evaluation, CLASSES, tuple(frame.scene for frame in frames), tuple(frame.slices for frame in frames), matches
    )


def knowing(run: EvaluationRun, *model_classes: str) -> EvaluationRun:
    """The run of a model that has these classes."""
    missing = tuple(name for name in CLASSES if name not in model_classes)
    return replace(run, evaluation=replace(run.evaluation, model_classes=model_classes, missing_classes=missing))


def test_an_appended_class_is_no_fault_and_a_lost_or_moved_one_is_refused_with_the_reason() -> None:
    champion, better = (run_of(recall={"person": a, "car": a}) for a in (0.4, 0.9))
    for profile in (QUICK, POINT_ESTIMATE):
        appended = compare(knowing(champion, "person"), knowing(better, "person", "car"), profile, seed=1)
        assert appended.promoted
        assert any("it knows car, appended to the class list" in reason for reason in appended.reasons)
        lost = compare(knowing(champion, "person", "car"), knowing(better, "person"), profile, seed=1)
        assert not lost.promoted
        assert not lost.undecided
        assert any("it lost car, which the champion knows" in reason for reason in lost.reasons)
        moved = compare(knowing(champion, "person", "car"), knowing(better, "car", "person"), profile, seed=1)
        assert not moved.promoted
        assert any("not in the order of the class list (they are car, person)" in reason for reason in moved.reasons)
        foreign = compare(knowing(champion, "person", "car"), knowing(better, "owl", "person", "elk", "car"), profile, seed=1)
        assert foreign.promoted, "classes that the site does not label are nobody's"


def test_an_evaluation_says_its_class_list_and_those_of_before_are_read() -> None:
    evaluation = knowing(run_of(recall={"person": 0.6, "car": 0.6}), "person", "car").evaluation
    assert evaluation.class_list == len(CLASSES)
    assert Evaluation.from_json(evaluation.to_json()) == evaluation
    plain = json.loads(evaluation.to_json())
    older = {key: value for key, value in plain.items() if key not in ("class_list", "model_classes")}
    assert Evaluation.from_json(json.dumps(older)) == replace(evaluation, class_list=0, model_classes=())


def test_a_clearly_better_model_is_promoted_by_both_profiles() -> None:
    """Twice the recall in every scene is evidence."""
    champion, challenger = run_of(recall={"person": 0.4, "car": 0.4}), run_of(recall={"person": 0.8, "car": 0.8})
    for profile in (QUICK, POINT_ESTIMATE):
        verdict = compare(champion, challenger, profile, seed=1)
        assert verdict.promoted, verdict
        assert verdict.difference > 0.2
        assert verdict.reasons
    significant = compare(champion, challenger, QUICK, seed=1)
    assert significant.interval is not None
    assert 0 < significant.interval[0] < significant.difference < significant.interval[1]


def test_point_estimate_says_that_it_is_no_test() -> None:
    """The note names the number of scenes, and there is no interval."""
    run, better = run_of(recall={"person": 0.4, "car": 0.4}, scenes=1), run_of(recall={"person": 0.9, "car": 0.9}, scenes=1)
    verdict = compare(run, better, POINT_ESTIMATE, seed=1)
    assert (verdict.promoted, verdict.interval) == (True, None)
    assert verdict.note == "not a significance test, 1 scene"


def test_a_model_is_not_better_than_itself() -> None:
    """Equal numbers promote nothing."""
    run = run_of(recall={"person": 0.6, "car": 0.6})
    for profile in (QUICK, POINT_ESTIMATE):
        verdict = compare(run, run, profile, seed=1)
        assert not verdict.promoted
        assert verdict.difference == 0


def test_a_worse_model_is_refused_not_undecided() -> None:
    """A fallen mean is a refusal."""
    verdict = compare(run_of(recall={"person": 0.8, "car": 0.8}), run_of(recall={"person": 0.4, "car": 0.4}), QUICK, seed=1)
    assert (verdict.promoted, verdict.undecided) == (False, False)
    assert any("did not rise" in reason for reason in verdict.reasons)


@pytest.mark.parametrize("scenes", [1, 4])
def test_too_few_scenes_cannot_decide(scenes: int) -> None:
    """However large the gain, the significant profile asks for more scenes instead of promoting."""
    champion = run_of(recall={"person": 0.3, "car": 0.3}, scenes=scenes, boxes_a_frame=6)
    challenger = run_of(recall={"person": 0.9, "car": 0.9}, scenes=scenes, boxes_a_frame=6)
    verdict = compare(champion, challenger, QUICK, seed=1)
    assert (verdict.promoted, verdict.undecided) == (False, True)
    assert "label held-out frames of" in verdict.reasons[0]


def test_a_gain_that_could_be_luck_is_undecided_and_says_how_many_scenes_would_do() -> None:
    """Two models of the same quality and different luck."""
    champion = run_of(recall={"person": 0.6, "car": 0.6}, seed=1)
    better = [run_of(recall={"person": 0.62, "car": 0.62}, seed=seed) for seed in range(2, 30)]
    lucky = next(run for run in better if 0 < run.evaluation.map50_95 - champion.evaluation.map50_95 < 0.03)
    tolerant = replace(QUICK, max_class_loss=1.0, max_slice_loss=1.0)
    verdict = compare(champion, lucky, tolerant, seed=1)
    assert (verdict.promoted, verdict.undecided) == (False, True)
    assert "scenes like these would decide" in verdict.reasons[0]


def test_a_lost_class_stops_a_better_mean() -> None:
    """Cars rise a lot, persons fall by more than allowed."""
    champion, challenger = run_of(recall={"person": 0.8, "car": 0.3}), run_of(recall={"person": 0.5, "car": 0.95})
    for profile in (QUICK, POINT_ESTIMATE):
        verdict = compare(champion, challenger, profile, seed=1)
        assert verdict.difference > 0.05
        assert not verdict.promoted
        assert any("class person" in reason for reason in verdict.reasons)


def test_a_class_with_little_ground_truth_stops_nothing() -> None:
    """Below the least number of boxes a class is not judged."""
    champion, challenger = run_of(recall={"person": 0.8, "car": 0.3}), run_of(recall={"person": 0.5, "car": 0.95})
    unjudged = replace(POINT_ESTIMATE, min_boxes=10_000)
    assert compare(champion, challenger, unjudged, seed=1).promoted


def test_a_lost_slice_stops_a_better_mean() -> None:
    """Day rises, night falls."""
    champion = run_of(recall={"person": 0.4, "car": 0.4}, night_recall=0.6)
    challenger = run_of(recall={"person": 0.95, "car": 0.95}, night_recall=0.3)
    verdict = compare(champion, challenger, POINT_ESTIMATE, seed=1)
    assert verdict.difference > POINT_ESTIMATE.margin
    assert [reason.split(" lost")[0] for reason in verdict.reasons] == ["slice condition:night"]


def test_equal_seeds_give_equal_verdicts() -> None:
    """A verdict can be computed again."""
    champion, challenger = run_of(recall={"person": 0.4, "car": 0.4}), run_of(recall={"person": 0.7, "car": 0.7})
    assert compare(champion, challenger, QUICK, seed=5) == compare(champion, challenger, QUICK, seed=5)
    assert compare(champion, challenger, QUICK, seed=5).interval != compare(champion, challenger, QUICK, seed=6).interval


def test_a_broken_export_is_refused() -> None:
    """The exported model must be as good as the checkpoint it came from."""
    champion, challenger = run_of(recall={"person": 0.4, "car": 0.4}), run_of(recall={"person": 0.8, "car": 0.8})
    measured = challenger.evaluation.map50_95
    assert compare(champion, challenger, POINT_ESTIMATE, 1, checkpoint_map50_95=measured + 0.01).promoted
    refused = compare(champion, challenger, POINT_ESTIMATE, 1, checkpoint_map50_95=measured + 0.1)
    assert not refused.promoted
    assert "export" in refused.reasons[0]


def test_a_slow_model_is_refused_where_latency_is_judged() -> None:
    """Twice as slow is too slow for the significant profile; the other does not look."""
    champion = run_of(recall={"person": 0.4, "car": 0.4})
    challenger = run_of(recall={"person": 0.8, "car": 0.8}, latency_ms=20.0)
    assert any("times as long" in reason for reason in compare(champion, challenger, QUICK, 1).reasons)
    assert compare(champion, challenger, POINT_ESTIMATE, 1).promoted


def test_other_frames_cannot_be_compared() -> None:
    """A champion measured before the evaluation set grew must be measured again."""
    with pytest.raises(Conflict, match="evaluate the champion again"):
        compare(run_of(recall={"person": 1, "car": 1}, scenes=11), run_of(recall={"person": 1, "car": 1}), QUICK, 1)


def test_an_overconfident_model_has_a_calibration_error() -> None:
    """Sure of everything and right half of the time is off by half."""
    none = np.zeros(4, np.int64)
    right = np.zeros((4, 10), np.bool_)
    right[:2] = True
    table = MatchTable(none, none, np.full(4, 1.0), right, np.ones((1, 1), np.int64))
    assert calibration_error(table) == pytest.approx(0.5)
    assert calibration_error(replace(table, scores=np.full(4, 0.5))) == pytest.approx(0.0)


def test_an_evaluation_survives_json() -> None:
    """Stored and read again it is the same; anything else is refused."""
    evaluation = run_of(recall={"person": 0.5, "car": 0.5}).evaluation
    assert Evaluation.from_json(evaluation.to_json()) == evaluation
    for text in ("{}", "[]", "no json", '{"map50_95": 1}'):
        with pytest.raises(BadInput, match="stored evaluation"):
            Evaluation.from_json(text)


def test_both_profiles_are_offered_by_name() -> None:
    """The names are what a configuration may say."""
    assert set(PROFILES) == {"significant", "point_estimate"}
