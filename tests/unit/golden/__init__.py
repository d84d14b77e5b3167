"""Messages of every kind whose bytes are kept beside this file: they must mean the same in every later release.

`python -m unit.golden` in `tests/` writes the files of kinds that have none yet; it never changes an existing one.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from bowerbird_wire import codec
from bowerbird_wire.histograms import CameraHour, Histograms, pack, pack_classes
from bowerbird_wire.messages import (
    REFERENCES,
    Block,
    BlockRequest,
    Boost,
    Campaign,
    Chunk,
    Credit,
    Desired,
    Fetch,
    FetchAnswer,
    FrameHeader,
    FrameMessage,
    Health,
    Job,
    Message,
    Offer,
    Receipt,
    Refusal,
    Report,
    Reported,
    Status,
    Tombstone,
    Tombstones,
    Want,
    WireDetection,
)

FOLDER = Path(__file__).parent
IMAGE = bytes(range(64))
_DIGEST = hashlib.sha256(IMAGE).hexdigest()

FRAME = FrameMessage(
    FrameHeader(
        frame_id=codec.frame_id(
            image_sha256=_DIGEST, device="cam-01", camera="gate", sequence=41, captured_at_ms=1_790_000_000_123
        ),
        image_sha256=_DIGEST,
        device="cam-01",
        camera="gate",
        sequence=41,
        captured_at_ms=1_790_000_000_123,
        width=640,
        height=360,
        quality=90,
        source_width=1920,
        source_height=1080,
        boot_id="b1",
        monotonic_ns=5_000_000_001,
        clock_ok=False,
        model_digest="ab" * 32,
        arm="explore",
        reasons=("margin", "audit"),
        score=0.5,
        strategy_scores={"margin": 0.5},
        inclusion_probability=0.25,
        detections=(WireDetection((1.5, 2.0, 30.25, 40.0), 0.75, "person"),),
        extra={"later": [1, 2]},
    ),
    IMAGE,
)

REFERENCE = replace(FRAME.header, twin="cd" * 32)  # the id does not hang on the twin

MESSAGES: dict[str, Message] = {
    "receipt": Receipt(committed=("aa" * 32,), refused=(Refusal("bb" * 32, "bad_image", "not a JPEG"),)),
    "status": Status("online", "b1", "0.1.0", "ab" * 32, 1_790_000_000_123),
    "health": Health("b1", 1_790_000_000_123, frames_seen=10, spool={"new": 2}, cameras={"gate": "ok"}, fps=9.5),
    "desired": Desired(7, 40),
    "desired-config": Desired(
        7,
        None,
        3,
        {"log": {"level": "debug"}, "cameras": {"gate": {"fps": 5}}},
        2,
        (Campaign("c1", 20, 2_000_000, 1_790_000_000_123, "person", 0.25, 0.5, cameras=("gate",), hours=("22:00-06:00 UTC",)),),
    ),
    "desired-enough": Desired(0, enough=bytes(range(40))),
    "desired-calibration": Desired(0, calibration=bytes(range(40))),
    "reported": Reported(3, 2, "refused", b"\x01\x02", ("log.level: is 'loud'",), (), 2, {"c1": (4, 90_000)}, {}, 9),
    "desired-boost": Desired(7, 40, boost=Boost(1_790_000_000_123)),
    "histograms": Histograms(
        (
            CameraHour(
                "gate",
                1_790_000_000_123,
                1_790_003_599_923,
                36_000,
                model=bytes(range(8)),
                scores=pack([0, 900, 30, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 70, 800]),
                counts=pack([35_000, 870]),
                sizes=pack([0, 0, 0, 12, 860]),
                brightness=pack([0, 0, 0, 0, 0, 0, 31_000, 4870]),
                classes=pack_classes({0: 870, 56: 2}),
                unwell={"blurred": 130},
            ),
            CameraHour("yard", 1_790_000_000_123, 1_790_000_000_123, 1, clock_ok=False),
        )
    ),
    "job": Job("j1", "cd" * 32, 3, created_at_ms=5, signature=b"\x01\x02", key_id="k"),
    "report": Report("j1", "committed", "cd" * 32, running_file_digest="ef" * 32, at_ms=9),
    "block-request": BlockRequest("metadata/timestamp.json", 2, 8, 4096),
    "chunk": Chunk(bytes(range(16)), 9000, 1, bytes(range(256)) * 16),
    "offer": Offer(bytes(range(32)), bytes(range(16)), 9000, b"\x80\x10"),
    "offer-short": Offer(bytes(range(32))),
    "answer": Receipt(
        refused=(Refusal("", "bad_block", "outside", bytes(range(16))),),
        wanted=(Want(bytes(range(32))), Want(transfer=bytes(range(16)), have=b"\x05")),
    ),
    "fetch": Receipt(fetch=(Fetch(bytes(range(16)), bytes(range(32)), "around", 3.0),), hold_s=60.0, buried=7),
    "fetched": FetchAnswer(bytes(range(16)), "refused", (bytes(range(32)),), "budget", "tomorrow"),
    "tombstones": Tombstones(
        1_790_000_000_123,
        {"spool_full.policy.0.1": 4},
        {"weaker.policy.0.9": 2},
        (Tombstone(7, bytes(range(32)), "explore", "evicted:spool_full", 0.5, 0.25, "gate", 1_790_000_000_000),),
    ),
    "credit": Credit(524_288, 1_790_000_000_123),
    "credit-references": Credit(524_288, 1_790_000_000_123, {REFERENCES: True}),
    "block": Block("metadata/timestamp.json", 0, 4096, 3, b"abc", extra={"z9": True}),
}


def encoded() -> dict[str, bytes]:
    """File name -> bytes as this release writes them."""
    files = {f"{name}.bin": codec.encode(message) for name, message in MESSAGES.items()}
    files["frame.bin"] = codec.encode_frame(FRAME)
    files["reference.bin"] = codec.encode_reference(REFERENCE)
    return files
