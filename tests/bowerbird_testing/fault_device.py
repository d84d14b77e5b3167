"""A device of the fault suite: captures small frames and sends them, and writes down outside its spool what the spool has promised.

In: a spool folder, a file for the promises, a broker's address, how many frames at which pace. Out: frames at the server. As a
process of its own (`python -m bowerbird_testing.fault_device OPTIONS.json`) or forked (`work`), it is there to be killed; `life`
keeps the frames of its lives apart. The pictures are a JPEG header and noise: ingest opens none, and neither OpenCV nor NumPy has
to be loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bowerbird_agent.errors import SpoolError
from bowerbird_agent.spool.spool import Spool
from bowerbird_testing.uploading_device import uploading
from bowerbird_wire.codec import frame_id
from bowerbird_wire.messages import FrameHeader

SIDE = 64


def picture(dice: random.Random, size: int, side: int = SIDE) -> bytes:
    """A JPEG as far as its header goes, of so many bytes, that declares `side` pixels each way."""
    frame_segment = struct.pack(">HBHHB", 8 + 3, 8, side, side, 1) + b"\x01\x11\x00"
    return b"\xff\xd8\xff\xc0" + frame_segment + dice.randbytes(max(size - 20, 8))


def captured(
    sequence: int,
    *,
    device: str = "cam-01",
    camera: str = "gate",
    size: int = 2000,
    at_ms: int | None = None,
    side: int = SIDE,
    **fields: Any,
) -> tuple[FrameHeader, bytes]:
    """A frame, the same for the same arguments; `at_ms` of the wall clock, by default one that stands still."""
    image = picture(random.Random(f"{device}/{camera}/{sequence}/{size}"), size, side)
    digest = hashlib.sha256(image).hexdigest()
    when_ms = 1_790_000_000_000 + sequence * 100 if at_ms is None else at_ms
    identity = frame_id(image_sha256=digest, device=device, camera=camera, sequence=sequence, captured_at_ms=when_ms)
    values = {"score": 0.5, **fields}
    return FrameHeader(identity, digest, device, camera, sequence, when_ms, side, side, **values), image


class Promises:
    """The file of what `put` has accepted: written after it has returned, by one system call a frame, which outlives the process."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def put(self, spool: Spool, header: FrameHeader, image: bytes) -> bool:
        """Spool a frame to be sent and note that it was accepted; False where it was not."""
        if not spool.put(header, image, "new"):
            return False
        os.write(self._file, f"{header.frame_id}\n".encode())
        return True

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


@dataclass(frozen=True)
class Work:
    """What a device does in one life.

    Args:
        frames: to capture in this life; None for ever.
        every_s: between two frames.
        end_when_empty: end once all are captured and the spool is empty; else go on until killed.
        max_bytes: of the spool.
    """

    spool: str
    promises: str
    host: str
    port: int
    device: str = "cam-01"
    camera: str = "gate"
    life: int = 0
    frames: int | None = None
    every_s: float = 0.01
    size: int = 2000
    end_when_empty: bool = False
    max_bytes: int = 200_000_000
    stall_s: float | None = None


def work(order: Work, passed: Callable[[int], None] = lambda _sequence: None) -> None:
    """Capture and send; `passed` is called with the number of each frame that was captured."""
    promises = Promises(Path(order.promises))
    dice = random.Random(f"{order.device}/{order.life}")
    done = 0
    due_s = time.monotonic()
    with uploading(
        Path(order.spool),
        order.host,
        order.port,
        device=order.device,
        max_bytes=order.max_bytes,
        seed=order.life,
        stall_s=order.stall_s,
    ) as device:
        while True:
            is_capturing = order.frames is None or done < order.frames
            if is_capturing and time.monotonic() >= due_s:
                due_s += order.every_s
                sequence = order.life * 1_000_000 + done
                done += 1
                header, image = captured(
                    sequence,
                    device=order.device,
                    camera=order.camera,
                    size=order.size,
                    at_ms=int(time.time() * 1000),
                    score=dice.random(),
                )
                try:
                    promises.put(device.spool, header, image)
                except SpoolError:
                    due_s = time.monotonic() + 0.05  # refused and counted: nothing was promised
                passed(done)
            device.step(min(order.every_s, 0.05) if is_capturing else 0.05)
            device.seen.clear()
            if order.end_when_empty and not is_capturing and sum(device.spool.counts().values()) == 0:
                return


def write_order(path: Path, order: Work) -> Path:
    """The options of a process."""
    path.write_text(json.dumps(asdict(order)))
    return path


if __name__ == "__main__":
    work(Work(**json.loads(Path(sys.argv[1]).read_text())))
