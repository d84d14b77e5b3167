"""Models coming into the site: an ONNX file becomes a package, a blob and a row; a promoted one becomes a release.

In: an exported or imported ONNX file, perhaps its weights. Out: a row in state `candidate`, a package folder, a release number. The
float file of a package is in transport form where that is possible (`quantise.py`), and that file is what is evaluated. A file is first
opened and run by a child process (`model_child.py`). It judges nothing (see `promotion_gate.py`) and sends nothing (see `rollout.py`).
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bowerbird_models.manifest import ONNX_FP32
from bowerbird_models.package import PackageOnDisk, load_package
from bowerbird_server.catalogue import Row, utc_now
from bowerbird_server.catalogue import models as model_rows
from bowerbird_server.catalogue.classes import class_names as known_classes
from bowerbird_server.catalogue.classes import version_of
from bowerbird_server.catalogue.record_keeping import keep_records
from bowerbird_server.errors import BadInput, EnvironmentFault, ServerError
from bowerbird_server.quantisation.quantise import FloatFile, to_transport_form
from bowerbird_server.quantisation.variants import OnProgress, Variants, build_variants
from bowerbird_server.releases.repository import Repository
from bowerbird_server.site import Site
from bowerbird_server.training.export import export_weights
from bowerbird_server.training.snapshot import evaluation_frames
from bowerbird_server.training.train import TrainingCancelled, TrainingFailed, run_child

logger = logging.getLogger(__name__)

GOLDEN_IMAGES = 4
LOOK_S = 300.0  # for one look at a picture
PACKAGE_S = 1800.0  # for the golden outputs of all files on a slow machine
_CHILD = "bowerbird_server.releases.model_child"


def register_model(
    site: Site,
    onnx: Path,
    *,
    weights: Path | None,
    origin: str,
    actor: str,
    golden_images: Sequence[Path] = (),
    parent: str | None = None,
    dataset_version: str | None = None,
    training_run: str | None = None,
    created_at: str | None = None,
    variants: Variants | None = None,
) -> Row:
    """Take a model in: check that the device's own code runs it, build its package, keep its files as blobs.

    Args:
        onnx: the exported model, in transport form or not.
        weights: the checkpoint it came from; stays on the server, to start the next training from.
        origin: `trained` or `imported`.
        golden_images: pictures whose outputs every device must reproduce; a few real ones.
        parent: digest of the model it was trained from.
        variants: quantised files of it, and what was measured.

    Raises:
        BadInput: the file is not a YOLO model that a device could run; the message says why.
    """
    names = _class_names(site, onnx)
    _check_classes(site, names)
    scratch = site.folder.packages / f".new-{onnx.stat().st_ino}"
    shutil.rmtree(scratch, ignore_errors=True)
    pictures = list(golden_images)[:GOLDEN_IMAGES]
    extra = variants or Variants()
    with tempfile.TemporaryDirectory(dir=site.folder.training) as work:
        reference = float_file(onnx, Path(work), pictures)
        task = {
            "do": "package",
            "out_dir": str(scratch),
            "class_names": names,
            "golden_images": list(map(str, pictures)),
            "parent": parent,
            "created_at": created_at or utc_now(),
            "role": reference.role,
            "variants": {role: str(path) for role, path in extra.files.items()},
            "accuracy": dict(extra.package_accuracy(reference.role)),
            "notes": extra.notes(),
            "class_list": version_of(known_classes(site.catalogue), names),
        }
        try:
            made = _in_child(site, reference.path, task, PACKAGE_S)
        except ServerError:
            for rest in (scratch, scratch.with_name(scratch.name + ".part")):
                shutil.rmtree(rest, ignore_errors=True)
            raise
        package = load_package(scratch, digest=made["digest"])
        onnx_blob = site.blobs.put_file(reference.path)
    final = site.folder.packages / package.digest
    if final.exists():
        shutil.rmtree(scratch)
    else:
        scratch.rename(final)
    model_rows.add_model(
        site.catalogue,
        {
            "digest": package.digest,
            "parent": parent,
            "dataset_version": dataset_version,
            "training_run": training_run,
            "origin": origin,
            "state": "candidate",
            "onnx_sha256": onnx_blob,
            "weights_sha256": None if weights is None else site.blobs.put_file(weights),
            "manifest": package.manifest.to_bytes().decode(),
            "class_names": json.dumps(list(names)),
        },
        actor,
    )
    keep_records(site.catalogue, site.blobs)
    return model_rows.model(site.catalogue, package.digest)


def float_file(onnx: Path, out_dir: Path, pictures: Sequence[Path] = ()) -> FloatFile:
    """The float file that a package of `onnx` has: in transport form, or the file itself where that is not possible.

    Raises:
        BadInput: the file is no model.
    """
    try:
        return to_transport_form(onnx, out_dir, pictures=pictures)
    except (TrainingFailed, EnvironmentFault) as fault:
        # A server without the `train` extra takes models in as they are.
        logger.info("%s is kept as it is: %s", onnx.name, fault)
        return FloatFile(onnx, ONNX_FP32, str(fault))


def with_variants(
    site: Site, digest: str, version: Row, actor: str, on_progress: OnProgress = lambda *_: None
) -> tuple[Row, Variants]:
    """A new package of a model of the site: the same float file, and the quantised files that the configuration names.

    Another manifest is another digest, so it is another row, a candidate with the same parent, data set, figures and verdict: those
    are of the float file, and that is the same to the byte wherever the older one was in transport form already.

    Args:
        version: data set version to calibrate and to measure on.

    Raises:
        NotFound: no such model.
    """
    row = model_rows.model(site.catalogue, digest)
    older = package_of(site, row["digest"])
    frames, _ = evaluation_frames(site.catalogue, site.blobs, version)
    pictures = [frame.image_path for frame in frames][:GOLDEN_IMAGES]
    with tempfile.TemporaryDirectory(dir=site.folder.training) as scratch:
        reference = float_file(older.onnx, Path(scratch), pictures)
        variants = build_variants(site, reference, version, Path(scratch, "variants"), on_progress=on_progress)
        weights = row["weights_sha256"]
        made = register_model(
            site,
            reference.path,
            weights=None if weights is None else site.blobs.path(weights),
            origin=row["origin"],
            actor=actor,
            golden_images=pictures,
            parent=row["parent"],
            dataset_version=row["dataset_version"],
            training_run=row["training_run"],
            variants=variants,
        )
    model_rows.set_metrics(site.catalogue, made["digest"], json.loads(row["metrics"]), json.loads(row["verdict"]))
    return model_rows.model(site.catalogue, made["digest"]), variants


def import_model(site: Site, file: Path, *, trust: bool, actor: str, on_progress: OnProgress = lambda *_: None) -> Row:
    """Take in a model that a user has; on a site with a data set it gets the quantised files that the configuration names.

    Args:
        file: an ONNX file, or a `.pt` if `trust`: a checkpoint is a program, and it runs, in a child process, when it is read.

    Raises:
        BadInput: no such file, not a model, or a `.pt` without `trust`.
    """
    if not file.is_file():
        raise BadInput(f"there is no file {file}; give the path of a .onnx or a .pt")
    if file.suffix.lower() == ".onnx":
        return _take_in(site, file, None, actor, on_progress)
    if file.suffix.lower() != ".pt":
        raise BadInput(f"{file.name} is neither .onnx nor .pt; export it first: yolo export model={file.name} format=onnx")
    if not trust:
        raise BadInput(
            f"{file.name} is a pickle: reading it runs what is in it. If you know where it comes from, say --trust; "
            "otherwise import the exported .onnx"
        )
    with tempfile.TemporaryDirectory(dir=site.folder.training) as scratch:
        result = export_weights(file, Path(scratch))
        return _take_in(site, result.onnx, file, actor, on_progress)


def _take_in(site: Site, onnx: Path, weights: Path | None, actor: str, on_progress: OnProgress) -> Row:
    version = site.catalogue.row("SELECT * FROM dataset_version ORDER BY number DESC")
    frames = [] if version is None else evaluation_frames(site.catalogue, site.blobs, version)[0]
    pictures = [frame.image_path for frame in frames][:GOLDEN_IMAGES]
    with tempfile.TemporaryDirectory(dir=site.folder.training) as scratch:
        _check_classes(site, _class_names(site, onnx))  # before minutes are spent on a model that does not belong here
        reference = float_file(onnx, Path(scratch), pictures)
        variants = Variants()
        if version is not None:
            variants = build_variants(site, reference, version, Path(scratch, "variants"), on_progress=on_progress)
        return register_model(
            site, reference.path, weights=weights, origin="imported", actor=actor, golden_images=pictures, variants=variants
        )


def _class_names(site: Site, onnx: Path) -> tuple[str, ...]:
    return tuple(_in_child(site, onnx, {"do": "classes"}, LOOK_S)["class_names"])


def _in_child(site: Site, onnx: Path, task: Mapping[str, Any], within_s: float) -> dict[str, Any]:
    """What `model_child.py` makes of a file: whatever reading or running it does, it does to that process.

    Raises:
        BadInput: the file is no model that can be used, or it ended the process.
        EnvironmentFault: there is no space for the task.
    """
    ends_s = time.monotonic() + within_s
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=site.folder.training) as work:
        try:
            for event in run_child(
                {**task, "onnx": str(onnx)}, Path(work), 1, lambda: time.monotonic() > ends_s, _CHILD, "model"
            ):
                if event["event"] == "result":
                    result = event
        except TrainingCancelled as fault:
            raise BadInput(f"{onnx.name} cannot be used: the model was not read and run within {within_s:.0f} s") from fault
        except TrainingFailed as fault:
            why = str(fault).split(" (log: ")[0]  # the log goes with the folder
            raise BadInput(
                f"{onnx.name} cannot be used: {why}. It was opened in a process of its own, nothing else was harmed; export the model "
                "again, and do not trust a file of which you do not know where it comes from"
            ) from fault
    return result


def _check_classes(site: Site, names: Sequence[str]) -> None:
    ours = known_classes(site.catalogue)
    if ours and not set(names) & set(ours):
        raise BadInput(
            f"the model knows {', '.join(names[:8])}, this site labels {', '.join(ours[:8])}: not one class in common. "
            "Import a model of these classes, or start a data folder of its own for it."
        )


def package_of(site: Site, digest: str) -> PackageOnDisk:
    """The verified package of a model.

    Raises:
        PackageError: its files are damaged.
    """
    return load_package(site.folder.packages / digest, digest=digest)


def open_repository(site: Site) -> Repository:
    """The site's signed repository, made on first use."""
    repository = Repository(site.folder.repository, site.folder.keys)
    repository.create(site.config.signing.mode)
    return repository


def publish(site: Site, digest: str, actor: str) -> int:
    """Sign a model's package into the repository; returns its release number (the old one when it was published before).

    Raises:
        AwaitingSignature: mode `approved`; `bowerbird models sign` finishes it.
    """
    release = open_repository(site).publish(package_of(site, digest))
    model_rows.set_release(site.catalogue, digest, release, actor)
    return release


def finish_signing(site: Site, key: Path | None, actor: str) -> dict[str, int]:
    """Publish what waits for the offline models key (mode `approved`); returns release by digest.

    Args:
        key: signs it here; None when it was signed on another machine.

    Raises:
        NotFound: nothing waits.
        Conflict: it is not signed by the models key.
        EnvironmentFault: the key cannot be used.
    """
    repository = open_repository(site)
    signed = repository.finish() if key is None else repository.sign(key)
    # Whatever was published and not yet written down, also by a call that was killed between the two.
    for digest, release in repository.releases().items():
        rows = site.catalogue.starting_with("model", "digest", digest)
        if rows and rows[0]["release"] != release:
            model_rows.set_release(site.catalogue, digest, release, actor)
    return signed
