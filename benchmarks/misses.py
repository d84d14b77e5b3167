"""How many missed objects a choice finds for 100 labels: each arm against random, at the first round of the label-efficiency worlds.

In: seeds of synthetic worlds, or `--video FILE --gt gt.txt`; the worlds' own first model, trained here, or `--model model.onnx`. Out: a
line for each arm: distinct (scene, object) that the model misses and a chosen frame shows, for 100 chosen frames; the ratio to random's
mean over many draws, with an interval over the seeds; scenes and boxes of what was chosen. The arm `oracle` knows the labels: its ratio
is the ceiling. Nothing is trained on what was chosen: what it does to accuracy `label_efficiency.py` says. `--quick` looks at a small
world with a model of a few steps and at three arms: it shows that it works, and its figure says nothing else.

    python benchmarks/misses.py --quick
    nice -n 15 python benchmarks/misses.py --seeds 20-27 --out build/misses
    python benchmarks/misses.py --seeds 30 --video FILE --gt gt.txt --model model.onnx
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
from efficiency import arms, worlds
from efficiency.statistics import paired_difference
from efficiency.study import Study, detect
from figure import report

GOAL = 2.0
ARMS = ("periodic", "rule-max-first", "rule-max-random", "entropy-sum", "k-center", "ppal-like", "oracle", *arms.POLICIES)
_RANDOM_DRAWS, _DRAWS = 300, 4


def main() -> int:
    """Measure every arm on every seed."""
    options = _arguments().parse_args()
    cv2.setNumThreads(1)
    if options.video is not None and options.gt is None:
        sys.exit("--video needs --gt: without ground truth nobody knows what was missed")
    if not options.quick:
        return _compare(options, ("random", *options.arms.split(",")))
    with tempfile.TemporaryDirectory() as folder:
        options.out, options.seeds = Path(folder), [0]
        return _compare(options, ("random", "ours", "oracle"))


def _world(options: argparse.Namespace, seed: int) -> worlds.World:
    if options.video is not None:
        return worlds.film(seed, options.video, options.gt, options.out / "film")
    if options.quick:
        return worlds.synthetic(seed, frames_a_camera=80, start=40, test=1, quick=True)
    return worlds.synthetic(seed)


def _compare(options: argparse.Namespace, names: tuple[str, ...]) -> int:
    found: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in names}
    for seed in options.seeds:
        world = _world(options, seed)
        model = options.model or Study(options.out, rounds=1, picks=None).first_model(world, seed)
        sizes = np.array([len(frame.jpeg()) for frame in world.stream], np.int64)
        stream = arms.Stream(world.stream, detect(model, world.stream), sizes, frozenset(), world.frame_rate)
        for name in names:
            found[name].append(_measure(name, stream, world.picks, seed))
    ratios = {name: [row[0] / base[0] for row, base in zip(found[name], found["random"], strict=True)] for name in names}
    print(
        "| arm | misses per 100 labels | against random | 95 % interval over seeds | frames | scenes | boxes |\n"
        + "| --- " * 7
        + "|"
    )
    for name in names:
        misses, scenes, boxes, frames = np.mean(found[name], axis=0)
        ratio = paired_difference(ratios[name])
        print(
            f"| {name} | {misses:.0f} | {ratio.mean:.2f} | {ratio.low:.2f} to {ratio.high:.2f} "
            f"| {frames:.0f} | {scenes:.1f} | {boxes:.0f} |"
        )
    ours = float(np.mean(ratios["ours"])) if "ours" in ratios else None
    details = {name: [round(value, 3) for value in values] for name, values in ratios.items()}
    return report("misses", ours, GOAL, "distinct misses for 100 labels over random's", at_least=True, details=details)


def _measure(name: str, stream: arms.Stream, picks: int, seed: int) -> tuple[float, float, float, float]:
    """Misses for 100 labels, scenes, boxes and number of the frames that an arm chose, means over draws.

    Who chooses fewer frames than it may finds more in each: compare rows of equal numbers.
    """
    missed = [arms.missed_objects(frame, seen) for frame, seen in zip(stream.frames, stream.detections, strict=True)]
    rows = []
    for draw in range(_RANDOM_DRAWS if name == "random" else _DRAWS):
        choice = arms.choose(name, stream, arms.Limit(frames=picks), seed=seed + 1000 * draw, round_number=1)
        chosen = [stream.frames[place] for place in choice.places]
        misses = len(set().union(*(missed[place] for place in choice.places)))
        scenes, boxes = len({frame.scene for frame in chosen}), sum(len(frame.class_ids) for frame in chosen)
        rows.append((100.0 * misses / max(1, len(chosen)), float(scenes), float(boxes), float(len(chosen))))
    misses_mean, scenes_mean, boxes_mean, frames_mean = np.mean(rows, axis=0).tolist()
    return misses_mean, scenes_mean, boxes_mean, frames_mean


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small world: shows that it works")
    parser.add_argument("--seeds", type=_seeds, default="20-27", help="like 20-27 or 3,5 (default 20-27)")
    parser.add_argument("--arms", default=",".join(ARMS), help="comma-separated; random comes with every run")
    parser.add_argument("--model", type=Path, help="ONNX file that chooses, in the place of a first model trained here")
    parser.add_argument("--video", type=Path, help="a film; needs --gt")
    parser.add_argument("--gt", type=Path, help="its ground truth in MOTChallenge form")
    parser.add_argument("--out", type=Path, default=Path("build/misses"), help="folder for first models and frames of the film")
    return parser


def _seeds(text: str) -> list[int]:
    parts = [part.partition("-") for part in text.split(",")]
    return [seed for first, _, last in parts for seed in range(int(first), int(last or first) + 1)]


if __name__ == "__main__":
    sys.exit(main())
