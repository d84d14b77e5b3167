"""Whether choosing frames is worth it: accuracy for the same labels, boxes, bytes and seconds, ours against random and known rivals.

In: nothing (synthetic cameras with drift), or `--data data.yaml [--groups groups.csv]`, or `--video FILE --gt gt.txt`. Out, in
`--out`: `results.csv` (a row for each arm, seed and round), `report.md` with a verdict and an interval for each claim,
`curves.svg`; and the label-efficiency ratio against random as a last line of JSON (goal 2.0). Every seed is a pair: same start
model, same stream, same training seed. All arms of a round get the same optimiser steps (those with all data, at least as
many). What is chosen, trained and tested is chosen, trained and tested by the code of device and server (`efficiency/`).

A run that was stopped goes on where it was when it is started again with the same arguments. It runs on one thread: start two, with
`--seeds 0-4` and `--seeds 5-9` and the same `--out`, to use two cores; `--report` only reads.

    python benchmarks/label_efficiency.py --quick [--data data.yaml]
    nice -n 15 python benchmarks/label_efficiency.py --out build/label-efficiency --arms claims --plateau
    nice -n 15 python benchmarks/label_efficiency.py --out build/film --video FILE --gt gt.txt --arms claims --plateau --seeds 0-5

A first model of the synthetic world takes about four minutes of CPU and a later row two and a quarter: 25 minutes a seed for `claims`,
two hours for `everything`.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
from efficiency import arms, verdicts, worlds
from efficiency.study import Study
from figure import report

from bowerbird_server.errors import ServerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from efficiency.study import Result
    from efficiency.worlds import World

GOAL = 2.0
_DIFFERENT_SEEDS = "Arms have run on different seeds so far, and seeds differ more than arms do: only the pairs compare them."
ARMS = {
    "claims": ("random", "ours", "ours@bytes", "rule-max-first@bytes", "all"),
    "rivals": (
        *("random", "ours", "ours@bytes", "periodic", "rule-max-first@bytes", "rule-max-random", "rule-min-first@bytes"),
        *("rule-min-random", "entropy-max", "entropy-mean", "entropy-sum", "k-center", "ppal-like", "oracle", "all"),
    ),
    "ablations": tuple(arms.POLICIES),
    "everything": (*arms.names(), "ours@bytes", "rule-max-first@bytes", "rule-min-first@bytes", "random@bytes"),
}


def main() -> int:
    """Run the benchmark, as far as it has not been run."""
    options = _arguments().parse_args()
    if fault := _fault(options):
        sys.exit(fault)
    cv2.setNumThreads(1)
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            study = Study(Path(folder), rounds=1, picks=16 if options.picks is None else options.picks, told=_say)
            try:
                study.run(_quick_world(options, Path(folder)), 0, ("random", "ours"))
            except ServerError as error:
                sys.exit(str(error))
            return _tell(study, None, quick=True)
    names = [name for group in options.arms.split(",") for name in ARMS.get(group, (group,))]
    names += [f"{arm}+steps" for arm in ("random", arms.ALL) if arm in (*names, "random")] if options.plateau else []
    for name in names:
        if name.removesuffix("+steps").removesuffix("@bytes") not in arms.names():
            sys.exit(f"no arm {name!r}; choose among {', '.join((*ARMS, *arms.names()))}, each arm also as NAME@bytes")
    if options.report and not (options.out / "results.csv").is_file():
        sys.exit(f"{options.out} has no results.csv yet; run without --report first, or name the folder with --out")
    study = Study(options.out, rounds=options.rounds, picks=options.picks, told=_say)
    if not options.report:
        try:
            for seed in options.seeds:
                study.run(_world(options, seed, options.out), seed, dict.fromkeys(names))
        except ServerError as error:
            sys.exit(str(error))
    return _tell(study, options.out, quick=False)


def _say(line: str) -> None:
    print(line, flush=True)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one pair of tiny trainings, with --data or --video on that: shows that it works, says nothing else",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("build/label-efficiency"), help="folder of results, one for each stream"
    )
    parser.add_argument("--arms", default="claims", help=f"comma-separated arms, or {', '.join(ARMS)} (default claims)")
    parser.add_argument("--seeds", type=_seeds, default="0-9", help="like 0-9 or 0,3,5 (default 0-9)")
    parser.add_argument("--rounds", type=_positive, default=2, help="rounds of choosing after the start (default 2)")
    parser.add_argument("--picks", type=_positive, help="frames a round (default 45; film 18, data set 40)")
    parser.add_argument(
        "--plateau", action="store_true", help="also random, and all if it is among the arms, with twice the steps"
    )
    parser.add_argument("--data", type=Path, help="data.yaml of a YOLO data set with `train` and `val`")
    parser.add_argument("--groups", type=Path, help="CSV `image,group[,camera[,seconds]]`; pictures of a group stay together")
    parser.add_argument("--video", type=Path, help="a film; needs --gt")
    parser.add_argument("--gt", type=Path, help="its ground truth in MOTChallenge form")
    parser.add_argument("--report", action="store_true", help="only read the results and write the report")
    return parser


def _fault(options: argparse.Namespace) -> str:
    """Why the arguments do not fit together; "" when they do."""
    if options.video is not None and options.data is not None:
        return "--video and --data are two streams; run them apart, each with an --out of its own"
    if options.video is not None and options.gt is None:
        return "--video needs --gt: without ground truth there is nothing to train on or test with"
    if options.gt is not None and options.video is None:
        return "--gt is the ground truth of a film; name that with --video"
    if options.groups is not None and options.data is None:
        return "--groups says which pictures of a data set belong together; name that with --data"
    return ""


def _quick_world(options: argparse.Namespace, folder: Path) -> World:
    """A small synthetic world, or the given film or data set with trainings as small."""
    if options.video is None and options.data is None:
        return worlds.synthetic(0, frames_a_camera=80, start=40, test=48, quick=True)
    world = _world(options, 0, folder)
    return replace(world, training={**world.training, "image_size": 96}, start_steps=120, round_steps=60)


def _world(options: argparse.Namespace, seed: int, out: Path) -> World:
    if options.video is not None:
        world = worlds.film(seed, options.video, options.gt, out / "film")
    elif options.data is not None:
        world = worlds.data_set(seed, options.data, options.groups)
    else:
        world = worlds.synthetic(seed)
    if not world.stream or not world.test or not world.start:
        sizes = f"{len(world.start)} frames for the start, {len(world.stream)} in the stream, {len(world.test)} in the test"
        sys.exit(f"{world.name}: {sizes}; none may be empty")
    for part, frames in (("start", world.start), ("test", world.test)):
        if not any(len(frame.boxes_xyxy) for frame in frames):
            sys.exit(f"{world.name}: no frame of the {part} has an object; is the ground truth that of these pictures?")
    return world


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def _seeds(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or not (last or first).isdecimal() or int(last or first) < int(first):
            raise argparse.ArgumentTypeError(f"must be like 0-9 or 0,3,5, not {text!r}")
        found += range(int(first), int(last or first) + 1)
    return found


def _tell(study: Study, out: Path | None, *, quick: bool) -> int:
    """Print the report, write it into `out`, and end with the figure."""
    results = study.results()
    table = verdicts.Table(results)
    lines = _report(table, quick=quick)
    print("\n".join(lines))
    found = verdicts.claims(table)
    if out is not None and results:
        (out / "report.md").write_text(
            "\n".join(["# Label efficiency", "", f"Command: `{' '.join(sys.argv)}`", "", *_made_of(results), "", *lines, ""])
        )
        _draw(table, out / "curves.svg")
    ratio = next((claim for claim in found if claim.text.startswith("random needs twice as many frames")), None)
    value = None if ratio is None or math.isnan(ratio.value) else ratio.value
    overshoots = sum(result.overshoot > 0 for result in results)
    return report(
        "label_efficiency",
        value,
        GOAL,
        "frames that random needs over those that ours needs",
        at_least=True,
        also=overshoots == 0 and not quick,
        details={
            "claims": {
                claim.text: [claim.verdict, *_numbers(claim.value, claim.low, claim.high), claim.pairs] for claim in found
            },
            "overshoots": overshoots,
            "rows": len(results),
            "training": results[-1].versions if results else "",
            "note": "one pair of tiny models: a sign that it runs, no evidence of anything" if quick else "",
        },
    )


def _numbers(*values: float) -> list[float | None]:
    """For JSON, which has no infinity."""
    return [round(value, 4) if math.isfinite(value) else None for value in values]


def _made_of(results: Sequence[Result]) -> list[str]:
    """The rows' streams, seeds and versions: those of the runs that made them, not of whoever reads them now."""
    seeds = sorted({result.seed for result in results})
    rounds = max(result.round for result in results)
    lines = [f"{len(results)} rows of seeds {', '.join(map(str, seeds))}, {rounds} rounds at most; start models count as rows."]
    lines += [f"Stream: `{world}`" for world in dict.fromkeys(result.world for result in results)]
    return lines + [f"Made with: `{versions}`" for versions in dict.fromkeys(result.versions for result in results)]


