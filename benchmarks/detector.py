"""What our detector costs beside the network itself.

    python benchmarks/detector.py --figure glue --size 640 [--quick] [--peer]

In: nothing; the script exports a yolo11n with random weights (train extra) and shows it a street picture that Ultralytics ships.
Out: medians on the way and, as the last line, one JSON object. The figure is the CPU time of `OnnxDetector.detect` on a 1280x720
frame over that of a bare `session.run` of the same graph on a pre-filled input, one thread each, in the same process in interleaved
blocks; the median over several processes is reported, because two processes that run the same thing differ by up to 2 %. `--peer`
measures `ultralytics.YOLO("x.onnx").predict` against the same baseline in processes of its own, by turns with ours: torch in our
process would slow both of our arms. It does not measure accuracy
(`tests/integration/test_detector_parity.py` does).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
GOALS = {640: 1.02, 320: 1.05, 160: 1.10}
FRAME_HW = (720, 1280)


def main() -> int:
    """Parent: export once, measure in fresh processes, print the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", choices=["glue"], default="glue")
    parser.add_argument("--size", type=int, choices=sorted(GOALS), default=640)
    parser.add_argument("--quick", action="store_true", help="two processes and fewer blocks; a minute instead of several")
    parser.add_argument("--peer", action="store_true", help="measure Ultralytics' own predict beside it")
    parser.add_argument("--measure", nargs=3, metavar=("ARM", "ONNX", "PICTURE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        arm, model_path, picture = arguments.measure
        print(json.dumps(measure(arm, Path(model_path), Path(picture), arguments.size, quick=arguments.quick)))
        return 0

    sys.path.insert(0, str(ROOT / "tests"))
    from bowerbird_testing.onnx_models import ExportCase, export_models, offline_environment

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"exporting yolo11n at {arguments.size} px ...", flush=True)
        model = export_models(folder, [ExportCase("yolo11n", "yolo11n.yaml", arguments.size)])["yolo11n"]
        runs, peer_runs = [], []
        for number in range(2 if arguments.quick else 5):
            for arm in ["ours", "peer"] if arguments.peer else ["ours"]:
                command = [sys.executable, __file__, "--size", str(arguments.size), "--measure", arm]
                command += [str(model.path), str(model.predictions[0].image_path)] + ["--quick"] * arguments.quick
                child = subprocess.run(
                    command, env=offline_environment(folder), stdout=subprocess.PIPE, text=True, timeout=1800, check=True
                )
                run = json.loads(child.stdout.splitlines()[-1])
                (runs if arm == "ours" else peer_runs).append(run)
                print(f"process {number + 1} {arm}: {run}", flush=True)
    value = statistics.median(run["ratio_cpu"] for run in runs)
    goal = GOALS[arguments.size]
    figure = {
        "figure": f"glue-{arguments.size}",
        "value": round(value, 4),
        "goal": goal,
        "unit": "CPU time of detect over bare session.run",
        "ok": value <= goal,
        "details": {
            "processes": len(runs),
            "ratios_cpu": [round(run["ratio_cpu"], 4) for run in runs],
            "ratios_wall": [round(run["ratio_wall"], 4) for run in runs],
            "peer_ratios_cpu": [round(run["ratio_cpu"], 4) for run in peer_runs],
            "bare_ms_cpu": round(statistics.median(run["bare_ms_cpu"] for run in runs), 3),
            "detections_per_frame": runs[0]["detections"],
            "frame_hw": FRAME_HW,
            "threads": 1,
            "cores": os.cpu_count(),
            "load_average": os.getloadavg()[0],
            "versions": runs[0]["versions"],
        },
    }
    print(json.dumps(figure))
    return 0 if figure["ok"] else 1


def measure(against: str, model: Path, picture: Path, size: int, *, quick: bool) -> dict[str, object]:
    """Child: interleaved blocks of the bare run and of one other arm, "ours" or "peer", in one process."""
    import cv2
    import onnxruntime

    from bowerbird_models.onnx_detector import OnnxDetector

    # One core for everything: Ultralytics lets ONNX Runtime take all cores and spin on them, which would weaken the peer.
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[-1]})
    cv2.setNumThreads(1)
    image = cv2.imread(str(picture))
    assert image is not None, picture
    frame = cv2.resize(image, FRAME_HW[::-1]).astype(np.uint8)
    options = onnxruntime.SessionOptions()  # the same settings as the detector's: the baseline is not weakened
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(model), sess_options=options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    tensor = np.random.default_rng(0).random((1, 3, size, size), np.float32)
    detector = OnnxDetector(model, threads=1)
    confidence = confidence_for(detector, frame, 20)
    arms: dict[str, Callable[[], object]] = {
        "bare": lambda: session.run(None, {name: tensor}),
        "ours": lambda: detector.detect(frame, confidence=confidence),
    }
    if against == "peer":
        import torch
        from ultralytics import YOLO

        sys.path.insert(0, str(ROOT / "tests"))
        from bowerbird_testing.onnx_export_child import stand_in_for_torchvision

        stand_in_for_torchvision()
        torch.set_num_threads(1)
        theirs = YOLO(model, task="detect")
        del arms["ours"]
        arms["peer"] = lambda: theirs.predict(frame, conf=confidence, imgsz=size, verbose=False)
    frames_a_block = max(2, (640 // size) ** 2)
    blocks = (15 if quick else 40) if size == 640 else (30 if quick else 80)
    cpu: dict[str, list[float]] = {arm: [] for arm in arms}
    wall: dict[str, list[float]] = {arm: [] for arm in arms}
    for arm in arms.values():
        for _ in range(3):
            arm()
    for block in range(blocks):
        order = list(arms) if block % 2 == 0 else list(reversed(arms))
        for arm_name in order:
            arm = arms[arm_name]
            wall_before, cpu_before = time.perf_counter(), time.process_time()
            for _ in range(frames_a_block):
                arm()
            cpu[arm_name].append((time.process_time() - cpu_before) / frames_a_block * 1000)
            wall[arm_name].append((time.perf_counter() - wall_before) / frames_a_block * 1000)
    return {
        "ratio_cpu": statistics.median(cpu[against]) / statistics.median(cpu["bare"]),
        "ratio_wall": statistics.median(wall[against]) / statistics.median(wall["bare"]),
        "bare_ms_cpu": statistics.median(cpu["bare"]),
        "arm_ms_cpu": statistics.median(cpu[against]),
        "detections": len(detector.detect(frame, confidence=confidence)),
        "versions": {
            "python": platform.python_version(),
            "onnxruntime": onnxruntime.__version__,
            "opencv": cv2.__version__,
            "numpy": np.__version__,
        },
    }


def confidence_for(detector: object, frame: object, count: int) -> float:
    """The confidence at which about `count` boxes come out, as on a street: decoding nothing would flatter us."""
    found = detector.detect(frame, confidence=0.01)  # type: ignore[attr-defined]
    return float(found.scores[min(count, len(found)) - 1])


if __name__ == "__main__":
    sys.exit(main())
