"""Real architectures give the same detections on every runtime that this machine has: ONNX Runtime is the reference."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from bowerbird_models.detections import Detections
from bowerbird_models.runtimes import RuntimeOptions, available, open_model
from bowerbird_testing.onnx_models import CASES, ExportedModel, export_models

pytest.importorskip("ultralytics", reason="the train extra is not installed: pip install -e '.[train]'")

# One worker exports for all of them; a second export of the same models would cost a minute.
pytestmark = pytest.mark.xdist_group("exported_models")

NAMES = ("v8_dynamic", "v11", "v26_end_to_end")
BOX_TOLERANCE_PX = 1.0
SCORE_TOLERANCE = 1e-3
OTHERS = [one.name for one in available() if one.usable and one.name != "onnxruntime-cpu"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ExportedModel]:
    """Three ways in which a YOLO comes."""
    return export_models(tmp_path_factory.mktemp("exported"), tuple(case for case in CASES if case.name in NAMES))


def detections(path: Path, runtime: str, model: ExportedModel) -> list[Detections]:
    """Of each of the model's pictures, twice: the second time from bound buffers."""
    found = []
    with open_model(path, RuntimeOptions(runtime)) as detector:
        for prediction in [*model.predictions, *model.predictions]:
            image_bgr = cv2.imread(str(prediction.image_path))
            assert image_bgr is not None
            found.append(detector.detect(image_bgr.astype(np.uint8), confidence=prediction.confidence))
    return found


def with_embedding(path: Path, target: Path) -> Path:
    """The same file with one output more: the mean over the picture of the last convolution but a few."""
    model = onnx.load(path)
    features = [node.output[0] for node in model.graph.node if node.op_type == "Conv"][-10]
    model.graph.node.append(onnx.helper.make_node("GlobalAveragePool", [features], ["pooled"]))
    model.graph.node.append(onnx.helper.make_node("Flatten", ["pooled"], ["embedding"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, (1, "d")))
    target.write_bytes(model.SerializeToString())
    return target


def with_half_weights(path: Path, target: Path) -> Path:
    """The same network as it is transported: weights stored in half precision and cast back inside the graph."""
    model = onnx.load(path)
    casts = []
    for weights in model.graph.initializer:
        if weights.data_type == onnx.TensorProto.FLOAT:
            name, half = weights.name, onnx.numpy_helper.to_array(weights).astype(np.float16)
            weights.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}_half"))
            casts.append(onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    target.write_bytes(model.SerializeToString())
    return target


def assert_alike(ours: list[Detections], theirs: list[Detections]) -> None:
    """Same boxes within a pixel, same scores within a thousandth, same classes, none more and none less."""
    compared = 0
    for seen, expected in zip(ours, theirs, strict=True):
        assert len(seen) == len(expected)
        free = np.ones(len(seen), bool)
        for box, score, class_id in zip(expected.boxes_xyxy, expected.scores, expected.class_ids, strict=True):
            same = (
                free
                & (seen.class_ids == class_id)
                & (np.abs(seen.scores - score) <= SCORE_TOLERANCE)
                & (np.abs(seen.boxes_xyxy - box).max(axis=1) <= BOX_TOLERANCE_PX)
            )
            assert same.any(), f"nothing is like {box} {score}"
            free[np.flatnonzero(same)[0]] = False
        compared += len(expected)
    assert compared >= 80, "two pictures, twice, with at least 20 boxes each, or the comparison says little"


needs_another = pytest.mark.skipif(not OTHERS, reason="no runtime but ONNX Runtime's CPU provider is usable here")


@needs_another
@pytest.mark.parametrize("runtime", OTHERS)
@pytest.mark.parametrize("name", NAMES)
def test_equals_onnx_runtime(exported: dict[str, ExportedModel], name: str, runtime: str) -> None:
    model = exported[name]
    assert_alike(detections(model.path, runtime, model), detections(model.path, "onnxruntime-cpu", model))


@needs_another
@pytest.mark.parametrize("runtime", OTHERS)
def test_weights_transported_in_half_precision_give_the_same_on_every_runtime(
    exported: dict[str, ExportedModel], tmp_path: Path, runtime: str
) -> None:
    """They are cast back at load and computed with in fp32. (A network that *computes* in half precision is another matter: ONNX
    Runtime rounds after every node, OpenVINO at fp32 not at all.)"""
    model = exported["v11"]
    path = with_half_weights(model.path, tmp_path / "half.onnx")
    assert path.stat().st_size < 0.6 * model.path.stat().st_size
    assert_alike(detections(path, runtime, model), detections(path, "onnxruntime-cpu", model))


@pytest.mark.parametrize("runtime", ["onnxruntime-cpu", *OTHERS])
def test_an_output_more_changes_no_detection(exported: dict[str, ExportedModel], tmp_path: Path, runtime: str) -> None:
    """Bit for bit, and the embedding is the reference's within a thousandth."""
    model = exported["v11"]
    path = with_embedding(model.path, tmp_path / "more.onnx")
    plain, more = detections(model.path, runtime, model), detections(path, runtime, model)
    for without, found, reference in zip(plain, more, detections(path, "onnxruntime-cpu", model), strict=True):
        assert len(found) >= 20
        np.testing.assert_array_equal(found.boxes_xyxy, without.boxes_xyxy)
        np.testing.assert_array_equal(found.scores, without.scores)
        assert found.embedding is not None
        assert reference.embedding is not None
        scale = float(np.abs(reference.embedding).max())
        np.testing.assert_allclose(found.embedding / scale, reference.embedding / scale, atol=1e-3)
