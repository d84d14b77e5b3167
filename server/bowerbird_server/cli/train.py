"""`bowerbird train`: start, watch, list and cancel trainings."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from bowerbird_server.catalogue import overview
from bowerbird_server.catalogue import training as run_rows
from bowerbird_server.catalogue.datasets import dataset_version
from bowerbird_server.cli.common import (
    DATA,
    AsJson,
    Config,
    Data,
    actor,
    open_site,
    progress_bars,
    say,
    show_json,
    show_rows,
    tell,
)
from bowerbird_server.config import TrainingConfig
from bowerbird_server.errors import BadInput
from bowerbird_server.training.snapshot import take_snapshot
from bowerbird_server.training.training_runs import carry_out, queue_run

app = typer.Typer(no_args_is_help=True, help="Train challengers. Example: bowerbird train start --epochs 60")


@app.command()
def start(
    data: Data = DATA,
    config: Config = None,
    dataset: Annotated[str, typer.Option(help="Data set version; `new` freezes what is labelled now.")] = "new",
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the configured number.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the network's input, instead of the configured one.")] = None,
    model: Annotated[str | None, typer.Option(help="Architecture for a first model, e.g. yolo11n.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    queue: Annotated[bool, typer.Option("--queue", help="Only queue it; a running server works on it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train on a data set version, evaluate against the champion, and promote or reject.

    Ends with 0 when promoted, 1 when rejected or failed. Example: bowerbird train start --dataset 3 --epochs 40
    """
    if image_size is not None and (image_size < 32 or image_size % 32):
        raise BadInput(f"--image-size {image_size}: the network's input is a multiple of 32, e.g. 640")
    with open_site(data, config) as site:
        version = (
            take_snapshot(site.catalogue, site.blobs, holdout_share=site.config.loop.holdout_share, actor=actor())
            if dataset == "new"
            else dataset_version(site.catalogue, dataset)
        )
        given = {"epochs": epochs, "image_size": image_size, "model": model, "threads": threads}
        changed = site.config.loop.training.model_dump() | {key: value for key, value in given.items() if value is not None}
        run_id = queue_run(site, version, TrainingConfig.model_validate(changed), actor())
        if queue:
            say(f"queued {run_id}")
            return
        with progress_bars() as bars:
            task = bars.add_task("training", total=None)
            row = carry_out(
                site,
                run_rows.run(site.catalogue, run_id),
                lambda stage, done, total: bars.update(task, description=stage, completed=done, total=total),
            )
        _show(row, as_json=as_json)
        if row["state"] != "promoted":
            raise typer.Exit(1)


def _show(row: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        show_json(row)
        return
    result = json.loads(str(row["result"]))
    say(f"run {row['id']}: {row['state']}")
    if result.get("model"):
        say(f"model {result['model'][:12]}; `bowerbird models show {result['model'][:12]}` has the figures")
    if row["error"]:
        tell(str(row["error"]))


@app.command("list")
def list_runs(data: Data = DATA, as_json: AsJson = False) -> None:
    """All runs, newest first."""
    with open_site(data) as site:
        rows = overview.runs(site.catalogue, 200)
        show_rows(
            rows,
            {"id": "run", "state": "state", "epoch": "epoch", "epochs": "of", "dataset_number": "data set", "error": "error"},
            as_json=as_json,
            none="no trainings yet; start one with `bowerbird train start`",
        )


@app.command()
def show(run: str, data: Data = DATA, as_json: AsJson = False) -> None:
    """One run by id or the first characters of it."""
    with open_site(data) as site:
        _show(run_rows.run(site.catalogue, run), as_json=as_json)


@app.command()
def cancel(run: str, data: Data = DATA) -> None:
    """Stop a queued or running training; its process ends within a few seconds."""
    with open_site(data) as site:
        run_rows.cancel_run(site.catalogue, run, actor())
        say("cancelled")
