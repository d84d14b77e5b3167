"""Rewriting a model keeps what it says: curation outputs, half weights, uint8 pictures, int8; on a small model with real layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from bowerbird_models.golden import CONFIDENCE, Tolerance, differences
from bowerbird_models.network_input import NetworkInput
from bowerbird_models.onnx_detector import OnnxDetector
from bowerbird_server.errors import BadInput
from bowerbird_server.quantisation import int8_files
from bowerbird_server.quantisation.calibration import PERCENTILE, SILU_FLOOR, Histogram, activation_ranges
from bowerbird_server.quantisation.dfl_ratio import MAX_LOGIT, ratio_of_sums
from bowerbird_server.quantisation.half_weights import has_half_weights, restore_full, store_half
from bowerbird_server.quantisation.int8_files import int8_for_onnxruntime, int8_for_openvino, prepare
from bowerbird_server.quantisation.onnx_graph import Graph, entry, name_nodes
from bowerbird_server.quantisation.uint8_input import uint8_input
from bowerbird_server.training.curation_outputs import add_curation_outputs, add_embedding, add_loc_entropy
from bowerbird_testing.conv_yolo import BINS, CHANNELS, FEATURE_LAYER, squares, write_conv_yolo
from bowerbird_testing.tiny_yolo import write_tiny_yolo

SIDE = 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_conv_yolo(tmp_path / "plain.onnx", image_size=SIDE, metadata={"author": "somebody"})


@pytest.fixture
def extended(path: Path, tmp_path: Path) -> Any:
    """The model with both curation outputs."""
    added = add_curation_outputs(path, tmp_path / "extended.onnx", (FEATURE_LAYER,), (CHANNELS,))
    assert added == ("embedding", "loc_entropy")
    return onnx.load(str(tmp_path / "extended.onnx"))


def pictures(count: int) -> list[NDArray[np.float32]]:
    """Network inputs of scenes with squares."""
    network_input = NetworkInput((SIDE, SIDE), np.dtype(np.float32))
    found = []
    for seed in range(count):
        network_input.fill(squares(3, image_size=SIDE, seed=seed)[0])
        found.append(network_input.tensor.copy())
    return found


def run(model: Any, picture: NDArray[Any], *more: str) -> list[NDArray[Any]]:
    """All outputs of a model, and further tensors by name."""
    if more:
        watched = onnx.ModelProto()
        watched.CopyFrom(model)
        for name in more:
            watched.graph.output.add().name = name
        model = watched
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs: list[NDArray[Any]] = session.run(None, {session.get_inputs()[0].name: picture})
    return outputs


def quantised(model: Any, count: int = 16) -> tuple[Any, dict[str, tuple[float, float]]]:
    prepared = prepare(model)
    return prepared, activation_ranges(prepared, pictures(count))


def test_curation_outputs_leave_the_detections_bit_identical_and_are_what_they_say(path: Path, extended: Any) -> None:
    plain = onnx.load(str(path))
    (picture,) = pictures(1)
    (before,) = run(plain, picture)
    detections, embedding, entropy, p, features = run(extended, picture, "p", f"model.{FEATURE_LAYER}_act")
    assert np.array_equal(before, detections)
    np.testing.assert_allclose(embedding[0], features.mean(axis=(2, 3))[0], rtol=1e-5)
    p64 = p.astype(np.float64)
    by_definition = -(p64 * np.log(p64)).sum(axis=1).mean(axis=1) / np.log(BINS)
    np.testing.assert_allclose(entropy, by_definition, atol=1e-5)
    assert entropy.shape == (1, before.shape[2])
    assert 0 <= entropy.min() < entropy.max() <= 1
    assert (entry(extended, "embedding"), entry(extended, "loc_entropy")) == (str(CHANNELS), str(BINS))


@pytest.mark.parametrize("head", [{"dfl": False}, {"end2end": True}], ids=str)
def test_a_head_without_distributions_or_anchors_gets_no_entropy_and_stays_a_model(
    head: dict[str, bool], tmp_path: Path
) -> None:
    plain = write_conv_yolo(tmp_path / "m.onnx", **head)
    with pytest.raises(ValueError, match=r"distribution focal loss|end to end"):
        add_loc_entropy(onnx.load(str(plain)))
    assert add_curation_outputs(plain, tmp_path / "out.onnx", (FEATURE_LAYER,), (CHANNELS,)) == ("embedding",)
    assert len(run(onnx.load(str(tmp_path / "out.onnx")), pictures(1)[0])) >= 2


def test_feature_maps_that_cannot_be_told_leave_the_model_as_it_is(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no node of layer 77"):
        add_embedding(onnx.load(str(path)), (77,), (CHANNELS,))
    assert add_curation_outputs(path, tmp_path / "out.onnx", (77,), (CHANNELS,)) == ("loc_entropy",)


def test_the_entropy_is_found_in_a_model_of_an_older_opset(tmp_path: Path) -> None:
    old = write_conv_yolo(tmp_path / "old.onnx", opset=13)
    assert "loc_entropy" in add_curation_outputs(old, tmp_path / "out.onnx", (FEATURE_LAYER,), (CHANNELS,))


def test_half_weights_halve_the_file_and_compute_in_single_precision(extended: Any) -> None:
    half = store_half(extended)
    weights = [each for each in half.graph.initializer if each.data_type == TensorProto.FLOAT16]
    assert len(weights) == 4  # of five layers; the smallest is not worth a Cast
    stored = sum(len(each.raw_data) for each in weights)
    assert len(extended.SerializeToString()) - len(half.SerializeToString()) > 0.8 * stored
    rounded = onnx.ModelProto()
    rounded.CopyFrom(extended)
    for tensor in rounded.graph.initializer:
        if f"{tensor.name}__half" in {each.name for each in weights}:
            values = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for picture in pictures(3):
        for one, other in zip(run(half, picture), run(rounded, picture), strict=True):
            assert np.array_equal(one, other)
    assert entry(half, "author") == "somebody"
    assert entry(half, "weights_stored_as") == "float16"
    assert store_half(half) is half
    assert not has_half_weights(half)
    back = restore_full(half)
    assert back.ByteSize() > half.ByteSize()
    assert np.array_equal(run(back, picture)[0], run(half, picture)[0])


def test_weights_that_a_half_cannot_hold_stay_whole(path: Path) -> None:
    model = onnx.load(str(path))
    huge = next(each for each in model.graph.initializer if each.name == "model.1.weight")
    values = numpy_helper.to_array(huge).copy()
    values[1, 1] = 1e6
    huge.CopyFrom(numpy_helper.from_array(values, "model.1.weight"))
    kinds = {each.name: each.data_type for each in store_half(model).graph.initializer}
    assert kinds["model.1.weight"] == TensorProto.FLOAT
    assert kinds["box.weight__half"] == TensorProto.FLOAT16


def as_picture(tensor: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The bytes that a network input was made of."""
    picture: NDArray[np.uint8] = np.ascontiguousarray(np.rint(tensor[:, ::-1] * 255).astype(np.uint8).transpose(0, 2, 3, 1))
    return picture


