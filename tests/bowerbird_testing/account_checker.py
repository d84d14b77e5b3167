"""Holds what devices promised against what the server has: a program of its own, with none of the product's code.

    python -I account_checker.py CASES.json

In: a list of cases, each with the spools of devices, what their `put` has accepted (`accepted`: a file of frame ids, one a line,
written outside the spool after each `put` returned), and the server's catalogue and blobs, or only the ids that an imagined
server has. Out: a line of numbers for each case on stdout, every discrepancy on stderr, and exit code 1 when there is one. The
files are read as the last process left them, also after a kill; nothing is repaired, opened for writing or imported beyond
Python's own library.

What must hold: spooled = committed + evicted + refused + dropped + still in the spool; each accepted frame is a row, in the
spool, or in a count of evicted, refused or dropped frames; nothing is dropped for a reason that the case does not name; no frame
has two rows; what the device calls committed is a row; every row has its blob and its header record; every blob has its digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sqlite3
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PREFIX = struct.Struct(">4sBI")
HEADER_RECORD = b"BWRH\x01"
COUNTED = ("evicted", "refused", "dropped")


@contextlib.contextmanager
def copied(database: Path) -> Iterator[sqlite3.Connection]:
    """A copy of an SQLite file and its log: opening the original would fold the log into it."""
    with tempfile.TemporaryDirectory() as scratch:
        for suffix in ("", "-wal"):
            source = Path(f"{database}{suffix}")
            if source.exists():
                shutil.copy(source, Path(scratch) / f"copy{suffix}")
        with contextlib.closing(sqlite3.connect(Path(scratch) / "copy")) as db:
            yield db


def frame_fault(path: Path) -> str:
    """What is wrong with a frame file, empty when nothing is."""
    data = path.read_bytes()
    if len(data) < PREFIX.size:
        return f"has {len(data)} bytes"
    magic, _, length = PREFIX.unpack_from(data)
    header, image = data[PREFIX.size : PREFIX.size + length], data[PREFIX.size + length :]
    if magic != b"BWRB":
        return "is no frame message"
    if hashlib.sha256(image).hexdigest().encode() not in header:
        return "holds an image that is not the one of its header"
    if path.name.split(".")[0].encode() not in header:
        return "is named like another frame"
    return ""


class Spool:
    """What one device's folder says."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.device: str = case["device"]
        self.faults: list[str] = []
        self.may_drop: dict[str, int | None] = case.get("may_drop", {})
        self.must_be_empty: bool = case.get("must_be_empty", False)
        accepted = Path(case["accepted"]) if case.get("accepted") else None
        text = accepted.read_text() if accepted is not None and accepted.exists() else ""
        self.accepted = set(text.split("\n")[:-1])  # a line without its end was cut off: nothing was promised
        folder = Path(case["spool"])
        self.counters: dict[str, int] = {}
        self.rows: dict[str, str] = {}
        self.settled: dict[str, str] = {}
        with copied(folder / "index.db") as db:
            # A process that was killed before its first transaction has an index without tables; what it had accepted is missing then.
            if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'counter'").fetchone():
                self.counters.update(db.execute("SELECT name, value FROM counter"))
                self.rows.update(db.execute("SELECT frame_id, state FROM frame"))
                self.settled.update(db.execute("SELECT frame_id, outcome FROM settled"))
        self.files: set[str] = set()
        for path in sorted((folder / "frames").glob("*")):
            frame_id, _, suffix = path.name.partition(".")
            if suffix in ("frame", "candidate") and (frame_id in self.rows or frame_id not in self.settled):
                self.files.add(frame_id)
                if fault := frame_fault(path):
                    self.faults.append(f"{path.name} {fault}")

    def count(self, outcome: str) -> int:
        """Frames that left this way, over all reasons."""
        return sum(
            value for name, value in self.counters.items() if name == f"spool.{outcome}" or name.startswith(f"spool.{outcome}:")
        )

    def check(self) -> None:
        """What the folder must be by itself."""
        spooled = self.counters.get("spool.spooled", 0)
        accounted = self.count("committed") + sum(map(self.count, COUNTED)) + len(self.rows)
        if spooled != accounted:
            self.faults.append(f"{spooled} frames were spooled and {accounted} are accounted for")
        for frame_id in self.rows.keys() - self.files:
            self.faults.append(f"frame {frame_id[:12]} has a row in the index and no file")
        if self.must_be_empty and (left := self.rows.keys() | self.files):
            self.faults.append(f"{len(left)} frames are still in the spool")
        dropped: dict[str, int] = {}
        for name, value in self.counters.items():
            if name.startswith("spool.dropped:"):
                reason = name.partition(":")[2].partition(".")[0]  # what follows are the frame's group and the bin of its score
                dropped[reason] = dropped.get(reason, 0) + value
        for reason in dropped.keys() | self.may_drop.keys():
            allowed = self.may_drop.get(reason, 0)
            if allowed is not None and dropped.get(reason, 0) != allowed:
                self.faults.append(f"{dropped.get(reason, 0)} frames were dropped as {reason}, not {allowed}")

    def check_accepted(self, at_server: set[str]) -> None:
        """Each accepted frame is somewhere."""
        missing = self.accepted - at_server - self.files
        counted = {frame_id for frame_id in missing if self.settled.get(frame_id) in COUNTED}
        for frame_id in {f for f in missing - counted if self.settled.get(f) == "committed"}:
            self.faults.append(f"frame {frame_id[:12]} was deleted as committed and the server does not have it")
            missing.discard(frame_id)
        # Ids are remembered for a while only, and a file that was damaged when the index was made again has none: the counts remain.
        unnamed = max(0, sum(map(self.count, COUNTED)) - sum(outcome in COUNTED for outcome in self.settled.values()))
        lost = missing - counted
        if len(lost) > unnamed:
            names = ", ".join(sorted(frame_id[:12] for frame_id in lost)[:5])
            self.faults.append(f"{len(lost) - unnamed} accepted frames are lost, among {names}")


