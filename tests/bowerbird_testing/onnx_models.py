"""Real YOLO architectures exported by Ultralytics, and what Ultralytics itself sees with them.

In: a folder. Out: small ONNX files (random weights, a second or a few each) and for each what
`ultralytics.YOLO("x.onnx").predict` returns on the pictures that its package ships and on odd crops of them. Everything of
Ultralytics runs in a child process without network, as in the product (`onnx_export_child.py`). The weights are untrained but their
batch statistics are fitted to the pictures and the class biases raised, so that a head emits dozens of boxes with different scores.
`tiny_yolo.py` needs none of this.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

IOU = 0.7
TINY = 0.125  # of the full width; the packaged "n" models are 0.25


@dataclass(frozen=True)
class ExportCase:
    """One architecture and one way to export it.

    Args:
        name: of the test and of the file.
        yaml: the architecture; the scale letter must parse ("yolo11n.yaml"). Its ending tells the task.
        image_size: side, or height and width.
        export: further arguments of `YOLO.export`.
        width: channels, as a share of the full width; None for what the architecture says.
        class_count: None for what the architecture says.
        keypoint_shape: of pose models, None for what the architecture says.
        then: what is done to the exported file: "half" makes every number float16, inputs and outputs too; "int8" quantises the
            convolutions with ONNX Runtime's own tool.
    """

    name: str
    yaml: str
    image_size: int | tuple[int, int] = 320
    export: tuple[tuple[str, Any], ...] = ()
    width: float | None = None
    class_count: int | None = None
    keypoint_shape: tuple[int, int] | None = None
    then: str = ""

    @property
    def task(self) -> str:
        """What the architecture is for."""
        endings = {"seg": "segment", "pose": "pose", "obb": "obb", "cls": "classify"}
        return endings.get(self.yaml.removesuffix(".yaml").rpartition("-")[2], "detect")

    @property
    def iou(self) -> float:
        """Overlap above which the weaker box goes.

        None goes where scores are coarse: of two boxes with the same score either may stay, and in half precision Ultralytics compares
        boxes that were moved apart by class to where a step is eight pixels.
        """
        return 1.0 if self.then or ("quantize", 16) in self.export else IOU

    @property
    def is_end_to_end(self) -> bool:
        """Whether nothing is left to suppress."""
        return any(name in {"end2end", "nms"} and value is not None for name, value in self.export)


def _tiny(name: str, yaml: str, image_size: int | tuple[int, int] = 256, **options: Any) -> ExportCase:
    return ExportCase(name, yaml, image_size, **{"width": TINY, "class_count": 6, **options})


END_TO_END = (("nms", False),)  # Ultralytics' word for the head that needs no suppression
DYNAMIC = (("dynamic", True),)
SUPPRESSING = (("nms", True), ("conf", 0.01))  # suppression in the graph

CASES = (
    ExportCase("v5u", "yolov5n.yaml", 256),
    ExportCase("v8_rectangular", "yolov8n.yaml", (192, 320)),
    ExportCase("v8_dynamic", "yolov8n.yaml", 320, DYNAMIC),
    ExportCase("v9", "yolov9t.yaml", 256),
    ExportCase("v10", "yolov10n.yaml", 256),
    ExportCase("v10_end_to_end", "yolov10n.yaml", 256, END_TO_END),
    ExportCase("v11", "yolo11n.yaml", 320),
    ExportCase("v11_half", "yolo11n.yaml", 256, (("quantize", 16),)),
    ExportCase("v12", "yolo12n.yaml", 256),
    ExportCase("v26", "yolo26n.yaml", 256),
    ExportCase("v26_end_to_end", "yolo26n.yaml", 256, END_TO_END),
    _tiny("v11_all_half", "yolo11n.yaml", then="half"),
    _tiny("v11_int8", "yolo11n.yaml", then="int8"),
    _tiny("v11_suppressing", "yolo11n.yaml", export=SUPPRESSING),
    _tiny("v26_end_to_end_dynamic", "yolo26n.yaml", export=(*END_TO_END, *DYNAMIC)),
    _tiny("v8_segment", "yolov8n-seg.yaml"),
    _tiny("v9_segment", "yolov9c-seg.yaml"),
    _tiny("v11_segment_rectangular", "yolo11n-seg.yaml", (192, 320)),
    _tiny("v11_segment_dynamic", "yolo11n-seg.yaml", export=DYNAMIC),
    _tiny("v11_segment_half", "yolo11n-seg.yaml", then="half"),
    _tiny("v11_segment_int8", "yolo11n-seg.yaml", then="int8"),
    _tiny("v11_segment_suppressing", "yolo11n-seg.yaml", export=SUPPRESSING),
    _tiny("v12_segment", "yolo12n-seg.yaml", width=None),
    _tiny("v26_segment", "yolo26n-seg.yaml"),
    _tiny("v26_segment_end_to_end", "yolo26n-seg.yaml", export=END_TO_END),
    _tiny("v8_pose", "yolov8n-pose.yaml"),
    _tiny("v11_pose_rectangular", "yolo11n-pose.yaml", (320, 192)),
    _tiny("v11_pose_dynamic", "yolo11n-pose.yaml", export=DYNAMIC),
    _tiny("v11_pose_half", "yolo11n-pose.yaml", then="half"),
    _tiny("v11_pose_int8", "yolo11n-pose.yaml", then="int8"),
    _tiny("v11_pose_suppressing", "yolo11n-pose.yaml", export=SUPPRESSING),
    _tiny("v11_pose_without_visibility", "yolo11n-pose.yaml", keypoint_shape=(5, 2)),
    _tiny("v12_pose", "yolo12n-pose.yaml", width=None),
    _tiny("v26_pose", "yolo26n-pose.yaml"),
    _tiny("v26_pose_end_to_end", "yolo26n-pose.yaml", export=END_TO_END),
    _tiny("v8_obb", "yolov8n-obb.yaml"),
    _tiny("v11_obb_rectangular", "yolo11n-obb.yaml", (192, 320)),
    _tiny("v11_obb_dynamic", "yolo11n-obb.yaml", export=DYNAMIC),
    _tiny("v11_obb_half", "yolo11n-obb.yaml", then="half"),
    _tiny("v11_obb_int8", "yolo11n-obb.yaml", then="int8"),
    _tiny("v11_obb_suppressing", "yolo11n-obb.yaml", export=SUPPRESSING),
    _tiny("v12_obb", "yolo12n-obb.yaml", width=None),
    _tiny("v26_obb", "yolo26n-obb.yaml"),
    _tiny("v26_obb_end_to_end", "yolo26n-obb.yaml", export=END_TO_END),
    _tiny("v8_classify", "yolov8n-cls.yaml", 96, class_count=10),
    _tiny("v11_classify", "yolo11n-cls.yaml", 224, class_count=10),
    _tiny("v11_classify_rectangular", "yolo11n-cls.yaml", (96, 160), class_count=10),
    _tiny("v11_classify_dynamic", "yolo11n-cls.yaml", 128, export=DYNAMIC, class_count=10),
    _tiny("v11_classify_half", "yolo11n-cls.yaml", 128, class_count=10, then="half"),
    _tiny("v11_classify_int8", "yolo11n-cls.yaml", 128, class_count=10, then="int8"),
    _tiny("v12_classify", "yolo12n-cls.yaml", 128, class_count=10, width=None),
    _tiny("v26_classify", "yolo26n-cls.yaml", 128, class_count=10),
)


@dataclass(frozen=True)
class Prediction:
    """What Ultralytics saw in one picture.

    Args:
        image_path: the picture.
        confidence: lowest score, chosen where scores leave a gap.
        boxes: (n, 6) left, top, right, bottom, score, class; none of a classifier.
        rotated: (n, 5) centre, size, angle, of oriented boxes.
        keypoints: (n, k, 2 or 3) of poses.
        masks: (n, H, W) in source pixels, of segmentations and the smallest picture only.
        probabilities: (classes,) of a classifier.
    """

    image_path: Path
    confidence: float
    boxes: NDArray[np.float64]
    rotated: NDArray[np.float64] | None = None
    keypoints: NDArray[np.float64] | None = None
    masks: NDArray[np.bool_] | None = None
    probabilities: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class ExportedModel:
    """An ONNX file and Ultralytics' own results with it."""

    case: ExportCase
    path: Path
    predictions: tuple[Prediction, ...]


