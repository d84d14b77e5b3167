"""Rounds of choosing, labelling, training and testing: one row of the CSV for each arm, seed and round.

In: worlds, arms, rounds. Out: rows, appended to `results.csv` as they are done, each under a key made of everything that decides it;
what is there already is not done again, so a run that was stopped goes on where it was. Two processes may work on the same folder with
different seeds. Frames are scored, models trained and tested by the code that the device and the server run. It draws no
conclusions (`verdicts.py` does).
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import math
import shutil
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import yaml

from bowerbird_models.runtimes import RuntimeOptions, open_model
from bowerbird_server.training.evaluate import Evaluation, EvaluationFrame, evaluate_model
from bowerbird_server.training.train import TrainingRequest, TrainingResult, run_training
from efficiency import arms

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bowerbird_models.detections import Detections
    from efficiency.worlds import World, WorldFrame

FORMAT = 2  # raise it when a change makes old rows incomparable
START = "start"
# An estimate: looking at a frame, and drawing a box. Source for the box: Papadopoulos et al., "Extreme clicking for efficient object
# annotation" (ICCV 2017), 7 s a box; the seconds a frame are ours.
SECONDS_A_FRAME, SECONDS_A_BOX = 4.0, 7.0
_WARM_UP_STEPS = 100


@dataclass(frozen=True)
class Result:
    """A row. Costs are of everything labelled so far, the start included.

    Args:
        key: of everything that decides the row.
        world, seed, arm, round: which run; the start has the arm "start" and round 0.
        frames, boxes, size_bytes, annotator_s: what was sent and labelled until here.
        chosen, scenes: stream frames among them, and how many scenes they come from.
        stream_frames: frames of the stream.
        misses_found, misses_there: distinct (object, scene) that the choosing model did not show: in the chosen frames, in the stream.
        overshoot: frames or bytes chosen beyond the round's limit; must be 0.
        map50_95, map50: on the test.
        slices: mAP50-95 by slice, JSON.
        steps: optimiser steps of the training.
        train_s: its wall time.
        versions: JSON.
    """

    key: str
    world: str
    seed: int
    arm: str
    round: int
    frames: int
    boxes: int
    size_bytes: int
    annotator_s: float
    chosen: int
    scenes: int
    stream_frames: int
    misses_found: int
    misses_there: int
    overshoot: int
    map50_95: float
    map50: float
    slices: str
    steps: int
    train_s: float
    versions: str

    @classmethod
    def read(cls, row: dict[str, str]) -> Result:
        """From a line of the CSV."""
        kinds = {"int": int, "float": float, "str": str}
        return cls(**{field.name: kinds[str(field.type)](row[field.name]) for field in fields(cls)})


@dataclass(frozen=True)
class _Trained:
    """A model of a chain: its row's key, weights, what was chosen so far and the selector's state."""

    key: str
    weights: Path
    onnx: Path
    taken: tuple[int, ...]
    state: bytes | None
    misses: frozenset[tuple[str, int]]


def _silent(line: str) -> None:
    del line


def detect(onnx: Path, frames: Sequence[WorldFrame]) -> list[Detections]:
    """What a model sees in all frames, decoded as on a device."""
    with open_model(onnx, RuntimeOptions("onnxruntime-cpu", threads=1)) as detector:
        return [detector.detect(frame.render(), confidence=0.05) for frame in frames]


def evaluate(onnx: Path, frames: Sequence[EvaluationFrame], class_names: Sequence[str]) -> Evaluation:
    """How good a model is, as the promotion gate measures it."""
    return evaluate_model(onnx, frames, class_names).evaluation


@dataclass(frozen=True)
class Tools:
    """What does the work."""

    train: Callable[[TrainingRequest], TrainingResult] = run_training
    evaluate: Callable[[Path, Sequence[EvaluationFrame], Sequence[str]], Evaluation] = evaluate
    detect: Callable[[Path, Sequence[WorldFrame]], list[Detections]] = detect


class Study:
    """One folder of results.

    Args:
        folder: for `results.csv`, the choices and work in progress.
        rounds: after the start.
        picks: frames a round; None for the world's own number.
        tools: what trains, tests and detects; the server's and the device's own unless a test brings others.
        told: gets a line of progress.
    """

    def __init__(
        self, folder: Path, *, rounds: int, picks: int | None, tools: Tools | None = None, told: Callable[[str], None] = _silent
    ) -> None:
        self._folder, self._rounds, self._picks, self._told = folder, rounds, picks, told
        self._tools = tools or Tools()
        (folder / "choices").mkdir(parents=True, exist_ok=True)

    def results(self) -> list[Result]:
        """All rows so far."""
        path = self._folder / "results.csv"
        if not path.is_file():
            return []
        with path.open(newline="") as lines:
            return [Result.read(row) for row in csv.DictReader(lines)]

    def run(self, world: World, seed: int, arm_names: Iterable[str]) -> None:
        """All arms of one seed; the start model is shared."""
        wanted = list(arm_names)
        done = {result.key for result in self.results()}
        open_chains = [arm for arm in wanted if not self._is_done(world, seed, arm, done)]
        if not open_chains:
            return
        test = self._write_test(world)
        start = self._start(world, seed, test, done)
        stream_sizes = np.array([len(frame.jpeg()) for frame in world.stream], np.int64)
        seen = self._tools.detect(start.onnx, world.stream)
        for arm in open_chains:
            self._chain(world, seed, arm, start, seen, stream_sizes, test)
        shutil.rmtree(self._work(world), ignore_errors=True)

    def first_model(self, world: World, seed: int) -> Path:
        """The ONNX file that every arm of a seed begins with, trained if it is not there."""
        return self._start(world, seed, self._write_test(world), {result.key for result in self.results()}).onnx

    def _work(self, world: World) -> Path:
        return self._folder / "work" / hashlib.sha256(world.name.encode()).hexdigest()[:12]

    def _key(self, world: World, seed: int, arm: str, round_number: int) -> str:
        """Of a row; rounds follow from those before them, so the chain's definition is enough."""
        plan = {
            "format": FORMAT,
            "world": world.name,
            "training": dict(world.training),
            "steps": [world.start_steps, world.round_steps],
            "seed": seed,
            "arm": arm,
            "policy": _policy_text(arm),
            "round": round_number,
            "picks": 0 if arm == START else self._picks or world.picks,
        }
        return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:16]

    def _last_round(self, arm: str) -> int:
        return 1 if _name(arm) == arms.ALL else self._rounds

    def _is_done(self, world: World, seed: int, arm: str, done: set[str]) -> bool:
        return all(self._key(world, seed, arm, r) in done for r in range(1, self._last_round(arm) + 1))

    def _start(self, world: World, seed: int, test: Sequence[EvaluationFrame], done: set[str]) -> _Trained:
        key = self._key(world, seed, START, 0)
        trained = self._restore(world, key)
        if trained is None or key not in done:
            trained = self._train(world, seed, START, 0, world.start, None, world.start_steps, test, (), None, frozenset(), key)
        return trained

    def _chain(
        self,
        world: World,
        seed: int,
        arm: str,
        start: _Trained,
        seen: Sequence[Detections],
        sizes: np.ndarray[Any, np.dtype[np.int64]],
        test: Sequence[EvaluationFrame],
    ) -> None:
        name, limit = _name(arm), self._limit(world, arm, sizes)
        done = {result.key for result in self.results()}
        current = start
        for round_number in range(1, self._last_round(arm) + 1):
            key = self._key(world, seed, arm, round_number)
            restored = self._restore(world, key) if key in done else None
            if restored is not None:
                current = restored
                continue
            detections = seen if current is start else self._tools.detect(current.onnx, world.stream)
            stream = arms.Stream(world.stream, detections, sizes, frozenset(current.taken), world.frame_rate)
            choice = arms.choose(name, stream, limit, seed=seed, round_number=round_number, state=current.state)
            over = _overshoot(choice.places, limit, sizes) if name != arms.ALL else 0
            missed = [arms.missed_objects(frame, found) for frame, found in zip(world.stream, detections, strict=True)]
            found = current.misses | {each for place in choice.places for each in missed[place]}
            there = len(set().union(*missed)) if missed else 0
            taken = (*current.taken, *choice.places)
            labelled = (*world.start, *(world.stream[i] for i in taken))
            steps = world.round_steps * (2 if "+steps" in arm else 1)
            current = self._train(
                world, seed, arm, round_number, labelled, start.weights, steps, test, taken, choice.state, frozenset(found), key,
                overshoot=over, misses_there=there,
            )  # fmt: skip

    def _limit(self, world: World, arm: str, sizes: np.ndarray[Any, np.dtype[np.int64]]) -> arms.Limit:
        picks = self._picks or world.picks
        if "@bytes" in arm:
            return arms.Limit(size_bytes=round(picks * float(sizes.mean())))
        return arms.Limit(frames=picks)

    def _restore(self, world: World, key: str) -> _Trained | None:
        """A model of this folder's work that a row tells of; None when it must be trained."""
        folder, choice = self._work(world) / key, self._folder / "choices" / f"{key}.json"
        if not (folder / "done").is_file() or not choice.is_file():
            return None
        kept = json.loads(choice.read_text())
        state = b64decode(kept["state"]) if kept["state"] else None
        misses = frozenset((scene, number) for scene, number in kept["misses"])
        return _Trained(key, folder / "weights.pt", folder / "model.onnx", tuple(kept["taken"]), state, misses)

    def _train(
        self,
        world: World,
        seed: int,
        arm: str,
        round_number: int,
        labelled: Sequence[WorldFrame],
        base: Path | None,
        steps: int,
        test: Sequence[EvaluationFrame],
        taken: tuple[int, ...],
        state: bytes | None,
        misses: frozenset[tuple[str, int]],
        key: str,
        *,
        overshoot: int = 0,
        misses_there: int = 0,
    ) -> _Trained:
        """Train on everything labelled, test, and write the row."""
        began_s = time.monotonic()
        folder = self._work(world) / key
        shutil.rmtree(folder, ignore_errors=True)
        size_bytes = _write_training(folder, labelled, world.class_names)
        training = dict(world.training)
        a_pass = math.ceil(len(labelled) / training["batch"])
        epochs = math.ceil(steps / a_pass)
        # As long for a few labels as for all, but that passes with repeated pictures are longer by up to twice; none is shorter.
        training["warmup_epochs"] = _WARM_UP_STEPS / a_pass
        request = TrainingRequest(folder / "data.yaml", folder, base_weights=base, epochs=epochs, seed=seed, **training)
        trained = self._tools.train(request)
        shutil.rmtree(folder / "images")
        evaluation = self._tools.evaluate(trained.onnx, test, world.class_names)
        boxes = sum(len(frame.boxes_xyxy) for frame in labelled)
        result = Result(
            key,
            world.name,
            seed,
            arm,
            round_number,
            frames=len(labelled),
            boxes=boxes,
            size_bytes=size_bytes,
            annotator_s=SECONDS_A_FRAME * len(labelled) + SECONDS_A_BOX * boxes,
            chosen=len(taken),
            scenes=len({world.stream[i].scene for i in taken}),
            stream_frames=len(world.stream),
            misses_found=len(misses),
            misses_there=misses_there,
            overshoot=overshoot,
            map50_95=round(evaluation.map50_95, 6),
            map50=round(evaluation.map50, 6),
            slices=json.dumps({name: round(value, 6) for name, value in sorted(evaluation.per_slice.items())}),
            steps=trained.steps,
            train_s=round(trained.seconds, 1),
            versions=json.dumps(trained.versions, sort_keys=True),
        )
        kept = {
            "names": [frame.name for frame in labelled],
            "taken": list(taken),
            "state": b64encode(state).decode() if state else "",
            "misses": sorted(misses),
        }
        (self._folder / "choices" / f"{key}.json").write_text(json.dumps(kept))
        (folder / "done").touch()
        self._append(result)
        self._told(
            f"seed {seed} {arm:18} round {round_number}: {result.frames:4} frames, {boxes:5} boxes  mAP50-95 "
            f"{result.map50_95:.4f}  {time.monotonic() - began_s:.0f} s"
        )
        return _Trained(key, trained.weights, trained.onnx, taken, state, misses)

    def _append(self, result: Result) -> None:
        path = self._folder / "results.csv"
        with path.open("a", newline="") as lines:
            fcntl.flock(lines, fcntl.LOCK_EX)
            writer = csv.DictWriter(lines, [field.name for field in fields(Result)])
            if lines.tell() == 0:
                writer.writeheader()
            known = {each.key for each in self.results()}
            if result.key not in known:  # trained again only because its weights were needed
                writer.writerow(asdict(result))

    def _write_test(self, world: World) -> list[EvaluationFrame]:
        folder = self._work(world) / "test"
        folder.mkdir(parents=True, exist_ok=True)
        found = []
        for frame in world.test:
            path = folder / f"{frame.name}.png"
            if not path.is_file():
                cv2.imwrite(str(path), frame.render())
            found.append(EvaluationFrame(path, frame.scene, frame.slices, frame.boxes_xyxy, frame.class_ids))
        return found


