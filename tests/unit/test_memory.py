"""What glibc keeps of freed memory, and code that ran once, go back to the machine when they are asked for."""

from __future__ import annotations

import platform
import sqlite3
import sys
from pathlib import Path

import pytest

from bowerbird_agent.inference.memory import clean_file_mappings, give_back

MEGABYTE = 10**6


def resident_bytes() -> int:
    """As the kernel counts it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps memory in this way")
def test_freed_memory_below_something_that_lives_is_given_back() -> None:
    pieces = [bytearray(10_000) for _ in range(6_000)]
    living = bytearray(10_000)
    full = resident_bytes()
    pieces.clear()
    give_back()
    assert resident_bytes() < full - 30 * MEGABYTE
    assert len(living) == 10_000


def mapping(header: str, *, anonymous: int = 0, swap: int = 0) -> list[str]:
    """One mapping as the kernel tells it, shortened."""
    return [header, "Rss:  40 kB", f"Anonymous:  {anonymous} kB", f"Swap:  {swap} kB", f"SwapPss:  {swap} kB", "VmFlags: rd mr"]


CODE = "7f1000000000-7f1000100000 r-xp 00001000 fe:00 7  /usr/lib/libbig.so"
DATA = "7f1000200000-7f1000300000 rw-p 00200000 fe:00 7  /usr/lib/libbig.so"
CODE_RANGE = (0x7F1000000000, 0x7F1000100000)


def test_code_of_a_loaded_library_may_go() -> None:
    assert clean_file_mappings([*mapping(CODE), *mapping(DATA, anonymous=8)]) == [CODE_RANGE]


def test_a_range_with_pages_of_its_own_stays() -> None:
    protected = CODE.replace("r-xp", "r--p")
    assert clean_file_mappings([*mapping(protected, anonymous=4), *mapping(DATA)]) == []
    assert clean_file_mappings([*mapping(protected, swap=4), *mapping(DATA)]) == []


def test_a_library_that_is_being_loaded_stays() -> None:
    assert clean_file_mappings(mapping(CODE)) == []


def test_heap_stack_and_shared_memory_stay() -> None:
    lines = ["55d0-55e0 rw-p 00000000 00:00 0   [heap]", "7f00-7f01 r--p 0 00:00 0", "7f02-7f03 r--s 0 00:05 3  /dev/shm/ring"]
    assert clean_file_mappings([part for line in lines for part in mapping(line)]) == []


def test_a_path_with_spaces_is_one_path() -> None:
    spaced = [line.replace("libbig.so", "lib big.so (deleted)") for line in (CODE, DATA)]
    assert clean_file_mappings([*mapping(spaced[0]), *mapping(spaced[1])]) == [CODE_RANGE]


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_libraries_work_after_their_code_was_let_go() -> None:
    connection = sqlite3.connect(":memory:")
    before = resident_bytes()
    give_back(code=True)
    after = resident_bytes()
    assert connection.execute("SELECT upper(hex(randomblob(4))) IS NOT NULL").fetchone() == (1,)
    assert after < before
