"""What a device saw in an hour, all frames counted: histograms small enough to be sent always.

In: counts by bin. Out: the `Histograms` message and its bins. A camera's hour takes some 60 bytes on an empty scene and 150 on a busy
one. Bins never change their meaning: another set of bins is another key. It measures nothing (`agent`) and judges nothing (`server`).

A histogram on the wire is a run of unsigned LEB128 numbers; a zero stands for as many empty bins as the number behind it says, and
empty bins at the end are left out. Classes are pairs of class id and count, since most of a model's classes are never seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bowerbird_wire.errors import MessageError
from bowerbird_wire.messages import Message

HOUR_MS = 3_600_000
VISIBLE = 0.25  # score from which a box counts for numbers, classes and sizes, whatever a policy calls visible
SCORE_BINS = 20  # equal bins of every decoded box's score in [0, 1]
COUNT_ENDS = (0, 1, 2, 3, 4, 6, 9, 14, 24)  # visible boxes in a frame, last number of each bin; the last bin has no end
# Upper ends of a visible box's size, the square root of its share of the picture's area; the last bin has none.
SIZE_ENDS = (0.02, 0.03, 0.045, 0.07, 0.1, 0.15, 0.22, 0.33, 0.5)
BRIGHTNESS_BINS = 16  # equal bins of a frame's mean level, 0 to 255
MAX_CLASS_ID = 65_535
MAX_CAMERAS = 64
_MAX_COUNT = 2**40
# Histogram -> bins.
BINS: Mapping[str, int] = {
    "scores": SCORE_BINS,
    "counts": len(COUNT_ENDS) + 1,
    "sizes": len(SIZE_ENDS) + 1,
    "brightness": BRIGHTNESS_BINS,
}


def _key(short: str) -> dict[str, str]:
    return {"key": short}


@dataclass(frozen=True)
class CameraHour(Message):
    """One camera's frames with one model in (a part of) an hour; totals of that part, so a repeated message changes nothing.

    `from_ms` and `until_ms` are capture times of the first and the last frame. `unwell` counts the frames by what was wrong with
    the camera (`dark`, `blurred`, `moved`, `frozen`): they are in none of the histograms. `floor` is the lowest score decoded, in
    hundredths.
    """

    camera: str = field(metadata=_key("c"))
    from_ms: int = field(metadata=_key("t"))
    until_ms: int = field(metadata=_key("u"))
    frames: int = field(metadata=_key("n"))  # well and unwell
    model: bytes = field(default=b"", metadata=_key("m"))  # the first eight bytes of its digest
    floor: int = field(default=5, metadata=_key("d"))
    scores: bytes = field(default=b"", metadata=_key("s"))
    counts: bytes = field(default=b"", metadata=_key("k"))
    sizes: bytes = field(default=b"", metadata=_key("z"))
    brightness: bytes = field(default=b"", metadata=_key("b"))
    classes: bytes = field(default=b"", metadata=_key("l"))
    unwell: Mapping[str, int] = field(default_factory=dict, metadata=_key("x"))
    clock_ok: bool = field(default=True, metadata=_key("ck"))
    extra: Mapping[str, Any] = field(default_factory=dict, metadata=_key(""))


@dataclass(frozen=True)
class Histograms(Message):
    """The hours that a device has not sent before, of all its cameras."""

    hours: tuple[CameraHour, ...] = field(metadata=_key("h"))
    extra: Mapping[str, Any] = field(default_factory=dict, metadata=_key(""))


def pack(counts: Sequence[int]) -> bytes:
    """A histogram as bytes; b"" for an empty one."""
    filled = len(counts)
    while filled and not counts[filled - 1]:
        filled -= 1
    out = bytearray()
    place = 0
    while place < filled:
        run = 0
        while not counts[place + run]:
            run += 1
        if run:
            out += b"\x00" + _number(run)
            place += run
        else:
            out += _number(counts[place])
            place += 1
    return bytes(out)


def unpack(packed: bytes, bins: int) -> tuple[int, ...]:
    """The counts of a histogram of so many bins.

    Raises:
        MessageError: more bins, a number that is no count, or bytes that end in the middle of one.
    """
    counts: list[int] = []
    numbers = _numbers(packed)
    for number in numbers:
        if number:
            counts.append(number)
            continue
        run = next(numbers, 0)
        if not 0 < run <= bins:
            raise MessageError(f"a histogram says {run} empty bins; it has {bins}")
        counts += [0] * run
    if len(counts) > bins:
        raise MessageError(f"a histogram has {len(counts)} bins instead of {bins}")
    return (*counts, *[0] * (bins - len(counts)))


def pack_classes(counts: Mapping[int, int]) -> bytes:
    """Class id -> count as bytes; ids are sent as the distance from the one before."""
    out = bytearray()
    before = 0
    for class_id in sorted(counts):
        if counts[class_id]:
            out += _number(class_id - before) + _number(counts[class_id])
            before = class_id
    return bytes(out)


def unpack_classes(packed: bytes) -> dict[int, int]:
    """Class id -> count.

    Raises:
        MessageError: an id beyond `MAX_CLASS_ID`, a count of nothing, or bytes that end in the middle.
    """
    counts: dict[int, int] = {}
    numbers = _numbers(packed)
    class_id = 0
    for step in numbers:
        class_id += step
        count = next(numbers, 0)
        if class_id > MAX_CLASS_ID or not count or class_id in counts:
            raise MessageError(f"class {class_id} with a count of {count} cannot be in a histogram")
        counts[class_id] = count
    return counts


def _number(value: int) -> bytes:
    if not 0 <= value < _MAX_COUNT:
        raise ValueError(f"{value} is no count below 2^40")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _numbers(packed: bytes) -> Iterator[int]:
    value = shift = 0
    for byte in packed:
        value |= (byte & 0x7F) << shift
        if byte & 0x80:
            shift += 7
            if shift >= 42:
                raise MessageError("a histogram holds a number that is no count")
            continue
        if value >= _MAX_COUNT:
            raise MessageError("a histogram holds a number that is no count")
        yield value
        value = shift = 0
    if shift:
        raise MessageError("a histogram ends in the middle of a number")
