"""Detections for other programs of the site, as JSON: they need no decoder of ours to open a gate.

In: what a model saw in one frame. Out: one JSON object in UTF-8, and back. The key `schema` names its version; a reader ignores keys
that it does not know. Frames that shall be labelled travel in `messages.py` instead.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from bowerbird_wire.errors import MessageError, VersionError

SCHEMA = "bowerbird.detections/1"


@dataclass(frozen=True)
class LocalDetection:
    """One box: left, top, right, bottom in pixels of the camera's picture, and a score in [0, 1]."""

    class_name: str
    score: float
    box_xyxy: tuple[float, float, float, float]


@dataclass(frozen=True)
class DetectionsMessage:
    """What the model saw in one frame, most confident first; no box means that it saw nothing.

    Args:
        sequence: number of the frame in its source.
        captured_at_ms: UTC since the epoch; not to be trusted while `clock_ok` is False.
        model_digest: which model saw it.
        width, height: of the camera's picture, pixels.
    """

    camera: str
    sequence: int
    captured_at_ms: int
    clock_ok: bool
    model_digest: str
    width: int
    height: int
    detections: tuple[LocalDetection, ...] = ()


def to_json(message: DetectionsMessage) -> bytes:
    """The message as one line of JSON."""
    moment = datetime.fromtimestamp(message.captured_at_ms / 1000, timezone.utc)
    plain = {
        "schema": SCHEMA,
        "camera": message.camera,
        "sequence": message.sequence,
        "captured_at": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "captured_at_ms": message.captured_at_ms,
        "clock_ok": message.clock_ok,
        "model": message.model_digest,
        "width": message.width,
        "height": message.height,
        "detections": [
            {"class": each.class_name, "score": each.score, "box_xyxy": list(each.box_xyxy)} for each in message.detections
        ],
    }
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode()


def from_json(payload: bytes) -> DetectionsMessage:
    """The message in a payload.

    Raises:
        MessageError: it is none; `VersionError` when it is of another schema version.
    """
    try:
        plain: Any = json.loads(payload)
        schema = str(plain["schema"])
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise MessageError(f"these are no detections in JSON ({type(error).__name__}: {error})") from error
    if schema != SCHEMA:
        raise VersionError(f"detections of schema {schema[:50]!r} cannot be read; this version knows {SCHEMA}")
    try:
        return DetectionsMessage(
            camera=str(plain["camera"]),
            sequence=int(plain["sequence"]),
            captured_at_ms=int(plain["captured_at_ms"]),
            clock_ok=bool(plain["clock_ok"]),
            model_digest=str(plain["model"]),
            width=int(plain["width"]),
            height=int(plain["height"]),
            detections=tuple(_detection(each) for each in plain["detections"]),
        )
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise MessageError(f"these are no detections in JSON ({type(error).__name__}: {error})") from error


def _detection(plain: Any) -> LocalDetection:
    left, top, right, bottom = (float(edge) for edge in plain["box_xyxy"])
    return LocalDetection(str(plain["class"]), float(plain["score"]), (left, top, right, bottom))