def offline_environment(config_dir: Path) -> dict[str, str]:
    """The environment in which Ultralytics makes no network attempt and one thread."""
    return {
        **os.environ,
        "YOLO_OFFLINE": "1",
        "YOLO_AUTOINSTALL": "false",
        "YOLO_CONFIG_DIR": str(config_dir),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def export_models(folder: Path, cases: Sequence[ExportCase]) -> dict[str, ExportedModel]:
    """Export the cases into the folder, predict with each, and return them by name. Takes a few seconds a case.

    Raises:
        RuntimeError: the child process failed; the message holds the end of what it said.
    """
    names = [case.name for case in cases]
    # A file, not -m: the child needs nothing of ours.
    wanted = json.dumps([{**asdict(case), "task": case.task, "iou": case.iou} for case in cases])
    command = [sys.executable, str(Path(__file__).with_name("onnx_export_child.py").resolve()), str(folder), wanted]
    child = subprocess.run(
        command, env=offline_environment(folder), cwd=folder, capture_output=True, text=True, timeout=900, check=False
    )
    if child.returncode != 0:
        raise RuntimeError(f"the export of {names} failed:\n{child.stdout[-2000:]}\n{child.stderr[-4000:]}")
    return {case.name: ExportedModel(case, folder / f"{case.name}.onnx", _predictions(folder, case)) for case in cases}


def _predictions(folder: Path, case: ExportCase) -> tuple[Prediction, ...]:
    predictions = []
    for fact in json.loads((folder / f"{case.name}.json").read_text()):
        arrays = {
            name: np.array(fact[name], float)
            for name in ("rotated", "keypoints", "probabilities")
            if fact.get(name) is not None
        }
        masks = None
        if fact.get("masks") is not None:
            with np.load(fact["masks"]) as packed:
                count, height, width = packed["shape"]
                masks = np.unpackbits(packed["bits"], count=count * height * width).reshape(count, height, width).astype(bool)
        boxes = np.array(fact["boxes"], float).reshape(-1, 6)
        predictions.append(Prediction(Path(fact["image"]), fact["confidence"], boxes, masks=masks, **arrays))
    return tuple(predictions)
