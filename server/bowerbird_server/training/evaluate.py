"""How good a model is on held-out frames, measured by the code that the device runs.

In: an exported ONNX file and labelled frames. Out: an `EvaluationRun`: the numbers (`Evaluation`, JSON-able) and the matches behind
them, from which `promotion_gate.py` compares two models without running them again. Classes meet by name: a class of the data
set that the model lacks counts as missed, a class of the model that the data set lacks is ignored. It does not train,
decide, or touch the catalogue.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from bowerbird_models.runtimes import RuntimeOptions, open_model
from bowerbird_server.errors import BadInput
from bowerbird_server.training.average_precision import (
    FrameBoxes,
    MatchTable,
    PrecisionCurves,
    match_frames,
    mean_average_precision,
)
from bowerbird_server.training.ignored_regions import covered
from bowerbird_server.training.score_calibration import calibration_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

CONFIDENCE = 0.001  # the low end of the precision-recall curve counts too; Ultralytics' validator uses the same
IOU = 0.7
CALIBRATION_CONFIDENCE = 0.05  # the device's own threshold: below it nobody reads the confidence
CALIBRATION_BINS = 10


@dataclass(frozen=True)
class EvaluationFrame:
    """One held-out frame and what people drew on it.

    Args:
        image_path: a picture that OpenCV reads.
        scene: camera and time segment; frames of one scene are resampled together.
        slices: groups it is reported under, such as "condition:night" and "camera:cam-1".
        boxes_xyxy: (n, 4) in source pixels; n may be 0.
        class_ids: (n,) index into the data set's class names.
        ignored_xyxy: (m, 4) regions that the device covered: what a model finds there is neither right nor wrong.
        unreviewed: class ids that the label's author did not look for: the same holds for what a model finds of them.
    """

    image_path: Path
    scene: str
    slices: tuple[str, ...]
    boxes_xyxy: NDArray[np.float32]
    class_ids: NDArray[np.int32]
    ignored_xyxy: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 4)))
    unreviewed: tuple[int, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """The numbers of one model on one set of frames.

    Args:
        file_digest: SHA-256 of the ONNX file.
        frames_digest: SHA-256 over frames, labels and class names; only equal ones may be compared.
        map50_95: mean over IoU 0.50 to 0.95 and over the classes that have ground truth, in [0, 1].
        map50: the same at IoU 0.50.
        per_class: mAP50-95 by class name; None for a class that was never drawn.
        per_slice: mAP50-95 by slice; slices without any drawn box are left out.
        calibration_error: expected calibration error at IoU 0.50, in [0, 1]: how far confidence and precision differ.
        latency_ms_p50: median wall time of one detection, on this machine.
        frames: number of frames.
        scenes: number of scenes.
        boxes: number of drawn boxes.
        missing_classes: class names of the data set that the model does not know.
        seconds: wall time of the whole evaluation.
        calibration: what devices are told of the scores, `score_calibration.calibration_of`; empty for an evaluation from before that.
        class_list: version of the class list that the data set was frozen with; 0 in evaluations from before there were versions.
        model_classes: class names of the model, by its class id; empty in those.
    """

    file_digest: str
    frames_digest: str
    map50_95: float
    map50: float
    per_class: dict[str, float | None]
    per_slice: dict[str, float]
    calibration_error: float
    latency_ms_p50: float
    frames: int
    scenes: int
    boxes: int
    missing_classes: tuple[str, ...]
    seconds: float
    calibration: dict[str, Any] = field(default_factory=dict)
    class_list: int = 0
    model_classes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """One JSON object with every field."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """The evaluation that `to_json` wrote.

        Raises:
            BadInput: not such a text.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            values["missing_classes"] = tuple(values["missing_classes"])
            values["model_classes"] = tuple(values.get("model_classes", ()))
            return cls(**values)
        except (ValueError, TypeError, KeyError) as error:
            expected = ", ".join(each.name for each in fields(cls))
            raise BadInput(f"this is no stored evaluation ({error}); it needs {expected}") from error


