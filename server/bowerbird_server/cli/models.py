"""`bowerbird models`: import, list, show, evaluate, quantise, promote, publish, sign."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress, TaskID

from bowerbird_models.manifest import DETECT
from bowerbird_server.catalogue import models as model_rows
from bowerbird_server.catalogue import overview
from bowerbird_server.catalogue.classes import add_classes
from bowerbird_server.catalogue.classes import class_names as known_classes
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
)
from bowerbird_server.cli.signing import OnlyFile, signs_only_a_file
from bowerbird_server.errors import BadInput
from bowerbird_server.releases.registry import finish_signing, import_model, publish, with_variants
from bowerbird_server.training.training_runs import evaluate_on

OTHER_TASK = "Devices run it, score its frames and send them; this server trains and judges detection."
app = typer.Typer(no_args_is_help=True, help="Models and their packages. Example: bowerbird models import best.onnx")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="best.onnx, or best.pt with --trust.")],
    data: Data = DATA,
    config: Config = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Open a .pt: it is a program, and runs in a child process when it is read.")
    ] = False,
    promote: Annotated[bool, typer.Option("--promote", help="Make it the champion at once, without the gate.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take in a model that you have. Example: bowerbird models import best.onnx --promote"""
    with open_site(data, config, make=True) as site:
        with progress_bars() as bars:
            row = import_model(site, file, trust=trust, actor=actor(), on_progress=_bar(bars))
        if not known_classes(site.catalogue):
            add_classes(site.catalogue, json.loads(row["class_names"]), actor())
        if promote:
            model_rows.promote(site.catalogue, row["digest"], actor(), {"reasons": ["promoted by hand at import"]})
        if as_json:
            show_json(model_rows.model(site.catalogue, row["digest"]))
        else:
            say(f"model {row['digest'][:12]} with classes {', '.join(json.loads(row['class_names']))}")
            if (task := model_rows.task_of(row)) != DETECT:
                say(f"note: it is a model for {task}. {OTHER_TASK}")


def _bar(bars: Progress) -> Callable[[str, int, int], None]:
    """Shows one stage after the other, from the first that is told."""
    tasks: list[TaskID] = []

    def progress(stage: str, done: int, total: int) -> None:
        if not tasks:
            tasks.append(bars.add_task(stage, total=total))
        bars.update(tasks[0], description=stage, completed=done, total=total)

    return progress


@app.command("list")
def list_models(data: Data = DATA, as_json: AsJson = False) -> None:
    """All models, newest first."""
    with open_site(data) as site:
        rows = overview.models(site.catalogue)
        for row in rows:
            row["short"] = row["digest"][:12]
            score = (row["metrics"] or {}).get("map50_95")
            row["map50_95"] = "" if score is None else f"{score:.3f}"
        show_rows(
            rows,
            {
                "short": "model",
                "state": "state",
                "origin": "origin",
                "map50_95": "mAP50-95",
                "release": "release",
                "created_at": "made",
            },
            as_json=as_json,
            none="no models yet; `bowerbird models import best.onnx` or `bowerbird train start`",
        )


@app.command()
def show(model: str, data: Data = DATA, as_json: AsJson = False) -> None:
    """One model: where it came from, what the gate measured and why it decided so."""
    with open_site(data) as site:
        row = model_rows.model(site.catalogue, model)
        if as_json:
            show_json({**row, **{key: json.loads(row[key]) for key in ("metrics", "verdict", "class_names", "manifest")}})
            return
        metrics, verdict = json.loads(row["metrics"]), json.loads(row["verdict"])
        say(
            f"model   {row['digest']}\nstate   {row['state']}\ntask    {model_rows.task_of(row)}\n"
            f"classes {', '.join(json.loads(row['class_names']))}"
        )
        if metrics:
            say(f"mAP50-95 {metrics['map50_95']:.4f} on {metrics['frames']} frames of {metrics['scenes']} scenes")
            for name, value in {**metrics["per_slice"], **metrics["per_class"]}.items():
                say(f"  {name}: {'never drawn' if value is None else f'{value:.4f}'}")
        for reason in verdict.get("reasons", []):
            say(f"gate: {reason}")
        manifest = json.loads(row["manifest"])
        for role, file in sorted(manifest["files"].items()):
            if file["name"].endswith(".onnx"):
                score = manifest.get("accuracy", {}).get(role)
                say(f"file {role}: {file['bytes']} bytes" + ("" if score is None else f", mAP50-95 {score:.4f}"))
        if manifest["notes"]:
            say(f"note: {manifest['notes']}")


