"""The training process: the only place where Ultralytics and torch are imported (AGPL-3.0, behind the `train` extra).

In: the path of a task in JSON, written by `train.py` or `export.py`; a standard input that stays open as long as the parent
lives. Out: one JSON object a line on standard output (progress, result or error), weights and ONNX in the task's folder.
Everything that Ultralytics prints goes to standard error, which the parent keeps as a log. Run as
`python -m bowerbird_server.training.train_child TASK.json`; people use `bowerbird train`.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any, TextIO

import yaml

from bowerbird_server.child_task import emit, run_task
from bowerbird_server.errors import BadInput, EnvironmentFault
from bowerbird_server.training.dataset_check import TrainingSplit, read_training_split
from bowerbird_server.training.repeat_factor import repeats
from bowerbird_server.training.train import TrainingFailed

EIGHTH = "bowerbird-eighth"


def _ultralytics(threads: int) -> Any:
    """Import Ultralytics, offline and on so many threads.

    Raises:
        EnvironmentFault: the `train` extra is not installed.
    """
    # Ultralytics looks for this font and would fetch it; any font does.
    font = Path(os.environ["YOLO_CONFIG_DIR"]) / "Ultralytics" / "Arial.ttf"
    try:
        import matplotlib as mpl

        if not font.exists():
            font.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", font)
        import torch

        from bowerbird_server.training.torchvision_operators import make_torchvision_importable

        make_torchvision_importable()
        import ultralytics
    except ImportError as error:
        raise EnvironmentFault(
            f"training needs the `train` extra ({error}); install it: pip install 'bowerbird[train]'"
        ) from error
    torch.set_num_threads(threads)
    ultralytics.settings.update({"sync": False, "datasets_dir": str(font.parent), "runs_dir": str(font.parent)})
    return ultralytics


def _train(task: dict[str, Any], events: TextIO) -> dict[str, Any]:
    data_yaml, out = Path(task["data_yaml"]), Path(task["out_dir"])
    split = read_training_split(data_yaml)
    listed = _shown(split, below=task["repeat_below"], seed=task["seed"])
    # A longer pass for fewer passes: the steps are as many as without repeats.
    a_pass = math.ceil(len(listed) / task["batch"])
    epochs = max(1, round(task["epochs"] * math.ceil(len(split.images) / task["batch"]) / a_pass))
    ultralytics = _ultralytics(task["threads"])
    import torch

    started_from, model = _start(ultralytics, task, out)

    def epoch_ended(trainer: Any) -> None:
        loss = float(sum(trainer.tloss.values())) if isinstance(trainer.tloss, dict) else float(trainer.tloss.sum())
        if not math.isfinite(loss):
            raise TrainingFailed(
                "the training diverged (the loss is not a number); lower the learning rate or check the labels"
            )
        emit(events, event="progress", epoch=trainer.epoch + 1, epochs=epochs, loss=loss)

    # The trainer sets its own thread count once more while it starts.
    model.add_callback("on_pretrain_routine_end", lambda _: torch.set_num_threads(task["threads"]))
    model.add_callback("on_train_epoch_end", epoch_ended)
    model.train(
        data=str(_trainable_yaml(data_yaml, out, listed)),
        project=str(out),
        name="run",
        exist_ok=True,
        imgsz=task["image_size"],
        epochs=epochs,
        batch=task["batch"],
        # Gradients are applied after every batch: with the default of 64 a small data set sees too few steps to learn at all.
        nbs=task["batch"],
        optimizer="AdamW",
        lr0=task["learning_rate"],
        lrf=task["final_rate_share"],
        cos_lr=True,
        warmup_epochs=task["warmup_epochs"],
        # The default starts biases at 0.1, fifty times our rate: it undoes what base weights know.
        warmup_bias_lr=0.0,
        mosaic=task["mosaic"],
        scale=task["scale_jitter"],
        freeze=task["frozen_layers"] or None,
        seed=task["seed"],
        cache="ram",
        device="cpu" if not torch.cuda.is_available() else "0",
        workers=0,
        # Half precision is checked with downloaded weights.
        amp=False,
        # The gate evaluates the exported file on frames that no training sees; validating here would choose an epoch by them.
        val=False,
        # A checkpoint an epoch costs a tenth of a small training; the last epoch's is written anyway.
        save=False,
        plots=False,
        verbose=False,
    )
    weights = out / "weights.pt"
    shutil.copyfile(out / "run" / "weights" / "last.pt", weights)
    from bowerbird_server.training.export_child import export_onnx

    onnx = export_onnx(weights, out / "model.onnx", task["image_size"])
    made = {"weights": str(weights), "onnx": str(onnx), "steps": epochs * a_pass}
    return {**made, "versions": {**versions(), "started_from": started_from}}


def _shown(split: TrainingSplit, *, below: float, seed: int) -> list[Path]:
    """The pictures of one pass; those that show a rare class are in it more than once."""
    times = repeats(split.class_ids, below=below, seed=seed)
    return [image for image, n in zip(split.images, times, strict=True) for _ in range(n)]


def _start(ultralytics: Any, task: dict[str, Any], out: Path) -> tuple[str, Any]:
    """What the training starts from, in words, and the model."""
    if task["base_weights"] is not None:
        return "base weights", load_checkpoint(ultralytics, Path(task["base_weights"]))
    name = task["model"]
    if task["pretrained_dir"] is not None:
        pretrained = Path(task["pretrained_dir"]) / f"{name}.pt"
        if pretrained.is_file():
            return f"pretrained {name}", load_checkpoint(ultralytics, pretrained)
    if name == EIGHTH:
        architecture = _eighth_yaml(ultralytics, out)
    elif name.endswith(".yaml"):
        architecture = Path(name)
        if not architecture.is_file():
            raise BadInput(f"there is no architecture file {name}; check the path, or use --model yolo11n")
    else:
        architecture = Path(f"{name}.yaml")
    try:
        return f"scratch ({name})", ultralytics.YOLO(str(architecture), task="detect")
    except Exception as error:
        raise BadInput(
            f"the architecture {name!r} cannot be built ({error}); use {EIGHTH}, yolo11n, yolo26n or a path to a .yaml"
        ) from error


def _eighth_yaml(ultralytics: Any, out: Path) -> Path:
    """YOLO11 at an eighth of its width: 0.8 million parameters, trained from nothing in two minutes on one core.

    Derived from the installed package rather than shipped: the architecture file is Ultralytics' own.
    """
    source = Path(ultralytics.__file__).parent / "cfg" / "models" / "11" / "yolo11.yaml"
    description = yaml.safe_load(source.read_text())
    description["scales"] = {"n": [0.50, 0.125, 1024]}
    # Ultralytics reads the scale's letter from the file's name.
    path = out / "yolo11n-eighth.yaml"
    path.write_text(yaml.safe_dump(description, sort_keys=False))
    return path


def load_checkpoint(ultralytics: Any, path: Path) -> Any:
    """A detection model from a `.pt`. It runs what the file contains: only for files of our own or that somebody trusted.

    Raises:
        BadInput: not a checkpoint of a detection model.
    """
    try:
        model = ultralytics.YOLO(str(path))
    except Exception as error:
        raise BadInput(
            f"{path.name} is no checkpoint that Ultralytics {ultralytics.__version__} reads ({type(error).__name__}); export it "
            "to ONNX where it was trained: yolo export model=best.pt format=onnx"
        ) from error
    if model.task != "detect":
        raise BadInput(f"{path.name} is a {model.task} model; the loop trains detection models only")
    return model


def _trainable_yaml(data_yaml: Path, out: Path, listed: list[Path]) -> Path:
    """The same data set: as `train` the list of what one pass shows, and `train` for `val` (Ultralytics insists on both)."""
    description = yaml.safe_load(data_yaml.read_text())
    description["path"] = str((data_yaml.parent / description.get("path", ".")).resolve())
    description["val"] = description["train"]
    images = out / "train.txt"
    images.write_text("".join(f"{image.resolve()}\n" for image in listed))
    description["train"] = str(images)
    description.pop("download", None)
    path = out / "data.yaml"
    path.write_text(yaml.safe_dump(description, sort_keys=False))
    return path


def versions() -> dict[str, str]:
    """Of everything that decides the result."""
    import onnx
    import torch
    import ultralytics

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ultralytics": ultralytics.__version__,
        "onnx": onnx.__version__,
    }


def _export(task: dict[str, Any], events: TextIO) -> dict[str, Any]:
    del events
    ultralytics = _ultralytics(task["threads"])
    load_checkpoint(ultralytics, Path(task["weights"]))
    from bowerbird_server.training.export_child import export_onnx

    onnx = export_onnx(Path(task["weights"]), Path(task["onnx"]), task["image_size"])
    return {"onnx": str(onnx), "versions": versions()}


_TASKS = {"train": _train, "export": _export}

if __name__ == "__main__":
    sys.exit(run_task(sys.argv[1:], _TASKS, "training"))