@dataclass(frozen=True)
class EvaluationRun:
    """An evaluation and the matches it was computed from.

    Args:
        evaluation: the numbers.
        class_names: of the data set, by class id.
        scenes: (frames,) scene of each frame.
        slices: (frames,) slices of each frame.
        matches: every detection and whether it was right.
    """

    evaluation: Evaluation
    class_names: tuple[str, ...]
    scenes: tuple[str, ...]
    slices: tuple[tuple[str, ...], ...]
    matches: MatchTable

    def slice_frames(self) -> dict[str, NDArray[np.bool_]]:
        """Slice name -> (frames,) which frames belong to it, in name order."""
        names = sorted({name for frame in self.slices for name in frame})
        return {name: np.array([name in frame for frame in self.slices], np.bool_) for name in names}


def evaluate_model(
    onnx_path: Path,
    frames: Sequence[EvaluationFrame],
    class_names: Sequence[str],
    *,
    threads: int = 1,
    runtime: str = "onnxruntime-cpu",
    precision: str = "fp32",
    on_progress: Callable[[int, int], None] | None = None,
) -> EvaluationRun:
    """Run a model over held-out frames and score it.

    Args:
        onnx_path: the exported model, the very file that devices would get.
        frames: at least one, with at least one drawn box among them.
        class_names: of the data set, by class id; the ids in `frames` index it.
        threads: of the runtime.
        runtime: that the file is for.
        precision: that it computes in; what devices get is judged in single precision.
        on_progress: called with (frames done, frames in all) after each.

    Raises:
        BadInput: no frames, no labels, a picture that cannot be read, or labels that do not fit the class names.
        ModelError: the model cannot be loaded or emits nonsense, or the runtime is not installed.
    """
    started = time.monotonic()
    drawn = _ground_truth(frames, class_names)
    found: list[FrameBoxes] = []
    latencies_ms: list[float] = []
    with open_model(onnx_path, RuntimeOptions(runtime, threads=threads, precision=precision)) as detector:
        to_ours = _class_map(detector.class_names, class_names)
        for done, frame in enumerate(frames, start=1):
            image_bgr = _read_image(frame.image_path)
            if done == 1:
                detector.detect(image_bgr, confidence=CONFIDENCE, iou=IOU)  # buffers and caches; not timed
            before = time.perf_counter()
            detections = detector.detect(image_bgr, confidence=CONFIDENCE, iou=IOU)
            latencies_ms.append((time.perf_counter() - before) * 1000)
            class_ids = to_ours[detections.class_ids]
            known = (class_ids >= 0) & ~covered(detections.boxes_xyxy.astype(np.float64), frame.ignored_xyxy)
            known &= ~np.isin(class_ids, frame.unreviewed)
            found.append(
                FrameBoxes(
                    detections.boxes_xyxy[known].astype(np.float64),
                    class_ids[known],
                    detections.scores[known].astype(np.float64),
                )
            )
            if on_progress is not None:
                on_progress(done, len(frames))
        file_digest = detector.file_digest
    matches = match_frames(found, drawn, len(class_names))
    evaluation = summarise(
        matches,
        frames,
        class_names,
        file_digest=file_digest,
        missing_classes=tuple(name for name in class_names if name not in detector.class_names),
        latency_ms_p50=float(np.median(latencies_ms)),
        seconds=time.monotonic() - started,
        model_classes=tuple(detector.class_names),
    )
    return EvaluationRun(
        evaluation,
        tuple(class_names),
        tuple(frame.scene for frame in frames),
        tuple(frame.slices for frame in frames),
        matches,
    )


