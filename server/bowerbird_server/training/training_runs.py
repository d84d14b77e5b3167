"""Carrying out one training run: data set on disk -> challenger -> the same held-out frames for both -> verdict.

In: a queued or interrupted run. Out: a model row with metrics, verdict and reasons, promoted or rejected; a promoted one has the
quantised files that the configuration names. A run that is killed begins again from its frozen data set. Ultralytics lives in the
child process that `train.py` starts.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bowerbird_models.manifest import DETECT
from bowerbird_server.catalogue import Row
from bowerbird_server.catalogue import models as model_rows
from bowerbird_server.catalogue import training as run_rows
from bowerbird_server.catalogue.datasets import dataset_version
from bowerbird_server.config import TrainingConfig
from bowerbird_server.errors import BadInput, Conflict, ServerError
from bowerbird_server.quantisation.variants import OnProgress, Variants, build_variants
from bowerbird_server.releases.registry import GOLDEN_IMAGES, float_file, register_model
from bowerbird_server.site import Site
from bowerbird_server.training.evaluate import EvaluationRun, evaluate_model
from bowerbird_server.training.promotion_gate import PROFILES, Verdict, compare
from bowerbird_server.training.snapshot import check_replay, evaluation_frames, materialise, read_manifest
from bowerbird_server.training.train import TrainingCancelled, TrainingProgress, TrainingRequest, TrainingResult, run_training

logger = logging.getLogger(__name__)


def queue_run(site: Site, version: Row, settings: TrainingConfig, actor: str) -> str:
    """Queue a training on a data set version, starting from the champion's base if there is one; returns the run's id.

    Raises:
        BadInput: the champion is no detection model, or most training frames were labelled before a class was added.
    """
    base = model_rows.champion(site.catalogue)
    if base is not None and model_rows.task_of(base) != DETECT:
        raise BadInput(
            f"the champion {base['digest'][:12]} is a model for {model_rows.task_of(base)}, and this server trains detection only; "
            "make a detection model the champion (`bowerbird models promote`), or train this one elsewhere and import it"
        )
    check_replay(read_manifest(site.blobs, version))
    return run_rows.queue_run(
        site.catalogue, version["id"], None if base is None else base["digest"], settings.model_dump(), actor
    )


def carry_out(site: Site, run: Row, on_progress: OnProgress = lambda *_: None) -> Row:
    """Train, evaluate and judge; returns the run's row in its final state, whatever that is.

    A failure of the training itself ends as state `failed` with the reason in the row, not as an exception.
    """
    run_id = run["id"]
    if not run_rows.set_run_state(site.catalogue, run_id, "training"):
        return run_rows.run(site.catalogue, run_id)
    try:
        result = _train(site, run, on_progress)
        run_rows.set_run_state(site.catalogue, run_id, "evaluating")
        _judge(site, run, result, on_progress)
    except TrainingCancelled:
        logger.info("training run %s was cancelled", run_id)
        run_rows.set_run_state(site.catalogue, run_id, "cancelled")
    except ServerError as error:
        logger.warning("training run %s failed: %s", run_id, error)
        run_rows.set_run_state(site.catalogue, run_id, "failed", error=str(error))
    return run_rows.run(site.catalogue, run_id)


def _train(site: Site, run: Row, on_progress: OnProgress) -> TrainingResult:
    settings = TrainingConfig.model_validate(json.loads(run["request"]))
    version = dataset_version(site.catalogue, run["dataset_version"])
    data_yaml = materialise(site.blobs, version, site.folder.datasets)
    out = site.folder.training / run["id"]
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)

    def progress(state: TrainingProgress) -> None:
        run_rows.set_progress(site.catalogue, run["id"], state.epoch, state.epochs)
        on_progress("training", state.epoch, state.epochs)

    request = TrainingRequest(
        data_yaml=data_yaml,
        out_dir=out,
        base_weights=_base_weights(site, run, out),
        pretrained_dir=Path(settings.pretrained_dir) if settings.pretrained_dir else None,
        **settings.model_dump(exclude={"pretrained_dir"}),
    )
    return run_training(request, progress, lambda: run_rows.run(site.catalogue, run["id"])["state"] == "cancelled")


def _base_weights(site: Site, run: Row, out: Path) -> Path | None:
    """The weights to start from: those of the first model of the champion's line, because all labels are replayed each time.

    A line of fine-tunings drifts with the luck of each step; a fixed base with all data does not (selection design, retraining).
    """
    digest = run["base_model"]
    weights = None
    while digest is not None:
        row = model_rows.model(site.catalogue, digest)
        weights = row["weights_sha256"] or weights
        digest = row["parent"]
    if weights is None:
        return None
    path = out / "base.pt"
    shutil.copyfile(site.blobs.path(weights), path)
    return path


def _judge(site: Site, run: Row, result: TrainingResult, on_progress: OnProgress) -> None:
    """Measure the challenger, ask the gate, and register what it decided on.

    The gate speaks of the float file, before there is a package: a challenger that loses is not worth quantising, and a digest
    that has a verdict must not change afterwards. So quantised files are made between the verdict and the package.
    """
    version = dataset_version(site.catalogue, run["dataset_version"])
    data_yaml = materialise(site.blobs, version, site.folder.datasets)
    frames, names = evaluation_frames(site.catalogue, site.blobs, version)
    champion = model_rows.champion(site.catalogue)
    pictures = [frame.image_path for frame in frames] or sorted(data_yaml.parent.glob("images/*/*"))
    out = site.folder.training / run["id"]
    reference = float_file(result.onnx, out / "transport", pictures[:GOLDEN_IMAGES])

    def register(variants: Variants) -> Row:
        return register_model(
            site,
            reference.path,
            weights=result.weights,
            origin="trained",
            actor="scheduler",
            golden_images=pictures,
            parent=None if champion is None else champion["digest"],
            dataset_version=version["id"],
            training_run=run["id"],
            variants=variants,
        )

    if not frames:
        register(Variants())
        raise Conflict(
            "the data set has no held-out frames, so nothing can be proved; label frames of more scenes, or import an "
            "evaluation set with `bowerbird dataset import`"
        )
    challenger = evaluate_model(reference.path, frames, names, on_progress=_stage(on_progress, "evaluating"))
    if champion is None:
        verdict = first_verdict(challenger, site.config.gate.profile)
    else:
        before = evaluate_model(
            site.blobs.path(champion["onnx_sha256"]), frames, names, on_progress=_stage(on_progress, "evaluating the champion")
        )
        verdict = compare(before, challenger, PROFILES[site.config.gate.profile], seed=0)
    variants = Variants(accuracy={reference.role: challenger.evaluation.map50_95})
    if verdict.promoted:
        variants = build_variants(
            site,
            reference,
            version,
            out / "variants",
            reference_map=challenger.evaluation.map50_95,
            on_progress=on_progress,
            cancelled=lambda: run_rows.run(site.catalogue, run["id"])["state"] == "cancelled",
        )
    row = register(variants)
    keep_verdict(site, row["digest"], challenger, verdict)
    state = "promoted" if verdict.promoted else "rejected"
    result_json = json.dumps({"model": row["digest"], "seconds": result.seconds, "versions": result.versions})
    run_rows.set_run_state(site.catalogue, run["id"], state, result=result_json)


def _stage(on_progress: OnProgress, stage: str) -> Callable[[int, int], None]:
    return lambda done, total: on_progress(stage, done, total)


def first_verdict(run: EvaluationRun, profile: str) -> Verdict:
    """What the gate says of a site's first model."""
    return Verdict(
        promoted=True,
        undecided=False,
        reasons=("there was no champion to compare with; the first model is the one to beat",),
        difference=0.0,
        interval=None,
        scenes=run.evaluation.scenes,
        profile=profile,
        note="a first model is not tested against anything",
    )


def keep_verdict(site: Site, digest: str, run: EvaluationRun, verdict: Verdict) -> None:
    """Store metrics and verdict, and promote or reject in the same transaction."""
    why: dict[str, Any] = {"reasons": list(verdict.reasons), "difference": verdict.difference, "profile": verdict.profile}
    with site.catalogue.transaction():
        model_rows.set_metrics(site.catalogue, digest, json.loads(run.evaluation.to_json()), asdict(verdict))
        if verdict.promoted:
            model_rows.promote(site.catalogue, digest, "gate", why)
        else:
            model_rows.reject(site.catalogue, digest, "gate", why)


def evaluate_on(site: Site, digest: str, version: Row) -> EvaluationRun:
    """A model of the site on the held-out frames of a version.

    Raises:
        BadInput: the version holds nothing out.
    """
    frames, names = evaluation_frames(site.catalogue, site.blobs, version)
    if not frames:
        raise BadInput(f"data set version {version['number']} has no held-out frames to evaluate on")
    return evaluate_model(site.blobs.path(model_rows.model(site.catalogue, digest)["onnx_sha256"]), frames, names)
