"""Quantised files from a model and a data set, with the real child process: what is made, measured, left out, and from which frames."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import pytest
import yaml
from typer.testing import CliRunner

from bowerbird_models.golden import Tolerance, decode_golden, differences
from bowerbird_models.package import ONNX_FP16, ONNX_FP32, ONNX_INT8_OPENVINO, ONNX_INT8_ORT
from bowerbird_models.runtimes import RuntimeOptions, available, open_model
from bowerbird_server.catalogue import Row
from bowerbird_server.catalogue import training as run_rows
from bowerbird_server.catalogue.datasets import dataset_version
from bowerbird_server.cli.app import app
from bowerbird_server.config import ModelsConfig, TrainingConfig
from bowerbird_server.errors import BadInput
from bowerbird_server.quantisation.quantise import quantise, to_transport_form
from bowerbird_server.quantisation.variants import build_variants
from bowerbird_server.releases.registry import import_model, package_of, register_model, with_variants
from bowerbird_server.site import Site
from bowerbird_server.training.dataset_import import import_dataset
from bowerbird_server.training.snapshot import calibration_frames, evaluation_frames, take_snapshot
from bowerbird_server.training.train import TrainingCancelled, TrainingFailed, TrainingResult
from bowerbird_server.training.training_runs import _judge as judge
from bowerbird_server.training.training_runs import queue_run
from bowerbird_testing.conv_yolo import squares, write_conv_yolo
from bowerbird_testing.tiny_yolo import TinyBox, write_tiny_yolo

SIDE = 64
HAS_OPENVINO = any(each.name == "openvino-cpu" and each.usable for each in available())
needs_openvino = pytest.mark.skipif(not HAS_OPENVINO, reason="openvino is not installed: pip install 'bowerbird[openvino]'")
ROLES = (ONNX_INT8_ORT, ONNX_INT8_OPENVINO) if HAS_OPENVINO else (ONNX_INT8_ORT,)


def write_squares(folder: Path, *, train: int = 24, held_out: int = 12) -> Path:
    """A YOLO data set of bright squares, four pictures a scene; returns `data.yaml`."""
    groups = ["image,scene"]
    for split, count, first in (("train", train, 0), ("val", held_out, 1000)):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for number in range(count):
            image, boxes = squares(2, image_size=SIDE, seed=first + number)
            name = f"{split}-{number:03d}"
            cv2.imwrite(str(folder / "images" / split / f"{name}.png"), image)
            lines = [
                f"0 {(x0 + x1) / 2 / SIDE} {(y0 + y1) / 2 / SIDE} {(x1 - x0) / SIDE} {(y1 - y0) / SIDE}"
                for x0, y0, x1, y1 in boxes
            ]
            (folder / "labels" / split / f"{name}.txt").write_text("\n".join(lines))
            groups.append(f"{name}.png,{split}-scene-{number // 4}")
    (folder / "groups.csv").write_text("\n".join(groups) + "\n")
    data_yaml = folder / "data.yaml"
    names = {0: "square", 1: "never"}
    data_yaml.write_text(yaml.safe_dump({"path": ".", "train": "images/train", "val": "images/val", "names": names}))
    return data_yaml


def open_site(tmp_path: Path, *, train: int = 24, held_out: int = 12, **models: object) -> Site:
    """A site with a frozen data set and a configuration of `[models]`."""
    site = Site.open(tmp_path / "site")
    settings = ModelsConfig.model_validate({"calibration_frames": 16, **models})
    site = replace(site, config=site.config.model_copy(update={"models": settings}))
    data_yaml = write_squares(tmp_path / "data", train=train, held_out=held_out)
    import_dataset(site, data_yaml, groups=data_yaml.parent / "groups.csv", actor="test")
    take_snapshot(site.catalogue, site.blobs, holdout_share=0.0, actor="test")
    return site


def newest(site: Site) -> Row:
    return dataset_version(site.catalogue, "newest")


def test_the_transport_form_is_smaller_and_sees_the_same(tmp_path: Path) -> None:
    source = write_conv_yolo(tmp_path / "m.onnx")
    made = to_transport_form(source, tmp_path / "out")
    assert (made.role, made.reason) == (ONNX_FP16, "")
    assert made.path.stat().st_size < 0.75 * source.stat().st_size
    with open_model(made.path) as ours, open_model(source) as theirs:
        image, _ = squares(2)
        assert differences(theirs.detect(image), ours.detect(image), Tolerance(0.005, 0.1)) == []
    again = to_transport_form(made.path, tmp_path / "never")
    assert again == made
    assert not (tmp_path / "never").exists(), "a file in transport form needs no child process"


def test_a_model_without_weights_keeps_its_form_and_says_why(tmp_path: Path) -> None:
    source = write_tiny_yolo(tmp_path / "m.onnx", half=True)
    made = to_transport_form(source, tmp_path / "out")
    assert made.path == source
    assert made.reason


def test_a_file_that_is_no_model_is_a_clear_error_and_not_a_stack_trace(tmp_path: Path) -> None:
    """Text, a cut file, nothing; and a graph that parses and is nonsense ends in the child, with words."""
    good = write_conv_yolo(tmp_path / "good.onnx").read_bytes()
    for name, content in (("text", b"hello"), ("cut", good[:900]), ("empty", b"")):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        with pytest.raises(BadInput, match=f"{name}.onnx cannot be used"):
            to_transport_form(path, tmp_path / "out")
        with pytest.raises(BadInput, match=f"{name}.onnx cannot be used"):
            quantise(path, tmp_path / "out", ROLES, [])
    torn = tmp_path / "torn.onnx"
    torn.write_bytes(good.replace(b"model.1.weight", b"model.9.weight", 1))
    with pytest.raises((BadInput, TrainingFailed), match=r"stopped|cannot be used|quantis"):
        quantise(torn, tmp_path / "out", ROLES, [tmp_path / "never.png"])


def test_calibration_takes_frames_of_the_training_split_one_of_each_scene_first(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        version = newest(site)
        held_out = {frame.image_path for frame in evaluation_frames(site.catalogue, site.blobs, version)[0]}
        every = calibration_frames(site.blobs, version, 1000)
        assert len(every) == 24
        assert held_out.isdisjoint(every)
        scenes = {entry["blob"]: entry["scene"] for entry in json.loads(site.blobs.read(version["manifest"]))["frames"]}
        first = calibration_frames(site.blobs, version, 6)
        assert len({scenes[path.name.split(".")[0]] for path in first}) == 6
        assert first == every[:6]


def test_variants_are_made_on_training_frames_measured_on_held_out_ones_and_kept(tmp_path: Path) -> None:
    """The child's own task names the frames: not one of them is held out."""
    told: list[str] = []
    with open_site(tmp_path, max_loss_points=20.0) as site:
        version = newest(site)
        reference = to_transport_form(write_conv_yolo(tmp_path / "m.onnx"), tmp_path / "transport")
        variants = build_variants(site, reference, version, tmp_path / "out", on_progress=lambda stage, *_: told.append(stage))
        calibrated_on = {Path(each) for each in json.loads((tmp_path / "out" / "task.json").read_text())["pictures"]}
        held_out = {frame.image_path for frame in evaluation_frames(site.catalogue, site.blobs, version)[0]}
    assert len(calibrated_on) == 16
    assert calibrated_on.isdisjoint(held_out)
    assert set(variants.files) == set(ROLES)
    assert variants.accuracy[ONNX_FP16] > 0.3
    for role in ROLES:
        assert variants.accuracy[role] == pytest.approx(variants.accuracy[ONNX_FP16], abs=0.2)
    assert {"calibrating int8", f"evaluating {ONNX_INT8_ORT}"} <= set(told)