def _report(table: verdicts.Table, *, quick: bool) -> list[str]:
    lines = []
    if quick:
        lines += [
            "One seed, tiny pictures and seconds of training: this shows that every part runs. It says nothing about any claim.",
            "",
        ]
    lines += ["| claim | value | 95 % interval | pairs (needed) | verdict |", "| --- | --- | --- | --- | --- |"]
    for claim in verdicts.claims(table):
        note = f"; {claim.note}" if claim.note else ""
        interval = f"{claim.low:.2f} to {claim.high:.2f}"
        lines.append(
            f"| {claim.text} | {claim.value:.2f} | {interval} | {claim.pairs} ({claim.pairs_needed}) | {claim.verdict}{note} |"
        )
    lines += _rounds(table)
    lines += ["", "Ours minus each arm after the last round, points of mAP50-95 on the whole test:", ""]
    lines += [
        "| arm | difference | 95 % interval | pairs | p (Holm) | area under its curve |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    areas = verdicts.areas(table)
    for arm, (found, p) in sorted(verdicts.against_ours(table).items(), key=lambda item: item[1][0].mean):
        area = f"{areas[arm]:.2f}" if arm in areas else ""
        lines.append(
            f"| {arm} | {found.mean:+.2f} | {found.low:+.2f} to {found.high:+.2f} | {found.pairs} | {p:.3f} | {area} |"
        )
    lines += ["", "Means over seeds after the last round:", ""]
    if _on_different_seeds(table):
        lines += [_DIFFERENT_SEEDS, ""]
    lines += [
        "| arm | seeds | frames | boxes | kB | annotator min | scenes | misses per 100 labels | mAP50-95 |",
        "| --- " * 9 + "|",
    ]
    for arm in table.arms:
        rows = [table.row(arm, seed, table.rounds(arm)) for seed in table.seeds(arm)]
        n = max(1, len(rows))
        chosen = max(1, sum(r.chosen for r in rows))
        lines.append(
            f"| {arm} | {len(rows)} | {sum(r.frames for r in rows) / n:.0f} | {sum(r.boxes for r in rows) / n:.0f} | "
            f"{sum(r.size_bytes for r in rows) / n / 1e3:.0f} | {sum(r.annotator_s for r in rows) / n / 60:.0f} | "
            f"{sum(r.scenes for r in rows) / n:.0f} | {100 * sum(r.misses_found for r in rows) / chosen:.0f} | "
            f"{sum(r.map50_95 for r in rows) / n:.4f} |"
        )
    return lines


def _rounds(table: verdicts.Table) -> list[str]:
    """How ours stands against random and against the rule after each round. No verdicts: those are of the last round."""
    measures = {"all": verdicts.points}
    measures |= {what: verdicts.slice_points(name) for name, what in verdicts.SLICES}
    lines = []
    for ours, other in ((verdicts.OURS, verdicts.RANDOM), ("ours@bytes", verdicts.RULE)):
        for what, measure in measures.items():
            found = table.by_round(ours, other, measure)
            cells = [f"{each.mean:+.2f} ({each.low:+.2f} to {each.high:+.2f})" for each in found]
            if cells:
                lines.append(f"| {ours} - {other}, {what} | {' | '.join(cells)} |")
    if not lines:
        return []
    columns = lines[0].count("|") - 3
    head = f"| points of mAP50-95 | {' | '.join(f'round {r + 1}' for r in range(columns))} | each seed's mean |"
    return ["", "After each round, with 95 % intervals:", "", head, "| --- " * (columns + 2) + "|", *lines]


def _on_different_seeds(table: verdicts.Table) -> bool:
    return len({tuple(table.seeds(arm)) for arm in table.arms if not arm.startswith(verdicts.ALL) and "+" not in arm}) > 1


def _draw(table: verdicts.Table, path: Path) -> None:
    """Mean accuracy against each currency; left out where matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        return
    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(verdicts.CURRENCIES), figsize=(18, 4.5), sharey=True)
    for axis, currency in zip(axes, verdicts.CURRENCIES, strict=True):
        for arm in table.arms:
            seeds = [seed for seed in table.seeds(arm) if seed in table.starts]
            if not seeds or arm.startswith(verdicts.ALL):
                continue
            curves = [table.curve(arm, seed, currency, table.rounds(arm)) for seed in seeds]
            means = [[sum(point[i] for point in at) / len(seeds) for i in (0, 1)] for at in zip(*curves, strict=True)]
            axis.plot([x for x, _ in means], [y for _, y in means], marker="o", label=f"{arm} ({len(seeds)})")
        axis.set_xlabel(currency)
    axes[0].set_ylabel("mAP50-95, mean over seeds")
    axes[-1].legend(fontsize="small")
    if _on_different_seeds(table):
        figure.suptitle(_DIFFERENT_SEEDS, fontsize="small")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
