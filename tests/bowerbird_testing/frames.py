"""Frame headers with images of random bytes: valid on the wire, no picture inside, for tests of everything that opens none."""

from __future__ import annotations

import hashlib
import random
from typing import Any

from bowerbird_wire.codec import frame_id
from bowerbird_wire.messages import FrameHeader


def make_frame(
    sequence: int = 0, *, image_bytes: int = 2000, device: str = "cam-01", camera: str = "gate", seed: int = 0, **fields: Any
) -> tuple[FrameHeader, bytes]:
    """A header that fits its image. `fields` are further fields of the header, e.g. `score=0.5, arm="explore"`."""
    image = random.Random(f"{seed}/{device}/{camera}/{sequence}").randbytes(image_bytes)
    digest = hashlib.sha256(image).hexdigest()
    captured_at_ms = 1_790_000_000_000 + sequence * 100
    return (
        FrameHeader(
            frame_id=frame_id(
                image_sha256=digest, device=device, camera=camera, sequence=sequence, captured_at_ms=captured_at_ms
            ),
            image_sha256=digest,
            device=device,
            camera=camera,
            sequence=sequence,
            captured_at_ms=captured_at_ms,
            width=640,
            height=480,
            **fields,
        ),
        image,
    )