class Server:
    """What catalogue and blobs say."""

    def __init__(self, catalogue: Path, blobs: Path) -> None:
        self.faults: list[str] = []
        self.ids: dict[str, set[str]] = {}
        # Rows first: ingest may run, and a row's blob is there before the row is.
        with contextlib.closing(sqlite3.connect(f"file:{catalogue}?mode=ro", uri=True, timeout=30)) as db:
            db.execute("BEGIN")
            if (text := db.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
                self.faults.append(f"the catalogue is damaged: {text}")
            for row in db.execute("PRAGMA foreign_key_check"):
                self.faults.append(f"a row of {row[0]} names a row of {row[2]} that is not there")
            frames = db.execute("SELECT id, device, blob, bytes FROM frame WHERE state <> 'deleted'").fetchall()
            doubles = db.execute(
                "SELECT device, camera, sequence, count(*) FROM frame WHERE device IS NOT NULL "
                "GROUP BY device, camera, sequence, captured_at HAVING count(*) > 1"
            ).fetchall()
        good, recorded = self._blobs(blobs)
        for device, camera, sequence, count in doubles:
            self.faults.append(f"frame {sequence} of camera {camera} of {device} has {count} rows")
        for frame_id, device, blob, size in frames:
            if device is not None:
                self.ids.setdefault(device, set()).add(frame_id)
                if frame_id.encode() not in recorded:
                    self.faults.append(f"frame {frame_id[:12]} has a row and no header record")
            if good.get(blob) != size:
                self.faults.append(f"frame {frame_id[:12]}: blob {blob[:12]} has {good.get(blob)} bytes, the row says {size}")

    def _blobs(self, root: Path) -> tuple[dict[str, int], set[bytes]]:
        good: dict[str, int] = {}
        recorded: set[bytes] = set()
        for path in sorted(root.glob("[0-9a-f][0-9a-f]/*")):
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != path.name:
                self.faults.append(f"blob {path.name[:12]} does not have its digest")
                continue
            good[path.name] = len(data)
            if data.startswith(HEADER_RECORD):
                # Each header holds its id as text behind the key "id" and the head of a text of 64 characters.
                recorded |= {piece[:64] for piece in data.split(b"bid\x78\x40")[1:]}
        return good, recorded


def check(case: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Numbers and discrepancies of one case."""
    server = Server(Path(case["catalogue"]), Path(case["blobs"])) if case.get("catalogue") else None
    faults = [] if server is None else server.faults
    spools = [Spool(one) for one in case["devices"]]
    totals = {"spooled": 0, "committed": 0, "evicted": 0, "refused": 0, "dropped": 0, "in_spool": 0, "accepted": 0}
    for spool in spools:
        at_server = set(case.get("server_has", ())) if server is None else server.ids.get(spool.device, set())
        spool.check()
        spool.check_accepted(at_server)
        faults += [f"{spool.device}: {fault}" for fault in spool.faults]
        totals["spooled"] += spool.counters.get("spool.spooled", 0)
        for outcome in ("committed", *COUNTED):
            totals[outcome] += spool.count(outcome)
        totals["in_spool"] += len(spool.rows)
        totals["accepted"] += len(spool.accepted)
    if server is not None:
        for device in {spool.device for spool in spools}:
            mine = [spool for spool in spools if spool.device == device]
            rows, committed = len(server.ids.get(device, ())), sum(spool.count("committed") for spool in mine)
            if rows < committed:
                faults.append(f"{device} counts {committed} frames as committed and the server has {rows}")
            if all(spool.must_be_empty and not spool.count("dropped") for spool in mine) and rows != committed:
                faults.append(f"{device} is through with {committed} committed frames and the server has {rows}")
    rows_in_all = sum(map(len, server.ids.values())) if server is not None else None
    return {"case": case.get("name", ""), **totals, "rows": rows_in_all, "discrepancies": len(faults)}, faults


def main(argv: list[str]) -> int:
    """Check every case of the file."""
    if len(argv) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    found = 0
    for case in json.loads(Path(argv[0]).read_text()):
        numbers, faults = check(case)
        print(json.dumps(numbers))
        for fault in faults:
            print(f"{numbers['case']}: {fault}", file=sys.stderr)
        found += len(faults)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
