"""What a file says about itself is read strictly and never evaluated."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bowerbird_models.errors import ModelError, NotAModel, UnsupportedModel
from bowerbird_models.metadata import MAX_CLASSES, parse_metadata, parse_names
from bowerbird_models.onnx_file import check_self_contained, metadata_entries
from bowerbird_testing.tiny_yolo import write_tiny_yolo

printable_names = st.lists(
    st.text(min_size=1, max_size=30).filter(lambda name: name.isprintable() and bool(name.strip())), min_size=1, max_size=20
)


def test_what_ultralytics_writes_is_read() -> None:
    """Python literals as text."""
    metadata = parse_metadata(
        {
            "names": "{0: 'person', 1: \"driver's cab\"}",
            "stride": "32",
            "imgsz": "[384, 640]",
            "task": "detect",
            "end2end": "True",
        }
    )
    assert metadata.class_names == ("person", "driver's cab")
    assert (metadata.stride, metadata.image_size_hw, metadata.end2end) == (32, (384, 640), True)


def test_only_names_are_required() -> None:
    """Old exports say little else."""
    metadata = parse_metadata({"names": "['a', 'b']"})
    assert metadata.class_names == ("a", "b")
    assert (metadata.stride, metadata.image_size_hw, metadata.end2end) == (32, None, False)


@given(printable_names)
def test_any_printable_names_survive(names: list[str]) -> None:
    """As Python writes a dict, as Python writes a list, and as JSON."""
    expected = tuple(names)
    by_id = dict(enumerate(names))
    for text in (str(by_id), str(names), json.dumps(by_id), json.dumps(names)):
        assert parse_names(text) == expected


@given(st.text(max_size=200))
def test_any_text_is_names_or_an_error_of_ours(text: str) -> None:
    """Nothing else escapes, whatever is written there."""
    for candidate in (text, "{" + text + "}", "{0: '" + text + "'}"):
        try:
            names = parse_names(candidate)
        except NotAModel:
            continue
        assert names
        assert all(name.isprintable() for name in names)


@pytest.mark.parametrize(
    "names",
    [
        "__import__('os').system('true')",
        "{0: __import__('os').getcwd()}",
        "{0: 'a'}[0]",
        "{0: f'{1}'}",
        "{0: b'a'}",
        "{0: 'a', 2: 'c'}",
        "{0: 'a', 0: 'b'}",
        "{1: 'a'}",
        "{0: ''}",
        "{0: 'a\\nb'}",
        "{0: 'a\\x1b[31m'}",
        "{0: 'bad \\x escape'}",
        "{0: 'a' 1: 'b'}",
        "{" * 10_000,
        "{}",
        "[]",
        "",
        "{0: '" + "x" * 300 + "'}",
        str(dict.fromkeys(range(MAX_CLASSES + 1), "a")),
        "[" + "'a'," * 400_000 + "]",
    ],
)
def test_anything_but_plain_names_is_refused(names: str) -> None:
    """Code, gaps, control characters, floods: one clear error each."""
    with pytest.raises(NotAModel, match="class names"):
        parse_names(names)


@pytest.mark.parametrize(
    "entry",
    [
        {"stride": "0"},
        {"stride": "open('/etc/passwd')"},
        {"imgsz": "[640, 640, 640]"},
        {"imgsz": "[0, 640]"},
        {"imgsz": "99999"},
        {"end2end": "1 if True else 0"},
        {"args": "{'nms': __import__('os').getcwd()}"},
        {"args": "x" * 20_000},
        {"task": "pose"},
        {"task": "pose", "kpt_shape": "[17]"},
        {"task": "pose", "kpt_shape": "[17, 4]"},
        {"task": "pose", "kpt_shape": "[0, 3]"},
        {"task": "pose", "kpt_shape": "[9999, 3]"},
        {"task": "pose", "kpt_shape": "[17, 3] * 2"},
    ],
)
def test_other_entries_are_refused_when_they_are_not_plain(entry: dict[str, str]) -> None:
    """The message names the entry."""
    with pytest.raises(NotAModel, match="kpt_shape" if "task" in entry else next(iter(entry))):
        parse_metadata({"names": "{0: 'a'}", **entry})


@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb", "classify"])
def test_every_task_is_read(task: str) -> None:
    """With its number of keypoints where it has any."""
    metadata = parse_metadata({"names": "{0: 'a'}", "task": task, "kpt_shape": "[17, 3]"})
    assert metadata.task == task
    assert metadata.keypoint_shape == ((17, 3) if task == "pose" else None)


@pytest.mark.parametrize(
    "entries",
    [
        {"task": "semantic"},
        {"task": "depth"},
        {"task": "__import__('os')"},
        {"head": "RTDETRDecoder"},
        {"head": "WorldDetect"},
        {"head": "YOLOEDetect"},
        {"task": "segment", "head": "YOLOESegment"},
        {"task": "detect", "head": "Segment"},
    ],
)
def test_what_does_not_run_here_is_refused_by_name(entries: dict[str, str]) -> None:
    """A model, but of a task or a head that nothing here reads; the message says which."""
    with pytest.raises(UnsupportedModel) as caught:
        parse_metadata({"names": "{0: 'a'}", **entries})
    assert entries.get("head", entries.get("task")) in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "end2end"),
    [
        ("{'batch': 1, 'nms': True, 'conf': 0.25}", True),
        ("{'batch': 1, 'nms': False}", False),
        ("{'batch': 1, 'nms': None}", False),
        ('{"nms": true}', True),
        ("{'batch': 1}", False),
        ("", False),
    ],
)
def test_suppression_in_the_graph_is_told_by_the_arguments_of_the_export(arguments: str, end2end: bool) -> None:
    """Then nothing is left to suppress, as with a head that needs none."""
    assert parse_metadata({"names": "{0: 'a'}", "args": arguments}).end2end is end2end


@given(
    st.dictionaries(st.sampled_from(["task", "head", "stride", "imgsz", "end2end", "args", "kpt_shape"]), st.text(max_size=60))
)
def test_any_entries_end_in_metadata_or_an_error_of_ours(entries: dict[str, str]) -> None:
    """Nothing else escapes, whatever is written there."""
    with contextlib.suppress(ModelError):
        parse_metadata({"names": "{0: 'a'}", **entries})


def test_a_file_without_names_is_no_yolo() -> None:
    """The message says how to export one."""
    with pytest.raises(NotAModel, match="yolo export"):
        parse_metadata({})


def test_a_whole_model_passes(tmp_path: Path) -> None:
    """What is self-contained is not refused, control flow included."""
    check_self_contained(write_tiny_yolo(tmp_path / "m.onnx", sleep_loops=3).read_bytes())


def test_weights_outside_the_file_are_refused(tmp_path: Path) -> None:
    """Also when they hide in a constant inside a loop's body."""
    outside = write_tiny_yolo(tmp_path / "outside.onnx", external_data=True)
    with pytest.raises(UnsupportedModel, match="one file"):
        check_self_contained(outside.read_bytes())
    model = onnx.load(write_tiny_yolo(tmp_path / "m.onnx", sleep_loops=3))
    loop = next(node for node in model.graph.node if node.op_type == "Loop")
    hidden = loop.attribute[0].g.node.add(op_type="Constant", output=["hidden"]).attribute.add(name="value", type=4)
    hidden.t.data_location = onnx.TensorProto.EXTERNAL
    hidden.t.external_data.add(key="location", value="../../etc/shadow")
    with pytest.raises(UnsupportedModel, match="one file"):
        check_self_contained(model.SerializeToString())


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 100, b"PK\x03\x04 a zip file", b"not a model at all", b"\x80" * 40, b"\x3a\xff"]
)
def test_what_is_no_onnx_is_refused(content: bytes) -> None:
    """Empty, other formats, garbage."""
    with pytest.raises(NotAModel):
        check_self_contained(content)