@pytest.mark.parametrize("form", [lambda model: model, store_half], ids=["fp32", "half"])
def test_a_float_graph_takes_bytes_and_sees_the_same(extended: Any, form: Any) -> None:
    model = form(extended)
    on_bytes = uint8_input(model)
    image = on_bytes.graph.input[0].type.tensor_type
    assert image.elem_type == TensorProto.UINT8
    assert [dim.dim_value for dim in image.shape.dim] == [1, SIDE, SIDE, 3]
    for picture in pictures(4):
        for one, other in zip(run(model, picture), run(on_bytes, as_picture(picture)), strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3)
    assert [each.value for each in on_bytes.metadata_props] == [each.value for each in model.metadata_props]


def test_a_quantised_graph_takes_bytes_and_sees_exactly_the_same(extended: Any) -> None:
    prepared, ranges = quantised(extended)
    on_floats = int8_files._quantise(prepared, ranges, only=("Conv",))
    on_bytes = int8_for_openvino(prepared, ranges, extended)
    assert sum(node.op_type == "QuantizeLinear" for node in on_floats.graph.node) == 1 + sum(
        node.op_type == "QuantizeLinear" for node in on_bytes.graph.node
    )
    for picture in pictures(4):
        for one, other in zip(run(on_floats, picture), run(on_bytes, as_picture(picture)), strict=True):
            assert np.array_equal(one, other)


