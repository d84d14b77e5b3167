"""Training and export with the real Ultralytics in its child process: tiny pictures, one or two epochs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from bowerbird_models.scenes import CLASS_NAMES, SceneStream
from bowerbird_server.errors import BadInput, EnvironmentFault
from bowerbird_server.training.export import export_weights
from bowerbird_server.training.train import (
    NoLabels,
    TrainingCancelled,
    TrainingFailed,
    TrainingProgress,
    TrainingRequest,
    TrainingResult,
    child_environment,
    run_training,
)

# One group on one worker: the trained model is made once and read by all.
pytestmark = [pytest.mark.train, pytest.mark.xdist_group("train")]
SIDE = 64


def write_dataset(folder: Path, frames: int = 6, classes: tuple[str, ...] = CLASS_NAMES, *, labels: bool = True) -> Path:
    """A YOLO data set of synthetic frames by day (foxes never appear); returns `data.yaml`."""
    stream = SceneStream(1, width=128, height=96)
    (folder / "images" / "train").mkdir(parents=True)
    (folder / "labels" / "train").mkdir(parents=True)
    for number in range(frames):
        image, truth = stream.render(10 * number)
        cv2.imwrite(str(folder / "images" / "train" / f"{number}.jpg"), image)
        lines = [
            f"{class_id} {(x0 + x1) / 256:.5f} {(y0 + y1) / 192:.5f} {(x1 - x0) / 128:.5f} {(y1 - y0) / 96:.5f}"
            for class_id, (x0, y0, x1, y1) in zip(truth.class_ids, truth.boxes_xyxy, strict=True)
            if class_id < len(classes)
        ]
        if labels:
            (folder / "labels" / "train" / f"{number}.txt").write_text("\n".join(lines))
    data_yaml = folder / "data.yaml"
    data_yaml.write_text(yaml.safe_dump({"path": ".", "train": "images/train", "names": dict(enumerate(classes))}))
    return data_yaml


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingResult, list[TrainingProgress]]:
    """A model of two classes trained for two epochs, and the progress that was told."""
    folder = tmp_path_factory.mktemp("trained")
    told: list[TrainingProgress] = []
    request = TrainingRequest(
        write_dataset(folder / "data", classes=CLASS_NAMES[:2]), folder / "out", image_size=SIDE, epochs=2, batch=4
    )
    return run_training(request, told.append), told


def test_a_training_leaves_weights_a_model_and_its_versions(
    trained: tuple[TrainingResult, list[TrainingProgress]],
) -> None:
    """Progress is told after each epoch, and the result names files that exist and what made them."""
    result, told = trained
    assert [(state.epoch, state.epochs) for state in told] == [(1, 2), (2, 2)]
    assert all(np.isfinite(state.loss) and state.elapsed_s > 0 for state in told)
    assert result.weights.is_file()
    assert result.onnx.is_file()
    assert result.versions["started_from"].startswith("scratch")
    assert {"torch", "ultralytics", "onnx", "python"} <= result.versions.keys()


def test_the_exported_file_is_one_that_a_device_reads(trained: tuple[TrainingResult, list[TrainingProgress]]) -> None:
    """The device's own detector loads it, knows its classes, and gets an embedding beside the detections."""
    from bowerbird_models.onnx_detector import OnnxDetector

    detector = OnnxDetector(trained[0].onnx)
    assert detector.class_names == CLASS_NAMES[:2]
    image, _ = SceneStream(1, width=128, height=96).render(0)
    first, again = detector.detect(image), detector.detect(image)
    assert first.embedding is not None
    assert first.embedding.shape == (224,)
    assert np.array_equal(first.boxes_xyxy, again.boxes_xyxy)


def test_metadata_survives_and_says_nothing_of_this_machine(
    trained: tuple[TrainingResult, list[TrainingProgress]], tmp_path: Path
) -> None:
    """Names, stride, size and task are kept; no path and no time of day, so that equal weights give equal bytes."""
    import onnxruntime

    meta = onnxruntime.InferenceSession(trained[0].onnx).get_modelmeta().custom_metadata_map
    assert meta["task"] == "detect"
    assert meta["imgsz"] == f"[{SIDE}, {SIDE}]"
    assert meta["stride"] == "32"
    assert meta["names"] == "{0: 'car', 1: 'person'}"
    assert meta["embedding"] == "224"
    assert meta["loc_entropy"] == "16"
    assert meta["weights_stored_as"] == "float16"
    assert "date" not in meta
    assert str(trained[0].onnx.parent) not in " ".join(meta.values())
    exported = export_weights(trained[0].weights, tmp_path / "again", image_size=SIDE)
    assert exported.onnx.read_bytes() == trained[0].onnx.read_bytes()


