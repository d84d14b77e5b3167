"""What the quantised files of a package cost beside the float file.

    python benchmarks/int8.py [--size 640] [--quick]

In: nothing; the script exports a yolo11n with random weights (train extra), puts it in transport form and quantises it as the server
does, on crops of the pictures that Ultralytics ships. Out: medians on the way and, as the last line, one JSON object: the CPU time of a
bare run of the int8 file for ONNX Runtime over that of the float file on ONNX Runtime, one thread each, in the same process, in
interleaved blocks. The int8 file for OpenVINO is measured against the same float run. It measures no accuracy: random weights have
none (`bowerbird models quantise` measures it on a site's own frames).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
GOAL = 0.58
CALIBRATION_FRAMES = 8  # ranges decide accuracy, not time


def main() -> int:
    """Export, quantise, measure, print the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--quick", action="store_true", help="fewer blocks; half a minute instead of two")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    import onnx
    import onnxruntime

    from bowerbird_models.model_file import ModelFile
    from bowerbird_models.package import ONNX_INT8_OPENVINO, ONNX_INT8_ORT, RUNTIME_OF_VARIANT
    from bowerbird_models.runtimes import RuntimeOptions, available, open_session
    from bowerbird_server.half_weights import store_half
    from bowerbird_server.quantise import quantise
    from bowerbird_testing.onnx_models import ExportCase, export_models

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"exporting and quantising yolo11n at {arguments.size} px ...", flush=True)
        model = export_models(folder, [ExportCase("yolo11n", "yolo11n.yaml", arguments.size)])["yolo11n"]
        # Not `to_transport_form`: it compares detections first, and those of random weights hang on every bit.
        source = folder / "transport.onnx"
        onnx.save(store_half(onnx.load(str(model.path))), str(source))
        pictures = crops([each.image_path for each in model.predictions], folder, CALIBRATION_FRAMES)
        files = dict(quantise(source, folder / "int8", [ONNX_INT8_ORT, ONNX_INT8_OPENVINO], pictures).files)
        usable = {each.name: each.version for each in available() if each.usable}
        arms: dict[str, Callable[[], object]] = {}
        # One core for everything that is measured, so that no runtime borrows another.
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[-1]})
        planned = {"fp32": (model.path, "onnxruntime-cpu"), "transport": (source, "onnxruntime-cpu")}
        planned |= {role: (path, RUNTIME_OF_VARIANT[role]) for role, path in files.items()}
        for arm, (path, runtime) in planned.items():
            if runtime in usable:
                session = open_session(ModelFile.read(path), RuntimeOptions(runtime))
                spec = session.inputs[0]
                shape = [side or 1 for side in spec.shape]
                rng = np.random.default_rng(0)
                tensor = (
                    rng.integers(0, 256, shape).astype(np.uint8) if spec.dtype == "uint8" else rng.random(shape, np.float32)
                )
                arms[arm] = session.bind(tensor, [output.name for output in session.outputs], fixed=True)
        sizes = {arm: planned[arm][0].stat().st_size for arm in arms}
        cpu = measure(arms, blocks=12 if arguments.quick else 40)
    median = {arm: statistics.median(values) for arm, values in cpu.items()}
    value = median[ONNX_INT8_ORT] / median["fp32"]
    figure = {
        "figure": f"int8-{arguments.size}",
        "value": round(value, 4),
        "goal": GOAL,
        "unit": "CPU time of the int8 file over the float file, both on ONNX Runtime",
        "ok": value <= GOAL,
        "details": {
            "ratio_to_fp32": {arm: round(each / median["fp32"], 4) for arm, each in median.items()},
            "ms_cpu": {arm: round(each, 2) for arm, each in median.items()},
            "bytes": sizes,
            "threads": 1,
            "cores": os.cpu_count(),
            "load_average": os.getloadavg()[0],
            "versions": {"python": platform.python_version(), "onnxruntime": onnxruntime.__version__, **usable},
        },
    }
    print(json.dumps(figure))
    return 0 if figure["ok"] else 1


def crops(pictures: list[Path], folder: Path, count: int) -> list[Path]:
    """`count` different parts of the pictures, as files."""
    made = []
    for number in range(count):
        image = cv2.imread(str(pictures[number % len(pictures)]))
        assert image is not None
        height, width = image.shape[:2]
        part = number // len(pictures) / max(1, count // len(pictures))
        top, left = round(part * height / 2), round(part * width / 2)
        path = folder / f"crop-{number}.png"
        cv2.imwrite(str(path), image[top : top + height // 2, left : left + width // 2])
        made.append(path)
    return made


def measure(arms: dict[str, Callable[[], object]], *, blocks: int) -> dict[str, list[float]]:
    """CPU milliseconds of each run, in blocks of two, arms by turns, every other round backwards."""
    cpu: dict[str, list[float]] = {arm: [] for arm in arms}
    for arm in arms.values():
        for _ in range(3):
            arm()
    for block in range(blocks):
        for name in list(arms) if block % 2 == 0 else list(reversed(arms)):
            before = time.process_time()
            arms[name]()
            arms[name]()
            cpu[name].append((time.process_time() - before) * 500)
    return cpu


if __name__ == "__main__":
    sys.exit(main())