def test_a_file_that_loses_more_than_is_allowed_is_left_out_with_the_reason(tmp_path: Path) -> None:
    """The float file is said to be perfect, so any real measurement is a loss."""
    with open_site(tmp_path, variants=["int8-ort"]) as site:
        reference = to_transport_form(write_conv_yolo(tmp_path / "m.onnx", seed=3), tmp_path / "transport")
        variants = build_variants(site, reference, newest(site), tmp_path / "out", reference_map=1.0)
    assert variants.files == {}
    assert "points of mAP50-95" in variants.left_out[ONNX_INT8_ORT]
    assert ONNX_INT8_ORT in variants.accuracy
    assert variants.package_accuracy(ONNX_FP16) == {ONNX_FP16: 1.0}
    assert ONNX_INT8_ORT in variants.notes()


@pytest.mark.parametrize(
    ("frames", "model", "says"),
    [
        ({"held_out": 0}, {}, "no held-out frames"),
        ({}, {"opset": 12}, "opset 12"),
        ({}, None, "no trained layer"),
    ],
    ids=["nothing-held-out", "old-opset", "no-layers"],
)
def test_what_cannot_be_quantised_or_measured_leaves_the_float_model_alone(
    frames: dict[str, int], model: dict[str, int] | None, says: str, tmp_path: Path
) -> None:
    with open_site(tmp_path, **frames) as site:
        if model is None:
            source = write_tiny_yolo(tmp_path / "m.onnx", class_names=("square",), boxes=(TinyBox((8, 8, 24, 24)),))
        else:
            source = write_conv_yolo(tmp_path / "m.onnx", **model)
        row = import_model(site, source, trust=False, actor="test")
        package = package_of(site, row["digest"])
    assert set(package.variants()) <= {ONNX_FP16, ONNX_FP32}
    assert says in package.manifest.notes


