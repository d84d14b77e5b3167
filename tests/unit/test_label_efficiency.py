"""The label-efficiency benchmark: worlds without leaks, arms within their limits, runs that resume, verdicts that wait for pairs."""

from __future__ import annotations

import csv
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import label_efficiency
from efficiency import arms, worlds
from efficiency.study import Result, Study, Tools
from efficiency.verdicts import Table, against_ours, claims, points

from bowerbird_models.detections import Detections
from bowerbird_server.training.evaluate import Evaluation, EvaluationFrame
from bowerbird_server.training.train import TrainingRequest, TrainingResult

WORLD = worlds.synthetic(1, frames_a_camera=40, start=8, test=16, picks=4)


def _seen(frame: worlds.WorldFrame, luck: np.random.Generator) -> Detections:
    """A model that finds most objects, with varied scores."""
    found = luck.random(len(frame.boxes_xyxy)) < 0.7
    scores = np.sort(luck.uniform(0.06, 0.95, int(found.sum())).astype(np.float32))[::-1].copy()
    embedding = luck.normal(size=8).astype(np.float32)
    return Detections(frame.boxes_xyxy[found], scores, frame.class_ids[found], embedding=embedding)


def _stream(taken: frozenset[int] = frozenset()) -> arms.Stream:
    luck = np.random.default_rng(4)
    sizes = np.array([len(frame.jpeg()) for frame in WORLD.stream], np.int64)
    return arms.Stream(WORLD.stream, [_seen(frame, luck) for frame in WORLD.stream], sizes, taken, WORLD.frame_rate)


STREAM = _stream()


def test_no_scene_is_in_two_parts_of_the_synthetic_world() -> None:
    world = worlds.synthetic(3)
    parts = [{frame.scene for frame in part} for part in (world.start, world.stream, world.test)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]


def test_the_stream_has_a_drift_a_late_camera_and_near_duplicates_and_the_test_has_an_unseen_one() -> None:
    world = worlds.synthetic(3)
    assert {frame.camera for frame in world.start} == {"cam-0", "cam-1"}
    late = [frame.at_ms for frame in world.stream if frame.camera == "cam-2"]
    assert min(late) > world.stream[0].at_ms
    assert {"camera:unseen", "condition:night", "camera:late"} <= {name for frame in world.test for name in frame.slices}
    assert len(world.stream) > 5 * len({frame.scene for frame in world.stream})
    assert [frame.at_ms for frame in world.stream] == sorted(frame.at_ms for frame in world.stream)


@pytest.mark.parametrize("arm", [arm for arm in arms.names() if arm != arms.ALL])
def test_an_arm_keeps_to_its_frames_and_to_its_bytes_takes_nothing_twice_and_repeats_itself(arm: str) -> None:
    first = arms.choose(arm, STREAM, arms.Limit(frames=3), seed=1, round_number=1)
    assert len(first.places) == len(set(first.places)) <= 3
    assert first.places == arms.choose(arm, STREAM, arms.Limit(frames=3), seed=1, round_number=1).places
    size = int(STREAM.sizes.mean() * 5)
    in_bytes = arms.choose(arm, STREAM, arms.Limit(size_bytes=size), seed=1, round_number=1)
    assert 0 < STREAM.sizes[in_bytes.places].sum() <= size
    later = replace(STREAM, taken=frozenset(first.places))
    second = arms.choose(arm, later, arms.Limit(frames=3), seed=1, round_number=2, state=first.state)
    assert second.places
    assert not set(first.places) & set(second.places)


def test_all_data_is_all_that_is_left() -> None:
    chosen = arms.choose(arms.ALL, _stream(frozenset({0, 5})), arms.Limit(frames=1), seed=1, round_number=1)
    assert len(chosen.places) == len(WORLD.stream) - 2


def test_first_come_first_served_takes_the_earliest_flagged_frames() -> None:
    places = arms.choose("rule-max-first", STREAM, arms.Limit(frames=6), seed=1, round_number=1).places
    flagged = [i for i, found in enumerate(STREAM.detections) if len(s := found.scores[found.scores >= 0.25]) and s.max() < 0.6]
    assert places == flagged[:6]


def test_the_arm_that_knows_the_labels_finds_more_misses_than_random() -> None:
    def found(arm: str) -> int:
        places = arms.choose(arm, STREAM, arms.Limit(frames=6), seed=1, round_number=1).places
        return len(set().union(*(arms.missed_objects(WORLD.stream[i], STREAM.detections[i]) for i in places)))

    assert found(arms.LABEL_AWARE) > found("random")


