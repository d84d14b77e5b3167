"""Bytes that the spool has written to disk over the payload, against a bare writer of the same files.

    python benchmarks/write_amplification.py [--quick] [--folder DIR]

In: nothing; frames of 60 kB go the whole way: candidate, promoted, sent, receipt, with evictions on top. Out: `write_bytes` of
`/proc/self/io` (what this process has given the block layer) over the bytes of the messages, for the spool and for files written and
flushed in the same way without an index; as a last line of JSON the spool's (goal: at most 1.4). The folder must lie on a disk: a file
system in memory writes nothing, and the benchmark says so.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from figure import report

from bowerbird_agent.spool.files import FrameFiles
from bowerbird_agent.spool.spool import Spool
from bowerbird_testing.frames import make_frame
from bowerbird_wire.codec import encode_frame
from bowerbird_wire.messages import FrameMessage, Receipt

GOAL = 1.4
IMAGE_BYTES = 60_000
WINDOW = 20  # frames that are promoted at a time
FLUSHED = 8  # receipts come in groups


def written_bytes() -> int:
    """What this process has given the block layer so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["write_bytes"])


def through_spool(folder: Path, frames: int) -> tuple[int, int]:
    """(payload bytes, written bytes) of frames that go the whole way; the last quarter stays and the spool is full of it."""
    payload = 0
    start = written_bytes()
    spool = Spool(folder, max_bytes=max(4_000_000, frames * IMAGE_BYTES // 4))
    waiting: list[str] = []
    for number in range(frames):
        header, image = make_frame(number, image_bytes=IMAGE_BYTES, score=(number % 97) / 97)
        payload += len(encode_frame(FrameMessage(header, image)))
        spool.put(header, image)
        waiting.append(header.frame_id)
        if len(waiting) == WINDOW:
            spool.promote(waiting[: WINDOW // 2])
            spool.drop(waiting[WINDOW // 2 :], "weaker")
            for first in range(0, WINDOW // 2, FLUSHED):
                ids = [one for one in waiting[first : first + FLUSHED] if spool.mark_sent(one)]
                spool.receipt(Receipt(committed=tuple(ids)))
            waiting.clear()
    spool.close()
    os.sync()
    return payload, written_bytes() - start


def bare(folder: Path, frames: int) -> tuple[int, int]:
    """The same files, written, flushed and removed without an index."""
    payload = 0
    start = written_bytes()
    files = FrameFiles(folder)
    for number in range(frames):
        header, image = make_frame(number, image_bytes=IMAGE_BYTES)
        message = encode_frame(FrameMessage(header, image))
        payload += len(message)
        files.write(header.frame_id, message, candidate=False)
        if number % WINDOW == WINDOW - 1:
            for old in range(number - WINDOW + 1, number + 1):
                files.delete(make_frame(old, image_bytes=IMAGE_BYTES)[0].frame_id)
    os.sync()
    return payload, written_bytes() - start


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="300 frames instead of 2,000")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; a temporary one by default")
    options = parser.parse_args()
    frames = 300 if options.quick else 2000
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        ratios = {}
        for name, write in (("spool", through_spool), ("bare files", bare)):
            payload, written = write(Path(scratch) / name[:4], frames)
            if written < payload / 2:
                raise SystemExit(f"{scratch} is no disk: {written} bytes written for {payload}; name another with --folder")
            ratios[name] = written / payload
            print(f"{name:10} {written / 1e6:8.1f} MB written for {payload / 1e6:8.1f} MB: {ratios[name]:.3f}")
    details = {"frames": frames, "bare_files": round(ratios["bare files"], 4)}
    words = "bytes given to the block layer over the payload"
    return report("write_amplification", ratios["spool"], GOAL, words, at_least=False, details=details)


if __name__ == "__main__":
    sys.exit(main())
