"""Models coming into the site: an ONNX file becomes a package, a blob and a row; a promoted one becomes a release.

In: an exported or imported ONNX file, perhaps its weights. Out: a row in state `candidate`, a package folder, a release number.
It judges nothing (see `promotion_gate.py`) and sends nothing (see `rollout.py`).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bowerbird_models.errors import ModelError
from bowerbird_models.onnx_detector import OnnxDetector
from bowerbird_models.package import PackageOnDisk, build_package, load_package
from bowerbird_server.catalogue import Row, utc_now
from bowerbird_server.catalogue import models as model_rows
from bowerbird_server.catalogue.classes import class_names as known_classes
from bowerbird_server.errors import BadInput
from bowerbird_server.export import export_weights
from bowerbird_server.record_keeping import keep_records
from bowerbird_server.repository import Repository
from bowerbird_server.site import Site

GOLDEN_IMAGES = 4


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
) -> Row:
    """Take a model in: check that the device's own code runs it, build its package, keep its files as blobs.

    Args:
        onnx: the exported model.
        weights: the checkpoint it came from; stays on the server, to start the next training from.
        origin: `trained` or `imported`.
        golden_images: pictures whose outputs every device must reproduce; a few real ones.
        parent: digest of the model it was trained from.

    Raises:
        BadInput: the file is not a YOLO model that a device could run; the message says why.
    """
    try:
        with OnnxDetector(onnx) as detector:
            names = detector.class_names
    except (ModelError, OSError) as error:
        raise BadInput(f"{onnx.name} cannot be used: {error}") from error
    _check_classes(site, names)
    scratch = site.folder.packages / f".new-{onnx.stat().st_ino}"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        package = build_package(
            scratch,
            onnx,
            class_names=names,
            golden_images=list(golden_images)[:GOLDEN_IMAGES],
            parent=parent,
            created_at=created_at or utc_now(),
        )
    except ModelError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise BadInput(f"{onnx.name} cannot be packaged: {error}") from error
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
            "onnx_sha256": site.blobs.put_file(onnx),
            "weights_sha256": None if weights is None else site.blobs.put_file(weights),
            "manifest": package.manifest.to_bytes().decode(),
            "class_names": json.dumps(list(names)),
        },
        actor,
    )
    keep_records(site.catalogue, site.blobs)
    return model_rows.model(site.catalogue, package.digest)


def import_model(site: Site, file: Path, *, trust: bool, actor: str) -> Row:
    """Take in a model that a user has.

    Args:
        file: an ONNX file, or a `.pt` if `trust`: a checkpoint is a program, and it runs, in a child process, when it is read.

    Raises:
        BadInput: no such file, not a model, or a `.pt` without `trust`.
    """
    if not file.is_file():
        raise BadInput(f"there is no file {file}; give the path of a .onnx or a .pt")
    if file.suffix.lower() == ".onnx":
        return register_model(site, file, weights=None, origin="imported", actor=actor)
    if file.suffix.lower() != ".pt":
        raise BadInput(f"{file.name} is neither .onnx nor .pt; export it first: yolo export model={file.name} format=onnx")
    if not trust:
        raise BadInput(
            f"{file.name} is a pickle: reading it runs what is in it. If you know where it comes from, say --trust; "
            "otherwise import the exported .onnx"
        )
    with tempfile.TemporaryDirectory(dir=site.folder.training) as scratch:
        result = export_weights(file, Path(scratch))
        return register_model(site, result.onnx, weights=file, origin="imported", actor=actor)


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