def test_a_miss_is_an_object_without_a_visible_box_of_its_class_on_it() -> None:
    frame = next(frame for frame in WORLD.stream if len(frame.boxes_xyxy) >= 2)
    count = len(frame.boxes_xyxy)
    sure = np.full(count, 0.9, np.float32)
    all_found = Detections(frame.boxes_xyxy, sure, frame.class_ids)
    assert not arms.missed_objects(frame, all_found)
    assert len(arms.missed_objects(frame, Detections(frame.boxes_xyxy, sure, frame.class_ids + 1))) == count
    faint = np.array([0.9] * (count - 1) + [0.2], np.float32)
    assert arms.missed_objects(frame, Detections(frame.boxes_xyxy, faint, frame.class_ids)) == {
        (frame.scene, frame.objects[-1])
    }


class _School:
    """Trains in no time: a model is as good as the number of its pictures, and what it sees follows from that too."""

    def __init__(self, *, stop_after: int | None = None) -> None:
        self.trained: list[int] = []
        self._left = stop_after

    def train(self, request: TrainingRequest) -> TrainingResult:
        if self._left is not None:
            if self._left == 0:
                raise KeyboardInterrupt
            self._left -= 1
        count = len(list((request.data_yaml.parent / "images").iterdir()))
        self.trained.append(count)
        weights, onnx = request.out_dir / "weights.pt", request.out_dir / "model.onnx"
        weights.write_bytes(b"w")
        onnx.write_text(str(count))
        return TrainingResult(weights, onnx, 1.0, 7, {"school": "1"})

    def evaluate(self, onnx: Path, frames: list[EvaluationFrame], class_names: tuple[str, ...]) -> Evaluation:
        good = int(onnx.read_text()) / 1000
        assert all(frame.image_path.is_file() for frame in frames)
        return Evaluation("", "", good, good, {}, {"camera:unseen": good}, 0.0, 1.0, len(frames), 1, 1, (), 1.0)

    def detect(self, onnx: Path, frames: tuple[worlds.WorldFrame, ...]) -> list[Detections]:
        luck = np.random.default_rng(int(onnx.read_text()))
        return [_seen(frame, luck) for frame in frames]

    @property
    def tools(self) -> Tools:
        return Tools(self.train, self.evaluate, self.detect)  # type: ignore[arg-type]


def _comparable(results: list[Result]) -> set[tuple[object, ...]]:
    return {(r.key, r.arm, r.round, r.frames, r.boxes, r.size_bytes, r.misses_found, r.map50_95) for r in results}


def test_a_run_that_was_stopped_anywhere_ends_with_the_rows_of_one_that_was_not(tmp_path: Path) -> None:
    names = ("random", "ours", "all")
    whole = Study(tmp_path / "whole", rounds=2, picks=4, tools=_School().tools)
    whole.run(WORLD, 1, names)
    assert len(whole.results()) == 1 + 2 + 2 + 1
    for stop_after in range(6):
        folder = tmp_path / f"stopped-{stop_after}"
        with pytest.raises(KeyboardInterrupt):
            Study(folder, rounds=2, picks=4, tools=_School(stop_after=stop_after).tools).run(WORLD, 1, names)
        again = _School()
        study = Study(folder, rounds=2, picks=4, tools=again.tools)
        study.run(WORLD, 1, names)
        assert _comparable(study.results()) == _comparable(whole.results())
        assert len(again.trained) == 6 - stop_after, "nothing that was done is done again"


def test_a_finished_run_trains_nothing_and_another_number_of_picks_is_another_row(tmp_path: Path) -> None:
    Study(tmp_path, rounds=1, picks=4, tools=_School().tools).run(WORLD, 1, ("random",))
    idle, other = _School(), _School()
    Study(tmp_path, rounds=1, picks=4, tools=idle.tools).run(WORLD, 1, ("random",))
    assert idle.trained == []
    Study(tmp_path, rounds=1, picks=5, tools=other.tools).run(WORLD, 1, ("random",))
    assert 13 in other.trained