@given(st.binary(max_size=300))
def test_any_bytes_end_in_a_verdict(content: bytes) -> None:
    """No bytes raise anything but our errors."""
    with contextlib.suppress(ModelError):
        check_self_contained(content)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.5, 0.8])
def test_a_cut_model_is_refused(tmp_path: Path, share: float) -> None:
    """Where the graph is cut off, the file is refused before any runtime sees it."""
    content = write_tiny_yolo(tmp_path / "whole.onnx").read_bytes()
    with pytest.raises(NotAModel):
        check_self_contained(content[: int(len(content) * share)])


def test_the_metadata_map_is_read_as_onnx_reads_it(tmp_path: Path) -> None:
    """Our scan and ONNX's own parser agree on every entry."""
    content = write_tiny_yolo(tmp_path / "m.onnx", metadata={"remark": "fünf 'quoted' words", "empty": ""}).read_bytes()
    theirs = {entry.key: entry.value for entry in onnx.load_from_string(content).metadata_props}
    assert metadata_entries(content) == theirs
    assert theirs["remark"] == "fünf 'quoted' words"


def test_a_map_of_endless_entries_is_refused(tmp_path: Path) -> None:
    """No exporter writes hundreds of entries."""
    model = onnx.load_from_string(write_tiny_yolo(tmp_path / "m.onnx").read_bytes())
    onnx.helper.set_model_props(model, {f"key{number}": "" for number in range(300)})
    with pytest.raises(NotAModel, match="256 entries"):
        metadata_entries(model.SerializeToString())
