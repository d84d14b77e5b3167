"""Bytes <-> messages. Nothing that arrives is trusted: types, lengths and digests are checked before a value exists.

In: messages, or payload bytes from the broker. Out: the other. A control message is one CBOR map; a frame message is
`magic | version | header length | CBOR header | image`. It opens no image and keeps keys that it does not know.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import math
import re
import struct
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import cbor2

from bowerbird_wire.errors import DigestError, LengthError, MessageError, VersionError
from bowerbird_wire.messages import FrameHeader, FrameMessage, Message

MAGIC = b"BWRB"
FRAME_VERSION = 1
_PREFIX = struct.Struct(">4sBI")  # magic, version, header length
_DIGEST = re.compile(r"[0-9a-f]{64}")

MAX_HEADER_BYTES = 256 * 1024
MAX_FRAME_BYTES = 32 * 1024 * 1024
MAX_CONTROL_BYTES = 1024 * 1024
_LARGEST = sys.float_info.max  # CBOR has integers of any length, which neither a float nor Python's text of a number can hold
_SHOWN = 40

M = TypeVar("M", bound=Message)
Checker = Callable[[Any, str], Any]  # value that came, its place for an error -> value of the field
_WHOLE = frozenset({str, bool, bytes})  # any value of these types is fine


@dataclasses.dataclass(frozen=True)
class _Field:
    name: str
    key: str
    type: Any
    required: bool


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How a map becomes a message: (name, key, type, checker, whether it must be there) of each field, and the rest by name."""

    fields: tuple[tuple[str, str, Any, Checker, bool], ...]
    defaults: dict[str, Any]
    factories: tuple[tuple[str, Callable[[], Any]], ...]
    extra: str | None
    keys: frozenset[str]


_FIELDS: dict[type[Message], tuple[_Field, ...]] = {}
_PLANS: dict[type[Message], _Plan] = {}


def _fields(kind: type[Message]) -> tuple[_Field, ...]:
    if kind not in _FIELDS:
        _FIELDS[kind] = _read_fields(kind)
    return _FIELDS[kind]


def _read_fields(kind: type[Message]) -> tuple[_Field, ...]:
    hints = get_type_hints(kind)
    return tuple(
        _Field(
            f.name,
            f.metadata["key"],
            hints[f.name],
            f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING,
        )
        for f in dataclasses.fields(kind)
    )


def _plan(kind: type[Message]) -> _Plan:
    if kind not in _PLANS:
        _PLANS[kind] = _make_plan(kind)
    return _PLANS[kind]


def _make_plan(kind: type[Message]) -> _Plan:
    specs, fields = _fields(kind), dataclasses.fields(kind)
    if hasattr(kind, "__post_init__"):
        raise TypeError(f"{kind.__name__} has a __post_init__, which decoding would pass over")
    missing = dataclasses.MISSING
    return _Plan(
        tuple((spec.name, spec.key, spec.type, _checker(spec.type), spec.required) for spec in specs if spec.key),
        {f.name: f.default for f in fields if f.default is not missing},
        tuple((f.name, f.default_factory) for f in fields if f.default_factory is not missing),
        next((spec.name for spec in specs if not spec.key), None),
        frozenset({"v", *(spec.key for spec in specs if spec.key)}),
    )


def _to_plain(value: Any) -> Any:
    if isinstance(value, Message):
        return to_map(value)
    if isinstance(value, tuple | list):
        return [_to_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _to_plain(item) for key, item in value.items()}
    return value


def to_map(message: Message) -> dict[str, Any]:
    """The message as a map of short keys; fields that have their default are left out."""
    out: dict[str, Any] = {}
    for f, spec in zip(dataclasses.fields(message), _fields(type(message)), strict=True):
        value = getattr(message, spec.name)
        if spec.key == "":
            out.update(value)
            continue
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if spec.required or value != default:
            out[spec.key] = _to_plain(value)
    return out


def _is_exactly(value: Any, kind: Any) -> bool:
    """Whether `value` needs no further look: the usual case, answered without building the name of its place."""
    if type(value) is not kind:
        return False
    if kind is float:
        return math.isfinite(value)
    if kind is int:
        return bool(-(2**63) <= value < 2**63)
    return kind in _WHOLE


@functools.cache
def _checker(kind: Any) -> Checker:
    """What turns a value that came into a `kind`, or raises MessageError naming its place. Built once for each type: asking a
    generic type what it is made of costs more than looking at the value."""
    origin, items = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        inner = _checker(next(option for option in items if option is not type(None)))
        return _or_none(inner) if type(None) in items else inner
    if origin is tuple:
        return _check_all(items[0]) if len(items) == 2 and items[1] is Ellipsis else _check_each(items)
    if origin is Mapping:
        return _check_map(*items)
    if kind is Any:
        return lambda value, _where: value
    if isinstance(kind, type) and issubclass(kind, Message):
        return functools.partial(from_map, kind)
    return functools.partial(_check_scalar, kind)


def _or_none(inner: Checker) -> Checker:
    return lambda value, where: None if value is None else inner(value, where)


