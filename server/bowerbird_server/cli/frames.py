"""`bowerbird frames`: list, show, import a folder of pictures, hand frames to annotators."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bowerbird_server.batch import build_batch
from bowerbird_server.catalogue import frames as frame_rows
from bowerbird_server.cli.common import DATA, AsJson, Data, actor, err, open_site, out, progress_bars, show_json, show_rows
from bowerbird_server.dataset_import import import_frames

app = typer.Typer(no_args_is_help=True, help="Frames on the server. Example: bowerbird frames list --state queued")


@app.command("list")
def list_frames(
    data: Data = DATA,
    state: Annotated[str | None, typer.Option(help="received, queued, in_review, labelled, rejected or deleted.")] = None,
    camera: Annotated[str | None, typer.Option(help="device/camera.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    as_json: AsJson = False,
) -> None:
    """Frames with the reasons why they were chosen, newest first."""
    with open_site(data) as site:
        page = frame_rows.list_frames(site.catalogue, state=state, camera=camera, limit=limit)
    rows = list(page.rows)
    for row in rows:
        row["short"], row["shown_score"] = row["id"][:12], f"{row['score']:.3f}"
    show_rows(
        rows,
        {
            "short": "frame",
            "camera": "camera",
            "captured_at": "captured",
            "state": "state",
            "shown_score": "score",
            "reason": "reason",
        },
        as_json=as_json,
        none="no such frames; they come from devices, or with `bowerbird frames import FOLDER`",
    )


@app.command()
def show(frame: str, data: Data = DATA) -> None:
    """Everything about one frame, as JSON: why it was chosen, what the device saw, who labelled it."""
    with open_site(data) as site:
        row = frame_rows.get(site.catalogue, frame)
        labels = site.catalogue.rows("SELECT * FROM label WHERE frame = ? ORDER BY revision", row["id"])
        show_json(
            {
                **row,
                "strategy_scores": json.loads(row["strategy_scores"]),
                "detections": frame_rows.detections(site.catalogue, row["id"]),
                "labels": [{**label, "boxes": json.loads(label["boxes"])} for label in labels],
                "image": str(site.blobs.path(row["blob"])),
            }
        )


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(help="Folder of JPEG, PNG or WebP pictures.")],
    data: Data = DATA,
    queue: Annotated[bool, typer.Option("--queue", help="Hand them to annotators at once.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take in unlabelled pictures from a folder. To send only those worth a label: bowerbird-agent score FOLDER"""
    with open_site(data) as site, progress_bars() as bars:
        task = bars.add_task("importing", total=None)
        result = import_frames(site, folder, lambda done, total: bars.update(task, completed=done, total=total))
        batch = build_batch(site.catalogue, frames=max(1, result.new)) if queue and result.new else None
    for fault in result.skipped:
        err.print(f"skipped {fault}", highlight=False, markup=False)
    if as_json:
        show_json({"new": result.new, "known": result.known, "skipped": list(result.skipped), "batch": batch})
    else:
        out.print(f"{result.new} new frames, {result.known} known already, {len(result.skipped)} skipped", highlight=False)
    if result.skipped and not (result.new or result.known):
        raise typer.Exit(2)


@app.command()
def queue(data: Data = DATA, count: Annotated[int, typer.Option("--frames", min=1, help="At most so many.")] = 100) -> None:
    """Hand received frames to annotators as a batch: the best first, none twice."""
    with open_site(data) as site:
        batch = build_batch(site.catalogue, frames=count, actor=actor())
        out.print("no received frames wait" if batch is None else f"batch {batch}", highlight=False)
