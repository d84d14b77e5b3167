"""What several benchmarks show a camera, and the model that they run on it: a synthetic street, a yolo11n with random weights.

In: where the files shall be. Out: a film, a model. Neither is measured here; a trained model comes from `trained_model.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
from figure import ROOT

FRAME_WH = (768, 576)


def street_film(path: Path) -> Path:
    """Half a minute of synthetic street, ten frames a second."""
    from bowerbird_models.scenes import SceneStream

    street = SceneStream(1, width=FRAME_WH[0], height=FRAME_WH[1])
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, FRAME_WH)
    for number in range(300):
        writer.write(street.render(number)[0])
    writer.release()
    return path


def exported_yolo11n(folder: Path) -> Path:
    """A yolo11n for 640 pixels with random weights, as Ultralytics exports it."""
    sys.path.insert(0, str(ROOT / "tests"))
    from bowerbird_testing.onnx_models import ExportCase, export_models

    print("exporting yolo11n at 640 px ...", flush=True)
    return export_models(folder, [ExportCase("yolo11n", "yolo11n.yaml", 640)])["yolo11n"].path
