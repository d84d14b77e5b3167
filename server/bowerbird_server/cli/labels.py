"""`bowerbird labels`: the queue, and labels as files in and out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bowerbird_server.batches.yield_report import yield_report
from bowerbird_server.catalogue import batches, judged, second_looks
from bowerbird_server.catalogue import frames as frame_rows
from bowerbird_server.catalogue.classes import add_classes, class_names, declare_looked_for
from bowerbird_server.cli.common import DATA, AsJson, Data, actor, open_site, say, show_json, show_rows
from bowerbird_server.errors import NotFound
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


@app.command("batches")
def list_batches(
    batch: Annotated[str | None, typer.Argument(help="A batch's id, or its end: its manifest, as JSON.")] = None,
    data: Data = DATA,
    limit: Annotated[int, typer.Option(min=1)] = 50,
    as_json: AsJson = False,
) -> None:
    """Batches and how far they are labelled; of one of them its manifest: policy, seed, who looked, each frame's role and chance."""
    with open_site(data) as site:
        if batch is not None:
            row = batches.find(site.catalogue, batch)
            if row["manifest"] is None:
                raise NotFound(
                    f"batch {row['id']} has no manifest; `bowerbird frames show` says why each of its frames is here"
                )
            show_json({"batch": row["id"], **json.loads(site.blobs.read(row["manifest"]))})
            return
        rows = batches.list_batches(site.catalogue, limit=limit)
    show_rows(
        [{**row, "by": row["policy"].get("by", "score")} for row in rows],
        {
            "id": "batch",
            "created_at": "opened",
            "state": "state",
            "by": "chosen by",
            "frames": "frames",
            "labelled": "labelled",
            "rejected": "rejected",
            "waiting": "waiting",
        },
        as_json=as_json,
        none="no batch yet; `bowerbird frames queue` makes one of received frames",
    )


@app.command()
def classes(
    data: Data = DATA,
    add: Annotated[list[str] | None, typer.Option(help="A new class; may be repeated. Classes are never removed.")] = None,
    looked_for: Annotated[
        list[str] | None,
        typer.Option(help="Say that whatever is labelled by now was looked through for this class; may be repeated."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The classes that this site labels, in class id order.

    Frames that were labelled before a class was added wait for a second look, since they would teach a model to miss it.
    """
    with open_site(data, make=bool(add)) as site:
        if add:
            add_classes(site.catalogue, add, actor())
        for name in looked_for or ():
            declare_looked_for(site.catalogue, name, actor())
        names = class_names(site.catalogue)
    if as_json:
        show_json(names)
    else:
        version = f"\nversion {len(names)} of the class list: it only grows, and each name that is appended makes a version"
        say(
            "\n".join(f"{i} {name}" for i, name in enumerate(names)) + version
            if names
            else "no classes yet; add one with --add"
        )


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


@app.command("yield")
def yield_(
    data: Data = DATA,
    restore: Annotated[bool, typer.Option("--restore", help="Put the policy in force again after a fall-back.")] = False,
    as_json: AsJson = False,
) -> None:
    """Whether choosing frames pays: what labellers changed in chosen frames, against those that chance took."""
    with open_site(data) as site:
        if restore and not judged.restore(site.catalogue, "an operator asked for it", actor()):
            say("the policy was in force already")
        found = yield_report(site.catalogue)
    if as_json:
        show_json(found)
        return
    if found["fallen_back"]:
        say(f"batches are chosen by diversity alone since {found['fallen_back']['since']}: {found['fallen_back']['why']}")
    say(f"policy against control: {found['verdict']['word'].replace('_', ' ')}; {found['verdict']['why']}")
    rows = [
        {
            "strategy": one["strategy"],
            "frames": one["frames"],
            **{name: _interval(one[name]) for name in ("changed", "per_label", "per_megabyte")},
        }
        for one in found["strategies"]
    ]
    show_rows(
        rows,
        {
            "strategy": "strategy",
            "frames": "labelled",
            "changed": "changed by labellers",
            "per_label": "boxes per label",
            "per_megabyte": "boxes per megabyte",
        },
        as_json=False,
        none="no chosen frame is labelled yet",
    )
    for one in found["edits"]:
        say(
            f"pre-labels of {one['frames']} {one['role']} frames: precision {_interval(one['precision'])}, "
            f"recall {_interval(one['recall'])}"
        )
    for one in found["accuracy"]:
        rate = one["per_label"]
        worth = (
            f", {rate['value'] * 1e4:+.2f} points per 100 labels ({rate['low'] * 1e4:+.2f} to {rate['high'] * 1e4:+.2f})"
            if rate
            else ""
        )
        say(
            f"model {one['model'][:10]}: {one['gain']:+.3f} mAP50-95 with {one['labels']} more labels, {one['megabytes']:.1f} MB{worth}"
        )


def _interval(found: Mapping[str, float] | None) -> str:
    return "-" if found is None else f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


@app.command()
def gold(frame: Annotated[str, typer.Argument(help="Id, or its beginning.")], data: Data = DATA) -> None:
    """Make a frame's label a reference: everybody else is asked to label it once, without seeing it, and is held against it."""
    with open_site(data) as site:
        found = frame_rows.find(site.catalogue, frame)["id"]
        second_looks.make_gold(site.catalogue, found, actor())
    say(f"frame {found[:12]} is gold; `bowerbird labels quality` says who agrees with it")


@app.command()
def quality(data: Data = DATA, as_json: AsJson = False) -> None:
    """How far those who label agree with each other, and what is open; asks for second looks at new labels first."""
    with open_site(data) as site:
        second_looks.ask(site.catalogue, site.config.labelling.consensus_share, actor())
        rows = second_looks.report(site.catalogue)
        waiting = second_looks.open_for(site.catalogue, "", 1000)
    if as_json:
        show_json(
            {"authors": rows, "open": [{name: row[name] for name in ("frame", "kind", "why", "author")} for row in waiting]}
        )
        return
    for row in rows:
        row["share"] = f"{row['agreed']['value']:.2f} ({row['agreed']['low']:.2f} to {row['agreed']['high']:.2f})"
        row["mean"] = f"{row['agreement']:.2f}"
    show_rows(
        rows,
        {"author": "author", "kind": "kind", "looks": "looks", "mean": "agreement", "share": "agreed"},
        as_json=False,
        none="no second look was answered yet",
    )
    for row in waiting:
        say(f"open: {row['kind']} {row['frame'][:12]}: {row['why']}")
