"""Hostile model files, signed by somebody with the models key or brought by hand: they die in a child, and agent and server live on."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bowerbird_models.errors import UnsupportedModel
from bowerbird_models.manifest import PackageFile
from bowerbird_models.onnx_file import MAX_DEPTH, check_self_contained
from bowerbird_models.package import PackageOnDisk, build_package
from bowerbird_server.errors import BadInput
from bowerbird_server.releases import registry
from bowerbird_server.releases.registry import import_model
from bowerbird_server.site import Site
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


# -- a file that somebody brings to the server: `bowerbird models import`


def trapping(model: onnx.ModelProto) -> None:
    """The smallest integer divided by -1, worked out while the file is loaded: x86 has no answer to that but a signal."""
    import numpy as np

    for name, value in (("trap_smallest", -(2**63)), ("trap_minus_one", -1)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
    graph = model.graph
    output = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["honest" if name == output else name for name in node.output]
    graph.node.extend(
        [
            helper.make_node("Div", ["trap_smallest", "trap_minus_one"], ["trap"]),
            helper.make_node("Cast", ["trap"], ["trap_float"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["honest", "trap_float"], [output]),
        ]
    )


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site.open(tmp_path / "data", make=True) as opened:
        yield opened


def brought(tmp_path: Path, change: Change) -> Path:
    path = write_tiny_yolo(tmp_path / "best.onnx")
    model = onnx.load(str(path))
    change(model)
    onnx.save(model, str(path))
    return path


def refusal_of(site: Site, file: Path) -> str:
    """What a person is told; nothing of the file is left in the site, and an honest one is taken in after it."""
    with pytest.raises(BadInput) as refused:
        import_model(site, file, trust=False, actor="test")
    assert site.catalogue.value("SELECT count(*) FROM model") == 0
    assert list(site.folder.packages.iterdir()) == []
    assert import_model(site, write_tiny_yolo(file.with_name("honest.onnx")), trust=False, actor="test")["state"] == "candidate"
    return str(refused.value)


@pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="other processors have an answer to this division")
def test_a_file_that_crashes_the_loader_ends_a_child_and_is_refused_by_name(site: Site, tmp_path: Path) -> None:
    told = refusal_of(site, brought(tmp_path, trapping))
    assert "best.onnx cannot be used" in told
    assert "SIGFPE" in told
    assert "in a process of its own" in told


def test_a_file_that_never_ends_is_refused_when_its_time_is_over(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = brought(tmp_path, endless)
    with monkeypatch.context() as patched:
        patched.setattr(registry, "LOOK_S", 8.0)
        with pytest.raises(BadInput, match="within 8 s"):
            import_model(site, file, trust=False, actor="test")
    assert site.catalogue.value("SELECT count(*) FROM model") == 0


def test_a_file_that_wants_more_memory_than_there_is_is_refused(site: Site, tmp_path: Path) -> None:
    assert "best.onnx cannot be used" in refusal_of(site, brought(tmp_path, hungry))
