"""The child of `onnx_models.py`: everything that Ultralytics does for the parity tests, in a process of its own.

In: a folder, and the export cases as JSON. Out, in the folder: for each case `name.onnx` and `name.json`, what
`ultralytics.YOLO("name.onnx").predict` sees. It imports nothing of ours.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

LOWEST_CONFIDENCE = 0.01


def stand_in_for_torchvision() -> None:
    """A torchvision built for another torch cannot load its operators; Ultralytics wants only one, and has its own of it."""
    try:
        import torchvision  # type: ignore[import-untyped]
    except (ImportError, RuntimeError, OSError):
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")  # all about operators
        import torchvision
    if not torchvision.extension._has_ops():
        import torch
        from torchvision.ops import boxes
        from ultralytics.utils.nms import TorchNMS

        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.impl("nms", TorchNMS.nms, "CPU")
        torchvision.bowerbird_library = library  # it unregisters itself when it is collected
        boxes._assert_has_ops = lambda: None


def spread(layer: Any, inputs: Any, outputs: Any, *, mean: float, deviation: float) -> Any:
    """A forward hook that rescales a layer so that its outputs have this mean and deviation."""
    scale = deviation / outputs.std()
    layer.bias.sub_(outputs.mean()).mul_(scale).add_(mean)
    layer.weight.mul_(scale)
    return layer.forward(inputs[0])


def architecture(folder: Path, case: dict[str, Any]) -> Path:
    """The packaged architecture, narrower and with other classes where the case says so; the name keeps its scale letter."""
    from ultralytics.nn.tasks import yaml_model_load
    from ultralytics.utils import YAML

    wanted: dict[str, Any] = yaml_model_load(case["yaml"])
    if case["class_count"] is not None:
        wanted["nc"] = case["class_count"]
    if case["keypoint_shape"] is not None:
        wanted["kpt_shape"] = list(case["keypoint_shape"])
    if case["width"] is not None:
        if wanted.get("scales"):
            depth, _, most_channels = wanted["scales"]["n"]
            wanted["scales"] = {"n": [depth, case["width"], most_channels]}
        else:  # v9 has one size only: every number of channels is in its lists
            for layer in [*wanted["backbone"], *wanted["head"][:-1]]:
                layer[3] = [
                    max(16, round(value * case["width"] / 16) * 16) if isinstance(value, int) and value >= 32 else value
                    for value in layer[3]
                ]
    for key in ("yaml_file", "scale"):
        wanted.pop(key, None)
    stem, _, task = Path(case["yaml"]).stem.partition("-")
    name = f"{stem.removesuffix('c')}n" if stem.endswith("c") else stem
    path = folder / "architectures" / case["name"] / f"{name}{'-' * bool(task)}{task}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    YAML.save(path, wanted)
    return path


@functools.cache
def checkpoint(folder: Path, case_text: str) -> Path:
    """An untrained but lively model, saved; made once for all cases that differ in their export only."""
    import cv2
    import torch
    from ultralytics import YOLO

    case = json.loads(case_text)
    torch.manual_seed(7)
    model = YOLO(architecture(folder, case), task=case["task"])
    network: Any = model.model
    batch = np.stack([cv2.resize(np.asarray(cv2.imread(str(picture))), (256, 256))[..., ::-1] for picture in pictures(folder)])
    tensor = torch.from_numpy(batch.copy()).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 0.5
        network.train()
        for _ in range(8):  # fits the batch statistics; with the initial ones the signal dies out in the depth
            network(tensor)
        network.eval()
        head = network.model[-1]
        if case["task"] == "classify":
            head.linear.register_forward_hook(functools.partial(spread, mean=0.0, deviation=1.5))
        for name, branches in head.named_children():
            if name.endswith(
                "cv3"
            ):  # the class branches, one-to-one ones included: scores differ, and even the highest are below 1
                hook = functools.partial(spread, mean=-2.5, deviation=0.6)
            elif name.endswith("cv4") and case["task"] == "obb":  # angles of all kinds
                hook = functools.partial(spread, mean=0.0, deviation=1.0)
            else:
                continue
            for branch in branches:
                branch[-1].register_forward_hook(hook)
        network(tensor)
        for module in network.modules():
            module._forward_hooks.clear()
    path = folder / f"{case['name']}.pt"
    model.save(path)
    return path


@functools.cache
def pictures(folder: Path) -> tuple[Path, ...]:
    """Two street pictures that Ultralytics ships, and a part of one with odd sides."""
    import cv2
    from ultralytics.utils import ASSETS

    bus = cv2.imread(str(ASSETS / "bus.jpg"))
    assert bus is not None
    odd = folder / "odd.png"
    cv2.imwrite(str(odd), bus[401:734, 203:720])  # 333 high, 517 wide
    return ASSETS / "bus.jpg", ASSETS / "zidane.jpg", odd


@functools.cache
def crops(folder: Path) -> tuple[Path, ...]:
    """Parts of the pictures for classifiers: small and large, wide and tall, odd and even."""
    import cv2

    rng = np.random.default_rng(11)
    paths = []
    for number in range(22):
        picture = cv2.imread(str(pictures(folder)[number % 2]))
        assert picture is not None
        height, width = (int(rng.integers(40, side)) for side in picture.shape[:2])
        top, left = int(rng.integers(0, picture.shape[0] - height)), int(rng.integers(0, picture.shape[1] - width))
        paths.append(folder / f"crop{number}.png")
        cv2.imwrite(str(paths[-1]), picture[top : top + height, left : left + width])
    return (*paths, *pictures(folder))


def convert(path: Path, how: str, size: tuple[int, int]) -> None:
    """Make the file all half precision, or quantise its convolutions; the metadata stays."""
    import onnx

    model = onnx.load(path)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    if how == "half":
        from onnxruntime.transformers import float16

        onnx.save(float16.convert_float_to_float16(model, keep_io_types=False), path)
    else:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        quantize_static(
            str(path),
            str(path),
            _Calibration(path, size),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=[node.name for node in model.graph.node if "dfl" in node.name],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, entries)
    onnx.save(model, path)


class _Calibration:
    """The pictures, squeezed to the network's size: good enough for the ranges of an untrained network."""

    def __init__(self, path: Path, size: tuple[int, int]) -> None:
        import cv2

        images = (cv2.imread(str(picture)) for picture in pictures(path.parent))
        resized = (cv2.resize(np.asarray(image), size[::-1])[..., ::-1] for image in images)
        self._left = [{"images": (image.transpose(2, 0, 1)[None] / 255).astype(np.float32)} for image in resized]

    def get_next(self) -> dict[str, Any] | None:
        return self._left.pop() if self._left else None


