"""`bowerbird frames`: list, show, import a folder of pictures, hand frames to annotators."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bowerbird_server.batches.batch import build_batch
from bowerbird_server.batches.looking import try_to_look
from bowerbird_server.catalogue import fetches
from bowerbird_server.catalogue import frames as frame_rows
from bowerbird_server.catalogue.batches import queue_length
from bowerbird_server.catalogue.labels import labels_of
from bowerbird_server.catalogue.record_keeping import delete_frames, keep_records
from bowerbird_server.cli.common import DATA, AsJson, Data, actor, open_site, progress_of, say, show_json, show_rows, tell
from bowerbird_server.errors import BadInput, NotFound
from bowerbird_server.site import Site
from bowerbird_server.training.dataset_import import import_frames
from bowerbird_wire.linked import AROUND, ORIGINAL

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
    if state is not None and state not in frame_rows.STATES:
        raise BadInput(f"no frame is ever {state!r}; the states are {', '.join(frame_rows.STATES)}")
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
        row = frame_rows.find(site.catalogue, frame)
        show_json(
            {
                **row,
                "strategy_scores": json.loads(row["strategy_scores"]),
                "labels": labels_of(site.catalogue, row["id"]),
                "image": str(site.blobs.path(row["blob"])),
            }
        )


@app.command()
def fetch(
    frame: Annotated[str, typer.Argument(help="Id, or its beginning.")],
    data: Data = DATA,
    original: Annotated[bool, typer.Option("--original", help="The picture as the camera gave it.")] = False,
    around: Annotated[float | None, typer.Option(help="The pictures so many seconds around it, e.g. 3.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a frame's device for more of it; says what became of what was asked before. Example: bowerbird frames fetch 3f9 --original"""
    with open_site(data) as site:
        row = frame_rows.find(site.catalogue, frame)
        if original:
            fetches.ask(site.catalogue, row["id"], ORIGINAL, actor())
        if around is not None:
            fetches.ask(site.catalogue, row["id"], AROUND, actor(), seconds=around)
        rows = fetches.of_frame(site.catalogue, row["id"])
    for wish in rows:
        wish["shown"] = f"around {wish['seconds']:g} s" if wish["kind"] == AROUND else wish["kind"]
        wish["came"] = f"{wish['arrived']} of {wish['frames']}" if wish["frames"] else ""
        wish["why"] = ": ".join(part for part in (wish["code"], wish["detail"]) if part)
    show_rows(
        rows,
        {"shown": "asked for", "state": "state", "came": "came", "why": "why", "asked_at": "asked"},
        as_json=as_json,
        none="nothing was asked of this frame's device; --original or --around SECONDS does",
    )


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(help="Folder of JPEG, PNG or WebP pictures.")],
    data: Data = DATA,
    queue: Annotated[bool, typer.Option("--queue", help="Hand them to annotators at once.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take in unlabelled pictures from a folder. To send only those worth a label: bowerbird-agent score FOLDER"""
    with open_site(data, make=True) as site, progress_of("importing") as progress:
        result = import_frames(site, folder, progress)
        batch = _build(site, max(1, result.new)) if queue and result.new else None
        keep_records(site.catalogue, site.blobs)
    for fault in result.skipped:
        tell(f"skipped {fault}")
    if as_json:
        show_json({"new": result.new, "known": result.known, "skipped": list(result.skipped), "batch": batch})
    else:
        say(f"{result.new} new frames, {result.known} known already, {len(result.skipped)} skipped")
    if result.skipped and not (result.new or result.known):
        raise typer.Exit(2)


@app.command()
def delete(
    frame: Annotated[list[str], typer.Argument(help="Ids, or their beginnings.")],
    why: Annotated[str, typer.Option(help="Kept with the deletion, e.g. who asked for it.")],
    data: Data = DATA,
    as_json: AsJson = False,
) -> None:
    """Delete frames and their images for good; a device that sends one again is refused. Labels stay as text, without a picture."""
    with open_site(data) as site:
        ids = []
        for beginning in frame:
            try:
                ids.append(frame_rows.find(site.catalogue, beginning)["id"])
            except NotFound as error:
                raise NotFound(f"{error}; nothing was deleted") from error
        deleted = delete_frames(site.catalogue, site.blobs, ids, actor(), why)
    if as_json:
        show_json({"frames": deleted.frames, "images": deleted.images})
    else:
        say(f"{deleted.frames} frames deleted, {deleted.images} image files removed")


@app.command()
def queue(data: Data = DATA, count: Annotated[int, typer.Option("--frames", min=1, help="At most so many.")] = 100) -> None:
    """Hand received frames to annotators as a batch: the best first, none twice. Example: bowerbird frames queue --frames 50"""
    with open_site(data) as site:
        batch = _build(site, count)
        if batch is None:
            say("no received frames wait; they come from devices, or with `bowerbird frames import FOLDER`")
            return
        waiting = queue_length(site.catalogue)
        say(f"batch {batch}; {waiting} frames wait for a label, on the review page of `bowerbird serve`")


def _build(site: Site, frames: int) -> str | None:
    try_to_look(site)
    return build_batch(site.catalogue, frames=frames, actor=actor(), blobs=site.blobs, settings=site.config.labelling)
