"""How often a model is right where it says 0.3, class by class, and which classes are hard for it: some 155 bytes for ten classes.

In: a table, or its bytes, which came over the network. Out: the other. For each class ten numbers, the probability that a box is right
(IoU 0.5) in ten equal bins of its score, and a weight. A table belongs to one model; of another one it says nothing. Whatever the
bytes, a table that was read cannot fall with the score, leave [0, 1] or weigh a class more than 1.2. It fits and applies nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cbor2

from bowerbird_wire.errors import MessageError

BINS = 10
MAX_WEIGHT = 1.2
MAX_CLASSES = 128
MAX_BYTES = 2048
MODEL_BYTES = 8
_VERSION = 1
_CLASS_IDS = 1 << 16


@dataclass(frozen=True)
class ClassCalibration:
    """One class.

    Args:
        probabilities: that a box is right, at the middles of ten equal bins of its score; in [0, 1], never falling.
        weight: how much its boxes' doubt counts, in [1, 1.2]; 1.2 for a class that the model does not find at all.
    """

    probabilities: tuple[float, ...]
    weight: float


@dataclass(frozen=True)
class CalibrationTable:
    """A model's table.

    Args:
        model: the first 8 bytes of its digest, `fleet_sketch.model_key`.
        classes: class id of the model -> its numbers. A class that is missing is taken at its word and weighs 1.
    """

    model: bytes
    classes: Mapping[int, ClassCalibration]


def middles() -> tuple[float, ...]:
    """The middles of the ten bins."""
    return tuple((number + 0.5) / BINS for number in range(BINS))


def encode(table: CalibrationTable) -> bytes:
    """A byte for each number, 13 for a class, at most `MAX_BYTES` in all.

    Raises:
        ValueError: too many classes, or numbers that are none of a table.
    """
    ids = sorted(table.classes)
    if len(ids) > MAX_CLASSES or any(not 0 <= class_id < _CLASS_IDS for class_id in ids):
        raise ValueError(f"a calibration table has at most {MAX_CLASSES} classes, numbered below {_CLASS_IDS}, not {len(ids)}")
    steps, weights = bytearray(), bytearray()
    for class_id in ids:
        one = table.classes[class_id]
        row = [round(255 * p) for p in one.probabilities]
        if len(row) != BINS or row != sorted(row) or row[0] < 0 or row[-1] > 255 or not 1.0 <= one.weight <= MAX_WEIGHT:
            raise ValueError(f"class {class_id}: {one} is no calibration; ten rising numbers in [0, 1], a weight in [1, 1.2]")
        steps += bytes(row)
        weights.append(round(255 * (one.weight - 1.0) / (MAX_WEIGHT - 1.0)))
    numbers = b"".join(class_id.to_bytes(2, "little") for class_id in ids)
    return bytes(cbor2.dumps({"v": _VERSION, "m": table.model, "c": numbers, "w": bytes(weights), "p": bytes(steps)}))


def decode(payload: bytes) -> CalibrationTable:
    """The table in its bytes.

    Raises:
        MessageError: they are none that this release understands.
    """
    if len(payload) > MAX_BYTES:
        raise MessageError(f"a calibration table of {len(payload)} bytes; at most {MAX_BYTES} are read")
    try:
        fields = cbor2.loads(payload)
        version, parts = fields["v"], [fields[key] for key in ("m", "c", "w", "p")]
    except Exception as error:  # whatever hostile bytes make a parser raise
        raise MessageError(f"a calibration table that cannot be read ({type(error).__name__})") from error
    if type(version) is not int or version != _VERSION or any(type(part) is not bytes for part in parts):
        raise MessageError("a calibration table of another form; update the older side")
    model, numbers, weights, steps = parts
    count = len(weights)
    rows = [steps[BINS * i : BINS * (i + 1)] for i in range(count)]
    ids = [int.from_bytes(numbers[2 * i : 2 * i + 2], "little") for i in range(count)]
    sound = (
        len(model) == MODEL_BYTES
        and count <= MAX_CLASSES
        and len(numbers) == 2 * count
        and len(steps) == BINS * count
        and len(set(ids)) == count
        and all(row == bytes(sorted(row)) for row in rows)
    )
    if not sound:
        raise MessageError("a calibration table whose parts do not fit together; update the older side")
    return CalibrationTable(
        model,
        {
            class_id: ClassCalibration(tuple(step / 255 for step in row), 1.0 + (MAX_WEIGHT - 1.0) * weight / 255)
            for class_id, row, weight in zip(ids, rows, weights, strict=True)
        },
    )
