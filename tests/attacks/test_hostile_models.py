"""Model files that somebody with the models key signed all the same: they die in the child that tests them, and the agent lives on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bowerbird_models.errors import UnsupportedModel
from bowerbird_models.manifest import PackageFile
from bowerbird_models.onnx_file import MAX_DEPTH, check_self_contained
from bowerbird_models.package import PackageOnDisk, build_package
from bowerbird_testing.tiny_yolo import write_tiny_yolo
from bowerbird_testing.update_device import UpdateDevice
from bowerbird_testing.update_server import UpdateServer

Change = Callable[[onnx.ModelProto], None]


def hungry(model: onnx.ModelProto) -> None:
    """A few bytes that become 64 GB when the model runs."""
    import numpy as np

    shape = numpy_helper.from_array(np.array([16, 1024, 1024, 1024], np.int64), "bomb_shape")
    model.graph.initializer.append(shape)
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.0, np.float32), "bomb_value"))
    graph = model.graph
    output = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["honest" if name == output else name for name in node.output]
    graph.node.extend(
        [
            helper.make_node("Expand", ["bomb_value", "bomb_shape"], ["bomb"]),
            helper.make_node("ReduceSum", ["bomb"], ["bomb_sum"], keepdims=0),
            helper.make_node("Add", ["honest", "bomb_sum"], [output]),
        ]
    )


def endless(model: onnx.ModelProto) -> None:
    """A loop of 2^62 rounds."""
    import numpy as np

    for name, value in (
        ("loop_rounds", np.array(2**62, np.int64)),
        ("loop_goes_on", np.array(True)),
        ("loop_start", np.array(0.0, np.float32)),
    ):
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_in"], ["go_out"]), helper.make_node("Sin", ["state_in"], ["state_out"])],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_in", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", TensorProto.FLOAT, []),
        ],
    )
    graph = model.graph
    output = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["honest" if name == output else name for name in node.output]
    graph.node.extend(
        [
            helper.make_node("Loop", ["loop_rounds", "loop_goes_on", "loop_start"], ["loop_end"], body=body),
            helper.make_node("Add", ["honest", "loop_end"], [output]),
        ]
    )


@pytest.mark.parametrize(
    ("bomb", "codes"), [(hungry, {"bad_model", "selftest_died", "selftest"}), (endless, {"selftest_timeout"})]
)
def test_a_bomb_in_a_model_goes_off_in_the_self_test(tmp_path: Path, bomb: Change, codes: set[str]) -> None:
    """It is refused in time, and another model is taken afterwards by the same agent."""
    server = UpdateServer()
    path = write_tiny_yolo(tmp_path / "good.onnx")
    good = build_package(tmp_path / "good", path, created_at="2026-01-01T00:00:00.000Z")
    model = onnx.load(path)
    bomb(model)
    bad = with_model(build_package(tmp_path / "bad", path, created_at="2026-01-02T00:00:00.000Z"), model.SerializeToString())
    from bowerbird_testing.update_device import SETTINGS

    device = UpdateDevice(tmp_path / "state", server.root, server.send, settings=replace(SETTINGS, selftest_s=4.0))
    server.connect(device.runner.block)
    with device:
        device.runner.job(server.job(bad, server.publish(bad), job_id="bad"))
        report = server.wait_for("committed", "refused", "rolled_back", job_id="bad")
        assert report.state == "refused"
        assert report.code in codes, (report.code, report.detail)
        device.runner.job(server.job(good, server.publish(good), job_id="good"))
        assert server.wait_for("committed", "refused", job_id="good").state == "committed"


def with_model(package: PackageOnDisk, content: bytes) -> PackageOnDisk:
    """The package with another model file and a manifest that says so."""
    files = dict(package.manifest.files)
    (package.dir / files["onnx-fp32"].name).write_bytes(content)
    files["onnx-fp32"] = PackageFile(files["onnx-fp32"].name, hashlib.sha256(content).hexdigest(), len(content))
    manifest = replace(package.manifest, files=files)
    (package.dir / "manifest.json").write_bytes(manifest.to_bytes())
    return PackageOnDisk(package.dir, manifest, hashlib.sha256(manifest.to_bytes()).hexdigest())


def test_functions_and_graphs_inside_one_another_are_refused_beyond_a_depth() -> None:
    """Whoever walks them by recursion would fall over them."""

    def field(number: int, body: bytes) -> bytes:
        length, size = len(body), bytearray()
        while True:
            size.append(length & 0x7F | (0x80 if length > 0x7F else 0))
            length >>= 7
            if not length:
                return bytes([*_varint(number << 3 | 2), *size]) + body

    graph = b""
    for _ in range(MAX_DEPTH):
        graph = field(1, field(5, field(6, graph)))  # node, attribute, graph
    for content in (field(7, graph), field(7, b"") + field(25, field(7, field(5, field(6, graph))))):
        with pytest.raises(UnsupportedModel, match="deep"):
            check_self_contained(content)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