def predictions(folder: Path, case: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """What Ultralytics sees in each picture, as JSON."""
    import cv2
    from ultralytics import YOLO

    size = case["image_size"]
    theirs = YOLO(path, task=case["task"])
    predict = functools.partial(theirs.predict, iou=case["iou"], imgsz=size, verbose=False)
    if case["task"] == "classify":
        return [
            {
                "image": str(crop),
                "confidence": 0.0,
                "boxes": [],
                "probabilities": _numbers(predict(cv2.imread(str(crop)))[0].probs.data),
            }
            for crop in crops(folder)
        ]
    facts = []
    for number, picture in enumerate(pictures(folder)):
        image = cv2.imread(str(picture))
        seen = predict(image, conf=LOWEST_CONFIDENCE)[0]
        confidence = _in_a_gap((seen.obb if case["task"] == "obb" else seen.boxes).conf.numpy())
        seen = predict(image, conf=confidence)[0]
        fact: dict[str, Any] = {"image": str(picture), "confidence": confidence}
        if case["task"] == "obb":
            columns = [seen.obb.xyxy, seen.obb.conf[:, None], seen.obb.cls[:, None]]
            fact["boxes"] = np.concatenate([column.numpy() for column in columns], axis=1).astype(float).tolist()
            fact["rotated"] = _numbers(seen.obb.xywhr)
        else:
            fact["boxes"] = _numbers(seen.boxes.data)
        if case["task"] == "pose":
            fact["keypoints"] = _numbers(seen.keypoints.data)
        if case["task"] == "segment" and number == 2:
            native = predict(image, conf=confidence, retina_masks=True)[0]
            if len(native.boxes) == len(seen.boxes):  # otherwise a mask of a few pixels is none at one of the resolutions
                masks = native.masks.data.numpy().astype(bool)
                fact["masks"] = str(folder / f"{case['name']}-masks.npz")
                np.savez_compressed(fact["masks"], bits=np.packbits(masks), shape=np.array(masks.shape))
        facts.append(fact)
    return facts


def _in_a_gap(scores: Any) -> float:
    """A confidence in the widest gap of scores between ranks 25 and 150: no box is in or out by rounding."""
    ranked = np.sort(scores)[::-1]
    gaps = ranked[:-1] - ranked[1:]
    first = min(25, len(gaps) // 2)
    gap = first + int(np.argmax(gaps[first:150]))
    return float((ranked[gap] + ranked[gap + 1]) / 2)


def _numbers(tensor: Any) -> Any:
    return tensor.numpy().astype(float).tolist()


def export(folder: Path, case: dict[str, Any]) -> None:
    """Build, liven up, export, convert, predict, write down."""
    import torch
    from ultralytics import YOLO

    torch.set_num_threads(1)
    architecture_of = ("yaml", "task", "width", "class_count", "keypoint_shape")
    same = json.dumps(
        {key: case[key] for key in architecture_of} | {"name": "-".join(str(case[key]) for key in architecture_of)}
    )
    size = case["image_size"]
    arguments = {"imgsz": size, "format": "onnx", "simplify": False, **dict(case["export"])}
    path = folder / f"{case['name']}.onnx"
    Path(YOLO(checkpoint(folder, same)).export(**arguments)).replace(path)
    if case["then"]:
        convert(path, case["then"], (size, size) if isinstance(size, int) else tuple(size))
    (folder / f"{case['name']}.json").write_text(json.dumps(predictions(folder, case, path)))


if __name__ == "__main__":
    import time

    stand_in_for_torchvision()
    for each_case in json.loads(sys.argv[2]):
        started_s = time.monotonic()
        export(Path(sys.argv[1]), each_case)
        print(f"exported {each_case['name']} in {time.monotonic() - started_s:.1f} s", flush=True)