def test_a_model_imported_beside_a_data_set_gets_a_package_of_files_that_their_runtimes_reproduce(tmp_path: Path) -> None:
    with open_site(tmp_path, max_loss_points=20.0) as site:
        row = import_model(site, write_conv_yolo(tmp_path / "m.onnx"), trust=False, actor="test")
        package = package_of(site, row["digest"])
        assert site.blobs.path(row["onnx_sha256"]).read_bytes() == package.onnx.read_bytes()
    assert set(package.variants()) == {ONNX_FP16, *ROLES}
    assert package.manifest.reference_role == ONNX_FP16
    assert set(package.manifest.accuracy) == {ONNX_FP16, *ROLES}
    golden = (package.dir / "golden.npz").read_bytes()
    for role, path in package.variants().items():
        runtime = "openvino-cpu" if role == ONNX_INT8_OPENVINO else "onnxruntime-cpu"
        tolerance = package.manifest.tolerance[role]
        cases = list(decode_golden(golden, role))
        with open_model(path, RuntimeOptions(runtime)) as detector:
            assert any(len(case.expected) for case in cases)
            assert all(differences(case.expected, detector.detect(case.image_bgr), tolerance) == [] for case in cases)


def test_quantising_a_known_model_makes_a_second_package_of_the_same_model(tmp_path: Path) -> None:
    """Another digest, the same float file, the same line; the first package stays as it was."""
    with open_site(tmp_path, variants=[], max_loss_points=20.0) as site:
        first = register_model(site, write_conv_yolo(tmp_path / "m.onnx"), weights=None, origin="imported", actor="test")
        wanted = replace(site, config=site.config.model_copy(update={"models": ModelsConfig(max_loss_points=20.0)}))
        row, variants = with_variants(wanted, first["digest"], newest(site), "test")
        assert set(variants.files) == set(ROLES)
        assert row["digest"] != first["digest"]
        assert (row["state"], row["parent"], row["onnx_sha256"]) == ("candidate", None, first["onnx_sha256"])
        old, new = package_of(site, first["digest"]), package_of(site, row["digest"])
    assert new.onnx.read_bytes() == old.onnx.read_bytes()
    assert set(old.variants()) == {ONNX_FP16}
    assert set(new.variants()) == {ONNX_FP16, *ROLES}


def test_calibrating_stops_when_it_is_cancelled(tmp_path: Path) -> None:
    paths = []
    for number in range(4):
        paths.append(tmp_path / f"{number}.png")
        cv2.imwrite(str(paths[-1]), squares(2, seed=number)[0])
    told: list[int] = []
    with pytest.raises(TrainingCancelled, match="quantisation was cancelled"):
        quantise(
            write_conv_yolo(tmp_path / "m.onnx"),
            tmp_path / "out",
            ROLES,
            paths * 200,
            on_progress=lambda done, _: told.append(done),
            cancelled=lambda: bool(told),
        )
    assert not list((tmp_path / "out").glob("onnx-*"))


