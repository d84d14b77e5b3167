"""`bowerbird dataset`: import what you have, freeze versions, list and export them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bowerbird_server.catalogue.datasets import dataset_version, split_counts
from bowerbird_server.cli.common import DATA, AsJson, Data, actor, open_site, out, progress_bars, show_json, show_rows
from bowerbird_server.dataset_import import import_dataset
from bowerbird_server.snapshot import materialise, take_snapshot

app = typer.Typer(no_args_is_help=True, help="Data set versions. Example: bowerbird dataset import data.yaml")


@app.command("import")
def import_(
    data_yaml: Annotated[Path, typer.Argument(help="data.yaml of an Ultralytics data set.")],
    data: Data = DATA,
    groups: Annotated[
        Path | None,
        typer.Option(help="CSV with columns image, scene and slices (separated by ';'): which images belong together."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take in a labelled data set; `train` is for training, `val` and `test` are held out for the gate.

    Faults in its label files are listed with file and line, and then nothing is imported.
    """
    with open_site(data) as site, progress_bars() as bars:
        task = bars.add_task("importing", total=None)
        result = import_dataset(
            site,
            data_yaml,
            groups=groups,
            actor=actor(),
            on_progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    if as_json:
        show_json(result.to_map())
    else:
        out.print(
            f"{result.frames} frames ({result.new} new), {result.boxes} boxes, {result.held_out} held out; "
            f"classes {', '.join(result.class_names)}",
            highlight=False,
        )


@app.command()
def snapshot(data: Data = DATA, as_json: AsJson = False) -> None:
    """Freeze what is labelled now as a version; the same labels give the same version."""
    with open_site(data) as site:
        row = take_snapshot(site.catalogue, site.blobs, holdout_share=site.config.loop.holdout_share, actor=actor())
        if as_json:
            show_json({**row, "splits": split_counts(site.catalogue, row["id"])})
        else:
            out.print(
                f"version {row['number']}: {row['frames']} frames, {row['boxes']} boxes, {row['id'][:12]}", highlight=False
            )


@app.command("list")
def list_versions(data: Data = DATA, as_json: AsJson = False) -> None:
    """All versions, newest first."""
    with open_site(data) as site:
        rows = site.catalogue.rows("SELECT * FROM dataset_version ORDER BY number DESC")
        for row in rows:
            row["splits"] = ", ".join(f"{n} {split}" for split, n in sorted(split_counts(site.catalogue, row["id"]).items()))
        show_rows(
            rows,
            {
                "number": "version",
                "frames": "frames",
                "boxes": "boxes",
                "splits": "splits",
                "created_at": "made",
                "id": "digest",
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
        folder.mkdir(parents=True, exist_ok=True)
        out.print(
            str(materialise(site.blobs, dataset_version(site.catalogue, version), folder.resolve())),
            highlight=False,
            soft_wrap=True,
        )
