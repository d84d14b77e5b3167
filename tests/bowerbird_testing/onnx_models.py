"""Real YOLO architectures exported by Ultralytics, and what Ultralytics itself sees with them.

In: a folder. Out: small ONNX files (random weights, a few seconds each) and for each the boxes that
`ultralytics.YOLO("x.onnx").predict` returns on the pictures that its package ships. Everything of Ultralytics runs in a child
process without network, as in the product. The weights are untrained but their batch statistics are fitted to the pictures and
the class biases raised, so that a head emits dozens of boxes with different scores. `tiny_yolo.py` needs none of this.
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


@dataclass(frozen=True)
class ExportCase:
    """One architecture and one way to export it.

    Args:
        name: of the test and of the file.
        yaml: the architecture; the scale letter must parse ("yolo11n.yaml").
        image_size: side, or height and width.
        export: further arguments of `YOLO.export`.
    """

    name: str
    yaml: str
    image_size: int | tuple[int, int] = 320
    export: tuple[tuple[str, Any], ...] = ()


CASES = (
    ExportCase("v5u", "yolov5n.yaml", 256),
    ExportCase("v8_rectangular", "yolov8n.yaml", (192, 320)),
    ExportCase("v8_dynamic", "yolov8n.yaml", 320, (("dynamic", True),)),
    ExportCase("v9", "yolov9t.yaml", 256),
    ExportCase("v10", "yolov10n.yaml", 256),
    ExportCase("v10_end_to_end", "yolov10n.yaml", 256, (("end2end", True),)),
    ExportCase("v11", "yolo11n.yaml", 320),
    ExportCase("v11_half", "yolo11n.yaml", 256, (("quantize", 16),)),
    ExportCase("v12", "yolo12n.yaml", 256),
    ExportCase("v26", "yolo26n.yaml", 256),
    ExportCase("v26_end_to_end", "yolo26n.yaml", 256, (("end2end", True),)),
)


@dataclass(frozen=True)
class Prediction:
    """What Ultralytics saw in one picture: `boxes` (n, 6) left, top, right, bottom, score, class."""

    image_path: Path
    confidence: float
    boxes: NDArray[np.float64]


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
    wanted = json.dumps([asdict(case) for case in cases])
    command = [sys.executable, str(Path(__file__).resolve()), str(folder), wanted]
    child = subprocess.run(
        command, env=offline_environment(folder), cwd=folder, capture_output=True, text=True, timeout=500, check=False
    )
    if child.returncode != 0:
        raise RuntimeError(f"the export of {names} failed:\n{child.stdout[-2000:]}\n{child.stderr[-4000:]}")
    exported = {}
    for case in cases:
        facts = json.loads((folder / f"{case.name}.json").read_text())
        exported[case.name] = ExportedModel(
            case,
            folder / f"{case.name}.onnx",
            tuple(
                Prediction(Path(each["image"]), each["confidence"], np.array(each["boxes"], float).reshape(-1, 6))
                for each in facts
            ),
        )
    return exported


def stand_in_for_torchvision() -> None:
    """A torchvision built for another torch cannot load its operators; Ultralytics wants only one, and has its own of it."""
    try:
        import torchvision  # type: ignore[import-untyped]  # noqa: F401 -- the import is the test
    except (ImportError, RuntimeError, OSError):
        from types import ModuleType, SimpleNamespace

        from ultralytics.utils.nms import TorchNMS

        stand_in = ModuleType("torchvision")
        stand_in.ops = SimpleNamespace(nms=TorchNMS.nms)  # type: ignore[attr-defined]  # a module made by hand
        sys.modules["torchvision"] = stand_in


def _spread_logits(layer: Any, _inputs: Any, logits: Any) -> Any:
    """Scale a class layer so that its logits have mean -3 and deviation 1.2: scores differ, and none reaches 1."""
    scale = 1.2 / logits.std()
    layer.bias.sub_(logits.mean()).mul_(scale).sub_(3.0)
    layer.weight.mul_(scale)
    return layer.forward(_inputs[0])


def _export(folder: Path, case: ExportCase) -> None:
    """In the child: build, liven up, export, predict, write down."""
    import cv2
    import torch
    from ultralytics import YOLO
    from ultralytics.utils import ASSETS

    stand_in_for_torchvision()
    torch.set_num_threads(1)
    torch.manual_seed(7)
    pictures = [ASSETS / "bus.jpg", ASSETS / "zidane.jpg"]
    model = YOLO(case.yaml)
    network = model.model
    batch = np.stack([cv2.resize(np.asarray(cv2.imread(str(picture))), (256, 256))[..., ::-1] for picture in pictures])
    tensor = torch.from_numpy(batch.copy()).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 0.5
        network.train()
        for _ in range(8):  # fits the batch statistics; with the initial ones the signal dies out in the depth
            network(tensor)
        network.eval()
        for name, branches in network.model[-1].named_children():
            if name.endswith("cv3"):  # the class branches, one-to-one ones included
                for branch in branches:
                    branch[-1].register_forward_hook(_spread_logits)
        network(tensor)
        for module in network.modules():
            module._forward_hooks.clear()
    size = case.image_size if isinstance(case.image_size, int) else list(case.image_size)
    arguments = {"imgsz": size, "format": "onnx", "simplify": False, **dict(case.export)}
    checkpoint = folder / f"{case.name}.pt"
    model.save(checkpoint)
    Path(YOLO(checkpoint).export(**arguments)).replace(folder / f"{case.name}.onnx")
    theirs = YOLO(folder / f"{case.name}.onnx", task="detect")
    facts = []
    for picture in pictures:
        image = cv2.imread(str(picture))
        scores = theirs.predict(image, conf=0.01, iou=IOU, imgsz=size, verbose=False)[0].boxes.conf.numpy()
        # A confidence that falls into the widest gap of scores near rank 60: no box is in or out by rounding.
        ranked = np.sort(scores)[::-1]
        window = ranked[min(40, len(ranked) // 2) : 100]
        gap = int(np.argmax(window[:-1] - window[1:]))
        confidence = float((window[gap] + window[gap + 1]) / 2)
        result = theirs.predict(image, conf=confidence, iou=IOU, imgsz=size, verbose=False)[0]
        facts.append(
            {"image": str(picture), "confidence": confidence, "boxes": result.boxes.data.numpy().astype(float).tolist()}
        )
    (folder / f"{case.name}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    for each_case in json.loads(sys.argv[2]):
        _export(Path(sys.argv[1]), ExportCase(**each_case))
