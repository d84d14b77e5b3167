"""Just enough of ONNX's wire format to look before loading.

In: the bytes of a file that may be anything. Out: nothing or an error, and the file's metadata map. A model whose weights sit in
other files is refused: a runtime would open the paths that the file names, outside everything that was signed and hashed. The
scan walks protobuf fields (ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto of onnx.proto3) without building anything;
it does not validate the graph, which is the runtime's work.
Source: https://protobuf.dev/programming-guides/encoding/ and onnx/onnx.proto.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bowerbird_models.errors import NotAModel, UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_DEPTH = 32
MAX_FILE_BYTES = 2**31 - 1  # protobuf's own limit

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Message -> field number -> message inside it. Only the ways that lead to tensors are walked.
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse_tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse_tensor", 23: "sparse_tensor"},
    "sparse_tensor": {1: "tensor", 2: "tensor"},
}
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14
_MODEL_GRAPH, _MODEL_METADATA = 7, 14
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_GRAPH_OUTPUT, _VALUE_NAME = 12, 1
MAX_METADATA_ENTRIES = 256


def check_self_contained(content: bytes) -> None:
    """Refuse what is not ONNX and what keeps data outside the file.

    Raises:
        NotAModel: empty, too large, or not the wire format of an ONNX model.
        UnsupportedModel: weights in other files, or graphs nested deeper than any exporter makes.
    """
    if not content:
        raise NotAModel("the model file is empty (0 bytes); export or copy it again")
    if len(content) > MAX_FILE_BYTES:
        raise NotAModel(f"the model file has {len(content)} bytes, more than ONNX can hold in one file (2 GiB)")
    view = memoryview(content)
    try:
        if not any(number == _MODEL_GRAPH and body is not None for number, _, body in _fields(view)):
            raise NotAModel("the file is not an ONNX model (no graph in it); export the model with format=onnx")
        _walk(view, "model", 0)
    except _Malformed as error:
        raise NotAModel(f"the file is not an ONNX model ({error}); export the model with format=onnx") from error


def metadata_entries(content: bytes) -> dict[str, str]:
    """The metadata map (`ModelProto.metadata_props`) of a file that `check_self_contained` has passed; later entries win.

    Raises:
        NotAModel: an entry that is not text, or more entries than any exporter writes.
    """
    entries: dict[str, str] = {}
    count = 0
    for number, _, body in _fields(memoryview(content)):
        if number != _MODEL_METADATA:
            continue
        count += 1
        if count > MAX_METADATA_ENTRIES:
            raise NotAModel(f"the ONNX metadata has more than {MAX_METADATA_ENTRIES} entries; export the model again")
        try:
            if body is None:
                raise _Malformed("a metadata entry is a number")
            fields = {key: bytes(value) for key, _, value in _fields(body) if value is not None}
            entries[fields.get(_ENTRY_KEY, b"").decode()] = fields.get(_ENTRY_VALUE, b"").decode()
        except (_Malformed, UnicodeDecodeError) as error:
            raise NotAModel("the ONNX metadata holds an entry that is no text; export the model again") from error
    return entries


def output_names(content: bytes) -> tuple[str, ...]:
    """Names of the graph's outputs, in their order, of a file that `check_self_contained` has passed.

    Raises:
        NotAModel: an output without a name, or one that is not text.
    """
    names: list[str] = []
    try:
        for number, _, graph in _fields(memoryview(content)):
            if number != _MODEL_GRAPH or graph is None:
                continue
            for field, _, value in _fields(graph):
                if field == _GRAPH_OUTPUT and value is not None:
                    found = [bytes(body).decode() for key, _, body in _fields(value) if key == _VALUE_NAME and body is not None]
                    names.append(found[-1])
    except (_Malformed, UnicodeDecodeError, IndexError) as error:
        raise NotAModel("an output of the ONNX model has no readable name; export the model again") from error
    return tuple(names)


class _Malformed(Exception):
    pass


def _walk(message: memoryview, kind: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise UnsupportedModel(f"the model nests its graphs more than {MAX_DEPTH} deep; no exporter does, do not use it")
    inside = _INSIDE.get(kind, {})
    for number, value, body in _fields(message):
        if kind == "tensor":
            if number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_DATA_LOCATION and value == 1):
                raise UnsupportedModel(
                    "the model keeps its weights in other files (ONNX external data); save it as one file: "
                    "onnx.save(onnx.load('model.onnx'), 'one_file.onnx')"
                )
        elif number in inside:
            if body is None:
                raise _Malformed(f"field {number} of a {kind} is a number")
            _walk(body, inside[number], depth + 1)


def _fields(message: memoryview) -> Iterator[tuple[int, int, memoryview | None]]:
    """Each field's number, its value if it is a number (else 0), and its bytes if it has any."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire_type = key >> 3, key & 7
        value, body, size = 0, None, 0
        if wire_type == _VARINT:
            value, position = _varint(message, position)
        elif wire_type == _BYTES:
            size, position = _varint(message, position)
            body = message[position : position + size]
        elif wire_type == _FIXED64:
            size = 8
        elif wire_type == _FIXED32:
            size = 4
        else:
            raise _Malformed(f"wire type {wire_type}")
        if number == 0 or position + size > len(message):
            raise _Malformed("cut off or garbled")
        position += size
        yield number, value, body


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise _Malformed("cut off")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _Malformed("a number without an end")