def test_a_picture_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"gone\.png"):
        quantise(write_conv_yolo(tmp_path / "m.onnx"), tmp_path / "out", ROLES, [tmp_path / "gone.png"])


@needs_openvino
def test_the_file_for_onnx_runtime_takes_bytes_and_the_one_for_openvino_floats(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    cv2.imwrite(str(path), squares(2)[0])
    made = quantise(write_conv_yolo(tmp_path / "m.onnx"), tmp_path / "out", ROLES, [path] * 4)
    assert made.left_out == {}
    image, boxes = squares(2, seed=50)
    for role, runtime in ((ONNX_INT8_ORT, "onnxruntime-cpu"), (ONNX_INT8_OPENVINO, "openvino-cpu")):
        with open_model(made.files[role], RuntimeOptions(runtime)) as detector:
            assert len(detector.detect(image, confidence=0.25)) >= len(boxes) - 1


def test_the_gate_decides_on_the_float_file_and_only_a_promoted_model_is_quantised(tmp_path: Path) -> None:
    """One digest each, made after the verdict: the first model has both files, a challenger that is no better has none."""
    with open_site(tmp_path, max_loss_points=20.0) as site:
        for number, seed in enumerate((0, 0)):
            run_id = queue_run(site, newest(site), TrainingConfig(), "test")
            result = TrainingResult(
                tmp_path / "weights.pt",
                write_conv_yolo(tmp_path / f"{number}.onnx", seed=seed),
                seconds=1.0,
                steps=1,
                versions={},
            )
            result.weights.write_bytes(b"weights")
            run_rows.set_run_state(site.catalogue, run_id, "training")
            run_rows.set_run_state(site.catalogue, run_id, "evaluating")
            judge(site, run_rows.run(site.catalogue, run_id), result, lambda *_: None)
        first, second = (row for row in model_rows_of(site))
        promoted, rejected = package_of(site, first["digest"]), package_of(site, second["digest"])
    assert (first["state"], second["state"]) == ("champion", "rejected")
    assert set(promoted.variants()) == {ONNX_FP16, *ROLES}
    assert set(rejected.variants()) == {ONNX_FP16}
    measured = json.loads(first["metrics"])["map50_95"]
    assert promoted.manifest.accuracy[ONNX_FP16] == pytest.approx(measured)
    assert json.loads(first["metrics"])["file_digest"] == promoted.file_digest


def model_rows_of(site: Site) -> list[Row]:
    return site.catalogue.rows("SELECT * FROM model ORDER BY created_at, rowid")


def quantise_by_command(site: Site, digest: str) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of `bowerbird models quantise`."""
    config = site.folder.root / "bowerbird.toml"
    config.write_text('[models]\nvariants = ["int8-ort"]\ncalibration_frames = 4\nmax_loss_points = 20.0\n')
    done = CliRunner().invoke(app, ["models", "quantise", digest[:8], "--data", str(site.folder.root), "--json"])
    return done.exit_code, json.loads(done.stdout)


def test_the_command_makes_a_package_and_prints_its_table(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        digest = register_model(site, write_conv_yolo(tmp_path / "m.onnx"), weights=None, origin="imported", actor="t")[
            "digest"
        ]
        code, told = quantise_by_command(site, digest)
    assert code == 0
    assert told["digest"] != digest
    assert {each["role"]: each["state"] for each in told["files"]} == dict.fromkeys(
        (ONNX_FP16, ONNX_INT8_ORT), "in the package"
    )
    assert all(0 < each["map50_95"] <= 1 for each in told["files"])


def test_the_command_ends_with_1_and_the_reason_when_no_file_was_good_enough(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        old = write_conv_yolo(tmp_path / "m.onnx", opset=12)
        digest = register_model(site, old, weights=None, origin="imported", actor="t")["digest"]
        code, told = quantise_by_command(site, digest)
    assert code == 1
    assert next(each["state"] for each in told["files"] if each["role"] == ONNX_INT8_ORT).startswith("the model has opset 12")
