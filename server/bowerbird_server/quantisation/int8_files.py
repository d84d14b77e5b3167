"""A float detector as int8 files: one for ONNX Runtime and one for OpenVINO, because one does not serve both.

In: an ONNX model and pictures of the site. Out: QDQ models, unsigned bytes for activations and signed bytes, one scale a channel, for
weights. ONNX Runtime is fastest where every node runs on bytes (convolution, sigmoid, product, concatenation). OpenVINO is fastest
where only the convolutions' inputs and weights are bytes and it may fuse the rest itself. Both take the camera's bytes directly, and in
both the decoding stays in floats. It measures nothing (`variants.py`); runs in `quantise_child.py` only.

Weights have eight bits. Processors with AVX2 or AVX-512 but without VNNI add pairs of products in sixteen bits, which can saturate;
seven-bit weights (`reduce_range`) would be safe there and were measured to cost half a point of mAP50-95 everywhere else. So the
file is made for VNNI and ARM, and a device whose processor saturates finds out: the golden outputs of this very file differ there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bowerbird_models.manifest import ONNX_INT8_OPENVINO, ONNX_INT8_ORT
from bowerbird_server.errors import BadInput
from bowerbird_server.quantisation.dfl_ratio import ratio_of_sums
from bowerbird_server.quantisation.half_weights import has_half_weights, restore_full
from bowerbird_server.quantisation.onnx_graph import Graph, entry, name_nodes, opset, set_entry
from bowerbird_server.quantisation.quantise import FORM
from bowerbird_server.quantisation.uint8_input import uint8_input

MIN_OPSET = 13  # the first with a scale for each channel
PRECISION = "precision"


def prepare(model: Any) -> Any:
    """The float model as quantisation wants it: weights in initialisers, constants folded, shapes known, every node named.

    Raises:
        BadInput: too old an opset, computing in half precision, quantised already, or not one convolution.
    """
    if opset(model) < MIN_OPSET:
        raise BadInput(
            f"the model has opset {opset(model)}; int8 with a scale for each channel needs {MIN_OPSET}. Export it again with a "
            "newer Ultralytics"
        )
    if any(node.op_type in {"QuantizeLinear", "DequantizeLinear", "QLinearConv"} for node in model.graph.node):
        raise BadInput("the model is quantised already; give the float model it was made from")
    full = restore_full(model)
    if has_half_weights(full):
        raise BadInput("the model computes in half precision; export it without half=True to quantise it")
    graph = Graph(full.graph)
    if not any(node.op_type == "Conv" and graph.is_weighted(node) for node in full.graph.node):
        raise BadInput("the model has no trained layer that could be quantised: no convolution")
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="bowerbird-int8-") as scratch:
        source, target = Path(scratch, "float.onnx"), Path(scratch, "prepared.onnx")
        onnx.save(full, str(source))
        quant_pre_process(str(source), str(target), skip_symbolic_shape=True)
        prepared = onnx.load(str(target))
    name_nodes(prepared.graph)
    return prepared


def int8_for_onnxruntime(prepared: Any, ranges: Mapping[str, tuple[float, float]], source: Any) -> Any:
    """The file for ONNX Runtime: all nodes but the decoding, uint8 pictures in.

    Args:
        prepared: of `prepare`; not changed.
        ranges: of `calibration.activation_ranges` on it.
        source: the model whose metadata is kept.
    """
    model = _quantise(prepared, ranges)
    dfl = Graph(prepared.graph).dfl()
    if dfl is not None:
        low, high = ranges.get(dfl.source, (-np.inf, np.inf))
        ratio_of_sums(model, max(abs(low), abs(high)))
    return _finish(_takes_bytes(model, source), source)


def int8_for_openvino(prepared: Any, ranges: Mapping[str, tuple[float, float]], source: Any) -> Any:
    """The file for OpenVINO: inputs and weights of the convolutions, uint8 pictures in; arguments as `int8_for_onnxruntime`."""
    return _finish(_takes_bytes(_quantise(prepared, ranges, only=("Conv",)), source), source)


def _takes_bytes(model: Any, source: Any) -> Any:
    """The model with an input for the camera's bytes: a quarter of the memory of floats, and no pass over them."""
    return model if entry(source, "task") == "classify" else uint8_input(model)  # a classifier's pictures are cut out in floats


INT8 = {ONNX_INT8_ORT: int8_for_onnxruntime, ONNX_INT8_OPENVINO: int8_for_openvino}
"""Role -> how its file is made."""


def _quantise(prepared: Any, ranges: Mapping[str, tuple[float, float]], *, only: tuple[str, ...] = ()) -> Any:
    """QDQ nodes around the operators `only`, their inputs and weights; around all operators, outputs too, where it is empty."""
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    model = onnx.ModelProto()
    model.CopyFrom(prepared)
    bounds = {
        name: TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
        for name, (low, high) in ranges.items()
    }
    quantizer = QDQQuantizer(
        model,
        True,  # a scale for each channel of a weight
        False,  # eight bits; see the module's docstring
        QuantType.QInt8,
        QuantType.QUInt8,
        TensorsData(CalibrationMethod.Percentile, bounds),
        [],
        sorted(Graph(prepared.graph).decoding()),
        list(only) or sorted({*QLinearOpsRegistry, *QDQRegistry}),
        {"OpTypesToExcludeOutputQuantization": list(only)},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    quantised = quantizer.model.model
    name_nodes(quantised.graph)
    return quantised


def _finish(model: Any, source: Any) -> Any:
    """Give a model the metadata that quantising dropped, and take from it what the tools left lying about."""
    graph = model.graph
    del graph.value_info[:]  # shapes of before; runtimes infer their own
    if not any(each.HasField("g") for node in graph.node for each in node.attribute):  # a loop's body may read constants too
        used = {name for node in graph.node for name in node.input}
        constants = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend(constants)
    domains = {"", *(node.domain for node in graph.node)}
    imports = [each for each in model.opset_import if each.domain in domains]
    del model.opset_import[:]
    model.opset_import.extend(imports)
    del model.metadata_props[:]
    model.metadata_props.extend(each for each in source.metadata_props if each.key != FORM)
    set_entry(model, PRECISION, "int8")
    onnx.checker.check_model(model)
    return model