def test_a_graph_that_does_not_begin_with_a_convolution_cannot_take_bytes(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"convolution|operators read the picture"):
        uint8_input(onnx.load(write_tiny_yolo(tmp_path / "m.onnx")))
    with pytest.raises(BadInput, match="float32 picture"):
        uint8_input(onnx.load(write_tiny_yolo(tmp_path / "h.onnx", half=True)))


def test_int8_sees_what_the_float_model_sees_and_keeps_its_metadata(extended: Any, tmp_path: Path) -> None:
    """Both files find every square; both take the camera's bytes."""
    source = store_half(extended)
    prepared, ranges = quantised(source)
    onnx.save(source, str(tmp_path / "float.onnx"))
    for name, make in (("ort", int8_for_onnxruntime), ("openvino", int8_for_openvino)):
        model = make(prepared, ranges, source)
        onnx.save(model, str(tmp_path / f"{name}.onnx"))
        assert {each.key: each.value for each in model.metadata_props} == {
            **{each.key: each.value for each in source.metadata_props if each.key != "weights_stored_as"},
            "precision": "int8",
        }
        with OnnxDetector(tmp_path / f"{name}.onnx") as ours, OnnxDetector(tmp_path / "float.onnx") as theirs:
            for seed in range(4):
                image, boxes = squares(2, image_size=SIDE, seed=100 + seed)
                seen, expected = ours.detect(image, confidence=CONFIDENCE), theirs.detect(image, confidence=CONFIDENCE)
                assert len(expected) >= len(boxes)
                assert differences(expected, seen, Tolerance(score=0.05, box_px=1.0)) == []
                assert seen.embedding is not None
                assert seen.loc_entropy is not None
        (picture,) = pictures(1)
        for one, other, off in zip(run(source, picture)[1:], run(model, as_picture(picture))[1:], (0.05, 0.05), strict=True):
            np.testing.assert_allclose(one, other, atol=off * np.abs(one).max())
        assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8


