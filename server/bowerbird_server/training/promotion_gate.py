"""Whether a challenger may replace the champion: the rules, without I/O.

In: two `EvaluationRun`s over the same frozen frames, a profile, a seed. Out: a `Verdict` with every reason. Two profiles exist.
`significant`, the default for real sites, promotes only on evidence: a paired bootstrap that resamples whole scenes, because
frames of one scene repeat each other. `point_estimate` compares means and says that it is no test; it is for demos and films
of one scene. The gate promotes nothing itself, and it does not know how the challenger was trained.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from bowerbird_server.errors import Conflict
from bowerbird_server.training.average_precision import PrecisionCurves

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from bowerbird_server.training.evaluate import EvaluationRun

INTERVAL_PERCENT = 95.0


@dataclass(frozen=True)
class GateProfile:
    """How strict the gate is. Differences are challenger minus champion, in mAP50-95 (0.01 is one point).

    Args:
        name: "significant" needs the interval's lower bound above `margin`, "point_estimate" the mean at or above it.
        margin: least gain.
        max_class_loss: largest loss that a class with enough ground truth may show.
        max_slice_loss: the same for a slice (camera, condition).
        min_boxes: drawn boxes from which a class or slice has enough ground truth to be judged.
        min_scenes: scenes from which `significant` decides at all.
        resamples: bootstrap repetitions of `significant`.
        max_calibration_loss: largest growth of the calibration error; None to leave it out.
        max_latency_ratio: largest ratio of median latencies; None to leave it out (a busy server measures badly).
        max_checkpoint_gap: largest distance of the exported model from its own checkpoint's mAP50-95.
    """

    name: Literal["significant", "point_estimate"]
    margin: float
    max_class_loss: float
    max_slice_loss: float
    min_boxes: int = 20
    min_scenes: int = 10
    resamples: int = 1_000
    max_calibration_loss: float | None = None
    max_latency_ratio: float | None = None
    max_checkpoint_gap: float = 0.02


SIGNIFICANT = GateProfile(
    "significant", margin=0.0, max_class_loss=0.03, max_slice_loss=0.03, max_calibration_loss=0.05, max_latency_ratio=1.5
)
POINT_ESTIMATE = GateProfile("point_estimate", margin=0.01, max_class_loss=0.05, max_slice_loss=0.02)
PROFILES = {profile.name: profile for profile in (SIGNIFICANT, POINT_ESTIMATE)}


@dataclass(frozen=True)
class Verdict:
    """What the gate decided and why; kept for ever.

    Args:
        promoted: whether the challenger may replace the champion.
        undecided: not promoted for want of evidence, rather than because it is worse.
        reasons: one sentence each; for a refusal every rule that failed, for a promotion what was shown.
        difference: challenger minus champion, mAP50-95.
        interval: 95 % interval of the difference; None where none was computed.
        scenes: number of scenes behind it.
        profile: name of the profile.
        note: what kind of statement this is.
    """

    promoted: bool
    undecided: bool
    reasons: tuple[str, ...]
    difference: float
    interval: tuple[float, float] | None
    scenes: int
    profile: str
    note: str

    def to_json(self) -> str:
        """One JSON object with every field."""
        return json.dumps(asdict(self), sort_keys=True)


def compare(
    champion: EvaluationRun,
    challenger: EvaluationRun,
    profile: GateProfile,
    seed: int,
    *,
    checkpoint_map50_95: float | None = None,
) -> Verdict:
    """Decide between two models evaluated on the same frames.

    Args:
        champion: the model in use.
        challenger: the new one.
        profile: which rules.
        seed: of the bootstrap; equal seeds give equal verdicts.
        checkpoint_map50_95: what the trainer measured for the challenger before export, to catch a broken export.

    Raises:
        Conflict: the two were not evaluated on the same frames and labels.
    """
    if champion.evaluation.frames_digest != challenger.evaluation.frames_digest:
        raise Conflict(
            "the two models were evaluated on different frames or labels, so their numbers cannot be compared; evaluate the "
            "champion again on the current evaluation set"
        )
    difference = challenger.evaluation.map50_95 - champion.evaluation.map50_95
    scenes = len(set(champion.scenes))
    failed: list[str] = []
    undecided: list[str] = []
    shown: list[str] = []
    interval: tuple[float, float] | None = None
    resampled: dict[str, tuple[float, float]] = {}

    if profile.name == "significant":
        note = f"paired bootstrap over {scenes} scenes, {profile.resamples} resamples, {INTERVAL_PERCENT:.0f} % interval"
        if scenes < 2:
            undecided.append(
                f"one scene cannot show how much scenes differ; label held-out frames of {profile.min_scenes} scenes"
            )
        else:
            interval, resampled = _bootstrap(champion, challenger, profile, seed)
            if difference <= 0:
                failed.append(f"the mean did not rise: {difference:+.4f} mAP50-95")
            elif scenes < profile.min_scenes:
                undecided.append(
                    f"{scenes} scenes cannot decide, at least {profile.min_scenes} are needed; label held-out frames of more scenes"
                )
            elif interval[0] <= profile.margin:
                undecided.append(
                    f"the gain of {difference:+.4f} could be luck: the interval [{interval[0]:+.4f}, {interval[1]:+.4f}] is not "
                    f"above {profile.margin:+.4f}; {_scenes_needed(difference, interval, scenes, profile.margin)}"
                )
            else:
                shown.append(f"mAP50-95 {difference:+.4f}, interval [{interval[0]:+.4f}, {interval[1]:+.4f}]")
    else:
        note = f"not a significance test, {scenes} scene{'' if scenes == 1 else 's'}"
        if difference < profile.margin:
            failed.append(f"mAP50-95 changed by {difference:+.4f}, at least {profile.margin:+.4f} is asked")
        else:
            shown.append(f"mAP50-95 {difference:+.4f}, at least {profile.margin:+.4f} is asked")

    for kind, name, loss, limit in _losses(champion, challenger, profile):
        bounds = resampled.get(f"{kind} {name}")
        if loss > limit:
            failed.append(f"{kind} {name} lost {loss:.4f} mAP50-95, at most {limit:.4f} is allowed")
        elif bounds is not None and bounds[1] < 0:
            failed.append(f"{kind} {name} is surely worse: interval [{bounds[0]:+.4f}, {bounds[1]:+.4f}]")
    failed.extend(_class_faults(champion, challenger))
    failed.extend(_other_failures(champion, challenger, profile, checkpoint_map50_95))
    if not failed and not undecided:
        judged = sum(1 for _ in _judged(champion, profile))
        appended = [name for name in champion.evaluation.missing_classes if name not in challenger.evaluation.missing_classes]
        if appended:
            shown.append(f"it knows {', '.join(appended)}, appended to the class list since the champion was made")
        shown.append(f"none of {judged} classes and slices with at least {profile.min_boxes} boxes lost more than allowed")
    return Verdict(
        promoted=not failed and not undecided,
        undecided=bool(undecided) and not failed,
        reasons=tuple([*failed, *undecided] or shown),
        difference=difference,
        interval=interval,
        scenes=scenes,
        profile=profile.name,
        note=note,
    )


def _judged(run: EvaluationRun, profile: GateProfile) -> Iterator[tuple[str, str, float]]:
    """Kind, name and loss limit of each class and slice with enough ground truth."""
    drawn = run.matches.ground_truth
    for name, boxes in zip(run.class_names, drawn.sum(axis=0), strict=True):
        if boxes >= profile.min_boxes:
            yield "class", name, profile.max_class_loss
    for name, inside in run.slice_frames().items():
        if drawn[inside].sum() >= profile.min_boxes:
            yield "slice", name, profile.max_slice_loss


def _losses(
    champion: EvaluationRun, challenger: EvaluationRun, profile: GateProfile
) -> Iterator[tuple[str, str, float, float]]:
    """Kind, name, loss and limit of each class and slice with enough ground truth."""
    for kind, name, limit in _judged(champion, profile):
        if kind == "class":
            before, after = champion.evaluation.per_class[name], challenger.evaluation.per_class[name]
        else:
            before, after = champion.evaluation.per_slice[name], challenger.evaluation.per_slice[name]
        if before is not None and after is not None:
            yield kind, name, before - after, limit


def _class_faults(champion: EvaluationRun, challenger: EvaluationRun) -> Iterator[str]:
    """The class list only grows: a challenger may know appended classes, but not lose one or have them in another order."""
    ours, theirs = challenger.evaluation, champion.evaluation
    lost = [name for name in ours.missing_classes if name not in theirs.missing_classes]
    if lost:
        yield f"it lost {', '.join(lost)}, which the champion knows; train on the whole class list"
    listed = {name: class_id for class_id, name in enumerate(challenger.class_names)}
    order = [listed[name] for name in ours.model_classes if name in listed]
    if order != sorted(order):
        shown = ", ".join(ours.model_classes[:20])
        yield f"its classes are not in the order of the class list (they are {shown}); train on the list as it is"


def _other_failures(
    champion: EvaluationRun, challenger: EvaluationRun, profile: GateProfile, checkpoint_map50_95: float | None
) -> Iterator[str]:
    ours, theirs = challenger.evaluation, champion.evaluation
    if checkpoint_map50_95 is not None and abs(ours.map50_95 - checkpoint_map50_95) > profile.max_checkpoint_gap:
        yield (
            f"the exported model has mAP50-95 {ours.map50_95:.4f}, its checkpoint {checkpoint_map50_95:.4f}: the export changed "
            "the model, export it again"
        )
    if profile.max_calibration_loss is not None:
        growth = ours.calibration_error - theirs.calibration_error
        if growth > profile.max_calibration_loss:
            yield f"the calibration error grew by {growth:.4f}, at most {profile.max_calibration_loss:.4f} is allowed"
    if profile.max_latency_ratio is not None and theirs.latency_ms_p50 > 0:
        ratio = ours.latency_ms_p50 / theirs.latency_ms_p50
        if ratio > profile.max_latency_ratio:
            yield f"it takes {ratio:.2f} times as long, at most {profile.max_latency_ratio:.2f} is allowed"


def _bootstrap(
    champion: EvaluationRun, challenger: EvaluationRun, profile: GateProfile, seed: int
) -> tuple[tuple[float, float], dict[str, tuple[float, float]]]:
    """Interval of the difference overall, and of every judged class and slice by "kind name".

    Each repetition draws as many scenes as there are, with replacement, and weights both models' frames alike.
    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapters 8 and 13 (percentile interval).
    """
    names, scene_ids = np.unique(np.array(champion.scenes), return_inverse=True)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=profile.resamples).astype(np.float64)

    def resample(inside: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """(resamples, classes) challenger minus champion, mAP50-95; NaN where a resample holds no box of the class."""
        before, after = (
            PrecisionCurves(run.matches, scene_ids, inside).average_precision(weights).mean(axis=2)
            for run in (champion, challenger)
        )
        difference: NDArray[np.float64] = after - before
        return difference

    by_class = resample()
    slice_frames = champion.slice_frames()
    class_ids = {name: class_id for class_id, name in enumerate(champion.class_names)}
    parts: dict[str, tuple[float, float]] = {}
    for kind, name, _ in _judged(champion, profile):
        values = by_class[:, class_ids[name]] if kind == "class" else _mean_of_known(resample(slice_frames[name]))
        parts[f"{kind} {name}"] = _interval(values)
    return _interval(_mean_of_known(by_class)), parts


def _mean_of_known(by_class: NDArray[np.float64]) -> NDArray[np.float64]:
    """(resamples, classes) -> (resamples,) mean over the classes that have boxes; NaN where none has."""
    known = ~np.isnan(by_class)
    count = known.sum(axis=1)
    total = np.where(known, by_class, 0.0).sum(axis=1)
    means: NDArray[np.float64] = np.divide(total, count, out=np.full(len(by_class), np.nan), where=count > 0)
    return means


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Percentile interval of the values that are numbers; (-inf, inf) if none is."""
    numbers = values[~np.isnan(values)]
    if len(numbers) == 0:
        return -math.inf, math.inf
    tail = (100.0 - INTERVAL_PERCENT) / 2
    low, high = np.percentile(numbers, [tail, 100.0 - tail])
    return float(low), float(high)


def _scenes_needed(difference: float, interval: tuple[float, float], scenes: int, margin: float) -> str:
    """What would decide, if the scenes to come are like the scenes so far: the interval shrinks with their square root."""
    if difference <= margin:
        return "no number of scenes will do if the gain stays so small"
    half_width = (interval[1] - interval[0]) / 2
    needed = math.ceil(scenes * (half_width / (difference - margin)) ** 2)
    return f"about {max(needed, scenes + 1)} scenes like these would decide"
