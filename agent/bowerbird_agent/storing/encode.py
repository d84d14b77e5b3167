"""A frame as the bytes that are stored and sent: JPEG at the sending resolution, and the header that describes it.

In: a frame, its detections and its judgement. Out: `Encoded` and a `FrameHeader` whose boxes are in pixels of the sent image. What a
camera redacts is covered first: no frame becomes bytes any other way. It writes nothing to disk.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import cv2
import numpy as np

from bowerbird_wire.codec import frame_id
from bowerbird_wire.messages import FrameHeader, Redaction, WireDetection

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from bowerbird_agent.capture.capture import Frame
    from bowerbird_agent.selection.select import Judgement
    from bowerbird_agent.storing.redaction import RedactedRegion, Redactor
    from bowerbird_agent.storing.storing_config import ImageConfig
    from bowerbird_models.detections import Detections

# What the server gets as pre-labels and for its own re-scoring; the long tail below would only cost bytes.
SENT_CONFIDENCE = 0.1
MAX_SENT_DETECTIONS = 100


@dataclass(frozen=True)
class Encoded:
    """A JPEG and its pixel size."""

    jpeg: bytes
    width: int
    height: int


def encode_image(image_bgr: NDArray[np.uint8], *, long_side: int, quality: int) -> Encoded:
    """A picture as JPEG, shrunk so that its longer side is at most `long_side` pixels; never enlarged.

    Args:
        image_bgr: (H, W, 3) uint8.
        long_side: pixels.
        quality: 1 to 100.
    """
    height, width = image_bgr.shape[:2]
    scale = long_side / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image_bgr = np.asarray(cv2.resize(image_bgr, size, interpolation=cv2.INTER_AREA), np.uint8)
    _, jpeg = cv2.imencode(".jpg", image_bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return Encoded(jpeg.tobytes(), image_bgr.shape[1], image_bgr.shape[0])


def wire_detections(
    detections: Detections, class_names: Sequence[str], *, source_wh: tuple[int, int], sent_wh: tuple[int, int]
) -> tuple[WireDetection, ...]:
    """The detections worth sending, scaled from source to sent pixels and rounded to a tenth."""
    scale = np.array([sent_wh[0] / source_wh[0], sent_wh[1] / source_wh[1]] * 2)
    kept = detections.above(SENT_CONFIDENCE)
    out = []
    for i in range(min(len(kept), MAX_SENT_DETECTIONS)):
        left, top, right, bottom = (round(float(value), 1) for value in kept.boxes_xyxy[i] * scale)
        name = class_names[int(kept.class_ids[i])]
        out.append(WireDetection((left, top, right, bottom), round(float(kept.scores[i]), 4), name))
    return tuple(out)


@dataclass(frozen=True)
class CoveredFrame:
    """A frame fit to be kept, and what is covered in it, in its own pixels."""

    frame: Frame
    regions: tuple[RedactedRegion, ...]


class FrameEncoder:
    """Turns judged frames into what the spool keeps. Thread-safe: `image_config` is replaced whole.

    Args:
        image: size and quality; `image_config` may be replaced while running, by assignment.
        device, boot_id: for headers.
        clock_ok: whether wall time may be trusted now.
        redactors: by camera, of those whose frames are redacted; may be replaced while running, by assignment.
    """

    def __init__(
        self,
        image: ImageConfig,
        *,
        device: str,
        boot_id: str,
        clock_ok: Callable[[], bool] = lambda: True,
        redactors: Mapping[str, Redactor] | None = None,
    ) -> None:
        self.image_config, self.device, self._boot_id, self._clock_ok = image, device, boot_id, clock_ok
        self.redactors: Mapping[str, Redactor] = redactors or {}

    def image(self, image_bgr: NDArray[np.uint8]) -> Encoded:
        """A picture at the sending resolution, (H, W, 3) uint8 in."""
        config = self.image_config
        return encode_image(image_bgr, long_side=config.long_side, quality=config.quality)

    def original(self, image_bgr: NDArray[np.uint8], *, quality: int) -> Encoded:
        """A picture at its own size, (H, W, 3) uint8 in: for those who ask for more than was sent."""
        return encode_image(image_bgr, long_side=max(image_bgr.shape[:2]), quality=quality)

    def covered(self, frame: Frame, detections: Detections | None, class_names: Sequence[str]) -> CoveredFrame:
        """The frame as it may be kept: itself, or a copy in which what its camera redacts is covered.

        Raises:
            RedactionError: the camera's frames are to be redacted and this one cannot be; it must not be kept.
        """
        redactor = self.redactors.get(frame.camera)
        if redactor is None:
            return CoveredFrame(frame, ())
        image, regions = redactor.apply(frame.image_bgr, detections, class_names)
        return CoveredFrame(replace(frame, image_bgr=image), regions)

    def frame(
        self,
        frame: Frame,
        judgement: Judgement,
        detections: Detections | None,
        *,
        class_names: Sequence[str],
        model_digest: str,
    ) -> tuple[FrameHeader, bytes]:
        """Header and JPEG of a frame; a few milliseconds, so only for frames that are kept.

        Args:
            detections: in source pixels, None when the model failed on it; at the redactor's confidence or lower.

        Raises:
            RedactionError: the camera's frames are to be redacted and this one cannot be; it must not be kept.
        """
        config = self.image_config
        covered = self.covered(frame, detections, class_names)
        encoded = encode_image(covered.frame.image_bgr, long_side=config.long_side, quality=config.quality)
        source_height, source_width = frame.image_bgr.shape[:2]
        sent: tuple[WireDetection, ...] = ()
        if detections is not None:
            sent = wire_detections(
                detections, class_names, source_wh=(source_width, source_height), sent_wh=(encoded.width, encoded.height)
            )
        digest = hashlib.sha256(encoded.jpeg).hexdigest()
        identity = frame_id(
            image_sha256=digest,
            device=self.device,
            camera=frame.camera,
            sequence=frame.sequence,
            captured_at_ms=frame.captured_at_ms,
        )
        header = FrameHeader(
            frame_id=identity,
            image_sha256=digest,
            device=self.device,
            camera=frame.camera,
            sequence=frame.sequence,
            captured_at_ms=frame.captured_at_ms,
            width=encoded.width,
            height=encoded.height,
            quality=config.quality,
            source_width=source_width,
            source_height=source_height,
            boot_id=self._boot_id,
            monotonic_ns=frame.monotonic_ns,
            clock_ok=self._clock_ok(),
            model_digest=model_digest,
            arm=judgement.arm,
            reasons=judgement.reasons,
            score=float(judgement.score),
            strategy_scores={name: round(float(value), 4) for name, value in judgement.strategy_scores.items()},
            inclusion_probability=float(judgement.inclusion_probability),
            detections=sent,
            redacted=wire_regions(covered.regions, (source_width, source_height), (encoded.width, encoded.height)),
            twin=judgement.twin,
        )
        return header, encoded.jpeg


def wire_regions(
    regions: Sequence[RedactedRegion], source_wh: tuple[int, int], sent_wh: tuple[int, int]
) -> tuple[Redaction, ...]:
    """Redacted regions in sent pixels, outward to whole ones, so that every covered pixel is told."""
    return tuple(
        Redaction(outward(region.box_xyxy, source_wh, sent_wh), region.class_name, region.method, round(region.score, 4))
        for region in regions
    )


def outward(
    box_xyxy: tuple[float, float, float, float], from_wh: tuple[int, int], to_wh: tuple[int, int]
) -> tuple[float, float, float, float]:
    """A box in the pixels of the same picture at another size, outward to whole ones and within its edges."""
    x, y = to_wh[0] / from_wh[0], to_wh[1] / from_wh[1]
    left, top, right, bottom = box_xyxy
    return (
        float(math.floor(left * x)),
        float(math.floor(top * y)),
        float(min(to_wh[0], math.ceil(right * x))),
        float(min(to_wh[1], math.ceil(bottom * y))),
    )