def _check_all(kind: Any) -> Checker:
    check = _checker(kind)

    def checked(value: Any, where: str) -> Any:
        if not isinstance(value, list | tuple):
            raise MessageError(f"{where} must be a list, not {type(value).__name__}")
        return tuple([item if _is_exactly(item, kind) else check(item, f"{where}[{i}]") for i, item in enumerate(value)])

    return checked


def _check_each(kinds: tuple[Any, ...]) -> Checker:
    checks = [(kind, _checker(kind)) for kind in kinds]

    def checked(value: Any, where: str) -> Any:
        if not isinstance(value, list | tuple):
            raise MessageError(f"{where} must be a list, not {type(value).__name__}")
        if len(value) != len(checks):
            raise MessageError(f"{where} must have {len(checks)} items, not {len(value)}")
        return tuple(
            [
                item if _is_exactly(item, kind) else check(item, f"{where}[{i}]")
                for i, (item, (kind, check)) in enumerate(zip(value, checks, strict=True))
            ]
        )

    return checked


def _check_map(key_kind: Any, item_kind: Any) -> Checker:
    check_key, check_item = _checker(key_kind), _checker(item_kind)

    def checked(value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            raise MessageError(f"{where} must be a map, not {type(value).__name__}")
        return {check_key(key, where): check_item(item, f"{where}.{_shown(key)}") for key, item in value.items()}

    return checked


def _check_scalar(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`. Numbers are finite; an int may stand for a float, never a bool."""
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST <= value <= _LARGEST:
            raise MessageError(f"{where} must be a finite number")
        return float(value)
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        if not -(2**63) <= value < 2**63:
            raise MessageError(f"{where} does not fit 64 bits")
        return value
    if kind is not int and isinstance(value, kind):
        return value
    raise MessageError(f"{where} must be {kind.__name__}, not {type(value).__name__}")


def from_map(kind: type[M], plain: Any, where: str = "message") -> M:
    """A map of short keys as a message; unknown keys are kept in `extra` where the message has one.

    Raises:
        MessageError: not a map, a required key is missing, or a value has the wrong type.
    """
    if not isinstance(plain, dict):
        raise MessageError(f"{where} must be a map, not {type(plain).__name__}")
    plan = _plan(kind)
    values = plan.defaults.copy()
    for name, key, exact, check, required in plan.fields:
        if key in plain:
            value = plain[key]
            values[name] = value if _is_exactly(value, exact) else check(value, f"{where}.{key}")
        elif required:
            raise MessageError(f"{where}: required key {key!r} ({name}) is missing")
    for name, make in plan.factories:
        if name not in values:
            values[name] = make()
    if plan.extra and not plain.keys() <= plan.keys:
        extra = {_as_text(key, where): value for key, value in plain.items() if key not in plan.keys}
        _check_can_be_sent_on(extra, where)
        values[plan.extra] = extra
    message = object.__new__(kind)  # every field has its value: `__init__` of a frozen class would set them one by one
    message.__dict__.update(values)
    return message


def _as_text(key: Any, where: str) -> str:
    try:
        return str(key)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"{where} has a key that is no text and cannot be made one") from error


def _shown(value: Any) -> str:
    """A few characters of what the other side said, for a message that ends in a log: one line, and no signs that steer a terminal."""
    if isinstance(value, str):
        return value if len(value) <= _SHOWN and value.isprintable() else ascii(value[:_SHOWN])
    return str(value) if isinstance(value, int) and abs(value) < 2**63 else f"a {type(value).__name__}"


def _check_can_be_sent_on(extra: Mapping[str, Any], where: str) -> None:
    """Unknown keys are kept to be sent on; a tag may have become something that CBOR cannot write, e.g. a mail message (tag 36)."""
    if extra:
        try:
            cbor2.dumps(extra)
        except (cbor2.CBOREncodeError, RecursionError, ValueError, TypeError, OverflowError) as error:
            raise MessageError(f"{where} holds a value that cannot be sent on: {type(error).__name__}") from error


def _loads(payload: bytes, limit: int) -> Any:
    if len(payload) > limit:
        raise LengthError(f"message of {len(payload)} bytes; at most {limit} are allowed")
    stream = io.BytesIO(payload)
    try:
        plain = cbor2.CBORDecoder(stream).decode()
    except (cbor2.CBORDecodeError, RecursionError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise MessageError(f"not a CBOR message: {type(error).__name__}") from error
    if stream.tell() != len(payload):
        raise LengthError(f"{len(payload) - stream.tell()} stray bytes behind the message")
    return plain


def encode(message: Message) -> bytes:
    """A control message as bytes."""
    return cbor2.dumps({"v": message.VERSION, **to_map(message)})


def decode(kind: type[M], payload: bytes) -> M:
    """Bytes as a control message of the type its topic promises.

    Raises:
        MessageError: it is not one. `VersionError` and `LengthError` are kinds of it.
    """
    plain = _loads(payload, MAX_CONTROL_BYTES)
    if not isinstance(plain, dict):
        raise MessageError(f"a {kind.__name__} must be a map, not {type(plain).__name__}")
    if plain.get("v") != kind.VERSION:
        raise VersionError(f"{kind.__name__} of schema version {_shown(plain.get('v'))}; this release knows {kind.VERSION}")
    return from_map(kind, plain, kind.__name__)


def config_digest(document: Mapping[str, Any]) -> bytes:
    """Eight bytes that name a wished configuration, whatever order its keys are in; b"" for an empty one."""
    return hashlib.sha256(cbor2.dumps(document, canonical=True)).digest()[:8] if document else b""


def frame_id(*, image_sha256: str, device: str, camera: str, sequence: int, captured_at_ms: int) -> str:
    """Identity of a frame: SHA-256 over the image's digest and the header fields that never change, 64 hex digits.

    The same source frame captured twice by one camera (a film run again) has one id, so it is stored once.
    """
    identity = cbor2.dumps([image_sha256, device, camera, sequence, captured_at_ms], canonical=True)
    return hashlib.sha256(identity).hexdigest()


def frame_id_of(header: FrameHeader) -> str:
    """The id that a header must carry."""
    return frame_id(
        image_sha256=header.image_sha256,
        device=header.device,
        camera=header.camera,
        sequence=header.sequence,
        captured_at_ms=header.captured_at_ms,
    )


def encode_frame(message: FrameMessage) -> bytes:
    """Header and image as one message."""
    header = cbor2.dumps({"v": FrameHeader.VERSION, **to_map(message.header)})
    return _PREFIX.pack(MAGIC, FRAME_VERSION, len(header)) + header + message.image


def decode_frame_header(payload: bytes) -> tuple[FrameHeader, memoryview]:
    """The header and the image bytes behind it, not yet verified against each other.

    Raises:
        MessageError: not a frame message, or lengths that lie.
    """
    if len(payload) > MAX_FRAME_BYTES:
        raise LengthError(f"frame message of {len(payload)} bytes; at most {MAX_FRAME_BYTES} are allowed")
    if len(payload) < _PREFIX.size:
        raise LengthError(f"frame message of {len(payload)} bytes is shorter than its prefix of {_PREFIX.size}")
    magic, version, length = _PREFIX.unpack_from(payload)
    if magic != MAGIC:
        raise MessageError("not a frame message: the magic number is wrong")
    if version != FRAME_VERSION:
        raise VersionError(f"frame message of version {version}; this release knows {FRAME_VERSION}")
    if length > MAX_HEADER_BYTES or length > len(payload) - _PREFIX.size:
        raise LengthError(f"header of {length} bytes declared in a message of {len(payload)}")
    plain = _loads(bytes(payload[_PREFIX.size : _PREFIX.size + length]), MAX_HEADER_BYTES)
    if not isinstance(plain, dict):
        raise MessageError("the frame header is not a map")
    if plain.get("v") != FrameHeader.VERSION:
        raise VersionError(f"frame header of version {_shown(plain.get('v'))}; this release knows {FrameHeader.VERSION}")
    return from_map(FrameHeader, plain, "header"), memoryview(payload)[_PREFIX.size + length :]


def decode_frame(payload: bytes) -> FrameMessage:
    """Bytes as a verified frame message: the image has its digest and the header its id.

    Raises:
        MessageError: not a frame message; `DigestError` when image or id do not match.
    """
    header, image = verify_frame(payload)
    return FrameMessage(header, bytes(image))


def verify_frame(payload: bytes) -> tuple[FrameHeader, memoryview]:
    """As `decode_frame`, with the image where it lies in `payload`: copying each is a thirtieth of what taking a frame in costs."""
    header, image = decode_frame_header(payload)
    if hashlib.sha256(image).hexdigest() != header.image_sha256:
        raise DigestError(f"frame {_shown(header.frame_id[:12])}: the image does not have the digest that its header declares")
    if frame_id_of(header) != header.frame_id:
        raise DigestError(f"frame {_shown(header.frame_id[:12])}: the id does not match the header")
    return header, image


def encode_reference(header: FrameHeader) -> bytes:
    """A frame that is sent as a reference to its twin: its header, as in a frame message, and no picture."""
    return encode_frame(FrameMessage(header, b""))


def verify_reference(payload: bytes) -> FrameHeader:
    """Bytes as the header of a reference: its id fits, and it names another frame as its twin.

    Nobody can check the digest of its own picture, which stayed where it was taken: it must serve as no name of anything.

    Raises:
        MessageError: not a reference; `DigestError` when the id does not match.
    """
    header, image = decode_frame_header(payload)
    if len(image):
        raise LengthError(f"{len(image)} stray bytes behind the header of a reference")
    if _DIGEST.fullmatch(header.twin) is None or header.twin == header.frame_id:
        raise MessageError(f"header.tw must be the id of another frame, not {_shown(header.twin)}")
    if _DIGEST.fullmatch(header.image_sha256) is None:
        raise MessageError(f"header.im must be a digest of 64 hex digits, not {_shown(header.image_sha256)}")
    if frame_id_of(header) != header.frame_id:
        raise DigestError(f"frame {_shown(header.frame_id[:12])}: the id does not match the header")
    return header