def _row(arm: str, seed: int, round_number: int, accuracy: float, *, misses: int = 10) -> Result:
    slices = f'{{"condition:night": {accuracy}, "camera:unseen": {accuracy}}}'
    frames = 80 + 40 * round_number
    return Result(
        f"{arm}{seed}{round_number}", "w", seed, arm, round_number, frames, 2 * frames, 1000 * frames, 1.0 * frames,
        40 * round_number, 20, 1000, misses, 100, 0, accuracy, accuracy, slices, 600, 1.0, "{}",
    )  # fmt: skip


def _results(seeds: int, gain: float) -> list[Result]:
    rows = []
    for seed in range(seeds):
        rows.append(_row("start", seed, 0, 0.2 + 0.01 * seed))
        for r in (1, 2):
            base = 0.2 + 0.01 * seed + 0.05 * r
            rows.append(_row("random", seed, r, base))
            rows.append(_row("ours", seed, r, base + gain * (1 + 0.1 * (seed % 3)), misses=25))
    return rows


def test_a_clear_difference_is_undecided_with_nine_pairs_and_holds_with_ten() -> None:
    few, enough = ({claim.text: claim.verdict for claim in claims(Table(_results(seeds, 0.03)))} for seeds in (9, 10))
    text = "better than random after the drift (points)"
    assert (few[text], enough[text]) == ("undecided", "holds")


def test_an_arm_that_is_worse_than_random_is_said_to_be() -> None:
    verdicts = {claim.text: claim.verdict for claim in claims(Table(_results(10, -0.03)))}
    assert verdicts["at equal labels not worse than random (points)"] == "does not hold"
    assert verdicts["better than random on unseen cameras (points)"] == "does not hold"


def test_misses_are_compared_per_label() -> None:
    claim = next(c for c in claims(Table(_results(6, 0.0))) if "misses" in c.text)
    assert claim.value == pytest.approx(2.5)
    assert claim.verdict == "holds"


def test_every_rival_is_told_with_its_corrected_p() -> None:
    found = against_ours(Table(_results(8, 0.03)))
    difference, p = found["random"]
    assert difference.mean > 3
    assert p == pytest.approx(2 / 2**8)


def test_the_frames_of_the_start_count_as_sent() -> None:
    results = [*_results(2, gain=0.03), *(_row("all", seed, 1, 0.25) for seed in range(2))]
    found = next(claim for claim in claims(Table(results)) if "never sent" in claim.text)
    assert found.value == pytest.approx(100 * (1 - 120 / 1080)), "80 to start with and 40 of the stream's thousand"


def test_all_labels_are_held_to_what_they_reach_with_more_steps_where_that_was_tried() -> None:
    results = [*_results(2, gain=0.03), *(replace(_row("all", seed, 1, 0.31), steps=600) for seed in range(2))]
    short = next(claim for claim in claims(Table(results)) if "never sent" in claim.text)
    results += [_row("all+steps", seed, 1, 0.9) for seed in range(2)]
    found = {claim.text: claim for claim in claims(Table(results))}
    longer = next(claim for text, claim in found.items() if "never sent" in text)
    assert (short.value > 0.0, longer.value) == (True, 0.0)
    assert found["twice the optimiser steps change the accuracy of all labels by at most a point"].verdict == "does not hold"


def test_differences_are_told_after_each_round_and_as_a_mean_over_the_rounds() -> None:
    found = Table(_results(4, gain=0.03)).by_round("ours", "random", points)
    assert len(found) == 1 + max(row.round for row in _results(4, gain=0.03))
    assert found[-1].mean == pytest.approx(sum(each.mean for each in found[:-1]) / (len(found) - 1))
    assert {each.pairs for each in found} == {4}


def test_a_report_of_partial_results_says_what_made_them_and_that_arms_have_other_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row for row in _results(4, 0.03) if row.arm != "ours" or row.seed < 2]
    with (tmp_path / "results.csv").open("w", newline="") as lines:
        writer = csv.DictWriter(lines, asdict(rows[0]))
        writer.writeheader()
        writer.writerows(map(asdict, rows))
    monkeypatch.setattr(sys, "argv", ["label_efficiency.py", "--report", "--out", str(tmp_path)])
    assert label_efficiency.main() == 1, "two pairs reach no goal"
    report = (tmp_path / "report.md").read_text()
    assert "of seeds 0, 1, 2, 3" in report
    assert f"Made with: `{rows[0].versions}`" in report
    assert "Arms have run on different seeds so far" in report
    assert "undecided" in report
