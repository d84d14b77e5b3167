"""What the rows say about each claim, and how sure that is. In: results. Out: claims with interval and verdict. Pure.

A claim with fewer pairs than it needs is "undecided", whatever its mean says. Accuracy is in points: mAP50-95 times 100.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from efficiency.statistics import PairedDifference, area_under_curve, efficiency_ratio, holm, paired_difference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from efficiency.study import Result

Verdict = Literal["holds", "does not hold", "undecided"]
PAIRS_FOR_A_CLAIM, PAIRS_FOR_THE_HEADLINE = 6, 10
OURS, RANDOM, RULE, ALL = "ours", "random", "rule-max-first@bytes", "all"
SLICES = (("condition:night", "after the drift"), ("camera:unseen", "on unseen cameras"))
_LONGER = "+steps"
CURRENCIES = ("frames", "boxes", "size_bytes", "annotator_s")


@dataclass(frozen=True)
class Claim:
    """One claim and what became of it.

    Args:
        text: the claim.
        value, low, high: the figure and its 95 % interval.
        pairs, pairs_needed: seeds.
        verdict: of it.
        note: what to know.
    """

    text: str
    value: float
    low: float
    high: float
    pairs: int
    pairs_needed: int
    verdict: Verdict
    note: str = ""


class Table:
    """Results by arm, seed and round."""

    def __init__(self, results: Sequence[Result]) -> None:
        self._rows = {(r.arm, r.seed, r.round): r for r in results}
        self.starts = {r.seed: r for r in results if r.arm == "start"}

    @property
    def arms(self) -> list[str]:
        """All but the start, in the order of names."""
        return sorted({arm for arm, _, _ in self._rows if arm != "start"})

    def rounds(self, arm: str) -> int:
        """The last round that an arm has."""
        return max((r for a, _, r in self._rows if a == arm), default=0)

    def seeds(self, *arms: str) -> list[int]:
        """Seeds for which all of these arms have run as far as the first of them to end."""
        last = min(self.rounds(arm) for arm in arms)
        known = sorted({seed for _, seed, _ in self._rows})
        return [s for s in known if last > 0 and all((arm, s, r) in self._rows for arm in arms for r in range(1, last + 1))]

    def row(self, arm: str, seed: int, round_number: int) -> Result:
        """One of them."""
        return self._rows[arm, seed, round_number]

    def curve(self, arm: str, seed: int, currency: str, rounds: int) -> list[tuple[float, float]]:
        """(cost, mAP50-95) of the start and of each round."""
        rows = ([self.starts[seed]] if seed in self.starts else []) + [self._rows[arm, seed, r] for r in range(1, rounds + 1)]
        return [(float(getattr(row, currency)), row.map50_95) for row in rows]

    def compare(self, a: str, b: str, measure: Callable[[Result], float | None]) -> PairedDifference | None:
        """a - b after the last round that both have; None without a pair."""
        last = min(self.rounds(a), self.rounds(b))
        return self._over(a, b, measure, (last,))

    def by_round(self, a: str, b: str, measure: Callable[[Result], float | None]) -> list[PairedDifference]:
        """a - b after each round that both have, and at the end that of each seed's mean over the rounds; [] without a pair."""
        rounds = tuple(range(1, min(self.rounds(a), self.rounds(b)) + 1))
        found = [self._over(a, b, measure, each) for each in (*((r,) for r in rounds), rounds)]
        return [each for each in found if each is not None]

    def _over(
        self, a: str, b: str, measure: Callable[[Result], float | None], rounds: tuple[int, ...]
    ) -> PairedDifference | None:
        differences = []
        for seed in self.seeds(a, b):
            pairs = [(measure(self.row(a, seed, r)), measure(self.row(b, seed, r))) for r in rounds]
            known = [left - right for left, right in pairs if left is not None and right is not None]
            if known and len(known) == len(rounds):
                differences.append(sum(known) / len(known))
        return paired_difference(differences) if differences else None


def points(result: Result) -> float:
    """MAP50-95 in points."""
    return 100.0 * result.map50_95


def slice_points(name: str) -> Callable[[Result], float | None]:
    """The same of one slice; None where the test has none of it."""

    def measure(result: Result) -> float | None:
        value = json.loads(result.slices).get(name)
        return None if value is None else 100.0 * float(value)

    return measure


def claims(table: Table) -> list[Claim]:
    """Every claim for which the arms have run."""
    found = []
    bytes_arm = table.compare("ours@bytes", RULE, points)
    if bytes_arm is not None:
        text = "at equal bytes better than `max conf < 0.6` first come, first served (points)"
        found.append(_claim(text, bytes_arm, PAIRS_FOR_A_CLAIM, bytes_arm.low > 0))
    against = table.compare(OURS, RANDOM, points)
    if against is not None:
        held = against.mean >= -0.5 and against.one_sided_low > -1.0
        note = f"one-sided 95 % bound {against.one_sided_low:+.2f}"
        found.append(_claim("at equal labels not worse than random (points)", against, PAIRS_FOR_THE_HEADLINE, held, note))
        for name, what in SLICES:
            on_slice = table.compare(OURS, RANDOM, slice_points(name))
            if on_slice is not None:
                text = f"better than random {what} (points)"
                found.append(_claim(text, on_slice, PAIRS_FOR_THE_HEADLINE, on_slice.low > 0))
        found += [_efficiency(table, currency) for currency in CURRENCIES]
        found.append(_misses(table))
    share = _never_sent(table)
    if share is not None:
        found.append(share)
    for arm, whose in ((RANDOM, "random's accuracy"), (ALL, "the accuracy of all labels")):
        plateau = table.compare(arm + _LONGER, arm, points)
        if plateau is not None:
            held = abs(plateau.mean) <= 1.0
            text = f"twice the optimiser steps change {whose} by at most a point"
            found.append(_claim(text, plateau, 2, held, "training is on its plateau" if held else "figures hang on the steps"))
    return found