def summarise(
    matches: MatchTable,
    frames: Sequence[EvaluationFrame],
    class_names: Sequence[str],
    *,
    file_digest: str,
    missing_classes: tuple[str, ...],
    latency_ms_p50: float,
    seconds: float,
    model_classes: tuple[str, ...] = (),
) -> Evaluation:
    """The numbers of a match table, overall, per class and per slice."""
    overall = PrecisionCurves(matches).average_precision()[0]
    per_slice: dict[str, float] = {}
    for name in sorted({name for frame in frames for name in frame.slices}):
        inside = np.array([name in frame.slices for frame in frames], np.bool_)
        value = mean_average_precision(PrecisionCurves(matches, inside=inside).average_precision()[0])
        if not np.isnan(value):
            per_slice[name] = value
    per_class = {name: None if np.isnan(row[0]) else float(row.mean()) for name, row in zip(class_names, overall, strict=True)}
    return Evaluation(
        file_digest=file_digest,
        frames_digest=frames_digest(frames, class_names),
        map50_95=mean_average_precision(overall),
        map50=mean_average_precision(overall[:, :1]),
        per_class=per_class,
        per_slice=per_slice,
        calibration_error=calibration_error(matches),
        latency_ms_p50=latency_ms_p50,
        frames=len(frames),
        scenes=len({frame.scene for frame in frames}),
        boxes=int(matches.ground_truth.sum()),
        missing_classes=missing_classes,
        seconds=seconds,
        calibration=calibration_of(matches, per_class, class_names),
        class_list=len(class_names),
        model_classes=model_classes,
    )


def calibration_error(matches: MatchTable) -> float:
    """Expected calibration error: mean distance of confidence from precision at IoU 0.50 over ten bins; 0 without detections.

    Source: Guo et al., "On Calibration of Modern Neural Networks" (2017), equation 5, on detections of 0.05 and more.
    """
    read = matches.scores >= CALIBRATION_CONFIDENCE
    scores, right = matches.scores[read], matches.true_positive[read, 0]
    if len(scores) == 0:
        return 0.0
    bins = np.minimum((scores * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    gap = np.bincount(bins, weights=scores - right, minlength=CALIBRATION_BINS)
    return float(np.abs(gap).sum() / len(scores))


def frames_digest(frames: Sequence[EvaluationFrame], class_names: Sequence[str]) -> str:
    """SHA-256, 64 hex digits, over what makes two evaluations comparable: file names, scenes, slices, labels, class names."""
    digest = hashlib.sha256(json.dumps(list(class_names)).encode())
    for frame in frames:
        digest.update(json.dumps([frame.image_path.name, frame.scene, list(frame.slices)]).encode())
        digest.update(np.asarray(frame.boxes_xyxy, "<f4").tobytes())
        digest.update(np.asarray(frame.class_ids, "<i4").tobytes())
        if len(frame.ignored_xyxy):
            digest.update(np.asarray(frame.ignored_xyxy, "<f8").tobytes())
        if frame.unreviewed:
            digest.update(json.dumps(list(frame.unreviewed)).encode())
    return digest.hexdigest()


def _ground_truth(frames: Sequence[EvaluationFrame], class_names: Sequence[str]) -> list[FrameBoxes]:
    if not frames:
        raise BadInput("there are no held-out frames to evaluate on; label some frames of scenes that are not trained on")
    drawn: list[FrameBoxes] = []
    for frame in frames:
        boxes = np.asarray(frame.boxes_xyxy, np.float64).reshape(-1, 4)
        class_ids = np.asarray(frame.class_ids, np.int64).reshape(-1)
        if len(boxes) != len(class_ids):
            raise BadInput(f"{frame.image_path.name} has {len(boxes)} boxes and {len(class_ids)} class ids; label it again")
        if len(class_ids) and not (class_ids.min() >= 0 and class_ids.max() < len(class_names)):
            raise BadInput(
                f"{frame.image_path.name} has a label of class {class_ids.max()} but there are {len(class_names)} class names; "
                "add the class or correct the label"
            )
        drawn.append(FrameBoxes(boxes, class_ids))
    if not any(len(each.class_ids) for each in drawn):
        raise BadInput(
            f"the {len(frames)} held-out frames have no labelled box, so no model can be told from another; label more"
        )
    return drawn


def _class_map(theirs: Sequence[str], ours: Sequence[str]) -> NDArray[np.int64]:
    """(model classes,) id in the data set by id in the model; -1 for a class that the data set does not have."""
    by_name: Mapping[str, int] = {name: class_id for class_id, name in reversed(list(enumerate(ours)))}
    return np.array([by_name.get(name, -1) for name in theirs], np.int64)


def _read_image(path: Path) -> NDArray[np.uint8]:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise BadInput(f"cannot read the held-out picture {path}; restore it or take the frame out of the evaluation set")
    return image.astype(np.uint8, copy=False)
