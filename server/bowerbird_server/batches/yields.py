"""Whether choosing pays: what labels said of the frames of each strategy, and of the chosen against those that chance took. Pure.

In: judged frames (role, scene, strategies, bytes, what the labeller changed), verdicts of the gate. Out: shares and rates with
intervals, and one verdict on the policy. Whole scenes are resampled, since frames of one scene repeat each other. What a labeller
changes is what the model did not know: boxes added, deleted, reclassed or moved. It is a stand-in for accuracy, at hand after every
batch; what accuracy rose by is told beside it, from the gate, whose comparison cannot tell chosen frames from others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bowerbird_server.batches.batch_choice import CONTROL, EVALUATION, POLICY, RARE

RESAMPLES = 2000
# Before the control is this large no verdict is given: frames and scenes.
MIN_FRAMES, MIN_SCENES = 30, 8
# A gain below this share of the control's rate is not worth having.
SMALLEST_GAIN = 0.1
# Weights of strategies stay between these; a strategy is believed less, never silenced.
LIGHTEST, HEAVIEST = 0.25, 2.0
_PRIOR_FRAMES = 10.0


@dataclass(frozen=True)
class Judged:
    """A frame of a batch that somebody has labelled.

    Args:
        role: in its batch, of `batch_choice.ROLES`.
        chosen_by: `score` or `diversity`: which rule made the batch.
        scene: frames of one are resampled together.
        reasons: the strategies that spoke for it.
        bytes: of its image, which the link carried.
        changes: boxes that the labeller added, deleted, reclassed or moved.
        shown, drawn, right: boxes that the pre-label showed, that the label has, and those of both that are of one class.
    """

    role: str
    chosen_by: str
    scene: str
    reasons: tuple[str, ...]
    bytes: int
    changes: int
    shown: int = 0
    drawn: int = 0
    right: int = 0


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class StrategyYield:
    """What came of a strategy's frames: how many were labelled, which share of them the labeller changed, how it might be weighed.

    `per_label` and `per_megabyte` are changed boxes; None of a single scene, since an interval needs two. A frame for which several
    strategies spoke counts for each.
    """

    strategy: str
    frames: int
    changed: Estimate
    weight: float
    per_label: Estimate | None = None
    per_megabyte: Estimate | None = None


@dataclass(frozen=True)
class EditRate:
    """How good pre-labels were, by what labellers did to them, on the frames of one role; None where there was no box.

    Of chosen frames these are no rates of the field: they were chosen for being wrong. `field_metrics.py` has those.

    Args:
        role: `chosen`, `control` or `evaluation`.
        frames: labelled ones.
        precision: share of the shown boxes that stayed, moved or not.
        recall: share of the drawn boxes that were shown.
    """

    role: str
    frames: int
    precision: Estimate | None
    recall: Estimate | None


@dataclass(frozen=True)
class Comparison:
    """Chosen frames against the control, in changed boxes per label or per megabyte; None where there is nothing to divide by.

    `gain` is None of a single scene on either side as well, since an interval needs two.
    """

    chosen: float | None
    control: float | None
    gain: Estimate | None


@dataclass(frozen=True)
class PolicyVerdict:
    """Whether the policy is better than its control, per label and per megabyte.

    Args:
        word: `better`, `not_better`, or `undecided` for want of labels or of a clear difference.
        why: one sentence with the numbers.
        chosen_frames: labelled frames behind it.
        control_frames: and those that chance took.
        per_label: changed boxes per label.
        per_megabyte: and per megabyte.
    """

    word: Literal["better", "not_better", "undecided"]
    why: str
    chosen_frames: int
    control_frames: int
    per_label: Comparison
    per_megabyte: Comparison


@dataclass(frozen=True)
class AccuracyGain:
    """What a new model gained in mAP50-95 over the one before, for each label and each megabyte that its data set had more.

    `per_label` and `per_megabyte` are None when nothing was added; their intervals are the gate's, whose difference they divide.
    """

    model: str
    labels: int
    megabytes: float
    gain: float
    per_label: Estimate | None
    per_megabyte: Estimate | None


def wilson(hits: int, n: int) -> Estimate:
    """A share and its 95 % interval; (0, 0, 1) of nothing.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    """
    if n == 0:
        return Estimate(0.0, 0.0, 1.0)
    z = 1.959963984540054
    share = hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Estimate(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)))


def by_strategy(judged: Sequence[Judged]) -> list[StrategyYield]:
    """Each strategy's share of changed frames, with a weight against that of all chosen frames, most frames first.

    The weight is the posterior mean of the strategy's share over that of all, drawn towards 1 while labels are few.
    """
    chosen = [one for one in judged if one.role in (POLICY, RARE)]
    overall = (sum(one.changes > 0 for one in chosen) + 0.5) / (len(chosen) + 1.0)
    found = []
    for strategy in sorted({reason for one in chosen for reason in one.reasons}):
        own = [one.changes > 0 for one in chosen if strategy in one.reasons]
        posterior = (sum(own) + _PRIOR_FRAMES * overall) / (len(own) + _PRIOR_FRAMES)
        weight = min(HEAVIEST, max(LIGHTEST, posterior / overall))
        theirs = [one for one in chosen if strategy in one.reasons]
        per_label = _rate(theirs, lambda one: one.changes, lambda _one: 1.0)
        per_megabyte = _rate(theirs, lambda one: one.changes, lambda one: one.bytes / 1e6)
        found.append(StrategyYield(strategy, len(own), wilson(sum(own), len(own)), weight, per_label, per_megabyte))
    return sorted(found, key=lambda one: (-one.frames, one.strategy))


def edit_rates(judged: Sequence[Judged]) -> list[EditRate]:
    """Precision and recall of pre-labels, free with every label: what was kept, of what was shown and of what was drawn."""
    found = []
    for name, roles in (("chosen", (POLICY, RARE)), ("control", (CONTROL,)), ("evaluation", (EVALUATION,))):
        own = [one for one in judged if one.role in roles]
        if own:
            precision = _rate(own, lambda one: one.right, lambda one: one.shown, share=True)
            recall = _rate(own, lambda one: one.right, lambda one: one.drawn, share=True)
            found.append(EditRate(name, len(own), precision, recall))
    return found


def _rate(
    frames: Sequence[Judged], above: Callable[[Judged], float], below: Callable[[Judged], float], *, share: bool = False
) -> Estimate | None:
    """A ratio of two sums with its 95 % interval over scenes drawn with replacement; None without two scenes or anything below.

    Args:
        share: it cannot exceed 1: with few boxes the interval is Wilson's where that is wider, since boxes that were all right say
            nothing of the next one to a resample.
    """
    scenes = sorted({one.scene for one in frames})
    place = {scene: i for i, scene in enumerate(scenes)}
    sums = np.zeros((len(scenes), 2))
    for one in frames:
        sums[place[one.scene]] += (above(one), below(one))
    total = sums.sum(axis=0)
    if len(scenes) < 2 or total[1] <= 0:
        return None
    counts = np.random.default_rng(0).multinomial(len(scenes), np.full(len(scenes), 1 / len(scenes)), RESAMPLES)
    drawn = counts @ sums
    rates = _ratio(drawn[:, 0], drawn[:, 1])
    low, high = np.percentile(rates[np.isfinite(rates)], [2.5, 97.5])
    value = float(total[0] / total[1])
    if share:
        least = wilson(round(float(total[0])), round(float(total[1])))
        return Estimate(value, min(float(low), least.low), max(float(high), least.high))
    return Estimate(value, min(value, float(low)), max(value, float(high)))


def judge_policy(judged: Sequence[Judged], *, seed: int = 0) -> PolicyVerdict:
    """Compare what scores chose with what chance took in the same batches; evaluation frames count for neither.

    `better`: the interval of the gain lies above 0, per label or per megabyte, and the other does not lie below. `not_better`: there is
    enough to see a gain by, and either the mean shows none or the interval leaves room for none that is worth having.
    """
    chosen = [one for one in judged if one.role in (POLICY, RARE) and one.chosen_by == "score"]
    control = [one for one in judged if one.role == CONTROL and one.chosen_by == "score"]
    resampled = _resamples(chosen, control, seed)
    per_label = _compare(chosen, control, resampled, lambda totals: _ratio(totals[1], totals[0]))
    per_megabyte = _compare(chosen, control, resampled, lambda totals: _ratio(totals[1], totals[2] / 1e6))
    word, why = _word(chosen, control, per_label, per_megabyte)
    return PolicyVerdict(word, why, len(chosen), len(control), per_label, per_megabyte)


def _word(
    chosen: Sequence[Judged], control: Sequence[Judged], per_label: Comparison, per_megabyte: Comparison
) -> tuple[Literal["better", "not_better", "undecided"], str]:
    scenes = min(len({one.scene for one in side}) for side in (chosen, control))
    gain, of_bytes = per_label.gain, per_megabyte.gain
    if min(len(chosen), len(control)) < MIN_FRAMES or scenes < MIN_SCENES or gain is None or of_bytes is None:
        return "undecided", (
            f"{len(chosen)} chosen and {len(control)} control frames of {scenes} scenes are labelled; "
            f"{MIN_FRAMES} each of {MIN_SCENES} scenes are needed to judge by"
        )
    numbers = (
        f"{per_label.chosen:.2f} changed boxes per label against {per_label.control:.2f} of the control "
        f"({gain.value:+.2f}, 95 % {gain.low:+.2f} to {gain.high:+.2f}); "
        f"per megabyte {of_bytes.value:+.2f} ({of_bytes.low:+.2f} to {of_bytes.high:+.2f})"
    )
    if (gain.low > 0 and of_bytes.high >= 0) or (of_bytes.low > 0 and gain.high >= 0):
        return "better", numbers
    worthless = gain.high < SMALLEST_GAIN * (per_label.control or 0.0)
    if gain.value <= 0 or worthless:
        return "not_better", numbers
    return "undecided", numbers


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 0, above / below, np.nan)


Rate = Callable[[NDArray[np.float64]], NDArray[np.float64]]  # of frames, changes, bytes


def _compare(chosen: Sequence[Judged], control: Sequence[Judged], resampled: NDArray[np.float64], rate: Rate) -> Comparison:
    ours, theirs = (float(rate(_totals(side))) for side in (chosen, control))
    gains = rate(resampled[:, 0]) - rate(resampled[:, 1])
    gains = gains[np.isfinite(gains)]
    # Scenes are what is drawn again: of a single one nothing can vary, and an interval without width would look like certainty.
    scenes = min(len({one.scene for one in side}) for side in (chosen, control))
    known = math.isfinite(ours) and math.isfinite(theirs) and len(gains) > 0 and scenes >= 2
    gain = None
    if known:
        low, high = np.percentile(gains, [2.5, 97.5])
        gain = Estimate(ours - theirs, float(low), float(high))
    return Comparison(ours if math.isfinite(ours) else None, theirs if math.isfinite(theirs) else None, gain)


def _totals(side: Sequence[Judged]) -> NDArray[np.float64]:
    """(3,) frames, changes, bytes."""
    return np.array([len(side), sum(one.changes for one in side), sum(one.bytes for one in side)], np.float64)


def _resamples(chosen: Sequence[Judged], control: Sequence[Judged], seed: int) -> NDArray[np.float64]:
    """(3, 2, RESAMPLES): frames, changes and bytes of chosen and control, over scenes drawn with replacement.

    A scene that both have is drawn for both: what is peculiar to it falls out of the difference.
    """
    scenes = sorted({one.scene for side in (chosen, control) for one in side})
    place = {scene: i for i, scene in enumerate(scenes)}
    table = np.zeros((len(scenes), 3, 2))
    for side, members in enumerate((chosen, control)):
        for one in members:
            table[place[one.scene], :, side] += (1.0, one.changes, one.bytes)
    if not scenes:
        return np.zeros((3, 2, 0))
    counts = np.random.default_rng(seed).multinomial(len(scenes), np.full(len(scenes), 1 / len(scenes)), RESAMPLES)
    return np.asarray(np.tensordot(counts, table, axes=1).transpose(1, 2, 0), np.float64)


def accuracy_gain(
    model: str, *, labels: int, size_bytes: int, difference: float, interval: tuple[float, float] | None
) -> AccuracyGain:
    """What the gate found, per label and per megabyte that the data set had more than the champion's.

    Args:
        model: digest.
        labels: frames that the new data set has more; 0 or less gives no rate.
        size_bytes: of their images.
        difference: challenger minus champion, mAP50-95.
        interval: of it; None where the gate made none, and there is no rate then.
    """
    megabytes = size_bytes / 1e6

    def per(amount: float) -> Estimate | None:
        if amount <= 0 or interval is None:
            return None
        return Estimate(difference / amount, interval[0] / amount, interval[1] / amount)

    return AccuracyGain(model, labels, megabytes, difference, per(labels), per(megabytes))


def weights_of(found: Sequence[StrategyYield]) -> Mapping[str, float]:
    """Strategy -> weight, for `rescoring.combined`."""
    return {one.strategy: one.weight for one in found}