@app.command()
def evaluate(
    model: str,
    data: Data = DATA,
    dataset: Annotated[str, typer.Option(help="Data set version whose held-out frames are used.")] = "newest",
) -> None:
    """Measure a model on held-out frames with the device's own code; prints JSON."""
    with open_site(data) as site:
        run = evaluate_on(site, model_rows.model(site.catalogue, model)["digest"], dataset_version(site.catalogue, dataset))
        show_json(json.loads(run.evaluation.to_json()))


@app.command("quantise")
def quantise_(
    model: Annotated[str, typer.Argument(help="Digest, a prefix of it, or champion.")],
    data: Data = DATA,
    config: Config = None,
    dataset: Annotated[
        str, typer.Option(help="Data set version: its training split calibrates, its held-out frames measure.")
    ] = "newest",
    as_json: AsJson = False,
) -> None:
    """Make a new package of a model with the quantised files of `[models]`. Example: bowerbird models quantise champion

    The model itself stays as it is; the new package is a candidate. Ends with 1 when no quantised file was good enough.
    """
    with open_site(data, config) as site:
        version = dataset_version(site.catalogue, dataset)
        with progress_bars() as bars:
            row, variants = with_variants(site, model_rows.model(site.catalogue, model)["digest"], version, actor(), _bar(bars))
        table = [
            {
                "role": role,
                "map50_95": None if (value := variants.accuracy.get(role)) is None else round(value, 4),
                "state": variants.left_out.get(role, "in the package"),
            }
            for role in sorted({*variants.accuracy, *variants.left_out})
        ]
        if as_json:
            show_json({"digest": row["digest"], "files": table})
        else:
            show_rows(
                table, {"role": "file", "map50_95": "mAP50-95", "state": "state"}, as_json=False, none="nothing to quantise"
            )
            say(
                f"model {row['digest'][:12]}; `bowerbird models promote {row['digest'][:12]} --why quantised` makes it the champion"
            )
    if not variants.files:
        raise typer.Exit(1)


@app.command()
def promote(model: str, why: Annotated[str, typer.Option(help="Kept in the event log for ever.")], data: Data = DATA) -> None:
    """Make a model the champion by hand, past the gate. Example: bowerbird models promote 3f2a --why "gate set too small" """
    if not why.strip():
        raise BadInput("say why the gate is passed over, with --why")
    with open_site(data) as site:
        row = model_rows.model(site.catalogue, model)
        model_rows.promote(site.catalogue, row["digest"], actor(), {"reasons": [why]})
        say(f"model {row['digest'][:12]} is the champion; `bowerbird rollout start` sends it to devices")


@app.command("publish")
def publish_(
    model: Annotated[str, typer.Argument(help="Digest, a prefix of it, or champion.")] = "champion",
    data: Data = DATA,
    config: Config = None,
) -> None:
    """Sign a model's package into the repository that devices read; `rollout start` does so too. Example: bowerbird models publish

    With signing.mode "approved" it only makes ready what `bowerbird models sign` then signs.
    """
    with open_site(data, config) as site:
        row = model_rows.model(site.catalogue, model)
        say(f"model {row['digest'][:12]} is release {publish(site, row['digest'], actor())}")


@app.command("sign")
def sign_(
    key: Annotated[
        Path | None, typer.Option(help="The models key; left out, what was signed elsewhere and brought back is published.")
    ] = None,
    file: OnlyFile = None,
    data: Data = DATA,
    config: Config = None,
) -> None:
    """Sign what waits for a person (signing.mode "approved") and publish it. Example: bowerbird models sign --key models.pem

    On another machine: copy repository/pending/models.json there, bowerbird models sign --key models.pem --file models.json, copy it
    back to its place and run bowerbird models sign without a key.
    """
    if signs_only_a_file(file, key, "bowerbird models sign"):
        return
    with open_site(data, config) as site:
        signed = finish_signing(site, key, actor())
    for digest, release in signed.items():
        say(f"model {digest[:12]} is release {release}; `bowerbird rollout start --model {digest[:12]}` sends it to devices")
    if not signed:
        say("published; there was no new model in it")