def test_the_curation_outputs_leave_the_detections_bit_identical(
    trained: tuple[TrainingResult, list[TrainingProgress]], tmp_path: Path
) -> None:
    """Without the other outputs the first one has the same bits, and the second really is the pooled features."""
    import onnx
    import onnxruntime

    with_embedding = onnx.load(str(trained[0].onnx))
    assert [output.name for output in with_embedding.graph.output] == ["output0", "embedding", "loc_entropy"]
    pooled = [node.input[0] for node in with_embedding.graph.node if node.name.startswith("embedding/pool_")]
    without = onnx.load(str(trained[0].onnx))
    kept = [node for node in without.graph.node if not node.name.startswith(("embedding/", "loc_entropy/"))]
    del without.graph.node[:], without.graph.output[1:]
    without.graph.node.extend(kept)
    onnx.save(without, str(tmp_path / "plain.onnx"))
    with_embedding.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in pooled)
    onnx.save(with_embedding, str(tmp_path / "open.onnx"))
    picture = np.random.default_rng(3).random((1, 3, SIDE, SIDE), np.float32)
    plain = onnxruntime.InferenceSession(tmp_path / "plain.onnx").run(None, {"images": picture})
    detections, embedding, entropy, *maps = onnxruntime.InferenceSession(tmp_path / "open.onnx").run(None, {"images": picture})
    assert np.array_equal(plain[0], detections)
    np.testing.assert_allclose(embedding[0], np.concatenate([m.mean(axis=(2, 3))[0] for m in maps]), rtol=1e-4, atol=1e-6)
    assert entropy.shape == (1, detections.shape[2])
    assert 0 <= entropy.min() <= entropy.max() <= 1
    assert [m.shape[2] for m in maps] == [SIDE // 8, SIDE // 16, SIDE // 32]


def test_int8_of_a_trained_model_is_nearly_as_good_on_the_runtime_it_is_for(tmp_path: Path) -> None:
    """Trained until it knows its few pictures by heart, then quantised on them: both files still find what is in them."""
    from bowerbird_models.package import RUNTIME_OF_VARIANT
    from bowerbird_models.runtimes import available
    from bowerbird_server.quantisation.quantise import quantise
    from bowerbird_server.training.evaluate import EvaluationFrame, evaluate_model

    count = 24
    request = TrainingRequest(
        write_dataset(tmp_path / "data", count), tmp_path / "out", image_size=128, epochs=60, batch=8, scale_jitter=0.1
    )
    result = run_training(request)
    stream = SceneStream(1, width=128, height=96)
    truths = [stream.render(10 * number)[1] for number in range(count)]
    pictures = [tmp_path / "data" / "images" / "train" / f"{number}.jpg" for number in range(count)]
    frames = [
        EvaluationFrame(path, "scene", (), truth.boxes_xyxy, truth.class_ids)
        for path, truth in zip(pictures, truths, strict=True)
    ]
    made = quantise(result.onnx, tmp_path / "int8", list(RUNTIME_OF_VARIANT), pictures)
    assert set(made.files) == set(RUNTIME_OF_VARIANT)
    whole = evaluate_model(result.onnx, frames, CLASS_NAMES).evaluation.map50_95
    assert whole > 0.2
    usable = {each.name for each in available() if each.usable}
    for role, path in made.files.items():
        assert path.stat().st_size < 0.8 * result.onnx.stat().st_size
        if RUNTIME_OF_VARIANT[role] in usable:
            evaluation = evaluate_model(path, frames, CLASS_NAMES, runtime=RUNTIME_OF_VARIANT[role]).evaluation
            assert evaluation.map50_95 > whole - 0.06, role


def test_base_weights_with_fewer_classes_are_fine(
    trained: tuple[TrainingResult, list[TrainingProgress]], tmp_path: Path
) -> None:
    """A label of a new kind must not stop the loop: two classes become five."""
    request = TrainingRequest(
        write_dataset(tmp_path / "data"), tmp_path / "out", trained[0].weights, image_size=SIDE, epochs=1, batch=4
    )
    result = run_training(request)
    assert result.versions["started_from"] == "base weights"
    from bowerbird_models.onnx_detector import OnnxDetector

    assert OnnxDetector(result.onnx).class_names == CLASS_NAMES


def test_an_untrusted_looking_checkpoint_is_told_apart_in_the_child(tmp_path: Path) -> None:
    """A file that is no checkpoint gives a message, not a stack trace; a missing one is told at once."""
    broken = tmp_path / "best.pt"
    broken.write_bytes(b"not a checkpoint")
    with pytest.raises(BadInput, match=r"best\.pt is no checkpoint"):
        export_weights(broken, tmp_path / "out", image_size=SIDE)
    with pytest.raises(BadInput, match="there is no file"):
        export_weights(tmp_path / "none.pt", tmp_path / "out")


def test_a_data_set_without_labels_is_refused(tmp_path: Path) -> None:
    """Nothing to learn from is an error of the data, and the message says where to label."""
    request = TrainingRequest(write_dataset(tmp_path / "data", labels=False), tmp_path / "out", image_size=SIDE, epochs=1)
    with pytest.raises(NoLabels, match="label frames"):
        run_training(request)


def test_an_architecture_that_does_not_exist_is_named(tmp_path: Path) -> None:
    """A typing error in `model` is no stack trace."""
    request = TrainingRequest(write_dataset(tmp_path / "data"), tmp_path / "out", model="yolo99n", image_size=SIDE)
    with pytest.raises(BadInput, match="yolo99n"):
        run_training(request)


def test_cancelling_ends_the_child(tmp_path: Path) -> None:
    """A training of thousands of epochs stops after its first when asked, and its process is gone."""
    told: list[TrainingProgress] = []
    request = TrainingRequest(write_dataset(tmp_path / "data"), tmp_path / "out", image_size=SIDE, epochs=5000, batch=4)
    with pytest.raises(TrainingCancelled):
        run_training(request, told.append, lambda: bool(told))
    assert _children_of(tmp_path / "out") == []
    assert not (tmp_path / "out" / "model.onnx").exists()


def test_a_child_that_is_killed_is_a_clear_failure(tmp_path: Path) -> None:
    """What the kernel does when memory runs out reads as advice."""
    request = TrainingRequest(write_dataset(tmp_path / "data"), tmp_path / "out", image_size=SIDE, epochs=5000, batch=4)

    def kill(_: TrainingProgress) -> None:
        for pid in _children_of(tmp_path / "out"):
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(TrainingFailed, match="memory"):
        run_training(request, kill)


def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    """kill -9 of the server leaves no training behind."""
    data_yaml = write_dataset(tmp_path / "data")
    program = f"""
        from pathlib import Path
        from bowerbird_server.training.train import TrainingRequest, run_training
        request = TrainingRequest(Path({str(data_yaml)!r}), Path({str(tmp_path / "out")!r}), image_size=64, epochs=5000, batch=4)
        run_training(request, lambda state: print("epoch", flush=True))
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "epoch\n"
        assert len(_children_of(tmp_path / "out")) == 1
        parent.kill()
    deadline = time.monotonic() + 30
    while _children_of(tmp_path / "out") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _children_of(tmp_path / "out") == []


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Ultralytics the user is told what to install."""
    blocker = tmp_path / "blocked"
    (blocker / "ultralytics").mkdir(parents=True)
    (blocker / "ultralytics" / "__init__.py").write_text("raise ImportError('No module named ultralytics')")
    monkeypatch.setenv("PYTHONPATH", str(blocker))
    request = TrainingRequest(write_dataset(tmp_path / "data"), tmp_path / "out", image_size=SIDE, epochs=1)
    with pytest.raises(EnvironmentFault, match=r"bowerbird\[train\]"):
        run_training(request)


def test_the_child_gets_no_secret_and_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A checkpoint runs code: what the parent knows from its environment stays with the parent."""
    monkeypatch.setenv("BOWERBIRD_TOKEN", "secret")
    environment = child_environment(tmp_path, 2)
    assert "BOWERBIRD_TOKEN" not in environment
    assert environment["YOLO_OFFLINE"] == "1"
    assert environment["OMP_NUM_THREADS"] == "2"


def _children_of(out_dir: Path) -> list[int]:
    """Training processes whose task lies in `out_dir`."""
    if not Path("/proc").is_dir() or shutil.which("ps") is None:
        pytest.skip("needs /proc and ps")
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            alive = "\nState:\tZ" not in (entry / "status").read_text()
        except OSError:
            continue
        if alive and str(out_dir / "task.json").encode() in words:
            found.append(int(entry.name))
    return found


def test_a_rare_class_is_shown_more_often_in_as_many_steps(tmp_path: Path) -> None:
    """The list that Ultralytics passes over names its pictures more than once, and there are fewer passes for it."""
    data_yaml = write_dataset(tmp_path / "data", classes=CLASS_NAMES[:2])
    request = TrainingRequest(data_yaml, tmp_path / "out", image_size=SIDE, epochs=4, batch=2, repeat_below=0.0)
    plain = run_training(request)
    listed = (tmp_path / "out" / "train.txt").read_text().splitlines()
    assert len(listed) == len(set(listed))
    for number, label in enumerate(sorted((tmp_path / "data" / "labels").rglob("*.txt"))):
        label.write_text("0 0.5 0.5 0.2 0.2\n" + ("1 0.3 0.3 0.1 0.2\n" if number == 0 else ""))
    repeated = run_training(replace(request, out_dir=tmp_path / "more", repeat_below=1.0))
    again = Counter((tmp_path / "more" / "train.txt").read_text().splitlines())
    assert again[listed[0]] in (2, 3)
    assert {again[image] for image in listed[1:]} == {1}
    assert set(again) == set(listed)
    assert abs(repeated.steps - plain.steps) <= len(listed)
