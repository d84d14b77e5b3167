"""`bowerbird labels`: the queue, and labels as files in and out."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bowerbird_server.catalogue import batches
from bowerbird_server.catalogue.classes import add_classes, class_names
from bowerbird_server.cli.common import DATA, AsJson, Data, actor, open_site, say, show_json, show_rows
from bowerbird_server.labelling import files

app = typer.Typer(no_args_is_help=True, help="Labels. Example: bowerbird labels export labels/ --format coco")


class Format(StrEnum):
    """Forms of label files."""

    YOLO = "yolo"
    COCO = "coco"


@app.command()
def queue(data: Data = DATA, limit: Annotated[int, typer.Option(min=1)] = 50, as_json: AsJson = False) -> None:
    """Frames that wait for a label, and why; the review page of `bowerbird serve` is where they are labelled."""
    with open_site(data) as site:
        rows = [dict(row) for row in batches.queue(site.catalogue, limit)]
    for row in rows:
        row["short"] = row["id"][:12]
    show_rows(
        rows,
        {"short": "frame", "camera": "camera", "captured_at": "captured", "why": "why"},
        as_json=as_json,
        none="the queue is empty; `bowerbird frames queue` hands received frames to annotators",
    )


@app.command()
def classes(
    data: Data = DATA,
    add: Annotated[list[str] | None, typer.Option(help="A new class; may be repeated. Classes are never removed.")] = None,
    as_json: AsJson = False,
) -> None:
    """The classes that this site labels, in class id order."""
    with open_site(data, make=bool(add)) as site:
        if add:
            add_classes(site.catalogue, add, actor())
        names = class_names(site.catalogue)
    if as_json:
        show_json(names)
    else:
        say("\n".join(f"{i} {name}" for i, name in enumerate(names)) or "no classes yet; add one with --add")


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Where to write; must be empty or new.")],
    data: Data = DATA,
    form: Annotated[
        Format, typer.Option("--format", help="yolo: images, labels and data.yaml. coco: images and one JSON.")
    ] = Format.YOLO,
) -> None:
    """Write labelled frames with their newest labels, to look at or to work on elsewhere."""
    with open_site(data) as site:
        write = files.export_yolo if form is Format.YOLO else files.export_coco
        written = write(site.catalogue, site.blobs, folder)
        site.catalogue.log(
            actor(), "labels exported", str(folder.resolve()), {"folder": str(folder.resolve()), "frames": written}
        )
    say(f"{written} labelled frames in {folder}")


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="data.yaml or folder (yolo), or the JSON file (coco).")],
    data: Data = DATA,
    form: Annotated[Format, typer.Option("--format")] = Format.YOLO,
    author: Annotated[str | None, typer.Option(help="Who made the labels.")] = None,
    as_json: AsJson = False,
) -> None:
    """Take in labels for frames of this server; all faults are listed with file and line, and then nothing is changed."""
    with open_site(data) as site:
        read = files.import_yolo if form is Format.YOLO else files.import_coco
        # A data.yaml stands for its folder.
        place = source.parent if form is Format.YOLO and source.is_file() else source
        result = read(site.catalogue, site.blobs, place, author or actor())
    if as_json:
        show_json(asdict(result))
    else:
        say(f"{result.frames} frames labelled, {result.boxes} boxes")
