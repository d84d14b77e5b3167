"""What a disk may hold after the power went, from what `fault_shim.c` has noted; and the shim itself, compiled where there is a
compiler.

In: a folder as a killed process left it, and its shadow. Out: a folder as the next boot could find it. Three disks: `strict` has
lost every name and every byte that was not fsynced; `names` has kept all names and lost the bytes (as a journal of metadata
only); `mixed` draws, a folder's names and a file's content each by itself. `python -m bowerbird_testing.power_cut OPTIONS.json`
is the process that works a spool and dies at each of its changes, one forked child after the other.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

SOURCE = Path(__file__).with_name("fault_shim.c")
Disk = Literal["strict", "names", "mixed"]
DISKS: tuple[Disk, ...] = ("strict", "names", "mixed")


def compiled_shim(folder: Path) -> Path:
    """The library; skips the test where no compiler is."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler for the LD_PRELOAD library: apt-get install gcc libc6-dev")
    library = folder / "fault_shim.so"
    argv = [
        compiler,
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-shared",
        "-fPIC",
        "-o",
        str(library),
        str(SOURCE),
        "-ldl",
        "-lpthread",
    ]
    built = subprocess.run(argv, capture_output=True, text=True, check=False)
    if built.returncode != 0 and "stdio.h" in built.stderr:
        pytest.skip("needs the C library's headers: apt-get install libc6-dev")
    assert built.returncode == 0, built.stderr
    return library


