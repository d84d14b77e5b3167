"""Founding a demo site: its first labelled frames, its held-out set, and its first model.

In: a fresh data folder and a world. Out: data set version 1 and a champion, evaluated. The first model is trained once and kept in
the user's cache under a key of everything that it depends on, so that the next demo starts with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from bowerbird_server.catalogue import Row
from bowerbird_server.catalogue import models as model_rows
from bowerbird_server.catalogue import training as run_rows
from bowerbird_server.config import TrainingConfig
from bowerbird_server.demo.world import World, write_yolo
from bowerbird_server.errors import ServerError
from bowerbird_server.releases.registry import register_model
from bowerbird_server.site import Site
from bowerbird_server.training.dataset_import import import_dataset
from bowerbird_server.training.snapshot import evaluation_frames, take_snapshot
from bowerbird_server.training.training_runs import carry_out, evaluate_on, first_verdict, keep_verdict, queue_run

logger = logging.getLogger(__name__)

ACTOR = "demo"
Report = Callable[[str, int, int], None]  # what is being done, done, in all


@dataclass(frozen=True)
class FirstModel:
    """Files of a first model: where the control starts from too."""

    onnx: Path
    weights: Path


def import_world(site: Site, world: World, folder: Path, report: Report) -> Row:
    """Write the world's first and held-out pictures as a YOLO data set, import it, and freeze version 1.

    A demo that goes on has later versions too, but its first model belongs to the first one.
    """
    made = site.catalogue.row("SELECT * FROM dataset_version WHERE number = 1")
    if made is not None:
        return made
    total, done = world.count_first_and_held_out(), 0

    def on_done() -> None:
        nonlocal done
        done += 1
        report("drawing the first and the held-out frames", done, total)

    data_yaml = folder / "data.yaml"
    if not data_yaml.exists():
        scratch = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(scratch, ignore_errors=True)
        write_yolo(world.first_and_held_out(), world.class_names, scratch, on_done)
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    import_dataset(site, data_yaml, groups=folder / "groups.csv", actor=ACTOR)
    return take_snapshot(site.catalogue, site.blobs, holdout_share=0.0, actor=ACTOR)


def found(site: Site, first: FirstModel, dataset: Row) -> Row:
    """Make `first` the champion of a site, evaluated on its held-out frames."""
    frames, _ = evaluation_frames(site.catalogue, site.blobs, dataset)
    row = register_model(
        site,
        first.onnx,
        weights=first.weights,
        origin="trained",
        actor=ACTOR,
        golden_images=[frame.image_path for frame in frames],
        dataset_version=dataset["id"],
    )
    run = evaluate_on(site, row["digest"], dataset)
    keep_verdict(site, row["digest"], run, first_verdict(run, site.config.gate.profile))
    return model_rows.model(site.catalogue, row["digest"])


def first_model(site: Site, dataset: Row, training: TrainingConfig, cache: Path, report: Report) -> FirstModel:
    """The first model for this data set: from the cache, else trained now and put there.

    Raises:
        ServerError: the training failed; the message has the reason.
    """
    first = kept_first_model(cache, dataset, training)
    run = _founding_run(site, dataset)
    if first.onnx.exists() and first.weights.exists():
        if run is not None and run["state"] in run_rows.OPEN_STATES:
            # Another demo has trained it since: the scheduler must not find a run that nobody waits for.
            run_rows.cancel_run(site.catalogue, run["id"], ACTOR)
        return first
    row = run or run_rows.run(site.catalogue, queue_run(site, dataset, training, ACTOR))
    if row["state"] in run_rows.OPEN_STATES:
        row = carry_out(site, row, report)
    if row["state"] != "promoted":
        raise ServerError(f"the first model could not be trained: {row['error'] or row['state']}")
    model = model_rows.model(site.catalogue, json.loads(row["result"])["model"])
    facts: dict[str, Any] = {"training": training.model_dump(), "dataset": dataset["id"], "result": json.loads(row["result"])}
    keep_first_model(first, site.blobs.path(model["onnx_sha256"]), site.blobs.path(model["weights_sha256"]), facts)
    return first


def _founding_run(site: Site, dataset: Row) -> Row | None:
    """The run that a demo began for its first model, if any: killed in the middle, or trained and not yet in the cache."""
    return site.catalogue.row(
        "SELECT * FROM training_run WHERE dataset_version = ? AND base_model IS NULL "
        "AND state IN ('queued', 'training', 'evaluating', 'promoted') ORDER BY id DESC LIMIT 1",
        dataset["id"],
    )


def kept_first_model(cache: Path, dataset: Row, training: TrainingConfig) -> FirstModel:
    """Where the first model for this data set and recipe is kept; nothing may be there yet."""
    folder = cache / _cache_key(dataset, training)
    return FirstModel(folder / "model.onnx", folder / "weights.pt")


def keep_first_model(first: FirstModel, onnx: Path, weights: Path, facts: dict[str, Any]) -> None:
    """Copy a first model to where it is kept, whole or not at all; two demos may do so at the same time."""
    folder = first.onnx.parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
    try:
        shutil.copyfile(onnx, scratch / first.onnx.name)
        shutil.copyfile(weights, scratch / first.weights.name)
        (scratch / "facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True))
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # the other demo was first, with an equal model
            scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _cache_key(dataset: Row, training: TrainingConfig) -> str:
    """Everything that the trained weights depend on: the frozen pictures and labels, the recipe, the libraries."""
    said = {
        "dataset": dataset["id"],
        "training": training.model_dump(),
        "versions": {name: installed(name) for name in ("bowerbird", "torch", "ultralytics-opencv-headless")},
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:24]