def test_the_decoding_is_not_quantised_and_every_trained_layer_is(extended: Any) -> None:
    """Between the last layers and the outputs nothing is rounded to bytes; before, every layer reads bytes and bytes as weights."""
    prepared, ranges = quantised(extended)
    decoding = Graph(prepared.graph).decoding()
    assert {"Softmax", "Concat", "Sub", "Div"} <= {node.op_type for node in prepared.graph.node if node.name in decoding}
    assert all("embedding" not in node.name or node.name in decoding for node in prepared.graph.node)
    for make in (int8_for_onnxruntime, int8_for_openvino):
        model = make(prepared, ranges, extended)
        graph = Graph(model.graph)
        layers = [node for node in model.graph.node if graph.is_weighted(node)]
        assert len(layers) == 5
        for node in layers:
            assert [graph.maker[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
            weight = graph.initialisers[graph.maker[node.input[1]].input[0]]
            assert weight.data_type == TensorProto.INT8
        after = graph.decoding()
        assert {node.op_type for node in model.graph.node if node.name in after} & {"QuantizeLinear"} <= (
            {"QuantizeLinear"} if make is int8_for_onnxruntime else set()
        )
        for output in ("boxes", "class_scores"):
            assert all(reader.op_type != "QuantizeLinear" for reader in graph.readers(output))


def test_nothing_is_left_in_a_quantised_file_that_it_does_not_use(extended: Any) -> None:
    """What travels is what runs: no float weights beside the bytes, no operators of one runtime, no shapes of before."""
    prepared, ranges = quantised(extended)
    for make in (int8_for_onnxruntime, int8_for_openvino):
        model = make(prepared, ranges, extended)
        read = {name for node in model.graph.node for name in node.input}
        assert {tensor.name for tensor in model.graph.initializer} <= read
        assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
        assert not model.graph.value_info


def test_weights_have_a_scale_for_each_channel(extended: Any) -> None:
    prepared, ranges = quantised(extended)
    model = int8_for_onnxruntime(prepared, ranges, extended)
    graph = Graph(model.graph)
    for node in model.graph.node:
        if graph.is_weighted(node):
            scale = graph.constant(graph.maker[node.input[1]].input[1])
            weight = graph.constant(node.input[1])
            assert scale is not None
            assert weight is not None
            assert scale.size == weight.shape[0]


def test_the_ratio_of_sums_gives_what_softmax_and_convolution_gave(extended: Any) -> None:
    changed = onnx.ModelProto()
    changed.CopyFrom(extended)
    name_nodes(changed.graph)
    assert ratio_of_sums(changed, 40.0)
    kinds = [node.op_type for node in changed.graph.node]
    assert "Softmax" not in kinds
    assert kinds.count("Conv") == 5
    for picture in pictures(4):
        for one, other in zip(run(extended, picture), run(changed, picture), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_logits_without_a_bound_keep_their_softmax(extended: Any, tmp_path: Path) -> None:
    name_nodes(extended.graph)
    before = extended.SerializeToString()
    assert not ratio_of_sums(extended, MAX_LOGIT + 1)
    without = onnx.load(str(write_conv_yolo(tmp_path / "m.onnx", dfl=False)))
    assert not ratio_of_sums(without, 1.0)
    assert extended.SerializeToString() == before


def test_a_histogram_gives_the_percentiles_of_what_it_saw_and_exact_bounds() -> None:
    rng = np.random.default_rng(5)
    values = [rng.normal(3, scale, 10_000).astype(np.float32) for scale in (0.1, 4, 1, 300)]
    histogram = Histogram()
    for each in values:
        histogram.add(each)
    every = np.concatenate(values)
    assert (histogram.low, histogram.high) == (every.min(), every.max())
    low, high = histogram.percentile_bounds(99)
    expected = np.percentile(every, [0.5, 99.5])
    np.testing.assert_allclose([low, high], expected, atol=2 * histogram.reach / 1024)
    assert histogram.percentile_bounds(100) == pytest.approx((every.min(), every.max()), abs=histogram.reach / 1024)


def test_ranges_keep_the_rarest_scores_and_spend_nothing_on_what_silu_flattens(extended: Any) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(extended)
    bias = next(each for each in model.graph.initializer if each.name == "model.0.bias")
    deep = numpy_helper.to_array(bias).copy()
    deep[1] = -500.0
    bias.CopyFrom(numpy_helper.from_array(deep, "model.0.bias"))
    prepared = prepare(model)
    ranges = activation_ranges(prepared, pictures(8))
    assert ranges["images"] == (0.0, 1.0)
    assert ranges["model.0_out"][0] == SILU_FLOOR
    seen = np.concatenate([run(prepared, picture, "cls_out")[-1].reshape(-1) for picture in pictures(8)])
    assert ranges["cls_out"] == pytest.approx((seen.min(), seen.max()), rel=1e-3)
    assert np.percentile(seen, PERCENTILE) < seen.max()


def test_what_cannot_be_quantised_is_refused_with_the_reason(path: Path, extended: Any, tmp_path: Path) -> None:
    prepared, ranges = quantised(extended)
    half = onnx.load(str(path))
    for tensor in half.graph.initializer:
        if tensor.name.endswith("weight"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for model, says in (
        (onnx.load(str(write_conv_yolo(tmp_path / "old.onnx", opset=12))), "opset 12"),
        (int8_for_openvino(prepared, ranges, extended), "already"),
        (onnx.load(str(write_tiny_yolo(tmp_path / "t.onnx", half=True))), "no trained layer|half precision"),
        (half, "half precision"),
    ):
        with pytest.raises(BadInput, match=says):
            prepare(model)
    with pytest.raises(BadInput, match="no frames"):
        activation_ranges(prepared, [])
    with pytest.raises(BadInput, match="NaN or infinity"):
        activation_ranges(prepared, [np.full((1, 3, SIDE, SIDE), np.nan, np.float32)])