def _name(arm: str) -> str:
    return arm.removesuffix("+steps").removesuffix("@bytes")


def _policy_text(arm: str) -> str:
    """What an arm's policy is, so that a change of it is another row."""
    from bowerbird_agent.selection.policy import Policy

    name = _name(arm)
    if name not in arms.POLICIES:
        return ""
    policy = Policy.template("balanced", **arms.POLICIES[name])
    numbers = {f: getattr(policy, f) if f != "strategies" else dict(policy.strategies) for f in policy.__dataclass_fields__}
    return json.dumps({"selector": arms.SELECTOR, **numbers})


def _overshoot(places: Sequence[int], limit: arms.Limit, sizes: np.ndarray[Any, np.dtype[np.int64]]) -> int:
    over = max(0, len(places) - limit.frames) if limit.frames is not None else 0
    if limit.size_bytes is not None:
        over += max(0, int(sizes[list(places)].sum()) - limit.size_bytes)
    return over


def _write_training(folder: Path, labelled: Sequence[WorldFrame], class_names: Sequence[str]) -> int:
    """Pictures as they were sent, and labels; returns the bytes of the pictures."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    total = 0
    for number, frame in enumerate(labelled):
        jpeg = frame.jpeg()
        total += len(jpeg)
        (folder / "images" / f"{number:05}.jpg").write_bytes(jpeg)
        height, width = frame.render().shape[:2]
        lines = []
        for class_id, (left, top, right, bottom) in zip(frame.class_ids.tolist(), frame.boxes_xyxy.tolist(), strict=True):
            x, y, w, h = (
                (left + right) / 2 / width,
                (top + bottom) / 2 / height,
                (right - left) / width,
                (bottom - top) / height,
            )
            lines.append(f"{class_id} {x:.6f} {y:.6f} {w:.6f} {h:.6f}")
        (folder / "labels" / f"{number:05}.txt").write_text("\n".join(lines))
    description = {"path": ".", "train": "images", "names": dict(enumerate(class_names))}
    (folder / "data.yaml").write_text(yaml.safe_dump(description))
    return total