class Control:
    """The file that a running process under the shim looks at: its clock's error, and the errno of every change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._clock_offset_s, self._errno = 0, 0
        self._write()

    def set(self, *, clock_offset_s: int | None = None, error: int | None = None) -> None:
        """Change it from now on."""
        self._clock_offset_s = self._clock_offset_s if clock_offset_s is None else clock_offset_s
        self._errno = self._errno if error is None else error
        self._write()

    def _write(self) -> None:
        if not self.path.exists():
            self.path.write_bytes(bytes(16))
        with self.path.open("r+b") as file:  # in place: it is mapped
            file.write(struct.pack("<qi", self._clock_offset_s, self._errno))


def after_the_cut(root: Path, shadow: Path, into: Path, disk: Disk, dice: random.Random) -> Path:
    """The folder `root` as the next boot finds it, in `into`."""
    _restore(root.stat().st_ino, root, shadow, into, disk, dice)
    return into


def _restore(inode: int, live: Path | None, shadow: Path, into: Path, disk: Disk, dice: random.Random) -> None:
    into.mkdir(parents=True)
    here: dict[str, tuple[int, bool, Path | None]] = {}
    if live is not None:
        for entry in sorted(live.iterdir()):
            here[entry.name] = (entry.stat().st_ino, entry.is_dir(), entry)
    names = here
    if disk == "strict" or (disk == "mixed" and dice.random() < 0.5):
        noted = shadow / f"d{inode}"
        lines = noted.read_text().splitlines() if noted.exists() else []
        old = [line.split(" ", 2) for line in lines]
        alive = {number: path for number, _, path in here.values()}
        names = {name: (int(number), kind == "d", alive.get(int(number))) for number, kind, name in old}
    for name, (number, is_folder, path) in sorted(names.items()):
        target = into / name
        if is_folder:
            _restore(number, path, shadow, target, disk, dice)
        elif disk == "mixed" and path is not None and dice.random() < 0.5:
            shutil.copy(path, target)  # what was written has reached the disk, although nobody waited for it
        else:
            durable = shadow / f"i{number}"
            target.write_bytes(durable.read_bytes() if durable.exists() else b"")


def shim_environment(library: Path, *, control: Path, root: Path, shadow: Path, at: int = 0) -> dict[str, str]:
    """For a process under the shim; makes the shadow."""
    shadow.mkdir(parents=True)
    root.mkdir(parents=True, exist_ok=True)
    tests = str(Path(__file__).parents[1])
    return {
        **os.environ,
        "PYTHONPATH": tests,
        "LD_PRELOAD": str(library),
        "FAULT_CONTROL": str(control),
        "FAULT_ROOT": str(root),
        "FAULT_SHADOW": str(shadow),
        "FAULT_AT": str(at),
    }


# -- the process that dies at each change


def work_a_spool(root: Path, beside: Path) -> None:
    """Everything that a spool does, with a note outside of it of each promise, before or after as it must be."""
    from bowerbird_agent.spool.spool import MIN_SPOOL_BYTES, FrameState, Spool
    from bowerbird_testing.fault_device import captured
    from bowerbird_wire.messages import Receipt

    def note(file: str, frame_id: str) -> None:
        with (beside / file).open("ab", buffering=0) as out:
            out.write(f"{frame_id}\n".encode())

    def put(spool: Spool, number: int, state: Literal["candidate", "new"], size: int, score: float) -> str:
        header, image = captured(number, size=size, score=score)
        if spool.put(header, image, state):
            note("accepted", header.frame_id)
        return header.frame_id

    spool = Spool(root, max_bytes=MIN_SPOOL_BYTES)
    candidates = [put(spool, number, "candidate", 2000, 0.9) for number in range(3)]
    spool.promote(candidates[:2])
    new = [put(spool, number, "new", 2000, 0.9) for number in range(10, 13)]
    for frame_id in (candidates[0], new[0]):
        spool.mark_sent(frame_id)
    note("server", candidates[0])
    spool.receipt(Receipt(committed=(candidates[0],)))
    spool.drop([candidates[2]], "not_chosen")
    for number in range(20, 24):  # the third finds no room and takes it from the one before
        put(spool, number, "new", 380_000, 0.1 + number / 100)
    spool.close()
    spool = Spool(root, max_bytes=MIN_SPOOL_BYTES)
    put(spool, 30, "new", 2000, 0.9)
    spool.mark_in_doubt([frame.frame_id for frame in spool.frames(FrameState.SENT)])
    note("server", new[0])
    spool.receipt(Receipt(committed=(new[0],)))
    spool.close()


def _weaken(how: str) -> None:
    from bowerbird_agent.spool import files as spool_files

    if how == "no fsync of the file":
        synced = spool_files.FrameFiles._sync_folder

        def write(self: spool_files.FrameFiles, frame_id: str, payload: bytes, *, candidate: bool) -> None:
            path = self._path(frame_id, candidate=candidate)
            path.write_bytes(payload)
            synced(self)

        spool_files.FrameFiles.write = write  # type: ignore[method-assign]
    elif how == "no fsync of the folder":

        def not_at_all(self: spool_files.FrameFiles) -> None:
            del self

        spool_files.FrameFiles._sync_folder = not_at_all  # type: ignore[method-assign]


def main(argv: list[str]) -> None:
    """Die at change 1, 2, 3 … until the work is through without a death.

    Says the number of each on stdout and waits for a line on stdin, so that whoever looks at the folder can clear it away first.
    """
    options = json.loads(Path(argv[0]).read_text())
    base, every = Path(options["base"]), int(options["every"])
    _weaken(options["weak"])
    arm = ctypes.CDLL(None).fault_arm
    work_a_spool(base / "warm" / "spool", base / "warm")  # all is imported before the first fork
    at = int(options["first"])
    while True:
        beside = base / str(at)
        (beside / "spool").mkdir(parents=True)
        (beside / "shadow").mkdir()
        child = os.fork()
        if child == 0:
            arm(str(beside / "spool").encode(), str(beside / "shadow").encode(), ctypes.c_long(at))
            work_a_spool(beside / "spool", beside)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
            raise SystemExit(f"the work failed before change {at}")
        print(at, flush=True)
        sys.stdin.readline()
        if os.WIFEXITED(status):
            return
        at += every


if __name__ == "__main__":
    main(sys.argv[1:])
