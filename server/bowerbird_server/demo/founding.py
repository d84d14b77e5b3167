"""Founding a demo site: its first labelled frames, its held-out set, and its first model.

In: a fresh data folder and a world. Out: data set version 1 and a champion, evaluated. The first model is trained once and kept in
the user's cache under a key of everything that it depends on, so that the next demo starts with it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from bowerbird_server.catalogue import Row
from bowerbird_server.catalogue import models as model_rows
from bowerbird_server.catalogue import training as run_rows
from bowerbird_server.config import TrainingConfig
from bowerbird_server.dataset_import import import_dataset
from bowerbird_server.demo.world import World, write_yolo
from bowerbird_server.errors import ServerError
from bowerbird_server.registry import register_model
from bowerbird_server.site import Site
from bowerbird_server.snapshot import evaluation_frames, take_snapshot
from bowerbird_server.training_runs import carry_out, evaluate_on, first_verdict, keep_verdict, queue_run

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
    kept = cache / _cache_key(dataset, training)
    first = FirstModel(kept / "model.onnx", kept / "weights.pt")
    if (kept / "facts.json").exists() and first.onnx.exists() and first.weights.exists():
        return first
    run_id = queue_run(site, dataset, training, ACTOR)
    row = carry_out(site, run_rows.run(site.catalogue, run_id), report)
    if row["state"] != "promoted":
        raise ServerError(f"the first model could not be trained: {row['error'] or row['state']}")
    model = model_rows.model(site.catalogue, json.loads(row["result"])["model"])
    scratch = kept.with_name(f".{kept.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    shutil.copyfile(site.blobs.path(model["onnx_sha256"]), scratch / "model.onnx")
    shutil.copyfile(site.blobs.path(model["weights_sha256"]), scratch / "weights.pt")
    facts: dict[str, Any] = {"training": training.model_dump(), "dataset": dataset["id"], "result": json.loads(row["result"])}
    (scratch / "facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True))
    shutil.rmtree(kept, ignore_errors=True)
    scratch.rename(kept)
    return first


def _cache_key(dataset: Row, training: TrainingConfig) -> str:
    """Everything that the trained weights depend on: the frozen pictures and labels, the recipe, the libraries."""
    said = {
        "dataset": dataset["id"],
        "training": training.model_dump(),
        "versions": {name: installed(name) for name in ("bowerbird", "torch", "ultralytics-opencv-headless")},
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:24]
