"""What glibc keeps of freed memory goes back to the machine when it is asked."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from bowerbird_agent.memory import give_back

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
