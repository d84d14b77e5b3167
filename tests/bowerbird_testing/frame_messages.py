"""Frame messages with real small JPEGs, as an agent would make them.

In: device, camera, sequence. Out: a valid `FrameMessage`; the same arguments give the same bytes.
"""

from __future__ import annotations

import hashlib
from typing import Any

import cv2
import numpy as np

from bowerbird_wire.codec import frame_id
from bowerbird_wire.messages import FrameHeader, FrameMessage, WireDetection

START_MS = 1_700_000_000_000


def jpeg(seed: int, width: int = 64, height: int = 48) -> bytes:
    """A small JPEG whose content depends on `seed`."""
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return bytes(cv2.imencode(".jpg", noise)[1])


def frame_message(device: str = "cam-01", sequence: int = 0, camera: str = "gate", **changes: Any) -> FrameMessage:
    """A valid message; `changes` replace header fields before the id is computed, `image` the picture."""
    image = changes.pop("image", None) or jpeg(sequence)
    values: dict[str, Any] = {
        "image_sha256": hashlib.sha256(image).hexdigest(),
        "device": device,
        "camera": camera,
        "sequence": sequence,
        "captured_at_ms": START_MS + sequence * 100,
        "width": 64,
        "height": 48,
        "source_width": 128,
        "source_height": 96,
        "reasons": ("least_confidence",),
        "score": 0.7,
        "detections": (WireDetection((1.0, 2.0, 20.0, 30.0), 0.4, "bird"),),
        **changes,
    }
    identity = {key: values[key] for key in ("image_sha256", "device", "camera", "sequence", "captured_at_ms")}
    return FrameMessage(FrameHeader(frame_id=frame_id(**identity), **values), image)


def audit_message(sequence: int = 0, **changes: Any) -> FrameMessage:
    """A frame of the random audit, whole."""
    values = {
        "arm": "explore",
        "inclusion_probability": 0.1,
        "model_digest": "ab" * 32,
        "reasons": ("random_audit",),
        **changes,
    }
    return frame_message(sequence=sequence, **values)


def reference_to(twin: FrameMessage, sequence: int, **changes: Any) -> FrameMessage:
    """A later frame of the audit in which nothing was different: with its own picture, as it lies in the spool."""
    values = {"device": twin.header.device, "camera": twin.header.camera, "twin": twin.header.frame_id, **changes}
    return audit_message(sequence, **values)
