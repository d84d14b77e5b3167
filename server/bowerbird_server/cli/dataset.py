"""`bowerbird dataset`: import what you have, freeze versions, list and export them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bowerbird_server.catalogue import overview
from bowerbird_server.catalogue.datasets import dataset_version, split_counts
from bowerbird_server.cli.common import DATA, AsJson, Config, Data, actor, open_site, progress_of, say, show_json, show_rows
from bowerbird_server.errors import BadInput
from bowerbird_server.training.dataset_import import import_dataset
from bowerbird_server.training.snapshot import materialise, take_snapshot

app = typer.Typer(no_args_is_help=True, help="Data set versions. Example: bowerbird dataset import data.yaml")


@app.command("import")
def import_(
    data_yaml: Annotated[Path, typer.Argument(help="data.yaml of an Ultralytics data set.")],
    data: Data = DATA,
    groups: Annotated[
        Path | None,
        typer.Option(help="CSV with columns image, scene and slices (separated by ';'): which images belong together."),
    ] = None,
    skip_faulty: Annotated[
        bool, typer.Option("--skip-faulty", help="Leave out images with faults instead of refusing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Take in a labelled data set; `train` is for training, `val` and `test` are held out for the gate.

    Faults in its label files are listed with file and line, and then nothing is imported.
    """
    with open_site(data, make=True) as site, progress_of("importing") as progress:
        result = import_dataset(
            site,
            data_yaml,
            groups=groups,
            skip_faulty=skip_faulty,
            actor=actor(),
            on_progress=progress,
        )
    if as_json:
        show_json(result.to_map())
    else:
        say(
            f"{result.frames} frames ({result.new} new), {result.boxes} boxes, {result.held_out} held out; "
            f"classes {', '.join(result.class_names)}"
        )
        for notice in result.notices:
            say(f"note: {notice}")
        if result.held_out == 0:
            say("note: nothing is held out, so no model can be proven better yet; name a `val` of other images, or label some")


@app.command()
def snapshot(data: Data = DATA, config: Config = None, as_json: AsJson = False) -> None:
    """Freeze what is labelled now as a version; the same labels give the same version."""
    with open_site(data, config) as site:
        row = take_snapshot(site.catalogue, site.blobs, holdout_share=site.config.loop.holdout_share, actor=actor())
        if as_json:
            show_json({**row, "splits": split_counts(site.catalogue, row["id"])})
        else:
            say(f"version {row['number']}: {row['frames']} frames, {row['boxes']} boxes, {row['id'][:12]}")


@app.command("list")
def list_versions(data: Data = DATA, as_json: AsJson = False) -> None:
    """All versions, newest first."""
    with open_site(data) as site:
        rows = overview.datasets(site.catalogue)
        for row in rows:
            row["shown_splits"] = ", ".join(f"{n} {split}" for split, n in sorted(row["splits"].items()))
            row["short"] = row["id"][:12]
        show_rows(
            rows,
            {
                "number": "version",
                "frames": "frames",
                "boxes": "boxes",
                "shown_splits": "splits",
                "created_at": "made",
                "short": "digest",
            },
            as_json=as_json,
            none="no versions yet; label frames and run `bowerbird dataset snapshot`, or import a data set",
        )


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Where to lay it out.")],
    data: Data = DATA,
    version: Annotated[str, typer.Option(help="Version number or digest.")] = "newest",
) -> None:
    """Lay a version out as an Ultralytics data set; prints the path of its data.yaml."""
    with open_site(data) as site:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise BadInput(f"{folder} is not empty; name a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        row = dataset_version(site.catalogue, version)
        laid_out = materialise(site.blobs, row, folder.resolve(), copy=True)
        # An erasure has to be able to name the copies that left this folder.
        site.catalogue.log(actor(), "dataset exported", row["id"], {"folder": str(folder.resolve()), "number": row["number"]})
        say(str(laid_out))
