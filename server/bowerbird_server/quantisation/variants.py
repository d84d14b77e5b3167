"""The quantised files of a model: made on the site's training frames, measured on its held-out frames, kept or left out.

In: a float file and a data set version. Out: files by role with their accuracy, and for each role that is not there the reason. The
float file's accuracy is known or measured here too, because a loss is a difference of two numbers from the same frames. It registers
nothing (`registry.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bowerbird_models.errors import ModelError
from bowerbird_models.package import RUNTIME_OF_VARIANT
from bowerbird_server.catalogue import Row
from bowerbird_server.errors import BadInput, EnvironmentFault
from bowerbird_server.quantisation.quantise import FloatFile, quantise
from bowerbird_server.site import Site
from bowerbird_server.training.evaluate import evaluate_model
from bowerbird_server.training.snapshot import calibration_frames, evaluation_frames
from bowerbird_server.training.train import TrainingFailed

logger = logging.getLogger(__name__)

OnProgress = Callable[[str, int, int], None]  # stage, done, in all


@dataclass(frozen=True)
class Variants:
    """What a package holds beside its float file.

    Args:
        files: quantised files by role, measured and good enough.
        accuracy: mAP50-95 in [0, 1] by role, the float file's too; of files that were left out as well.
        left_out: the reason by role.
    """

    files: Mapping[str, Path] = field(default_factory=dict)
    accuracy: Mapping[str, float] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    def package_accuracy(self, reference_role: str) -> dict[str, float]:
        """Accuracy of the files that the package has."""
        return {role: value for role, value in self.accuracy.items() if role == reference_role or role in self.files}

    def notes(self) -> str:
        """What was left out and why, for the package's notes; "" when nothing was."""
        return "; ".join(f"{role} left out: {reason}" for role, reason in sorted(self.left_out.items()))


def build_variants(
    site: Site,
    reference: FloatFile,
    version: Row,
    out_dir: Path,
    *,
    reference_map: float | None = None,
    threads: int = 1,
    on_progress: OnProgress = lambda *_: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Variants:
    """Make and measure the files that the configuration names; no file is no error.

    Args:
        reference: the float file of the package.
        version: data set version; its training split calibrates, its held-out frames measure.
        out_dir: where the files go.
        reference_map: mAP50-95 of the float file on that version's held-out frames, where it has been measured already.
        threads: of the child and of the runtimes.
        on_progress: told of both.
        cancelled: asked while files are made.

    Raises:
        TrainingCancelled: `cancelled` said so.
    """
    settings = site.config.models
    roles = [f"onnx-{name}" for name in dict.fromkeys(settings.variants)]
    frames, names = evaluation_frames(site.catalogue, site.blobs, version)
    accuracy: dict[str, float] = {} if reference_map is None else {reference.role: reference_map}
    if not roles:
        return Variants(accuracy=accuracy)
    pictures = calibration_frames(site.blobs, version, settings.calibration_frames)
    missing = (
        "there are no held-out frames to measure it on"
        if not any(len(frame.class_ids) for frame in frames)
        else ""
        if pictures
        else "the training split has no frames to calibrate on"
    )
    if missing:
        return Variants(accuracy=accuracy, left_out=dict.fromkeys(roles, missing))
    try:
        made = quantise(
            reference.path,
            out_dir,
            roles,
            pictures,
            threads=threads,
            on_progress=lambda done, total: on_progress("calibrating int8", done, total),
            cancelled=cancelled,
        )
    except (BadInput, TrainingFailed, EnvironmentFault) as fault:
        logger.warning("no quantised files: %s", fault)
        return Variants(accuracy=accuracy, left_out=dict.fromkeys(roles, str(fault)))

    def measure(path: Path, runtime: str, role: str) -> float:
        run = evaluate_model(
            path,
            frames,
            names,
            threads=threads,
            runtime=runtime,
            on_progress=lambda *now: on_progress(f"evaluating {role}", *now),
        )
        return run.evaluation.map50_95

    if reference.role not in accuracy:
        accuracy[reference.role] = measure(reference.path, "onnxruntime-cpu", reference.role)
    files, left_out = dict[str, Path](), dict(made.left_out)
    for role, path in made.files.items():
        try:
            accuracy[role] = measure(path, RUNTIME_OF_VARIANT[role], role)
        except ModelError as fault:
            left_out[role] = str(fault)
            continue
        lost_points = 100 * (accuracy[reference.role] - accuracy[role])
        if lost_points > settings.max_loss_points + 1e-9:
            left_out[role] = (
                f"it loses {lost_points:.2f} points of mAP50-95, at most {settings.max_loss_points:g} are allowed "
                "(models.max_loss_points)"
            )
        else:
            files[role] = path
    for role, reason in left_out.items():
        logger.warning("%s is left out of the package: %s", role, reason)
    return Variants(files, accuracy, left_out)
