"""`bowerbird-agent score`: a folder of unlabelled pictures in, the ones worth labelling out.

In: arguments. Out: text, JSON, a CSV file, copies of the chosen pictures. What is worth a label is decided by `folder_score.py`.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bowerbird_agent.cli.options import EXIT_FAILED, EXIT_OK, add_command, positive

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from bowerbird_agent.replay.folder_score import ScoredPicture


def add_score(commands: Any) -> None:
    """The command `score`."""
    score = add_command(
        commands,
        "score",
        "a folder of unlabelled pictures in, the ones worth labelling out",
        "bowerbird-agent score pictures/ --model best.onnx --top 100 --out to-label/\n"
        "  bowerbird-agent score pictures/ --model best.onnx --budget-bytes 20000000 --json",
    )
    score.add_argument("folder", type=Path, metavar="DIR", help="pictures, also in folders below")
    score.add_argument("--model", type=Path, required=True, help="ONNX file or model package")
    score.add_argument("--top", type=positive, metavar="N", help="most pictures to choose (default: 50 without --budget-bytes)")
    score.add_argument("--budget-bytes", type=positive, metavar="N", help="most bytes of pictures to choose")
    score.add_argument("--out", type=Path, metavar="DIR", help="copy the chosen pictures there, with chosen.csv")
    score.add_argument("--csv", type=Path, metavar="FILE", help="write every picture with its score and what became of it")
    score.add_argument("--threads", type=positive, default=1, metavar="N", help="threads of the model (default 1)")
    score.set_defaults(command=_score)


def _score(arguments: argparse.Namespace) -> int:
    from bowerbird_agent.replay.folder_score import BROKEN, CHOSEN, score_folder
    from bowerbird_agent.tuning.opening import open_detector

    top = arguments.top if arguments.top is not None or arguments.budget_bytes is not None else 50
    detector = open_detector(arguments.model, threads=arguments.threads)
    shows = sys.stderr.isatty() and not arguments.json

    def progress(done: int, total: int) -> None:
        if shows and (done % 10 == 0 or done == total):
            print(f"\r{done}/{total} pictures", end="\n" if done == total else "", file=sys.stderr, flush=True)

    scored = score_folder(arguments.folder, detector, top=top, budget_bytes=arguments.budget_bytes, progress=progress)
    chosen = [picture for picture in scored if picture.outcome == CHOSEN]
    broken = [picture for picture in scored if picture.outcome == BROKEN]
    if arguments.csv is not None:
        _write_csv(arguments.csv, scored)
    if arguments.out is not None:
        _copy(arguments.folder, chosen, arguments.out)
    if arguments.json:
        print(
            json.dumps(
                {"pictures": [_row(picture) for picture in scored], "chosen": len(chosen), "broken": len(broken)}, indent=1
            )
        )
    else:
        for picture in chosen:
            print(f"{picture.value:.3f}  {','.join(picture.reasons) or '-':24}  {picture.path}")
        _print_totals(scored)
    for picture in broken:
        print(f"skipped, does not decode: {picture.path}", file=sys.stderr)
    return EXIT_OK if len(broken) < len(scored) else EXIT_FAILED


def _row(picture: ScoredPicture) -> dict[str, Any]:
    return {
        "path": str(picture.path),
        "outcome": picture.outcome,
        "value": round(picture.value, 4),
        "reasons": list(picture.reasons),
        "detections": picture.detections,
        "best_score": round(picture.best_score, 4),
        "like": "" if picture.like is None else str(picture.like),
        "bytes": picture.size_bytes,
    }


def _write_csv(path: Path, pictures: Sequence[ScoredPicture]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "outcome", "value", "reasons", "detections", "best_score", "like", "bytes"])
        for picture in pictures:
            row = _row(picture)
            writer.writerow([*list(row.values())[:3], " ".join(row["reasons"]), *list(row.values())[4:]])


def _copy(folder: Path, chosen: Sequence[ScoredPicture], out: Path) -> None:
    """The chosen pictures under their own names, with the table of why."""
    for picture in chosen:
        target = out / picture.path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(picture.path, target)
    out.mkdir(parents=True, exist_ok=True)
    _write_csv(out / "chosen.csv", chosen)


def _print_totals(scored: Sequence[ScoredPicture]) -> None:
    outcomes: dict[str, int] = {}
    for picture in scored:
        outcomes[picture.outcome] = outcomes.get(picture.outcome, 0) + 1
    print(f"{len(scored)} pictures: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())))