def against_ours(table: Table) -> dict[str, tuple[PairedDifference, float]]:
    """Arm -> ours minus it (points), and p after Holm over all arms of the same kind of limit."""
    found: dict[str, PairedDifference] = {}
    for arm in table.arms:
        ours = "ours@bytes" if arm.endswith("@bytes") else OURS
        if arm in (OURS, "ours@bytes", ALL) or arm.endswith(_LONGER):
            continue
        difference = table.compare(ours, arm, points)
        if difference is not None:
            found[arm] = difference
    adjusted = holm({arm: difference.p for arm, difference in found.items()})
    return {arm: (difference, adjusted[arm]) for arm, difference in found.items()}


def areas(table: Table) -> Mapping[str, float]:
    """Arm -> mean accuracy over the labels (points), averaged over its seeds."""
    found = {}
    for arm in table.arms:
        seeds = [seed for seed in table.seeds(arm) if seed in table.starts]
        curves = [table.curve(arm, seed, "frames", table.rounds(arm)) for seed in seeds]
        if curves:
            values = [area_under_curve([c for c, _ in curve], [100 * a for _, a in curve]) for curve in curves]
            found[arm] = sum(values) / len(values)
    return found


def _claim(text: str, found: PairedDifference, needed: int, held: bool, note: str = "") -> Claim:
    verdict: Verdict = "undecided" if found.pairs < needed else "holds" if held else "does not hold"
    return Claim(text, found.mean, found.low, found.high, found.pairs, needed, verdict, note)


def _efficiency(table: Table, currency: str) -> Claim:
    rounds = min(table.rounds(OURS), table.rounds(RANDOM))
    seeds = [seed for seed in table.seeds(OURS, RANDOM) if seed in table.starts]
    base, ours = ([table.curve(arm, seed, currency, rounds) for seed in seeds] for arm in (RANDOM, OURS))
    text = f"random needs twice as many {currency} for the same accuracy (ratio, start included)"
    if not seeds:
        return Claim(text, math.nan, 0.0, math.inf, 0, PAIRS_FOR_THE_HEADLINE, "undecided")
    ratio, low, high = efficiency_ratio(base, ours)
    verdict: Verdict = "undecided" if len(seeds) < PAIRS_FOR_THE_HEADLINE else "holds" if low >= 2.0 else "does not hold"
    return Claim(text, ratio, low, high, len(seeds), PAIRS_FOR_THE_HEADLINE, verdict)


def _misses(table: Table) -> Claim:
    """Ratio of misses found for each label chosen, with the interval of the log ratio."""
    last = min(table.rounds(OURS), table.rounds(RANDOM))
    logs = []
    for seed in table.seeds(OURS, RANDOM):
        ours, base = table.row(OURS, seed, last), table.row(RANDOM, seed, last)
        if min(ours.misses_found, base.misses_found, ours.chosen, base.chosen) > 0:
            logs.append(math.log(ours.misses_found / ours.chosen) - math.log(base.misses_found / base.chosen))
    text = "finds twice random's misses per label, as distinct (object, scene) (ratio)"
    if not logs:
        return Claim(text, math.nan, 0.0, math.inf, 0, PAIRS_FOR_A_CLAIM, "undecided", "no seed with misses in both arms")
    found = paired_difference(logs)
    high = math.exp(found.high) if found.high < 700 else math.inf
    verdict: Verdict = (
        "undecided" if found.pairs < PAIRS_FOR_A_CLAIM else "holds" if found.mean >= math.log(2) else "does not hold"
    )
    return Claim(text, math.exp(found.mean), math.exp(found.low), high, found.pairs, PAIRS_FOR_A_CLAIM, verdict)


def _never_sent(table: Table) -> Claim | None:
    """Share of start and stream that was never sent when 95 % of the accuracy of all labels was reached; the start counts as sent.

    All labels may need more steps than a few do: where they were trained for longer as well, the better of the two counts.
    """
    shares, missing = [], 0
    for seed in table.seeds(OURS) if OURS in table.arms else []:
        of_all = [table.row(arm, seed, 1).map50_95 for arm in (ALL, ALL + _LONGER) if seed in table.seeds(arm)]
        if not of_all:
            continue
        wanted = 0.95 * max(of_all)
        rows = [table.row(OURS, seed, r) for r in range(1, table.rounds(OURS) + 1)]
        reached = next((row for row in rows if row.map50_95 >= wanted), None)
        missing += reached is None
        last = reached or rows[-1]
        there = last.frames - last.chosen + last.stream_frames
        shares.append(100.0 * (1.0 - last.frames / there) if reached else 0.0)
    if not shares:
        return None
    found = paired_difference(shares)
    note = f"{missing} of {len(shares)} seeds did not reach it in their rounds and count as 0" if missing else ""
    return _claim(
        "per cent of frames never sent at 95 % of the accuracy of all labels (needs 92)", found, 1, found.mean >= 92.0, note
    )
