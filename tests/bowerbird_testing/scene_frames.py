"""Frames in a real catalogue and blob store, as if a device with a synthetic camera had sent them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2

from bowerbird_models.scenes import CLASS_NAMES, SceneStream
from bowerbird_server.blobs import LocalBlobs
from bowerbird_server.catalogue import Catalogue, fleet
from bowerbird_server.catalogue.classes import add_classes
from bowerbird_server.catalogue.frames import ArrivedFrame, add_frames
from bowerbird_server.layout import DataFolder
from bowerbird_wire.codec import frame_id
from bowerbird_wire.messages import FrameHeader, WireDetection

START_MS = 1_760_000_000_000


class SceneSite:
    """A data folder with one device, `cam-01`, whose camera `gate` films a synthetic scene."""

    device, camera = "cam-01", "gate"
    camera_id = "cam-01/gate"

    def __init__(self, root: Path, seed: int = 3, width: int = 320, height: int = 240) -> None:
        self.folder = DataFolder(root).make()
        self.stream = SceneStream(seed, width=width, height=height)
        self.cat = Catalogue(self.folder.catalogue)
        self.blobs = LocalBlobs(self.folder.blobs)
        fleet.add_device(self.cat, self.device, "demo", "test")
        add_classes(self.cat, CLASS_NAMES, "test")

    def close(self) -> None:
        self.cat.close()

    def send(
        self,
        *sequences: int,
        arm: str = "policy",
        score: float = 0.5,
        scale: float = 1.0,
        detections: tuple[WireDetection, ...] | None = None,
        image_of: int | None = None,
    ) -> list[str]:
        """Ingest frames; unless told otherwise the model saw each true object a little shifted, the last one only as a hint.

        Args:
            scale: of the sent image against the source.
            image_of: send the picture of this sequence instead of the frame's own.
        """
        ids = []
        for sequence in sequences:
            image, truth = self.stream.render(sequence if image_of is None else image_of)
            image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale != 1.0 else image
            data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
            digest = hashlib.sha256(data).hexdigest()
            at_ms = START_MS + sequence * 1000
            identity = frame_id(
                image_sha256=digest, device=self.device, camera=self.camera, sequence=sequence, captured_at_ms=at_ms
            )
            seen = detections
            if seen is None:
                last = len(truth) - 1
                seen = tuple(
                    WireDetection(
                        tuple(float(side) * scale + 2.0 for side in box),
                        0.15 if i == last else 0.8 - 0.1 * i,
                        CLASS_NAMES[class_id],
                    )
                    for i, (box, class_id) in enumerate(zip(truth.boxes_xyxy, truth.class_ids, strict=True))
                )
            header = FrameHeader(
                frame_id=identity,
                image_sha256=digest,
                device=self.device,
                camera=self.camera,
                sequence=sequence,
                captured_at_ms=at_ms,
                width=image.shape[1],
                height=image.shape[0],
                source_width=self.stream.width,
                source_height=self.stream.height,
                arm=arm,
                reasons=("entropy", "novelty"),
                score=score,
                strategy_scores={"entropy": score, "novelty": 0.4},
                inclusion_probability=0.02 if arm == "explore" else 1.0,
                detections=seen,
            )
            self.blobs.put(data)
            add_frames(self.cat, [ArrivedFrame(header, len(data))])
            ids.append(identity)
        return ids
