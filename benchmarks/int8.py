"""What the quantised files of a package cost, and what they lose, beside the float file.

    python benchmarks/int8.py [--size 640] [--random] [--quick]

In: nothing; the script takes the trained yolo11n of `trained_model.py` (ten minutes of training the first time on a machine) and
quantises it as the server does, on training pictures. With `--random` it takes random weights: the same time, no accuracy. Out: as
the last line, one JSON object: the CPU time of a bare run of the int8 file for ONNX Runtime over that of the float file on ONNX
Runtime, one thread each, in the same process, in interleaved blocks; beside it the same of the file for OpenVINO, and the mAP50-95
of each file on held-out pictures with the runtime that it is for. It fails when the file is slower than its goal, or when one loses
more than the half point that a package allows.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from figure import report

ROOT = Path(__file__).resolve().parent.parent
GOAL = 0.58
MAX_LOSS_POINTS = 0.5
CALIBRATION_FRAMES = 8  # ranges decide accuracy, not time


def main() -> int:
    """Export, quantise, measure, print the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--random", action="store_true", help="random weights: no training, no accuracy")
    parser.add_argument("--quick", action="store_true", help="fewer blocks; half a minute instead of two")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    import onnx
    from trained_model import trained_model

    from bowerbird_models.model_file import ModelFile
    from bowerbird_models.package import ONNX_INT8_OPENVINO, ONNX_INT8_ORT, RUNTIME_OF_VARIANT
    from bowerbird_models.runtimes import RuntimeOptions, available, open_session
    from bowerbird_server.quantisation.half_weights import restore_full, store_half
    from bowerbird_server.quantisation.quantise import quantise
    from bowerbird_server.training.evaluate import evaluate_model
    from bowerbird_testing.onnx_models import ExportCase, export_models

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"quantising yolo11n at {arguments.size} px ...", flush=True)
        held_out: tuple[Any, ...] = ()
        class_names: tuple[str, ...] = ()
        if arguments.random:
            model = export_models(folder, [ExportCase("yolo11n", "yolo11n.yaml", arguments.size)])["yolo11n"]
            # Not `to_transport_form`: it compares detections first, and those of random weights hang on every bit.
            source = folder / "transport.onnx"
            onnx.save(store_half(onnx.load(str(model.path))), str(source))
            pictures = crops([each.image_path for each in model.predictions], folder, CALIBRATION_FRAMES)
        else:
            if arguments.size != 640:
                raise SystemExit("the trained model is for 640 pixels; take --random for other sizes")
            trained = trained_model(folder)
            source, pictures = trained.onnx, list(trained.calibration)
            held_out, class_names = trained.held_out[: 20 if arguments.quick else None], trained.class_names
        full = folder / "fp32.onnx"
        onnx.save(restore_full(onnx.load(str(source))), str(full))
        files = dict(quantise(source, folder / "int8", [ONNX_INT8_ORT, ONNX_INT8_OPENVINO], pictures).files)
        usable = {each.name for each in available() if each.usable}
        arms: dict[str, Callable[[], object]] = {}
        # One core for everything that is measured, so that no runtime borrows another.
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[-1]})
        planned = {"fp32": (full, "onnxruntime-cpu"), "transport": (source, "onnxruntime-cpu")}
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
        accuracy = {
            arm: evaluate_model(planned[arm][0], held_out, class_names, runtime=planned[arm][1]).evaluation.map50_95
            for arm in arms
            if held_out
        }
    median = {arm: statistics.median(values) for arm, values in cpu.items()}
    value = median[ONNX_INT8_ORT] / median["fp32"]
    lost_points = {arm: round(100 * (accuracy["fp32"] - each), 3) for arm, each in accuracy.items()}
    return report(
        f"int8-{arguments.size}",
        value,
        GOAL,
        "CPU time of the int8 file over the float file, both on ONNX Runtime",
        at_least=False,
        also=max(lost_points.values(), default=0.0) <= MAX_LOSS_POINTS,
        details={
            "ratio_to_fp32": {arm: round(each / median["fp32"], 4) for arm, each in median.items()},
            "ms_cpu": {arm: round(each, 2) for arm, each in median.items()},
            "bytes": sizes,
            "map50_95": {arm: round(each, 4) for arm, each in accuracy.items()},
            "lost_points": lost_points,
            "lost_points_allowed": MAX_LOSS_POINTS,
            "threads": 1,
        },
    )


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
