"""kill -9 of a process that works a spool, at named places and at random: nothing promised is lost, nothing is doubled."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bowerbird_agent.spool.spool import FrameState, Spool
from bowerbird_testing.spool_child import KILL_AT
from bowerbird_wire.messages import Receipt

TESTS = Path(__file__).parents[1]


class Promises:
    """What the killed processes have said, over all their lives."""

    def __init__(self) -> None:
        self.put: set[str] = set()
        self.perhaps_gone: set[str] = set()
        self.done: set[str] = set()

    def hear(self, output: bytes) -> None:
        lines = output.decode().split("\n")[:-1]  # a line without its end was cut off
        for line in lines:
            word, _, frame_id = line.partition(" ")
            if word == "put":
                self.put.add(frame_id)
            elif word in ("receipt", "drop"):
                self.perhaps_gone.add(frame_id)
            elif word == "done":
                self.done.add(frame_id)

    def check(self, folder: Path) -> None:
        """Open the spool as the next start would and hold it against what was promised."""
        spool = Spool(folder, max_bytes=50_000_000)
        try:
            here = {frame.frame_id for state in FrameState for frame in spool.frames(state)}
            assert self.put - self.perhaps_gone <= here, "a frame that put() had accepted is lost"
            assert not self.done & here, "a frame with a receipt came back"
            ledger = spool.ledger()
            assert ledger.balanced, ledger
            assert not {"file_missing", "file_damaged", "index_lost"} & set(ledger.dropped), ledger
            assert len(self.done) <= ledger.committed <= len(self.perhaps_gone)
            for frame_id in here:
                assert spool.message(frame_id) is not None
            on_disk = [path.name for path in (folder / "frames").iterdir()]
            assert len(on_disk) == len(here)
            candidates = {frame.frame_id for frame in spool.frames(FrameState.CANDIDATE)}
            assert {name.partition(".")[0] for name in on_disk if name.endswith(".candidate")} == candidates
            assert spool.counts()["sent"] == 0, "what was sent before the kill is in doubt"
        finally:
            spool.close()


def start(folder: Path, seed: int, place: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "bowerbird_testing.spool_child", str(folder), str(seed), place],
        stdout=subprocess.PIPE,
        cwd=TESTS,
    )


@pytest.mark.parametrize("place", [name for name in KILL_AT if name != "in_the_middle_of_a_rebuild"])
def test_killed(place: str, tmp_path: Path) -> None:
    """The process dies at one named place, starts again, and dies there once more."""
    promises = Promises()
    for life in (1, 2):
        child = start(tmp_path / "spool", life, place)
        output, _ = child.communicate(timeout=60)
        assert child.returncode == -signal.SIGKILL, output
        promises.hear(output)
        promises.check(tmp_path / "spool")
    assert promises.put


def test_killed_in_the_middle_of_a_rebuild(tmp_path: Path) -> None:
    """The index is lost and the process that makes it again dies half-way: the next start finishes the work."""
    child = start(tmp_path / "spool", 1, "inside_the_receipts_transaction")
    output, _ = child.communicate(timeout=60)
    promises = Promises()
    promises.hear(output)
    spool = Spool(tmp_path / "spool", max_bytes=50_000_000)
    before, promoted = spool.ledger(), spool.promoted
    spool.close()
    for path in (tmp_path / "spool").glob("index.db*"):
        path.unlink()
    child = start(tmp_path / "spool", 2, "in_the_middle_of_a_rebuild")
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    again = Spool(tmp_path / "spool", max_bytes=50_000_000)
    assert again.ledger().spooled == before.spooled
    assert again.promoted == promoted
    again.close()


def test_killed_at_random(tmp_path: Path) -> None:
    """Twelve lives of random length on one folder; the account is checked after each."""
    chance = random.Random(20)
    promises = Promises()
    for life in range(1, 13):
        child = start(tmp_path / "spool", life, "random")
        assert child.stdout is not None
        first = child.stdout.readline()  # "open": from here on it works
        time.sleep(chance.uniform(0.0, 0.25))  # the length of its life, not a wait for a result
        child.kill()
        rest, _ = child.communicate(timeout=60)
        promises.hear(first + rest)
        promises.check(tmp_path / "spool")
    assert len(promises.put) > 12
    spool = Spool(tmp_path / "spool", max_bytes=50_000_000)
    here = tuple(frame.frame_id for state in FrameState for frame in spool.frames(state))
    assert spool.receipt(Receipt(committed=here)).committed == len(here)
    assert sum(spool.counts().values()) == 0
    assert spool.ledger().balanced
    spool.close()
